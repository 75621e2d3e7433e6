"""Small archives shaped and named like ILSVRC2012's, to try everything on without the real ones.

The same parameters give the same bytes (with the same JPEG encoder). Nothing that exists is
ever overwritten, so a folder with real archives is safe: what was written is known by a record
of parameters, sizes and SHA-256 sums in the hidden folder beside the archives. An archive's sums
are recorded just before it gets its name. A second run therefore finds whole archives by their
sums and keeps them, makes the ones that are missing, and refuses any other file of these names.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from prep import devkit, ilsvrc
from prep.matfile import write_struct_array
from prep.sample_pictures import Draws, Purpose, class_look, draw_jpeg
from shards.durable import (
    RECORDS,
    atomic_file,
    atomic_write_bytes,
    folder_lock,
    remove_leftovers,
)
from shards.errors import ToolError, UsageError
from shards.progress import Progress

TRAIN_ARCHIVE: Final = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE: Final = "ILSVRC2012_img_val.tar"
DEVKIT_ARCHIVE: Final = "ILSVRC2012_devkit_t12.tar.gz"

RECORD: Final = "sample-data.json"
RECORD_VERSION: Final = 1

_DEVKIT_ROOT: Final = "ILSVRC2012_devkit_t12"
_MTIME: Final = 1_339_632_000  # 2012-06-14, the time of the real archives' members
_GAP: Final = 40  # numbers in a class's names are up to this far apart
_COPYING: Final = "Synthetic data: no rights are reserved in these files.\n"
_README: Final = """\
ILSVRC2012 development kit, synthetic
=====================================
Written by `imagenet-prep sample-data`: the archives beside it hold drawn patterns under the
names of real classes, none of them a photograph. data/meta.mat lists the 1000 classes with
their true ILSVRC2012_ID and WNID, without the inner nodes of the hierarchy; num_train_images
is the number of images in the sample training archive.
data/ILSVRC2012_validation_ground_truth.txt has one ILSVRC2012_ID a line, one line for each
validation image in ascending order of the images' names.
"""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What the bytes depend on, besides the JPEG encoder."""

    classes: int
    train_per_class: int
    val_per_class: int
    seed: int

    def __post_init__(self) -> None:
        """Raise UsageError for counts that no archive can have."""
        if not 1 <= self.classes <= ilsvrc.CLASSES:
            raise UsageError(f"classes must be 1 to {ilsvrc.CLASSES}, not {self.classes}")
        if self.train_per_class < 1 or self.val_per_class < 1:
            raise UsageError("every class needs at least one training and one validation image")
        if self.val_images > 99_999_999:
            raise UsageError("validation image numbers have eight digits: ask for fewer images")
        if self.seed < 0:
            raise UsageError(f"seed must not be negative, but is {self.seed}")

    @property
    def class_indices(self) -> tuple[int, ...]:
        """The chosen classes, taken evenly over the 1000."""
        return tuple(rank * ilsvrc.CLASSES // self.classes for rank in range(self.classes))

    @property
    def val_images(self) -> int:
        """Validation images of all classes."""
        return self.classes * self.val_per_class

    @property
    def images(self) -> int:
        """Images of both archives."""
        return self.classes * self.train_per_class + self.val_images


@dataclass(frozen=True, kw_only=True)
class SampleData:
    """The archives as they lie; `written` is how many of the three this call had to make."""

    train: Path
    val: Path
    devkit: Path
    classes: int
    train_images: int
    val_images: int
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
    classes: int = 10,
    train_per_class: int = 100,
    val_per_class: int = 20,
    seed: int = 0,
    progress: Progress,
) -> SampleData:
    """Make the three archives in `out`, or find them made with the same parameters.

    Raises UsageError for impossible counts, and ToolError where `out` holds sample data with
    other parameters or any file of these names that is not what was written here.
    """
    parameters = Parameters(
        classes=classes,
        train_per_class=train_per_class,
        val_per_class=val_per_class,
        seed=seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        remove_leftovers(out)
        remove_leftovers(out / RECORDS)
        whole = _read_record(out, parameters)
        missing = [name for name in _WRITERS if not _is_whole(out / name, whole.get(name))]
        if missing:
            progress.start("sample data", _images(missing, parameters), "images")
        for name in missing:
            _write_archive(out, name, parameters, whole, progress)
    return SampleData(
        train=out / TRAIN_ARCHIVE,
        val=out / VALIDATION_ARCHIVE,
        devkit=out / DEVKIT_ARCHIVE,
        classes=classes,
        train_images=classes * train_per_class,
        val_images=parameters.val_images,
        bytes=sum(entry.bytes for entry in whole.values()),
        written=len(missing),
    )


def _images(names: list[str], parameters: Parameters) -> int:
    counts = {
        TRAIN_ARCHIVE: parameters.images - parameters.val_images,
        VALIDATION_ARCHIVE: parameters.val_images,
    }
    return sum(counts.get(name, 0) for name in names)


def _read_record(out: Path, parameters: Parameters) -> dict[str, _Whole]:
    """The archives recorded as written in `out`, by name; none where there is no record."""
    path = out / RECORDS / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_bytes())
        version, made_with = record["version"], record["parameters"]
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
    if made_with != dataclasses.asdict(parameters):
        raise ToolError(
            f"{out} holds sample data made with {_spelled(made_with)}, not with "
            f"{_spelled(dataclasses.asdict(parameters))}; remove it or choose another folder"
        )
    return whole


def _spelled(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def _write_record(out: Path, parameters: Parameters, whole: Mapping[str, _Whole]) -> None:
    record = {
        "version": RECORD_VERSION,
        "parameters": dataclasses.asdict(parameters),
        "archives": {name: dataclasses.asdict(entry) for name, entry in whole.items()},
    }
    data = json.dumps(record, indent=1).encode("ascii") + b"\n"
    atomic_write_bytes(out / RECORDS / RECORD, data)


def _is_whole(path: Path, whole: _Whole | None) -> bool:
    """Whether the archive is there as recorded; raises ToolError where another file is."""
    if not path.exists() and not path.is_symlink():
        return False
    if whole is not None and path.is_file() and path.stat().st_size == whole.bytes:
        with path.open("rb") as file:
            if _sha256(file) == whole.sha256:
                return True
    raise ToolError(
        f"{path} is there but is not what sample-data wrote; remove it or choose another folder"
    )


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def _write_archive(
    out: Path, name: str, parameters: Parameters, whole: dict[str, _Whole], progress: Progress
) -> None:
    """Write one archive; its record goes to disk before its name, so a kill leaves no doubt."""
    with atomic_file(out / name) as file:
        hashed = _Hashed(file)
        _WRITERS[name](hashed, parameters, progress)
        whole[name] = _Whole(bytes=hashed.position, sha256=hashed.digest.hexdigest())
        _write_record(out, parameters, whole)


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


def _write_train(file: io.RawIOBase, parameters: Parameters, progress: Progress) -> None:
    """One uncompressed tar a class, flat, numbers ascending with gaps."""
    with _tar(file) as archive:
        for class_index in parameters.class_indices:
            wnid = ilsvrc.classes()[class_index].wnid
            inner = io.BytesIO()
            with _tar(inner) as images:
                for number in _numbers(parameters, class_index):
                    draws = Draws(parameters.seed, Purpose.TRAIN_PICTURE, class_index, number)
                    data = draw_jpeg(class_look(parameters.seed, class_index), draws)
                    _add(images, f"{wnid}_{number}.JPEG", data)
                    progress.advance(1)
            _add(archive, f"{wnid}.tar", inner.getvalue())


def _numbers(parameters: Parameters, class_index: int) -> Iterator[int]:
    """Numbers in the names of a class's training images."""
    draws = Draws(parameters.seed, Purpose.NUMBERS, class_index)
    number = 0
    for _ in range(parameters.train_per_class):
        number += 1 + draws.integer(_GAP)
        yield number


def _write_validation(file: io.RawIOBase, parameters: Parameters, progress: Progress) -> None:
    """Flat, in an order that is not that of the names."""
    labels = _validation_classes(parameters)
    order = Draws(parameters.seed, Purpose.ORDER).permutation(parameters.val_images)
    with _tar(file) as archive:
        for number in order + 1:
            draws = Draws(parameters.seed, Purpose.VALIDATION_PICTURE, int(number))
            data = draw_jpeg(class_look(parameters.seed, int(labels[number - 1])), draws)
            _add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", data)
            progress.advance(1)


def _validation_classes(parameters: Parameters) -> npt.NDArray[np.int64]:
    """Class index of every validation image in order of image number: the classes mixed."""
    labels = np.repeat(np.array(parameters.class_indices), parameters.val_per_class)
    order = Draws(parameters.seed, Purpose.LABELS).permutation(parameters.val_images)
    mixed: npt.NDArray[np.int64] = labels[order]
    return mixed


def _write_devkit(file: io.RawIOBase, parameters: Parameters, _progress: Progress) -> None:
    """The devkit's tar.gz with the members that carry meaning."""
    ids = {wnid: number for number, wnid in enumerate(ilsvrc.id_to_wnid(), start=1)}
    wnids = [cls.wnid for cls in ilsvrc.classes()]
    truth = "".join(f"{ids[wnids[label]]}\n" for label in _validation_classes(parameters))
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=_MTIME) as packed,
        _tar(packed) as archive,
    ):
        for name, data in (
            ("readme.txt", _README.encode("ascii")),
            ("COPYING", _COPYING.encode("ascii")),
            (devkit.META, _meta(parameters)),
            (devkit.GROUND_TRUTH, truth.encode("ascii")),
        ):
            _add(archive, f"{_DEVKIT_ROOT}/{name}", data)


def _meta(parameters: Parameters) -> bytes:
    """meta.mat with the 1000 classes in order of their ILSVRC2012_ID, as in the real one."""
    chosen = {ilsvrc.classes()[index].wnid for index in parameters.class_indices}
    names = {cls.wnid: cls.name for cls in ilsvrc.classes()}
    return write_struct_array(
        "synsets",
        [
            {
                "ILSVRC2012_ID": (ilsvrc_id,),
                "WNID": wnid,
                "words": names[wnid],
                "gloss": "",
                "num_children": (0,),
                "children": (),
                "wordnet_height": (0,),
                "num_train_images": (parameters.train_per_class if wnid in chosen else 0,),
            }
            for ilsvrc_id, wnid in enumerate(ilsvrc.id_to_wnid(), start=1)
        ],
    )


def _tar(file: Any) -> tarfile.TarFile:
    """A GNU tar in blocks of 10,240 bytes, the form of the official archives."""
    return tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """A regular file with the look of 2012: a person's owner and group, one date."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), _MTIME, 0o644
    info.uid, info.gid, info.uname, info.gname = 1000, 1000, "imagenet", "imagenet"
    archive.addfile(info, io.BytesIO(data))


_WRITERS: Final[dict[str, Callable[[io.RawIOBase, Parameters, Progress], None]]] = {
    TRAIN_ARCHIVE: _write_train,
    VALIDATION_ARCHIVE: _write_validation,
    DEVKIT_ARCHIVE: _write_devkit,
}
