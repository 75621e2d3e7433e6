"""Archives shaped and named like ILSVRC2012's, to try everything on without the real ones.

The same parameters give the same bytes (with the same JPEG encoder). Nothing that exists is
ever overwritten, so a folder with real archives is safe: what was written is known by a record
of parameters, sizes and SHA-256 sums in the hidden folder beside the archives. An archive's sums
are recorded just before it gets its name. A second run therefore finds whole archives by their
sums and keeps them, makes the ones that are missing, and refuses any other file of these names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from prep.sample.archives import write_devkit, write_train, write_validation
from prep.sample.plan import Plan, full_scale_plan, small_plan
from prep.sample.quirks import Quirk
from shards.durable import (
    RECORDS,
    atomic_file,
    atomic_write_bytes,
    folder_lock,
    remove_leftovers,
)
from shards.errors import ToolError, UsageError
from shards.hashing import hash_file
from shards.progress import Progress

TRAIN_ARCHIVE: Final = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE: Final = "ILSVRC2012_img_val.tar"
DEVKIT_ARCHIVE: Final = "ILSVRC2012_devkit_t12.tar.gz"

RECORD: Final = "sample-data.json"
RECORD_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class SampleData:
    """The archives as they lie.

    `quirks` are the odd training images by name; `written` is how many of the three archives
    this call had to make.
    """

    train: Path
    val: Path
    devkit: Path
    classes: int
    train_images: int
    val_images: int
    quirks: Mapping[str, Quirk]
    bytes: int
    written: int


@dataclass(frozen=True, kw_only=True)
class _Whole:
    """How an archive is known to be whole."""

    bytes: int
    sha256: str


def write_sample_data(
    out: Path,
    *,
    classes: int | None = None,
    train_per_class: int | None = None,
    val_per_class: int | None = None,
    seed: int = 0,
    quirks: bool = False,
    full_scale: bool = False,
    progress: Progress,
) -> SampleData:
    """Make the three archives in `out`, or find them made with the same parameters.

    By default 10 classes of 100 training and 20 validation images. Full scale has ILSVRC2012's
    own counts, and tiny pictures; with `quirks` some training images are odd as real ones are.

    Raises UsageError for impossible or contradicting counts, and ToolError where `out` holds
    sample data with other parameters or any file of these names that is not what was written here.
    """
    counts = (classes, train_per_class, val_per_class)
    if not full_scale:
        plan = small_plan(
            classes=10 if classes is None else classes,
            train_per_class=100 if train_per_class is None else train_per_class,
            val_per_class=20 if val_per_class is None else val_per_class,
            seed=seed,
            quirks=quirks,
        )
    elif counts == (None, None, None):
        plan = full_scale_plan(seed=seed, quirks=quirks)
    else:
        raise UsageError(
            "full scale has ILSVRC2012's own numbers of classes and images: leave out "
            "--full-scale, or --classes, --train-per-class and --val-per-class"
        )
    return write_plan(out, plan, progress=progress)


def write_plan(out: Path, plan: Plan, *, progress: Progress) -> SampleData:
    """Make the three archives of a plan in `out`, as `write_sample_data` does."""
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        remove_leftovers(out)
        remove_leftovers(out / RECORDS)
        whole = _read_record(out, plan)
        missing = [name for name in _WRITERS if not _is_whole(out / name, whole.get(name))]
        if missing:
            images = {TRAIN_ARCHIVE: plan.train_images, VALIDATION_ARCHIVE: plan.val_images}
            total = sum(images.get(name, 0) for name in missing)
            progress.start("sample data", total, "images")
        for name in missing:
            _write_archive(out, name, plan, whole, progress)
    return SampleData(
        train=out / TRAIN_ARCHIVE,
        val=out / VALIDATION_ARCHIVE,
        devkit=out / DEVKIT_ARCHIVE,
        classes=len(plan.train_counts),
        train_images=plan.train_images,
        val_images=plan.val_images,
        quirks=plan.quirks,
        bytes=sum(entry.bytes for entry in whole.values()),
        written=len(missing),
    )


def _read_record(out: Path, plan: Plan) -> dict[str, _Whole]:
    """The archives recorded as written in `out`, by name; none where there is no record."""
    path = out / RECORDS / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_bytes())
        version, made_with = record["version"], dict(record["parameters"])
        whole = {
            name: _Whole(bytes=int(entry["bytes"]), sha256=str(entry["sha256"]))
            for name, entry in record["archives"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ToolError(f"{path} is damaged; remove {out} or choose another folder") from None
    if version != RECORD_VERSION:
        raise ToolError(
            f"{path} has version {version}, this program writes {RECORD_VERSION}; "
            f"remove {out} or choose another folder"
        )
    if made_with != plan.parameters:
        raise ToolError(
            f"{out} holds sample data made with {_spelled(made_with)}, not with "
            f"{_spelled(plan.parameters)}; remove it or choose another folder"
        )
    return whole


def _spelled(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def _write_record(out: Path, plan: Plan, whole: Mapping[str, _Whole]) -> None:
    record = {
        "version": RECORD_VERSION,
        "parameters": dict(plan.parameters),
        "archives": {name: dataclasses.asdict(entry) for name, entry in whole.items()},
    }
    data = json.dumps(record, indent=1).encode("ascii") + b"\n"
    atomic_write_bytes(out / RECORDS / RECORD, data)


def _is_whole(path: Path, whole: _Whole | None) -> bool:
    """Whether the archive is there as recorded; raises ToolError where another file is."""
    if not path.exists() and not path.is_symlink():
        return False
    if whole is not None and path.is_file() and path.stat().st_size == whole.bytes:
        _, digest = hash_file(path)
        if digest == whole.sha256:
            return True
    raise ToolError(
        f"{path} is there but is not what sample-data wrote; remove it or choose another folder"
    )


def _write_archive(
    out: Path, name: str, plan: Plan, whole: dict[str, _Whole], progress: Progress
) -> None:
    """Write one archive; its record goes to disk before its name, so a kill leaves no doubt."""
    with atomic_file(out / name) as file:
        hashed = _Hashed(file)
        _WRITERS[name](hashed, plan, progress)
        whole[name] = _Whole(bytes=hashed.position, sha256=hashed.digest.hexdigest())
        _write_record(out, plan, whole)


class _Hashed(io.RawIOBase):
    """Passes bytes on to a file and digests them on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position


_WRITERS: Final[dict[str, Callable[[io.RawIOBase, Plan, Progress], None]]] = {
    TRAIN_ARCHIVE: write_train,
    VALIDATION_ARCHIVE: write_validation,
    DEVKIT_ARCHIVE: write_devkit,
}
