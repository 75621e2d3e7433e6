"""The manifest says what a split is and proves it. A split without one is unfinished.

It is written last. It holds no dates, paths or machine names, so the same plan gives the same
manifest, and its own digest, so a change by hand is noticed. File names in it are hostile until
checked: none may lead out of the folder. FORMAT.md gives the schema.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shards.durable import RECORDS
from shards.errors import DamagedData, ToolError
from shards.index import FOLDERS_LAYOUT, INDEX_NAME, SHARDS_LAYOUT
from shards.plan import canonical_json
from shards.sample import Class

MANIFEST_NAME = "manifest.json"
SUMS_NAME = "SHA256SUMS"
MANIFEST_FORMAT = "imagenet-resnet.manifest"
MANIFEST_VERSION = 1

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "`imagenet-prep verify {} --repair` makes it again"


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the split: plain name, length in bytes, SHA-256 (hex), samples in it.

    Of class folders bytes are those of all images, and the SHA-256 is of a list (FORMAT.md).
    """

    name: str
    bytes: int
    sha256: str
    samples: int


class Skipped(NamedTuple):
    """A sample that was left out, and why."""

    key: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in manifest.json.

    `extras` are files for other readers. `skipped` are samples of the plan that could not be
    stored and were left out on request; `kept` counts images that an encoder of the plan was not
    to change or could not.
    """

    split: str
    samples: int
    classes: tuple[Class, ...]
    plan: dict[str, Any]  # Plan.describe() and "fingerprint"
    content: str  # Index.content_digest(): the identity of the data
    index: File
    shards: tuple[File, ...]
    extras: tuple[File, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    kept: int | None = None  # None where images are stored as they are

    def to_bytes(self) -> bytes:
        """The file's bytes; equal manifests give equal bytes."""
        body: dict[str, object] = {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            "split": self.split,
            "samples": self.samples,
            "classes": [each._asdict() for each in self.classes],
            "plan": json.loads(canonical_json(self.plan)),  # its keys sorted
            "content": self.content,
            "index": _file_to_json(self.index),
            "shards": [_file_to_json(shard) for shard in self.shards],
            "extras": [_file_to_json(extra) for extra in self.extras],
            "skipped": [each._asdict() for each in self.skipped],
            "kept": self.kept,
        }
        body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
        return (json.dumps(body, indent=1, ensure_ascii=True) + "\n").encode("ascii")

    @property
    def layout(self) -> str:
        """What the shards are: our own, tars of others, or class folders (see FORMAT.md)."""
        return str(self.plan.get("layout", SHARDS_LAYOUT))

    @property
    def is_loose(self) -> bool:
        """Whether the shards are class folders, and each sample a file of its own."""
        return self.layout == FOLDERS_LAYOUT

    def files(self) -> tuple[File, ...]:
        """Everything the manifest vouches for that is a file right in the folder."""
        return (*(() if self.is_loose else self.shards), self.index, *self.extras)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def sums(self) -> bytes:
        """SHA256SUMS over every other file of the folder, as `sha256sum -c` takes it."""
        lines = [f"{file.sha256}  {file.name}\n" for file in self.files()]
        lines.append(f"{self.sha256}  {MANIFEST_NAME}\n")
        return "".join(sorted(lines, key=lambda line: line[66:])).encode("ascii")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check a folder's manifest.

        Raises ToolError when there is none, DamagedData when it was altered.
        """
        path = folder / MANIFEST_NAME
        try:
            body = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ToolError(_missing(folder)) from None
        except (ValueError, RecursionError):
            raise DamagedData(f"{path} is no JSON; {_REMEDY.format(folder)}") from None
        _check_identity(body, path)
        try:
            return _from_json(body)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamagedData(f"{path} is damaged: {error}; {_REMEDY.format(folder)}") from None


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder of shards: it does not exist"
    if (folder / RECORDS / "shards").is_dir():
        return f"{folder} is unfinished; run the `imagenet-prep shard` command that began it again"
    if (folder / RECORDS / "index").is_dir():
        return f"{folder} is unfinished; run the `imagenet-prep index` command that began it again"
    if any(folder.glob("*.tar")):
        return (
            f"{folder} holds tars but no {MANIFEST_NAME}; for shards of this tool "
            f"{_REMEDY.format(folder)}, for others `imagenet-prep index` makes one"
        )
    return f"{folder} holds no shards; make them with `imagenet-prep shard`"


class OtherVersion(DamagedData):
    """A manifest that is whole, and of a version that this tool does not read."""


def _check_identity(body: object, path: Path) -> None:
    if not isinstance(body, dict) or body.get("format") != MANIFEST_FORMAT:
        raise DamagedData(f"{path} is not a manifest of this tool")
    claimed = body.pop("sha256", None)
    if claimed != hashlib.sha256(canonical_json(body)).hexdigest():
        raise DamagedData(
            f"{path} was altered after it was written (its own digest does not fit); "
            f"{_REMEDY.format(path.parent)}"
        )
    if body.get("version") != MANIFEST_VERSION:
        raise OtherVersion(
            f"{path} is of version {body.get('version')}, this tool reads version "
            f"{MANIFEST_VERSION}: write the shards again with this tool or update it"
        )


def _from_json(body: dict[str, Any]) -> Manifest:
    return Manifest(
        split=str(body["split"]),
        samples=int(body["samples"]),
        classes=tuple(Class(str(each["id"]), str(each["name"])) for each in body["classes"]),
        plan=dict(body["plan"]),
        content=str(body["content"]),
        index=_index_from_json(body["index"]),
        shards=tuple(map(_file_from_json, body["shards"])),
        extras=tuple(map(_file_from_json, body["extras"])),
        skipped=tuple(
            Skipped(str(each["key"]), str(each["name"]), str(each["reason"]))
            for each in body["skipped"]
        ),
        kept=None if body["kept"] is None else int(body["kept"]),
    )


def _index_from_json(entry: dict[str, Any]) -> File:
    file = _file_from_json(entry)
    if file.name != INDEX_NAME:
        raise ValueError(f"the index is called {file.name!r} instead of {INDEX_NAME}")
    return file


def _file_to_json(file: File) -> dict[str, object]:
    return {
        "name": file.name, "bytes": file.bytes, "samples": file.samples, "sha256": file.sha256
    }  # fmt: skip


def _file_from_json(entry: dict[str, Any]) -> File:
    file = File(
        name=str(entry["name"]),
        bytes=int(entry["bytes"]),
        samples=int(entry["samples"]),
        sha256=str(entry["sha256"]),
    )
    check_file_name(file.name)
    if not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"{file.sha256!r} is no SHA-256")
    return file


def check_file_name(name: str) -> str:
    """The name, if it can only be that of a file right in its folder; else ValueError."""
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"the file name {name!r} could lead out of the folder")
    return name


def check_sizes(folder: Path, files: Iterable[File]) -> dict[str, str]:
    """What is missing or of the wrong length: a sentence for each such file, by its name."""
    findings = {}
    for file in files:
        path = folder / file.name
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            findings[file.name] = f"{path} is missing{_lost_target(path)}"
            continue
        if found != file.bytes:
            findings[file.name] = f"{path} has {found} bytes instead of {file.bytes}"
    return findings


def _lost_target(path: Path) -> str:
    """Where a link leads whose tar is not there any more, and what to do."""
    if not path.is_symlink():
        return ""
    return (
        f": it is a link to {path.readlink()}, which is not there; put that back, or run "
        "`imagenet-prep index` again on the tar where it lies now"
    )
