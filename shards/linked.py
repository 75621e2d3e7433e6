"""Folders of links: tars as they lie, wherever that is, made a split that every reader here opens.

For each tar there is a symbolic link of plain name, and beside them the index, the sums and the
manifest that our own shards have. So a manifest leads nowhere but to the links that the user's own
command made, and nothing that reads a split needs to know where its bytes come from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from shards.columns import read_columns, write_columns
from shards.contents import Contents, Step
from shards.durable import (
    RECORDS,
    atomic_file,
    atomic_write_bytes,
    identity,
    remove_leftovers,
    sync_folder,
)
from shards.errors import DamagedData, ToolError
from shards.hashing import hash_file
from shards.index import INDEX_NAME, SHARDS_LAYOUT, Index, make_header
from shards.links import ENDINGS, Link
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest, Skipped, check_sizes
from shards.parallel import Stop, run_jobs
from shards.plan import FORMAT_VERSION, canonical_json, fingerprint
from shards.progress import Progress
from shards.sample import Class

LAYOUT: Final = "foreign"  # of an index whose tars are not of this tool's making


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Source:
    """A tar or class folder that is to be read, and in which split's folder that is noted.

    `asked` is all that the result depends on besides the tar. `bytes` is how much there is to read
    in a folder; what is noted of one is kept, so that it is not read again for a change in another.
    """

    folder: Path
    path: Path
    asked: Mapping[str, object]
    read: Callable[[Path, Step], Contents]
    bytes: int | None = None

    @property
    def record(self) -> Path:
        """Where a killed run finds what was read of this tar, if it is still the same."""
        told = canonical_json(
            [FORMAT_VERSION, str(self.path), identity(self.path), dict(self.asked)]
        )
        notes = _records(self.folder) if self.bytes is None else _lasting_records(self.folder)
        return notes / hashlib.sha256(told).hexdigest()[:32]

    @property
    def size(self) -> int:
        """How many bytes are to be read."""
        return self.path.stat().st_size if self.bytes is None else self.bytes


def _records(folder: Path) -> Path:
    return folder / RECORDS / "index"


def _lasting_records(folder: Path) -> Path:
    return folder / RECORDS / "folders"


def begin(folder: Path) -> None:
    """Mark a split as begun; `write_split` takes the mark away."""
    _records(folder).mkdir(parents=True, exist_ok=True)


def forget_others(folder: Path, sources: Sequence[Source]) -> None:
    """Remove what is noted of class folders as they were before, or that are given no more."""
    wanted = {source.record for source in sources}
    for path in _lasting_records(folder).iterdir():
        if path not in wanted:
            path.unlink()


def read_all(sources: Sequence[Source], *, workers: int, progress: Progress) -> list[Contents]:
    """Read tars side by side, each once; what a killed run has read is not read again.

    Raises DamagedData as `read` does, and for a tar that changes while it is read.
    """
    sizes = [source.size for source in sources]
    progress.start("indexing", sum(sizes), "bytes")
    found: dict[int, Contents] = {}
    for number, source in enumerate(sources):
        with contextlib.suppress(FileNotFoundError, DamagedData, KeyError, ValueError):
            found[number] = _read_record(source.record)
            progress.advance(sizes[number])

    def read(number: int, stop: Stop) -> tuple[int, Contents]:
        def step(count: int) -> None:
            stop.check()
            progress.advance(count)

        return number, _read(sources[number], step)

    # The largest first, so that none is left to one thread at the end.
    missing = sorted(set(range(len(sources))) - set(found), key=lambda each: -sizes[each])
    found |= dict(run_jobs(read, missing, workers))
    return [found[number] for number in range(len(sources))]


def _read(source: Source, step: Step) -> Contents:
    before, record = identity(source.path), source.record
    contents = source.read(source.path, step)
    if identity(source.path) != before:
        raise DamagedData(
            f"{source.path} changed while it was read; wait until it is complete and run the same "
            "command"
        )
    told = {
        "bytes": str(contents.bytes),
        "sha256": contents.sha256,
        "skipped": json.dumps(contents.skipped),
        "ignored": json.dumps(contents.ignored),
    }
    with atomic_file(record) as file:
        write_columns(file, contents.columns, told)
    return contents


def _read_record(path: Path) -> Contents:
    columns, told = read_columns(path)
    count, first = json.loads(told["ignored"])
    return Contents(
        bytes=int(told["bytes"]),
        sha256=told["sha256"],
        columns=columns,
        skipped=tuple(Skipped(*each) for each in json.loads(told["skipped"])),
        ignored=(count, first),
    )


# --- writing ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split that is to be linked and indexed: its links, and what was found behind them.

    `keys` are those of all samples, in the order of the links and of each tar. `claim` is a digest
    of all that the result follows from, by which an unchanged one is known again.
    """

    name: str
    folder: Path
    links: Sequence[Link]
    contents: Sequence[Contents]
    keys: npt.NDArray[np.bytes_]
    classes: tuple[Class, ...]
    claim: str
    layout: str = LAYOUT


def claim_of(links: Sequence[Link], asked: Mapping[str, object]) -> str:
    """A digest of what a split is to be made of: its tars as they are now, and what was asked."""
    tars = [[link.name, str(link.target), identity(link.target)] for link in links]
    return hashlib.sha256(canonical_json([FORMAT_VERSION, tars, dict(asked)])).hexdigest()


def whole_split(folder: Path, links: Sequence[Link], claim: str) -> Manifest | None:
    """The manifest of a split that was made by the same claim and is whole by its sizes."""
    try:
        if _claim(folder).read_text("ascii") != claim:
            return None
        manifest = Manifest.read(folder)
    except (OSError, ToolError, UnicodeDecodeError):
        return None
    linked = all(_leads(folder, link) for link in links)
    sums = folder / SUMS_NAME
    if not linked or check_sizes(folder, manifest.files()) or not sums.is_file():
        return None
    return manifest


def is_linked(folder: Path) -> bool:
    """Whether a folder has the records of an index: of a finished one, or of one that was begun."""
    return _claim(folder).is_file() or _records(folder).is_dir()


def _claim(folder: Path) -> Path:
    return folder / RECORDS / "indexed"


def _leads(folder: Path, link: Link) -> bool:
    """Whether a link is there, or not needed, since its tar lies in the folder itself."""
    path = folder / link.name
    inside = link.target == folder.resolve() / link.name
    return inside or (path.is_symlink() and path.readlink() == link.target)


def write_split(split: Split) -> Manifest:
    """Link the tars and write index, sums and manifest. Call under the folder's lock.

    Raises ToolError where the folder holds other tars, or shards of our own.
    """
    folder = split.folder
    if not len(split.keys):
        raise ToolError(f"{split.links[0].target} holds no image that could be used")
    files = tuple(
        File(name=link.name, bytes=each.bytes, sha256=each.sha256, samples=len(each))
        for link, each in zip(split.links, split.contents, strict=True)
    )
    if split.layout == LAYOUT:
        _refuse_same(split.links, split.contents)
    stale = check_folder(folder, split.links)
    remove_leftovers(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # from here on the folder is unfinished
    for path in stale:
        path.unlink()
    for link in split.links:
        if not _leads(folder, link):
            (folder / link.name).unlink(missing_ok=True)  # a link: check_folder has looked
            (folder / link.name).symlink_to(link.target)
    sync_folder(folder)
    index = _index(split)
    with atomic_file(folder / INDEX_NAME) as file:
        index.write(file)
    manifest = _manifest(split, index, files)
    atomic_write_bytes(folder / SUMS_NAME, manifest.sums())
    atomic_write_bytes(folder / MANIFEST_NAME, manifest.to_bytes())
    atomic_write_bytes(_claim(folder), split.claim.encode("ascii"))
    shutil.rmtree(_records(folder), ignore_errors=True)
    return manifest


def check_folder(folder: Path, links: Sequence[Link]) -> list[Path]:
    """The links of an earlier index in the folder that are not wanted any more.

    Raises ToolError where the folder holds tars that are neither wanted nor such links.
    """
    earlier = _linked_earlier(folder)
    wanted = {link.name: link for link in links}
    inside = {link.target for link in links}
    stale = []
    for path in sorted(each for ending in ENDINGS for each in folder.glob(f"*{ending}")):
        if path.is_symlink() and path.name in wanted:
            continue
        if folder.resolve() / path.name in inside:
            continue
        if not path.is_symlink() or path.name not in earlier:
            raise ToolError(
                f"{folder} holds {path.name}, which is not among the tars and folders that were "
                "given; remove it or choose another --out"
            )
        stale.append(path)
    return stale


def _linked_earlier(folder: Path) -> set[str]:
    """Names of the links that an earlier index made; what is damaged of it is written again."""
    names: set[str] = set()
    layouts: set[object] = set()
    with contextlib.suppress(ToolError):
        manifest = Manifest.read(folder)
        layouts.add(manifest.layout)
        names = {shard.name for shard in manifest.shards}
    with contextlib.suppress(FileNotFoundError, ToolError):
        layouts.add(Index.read(folder / INDEX_NAME).header.get("layout"))
    if SHARDS_LAYOUT in layouts:
        raise ToolError(
            f"{folder} holds shards that `imagenet-prep shard` wrote, with an index of their own; "
            "choose another --out"
        )
    return names


def _refuse_same(links: Sequence[Link], contents: Sequence[Contents]) -> None:
    seen: dict[str, Link] = {}
    for link, each in zip(links, contents, strict=True):
        other = seen.setdefault(each.sha256, link)
        if other is not link:
            raise ToolError(
                f"{other.target} and {link.target} have the same bytes, so every sample would be "
                "there twice; give one of them"
            )


def _described(split: Split, columns: dict[str, npt.NDArray[np.generic]]) -> dict[str, object]:
    """What stands as `plan` in index and manifest."""
    described: dict[str, object] = {
        "version": FORMAT_VERSION,
        "split": split.name,
        "samples": len(split.keys),
        "layout": split.layout,
        "classes": [each.id for each in split.classes],
    }
    order = np.argsort(columns["rank"])
    digest = fingerprint(
        described,
        columns["key"][order].astype(np.bytes_),
        columns["label"][order].astype(np.int32),
        columns["size"][order].astype(np.uint64),
    )
    return {**described, "fingerprint": digest}


def _index(split: Split) -> Index:
    parts = [each.columns for each in split.contents]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    del columns["number"]
    ranks = np.empty(len(split.keys), np.uint32)
    ranks[np.argsort(split.keys, kind="stable")] = np.arange(len(split.keys))
    columns |= {
        "key": split.keys,
        "rank": ranks,
        "shard": np.repeat(np.arange(len(parts), dtype=np.uint32), list(map(len, split.contents))),
    }
    header = make_header(
        split=split.name,
        layout=split.layout,
        files=[link.name for link in split.links],
        classes=split.classes,
        plan=_described(split, columns),
        skipped=[each._asdict() for each in _skipped(split)],
        kept=None,
    )
    return Index(header=header, columns=columns)


def _skipped(split: Split) -> Iterator[Skipped]:
    for each in split.contents:
        yield from each.skipped


def _manifest(split: Split, index: Index, files: tuple[File, ...]) -> Manifest:
    size, sha256 = hash_file(split.folder / INDEX_NAME)
    return Manifest(
        split=split.name,
        samples=len(index),
        classes=split.classes,
        plan=index.header["plan"],
        content=index.content_digest(),
        index=File(name=INDEX_NAME, bytes=size, sha256=sha256, samples=len(index)),
        shards=files,
        skipped=tuple(_skipped(split)),
    )
