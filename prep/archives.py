"""Archives of images, told apart by what is in them and read in place.

The training archive of ILSVRC2012 is a tar of 1000 tars. All are uncompressed, so every image is
a place in the outer file: nothing is unpacked to be found, and nothing is copied to be read.
Compressed archives (Hugging Face's, the bounding boxes, private sets) are listed by the same
code, but front to back only.
"""

from __future__ import annotations

import contextlib
import enum
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from prep.ilsvrc import ArchiveKind
from prep.inflate import Inflated, is_compressed
from prep.labels import canonical_name, class_in_name
from shards.errors import DamagedData, ToolError
from shards.tar import Bytes, FileBytes, Member, scan

SPLITS: Final = {"train": "train", "val": "val", "validation": "val", "test": "test"}
IMAGE_ENDINGS: Final = (".jpeg", ".jpg", ".png")

_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_DEVKIT = re.compile(r"ILSVRC2012_devkit_t\d+/.*")
_FLAT_SPLIT = re.compile(r"(?:test/)?ILSVRC2012_(train|val|test)_\d{8}")
_TRAIN_IMAGE = re.compile(r"n\d{8}_\d+(?:_n\d{8})?\.")
# Task 3's archive is shaped like the training archive and has 120 breeds of dogs, the synsets
# from Chihuahua to African hunting dog.
_DOGS: Final = 120
_FIRST_DOG, _LAST_DOG = "n02085620", "n02116738"
_TELLING_MEMBERS: Final = 10_000  # of which one must tell what the archive is


class Form(enum.Enum):
    """How the images of a source lie."""

    NESTED = "tar of class tars"
    FLAT_TAR = "flat tar"
    CLASS_TAR = "tar of class folders"
    CLASS_FOLDERS = "class folders"
    FLAT_FOLDER = "flat folder"
    COMPRESSED = "compressed tar"
    NO_IMAGES = "no images"  # the devkit and the bounding boxes


_TELLING: Final = (
    (_CLASS_TAR, (Form.NESTED, ArchiveKind.TRAIN, "train")),
    (re.compile(r"n\d{8}/n\d{8}_\d+\.xml"), (Form.NO_IMAGES, ArchiveKind.TRAIN_BOXES, None)),
    (
        re.compile(r"val/ILSVRC2012_val_\d{8}\.xml"),
        (Form.NO_IMAGES, ArchiveKind.VALIDATION_BOXES, None),
    ),
    (_DEVKIT, (Form.NO_IMAGES, ArchiveKind.DEVKIT, None)),
)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """What an archive is: how its files lie inside, and which published one it is shaped like.

    `kind` is None for archives that ILSVRC2012 has not published, `split` where the archive
    itself does not say.
    """

    path: Path
    form: Form
    kind: ArchiveKind | None
    split: str | None
    compressed: bool


class ArchiveImage(NamedTuple):
    """One image of an archive; `split` and `class_id` are None where the archive does not say."""

    split: str | None
    class_id: str | None
    name: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class ClassTar:
    """One inner tar of the training archive: its class, and where it lies in the outer file."""

    wnid: str
    start: int
    size: int


@contextmanager
def archive_bytes(path: Path) -> Iterator[FileBytes | Inflated]:
    """The bytes of an archive, inflated where it is compressed."""
    if is_compressed(path):
        with contextlib.closing(Inflated(path)) as inflated:
            yield inflated
        return
    with path.open("rb", buffering=0) as file:
        yield FileBytes(file.fileno())


def recognise(path: Path) -> Archive:
    """Tell what archive `path` is by its first members.

    Raises ToolError for what is missing or no file, DamagedData for what is empty, damaged or
    no archive of images.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist; give the path of an archive or folder") from None
    if not stat.S_ISREG(status.st_mode):
        raise ToolError(f"{path} is no file; give the path of an archive or folder")
    if status.st_size == 0:
        raise DamagedData(f"{path} is empty; fetch it again")
    compressed = is_compressed(path)
    with archive_bytes(path) as source:
        first = ""
        for member in islice(scan(source, path), _TELLING_MEMBERS):
            first = first or member.name
            told = _tell(member.name)
            if told is None:
                continue
            form, kind, split = told
            if kind is ArchiveKind.TRAIN and not compressed and _is_dogs(member.name, source, path):
                kind = ArchiveKind.TRAIN_DOGS
            return Archive(path=path, form=form, kind=kind, split=split, compressed=compressed)
    raise DamagedData(
        f"{path} begins with {first!r}: it is neither ILSVRC2012's training archive (a tar of "
        "nXXXXXXXX.tar), nor its validation or test archive (ILSVRC2012_val_*, ILSVRC2012_test_*), "
        "a flat tar whose names carry their class (nXXXXXXXX_*.JPEG), a tar of class folders "
        "(CLASS/*.jpg), the devkit or the bounding boxes"
    )


def _tell(name: str) -> tuple[Form, ArchiveKind | None, str | None] | None:
    """What an archive is that holds a member of this name; None if the name does not tell."""
    for pattern, told in _TELLING:
        if pattern.fullmatch(name):
            return told
    return _tell_images(name) if is_image(name) else None


def _tell_images(name: str) -> tuple[Form, ArchiveKind | None, str | None] | None:
    """What an archive is that holds an image of this name."""
    flat = _FLAT_SPLIT.match(name)
    if flat:
        published = {"val": ArchiveKind.VALIDATION, "test": ArchiveKind.TEST}
        kind = None if class_in_name(name) else published.get(flat[1])
        return Form.FLAT_TAR, kind, flat[1]
    if "/" in name:
        place = _place_in_folders(name)
        return None if place is None else (Form.CLASS_TAR, None, place[0])
    if class_in_name(name) is None:
        return None
    return Form.FLAT_TAR, None, "train" if _TRAIN_IMAGE.match(name) else None


def _is_dogs(first: str, source: Bytes, path: Path) -> bool:
    """Whether a tar of class tars is task 3's: exactly its 120 breeds and no other class."""
    if not _FIRST_DOG <= first <= f"{_LAST_DOG}.tar":
        return False
    names = {member.name.removesuffix(".tar") for member in scan(source, path)}
    return len(names) == _DOGS and all(_FIRST_DOG <= name <= _LAST_DOG for name in names)


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and it is not hidden."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_ENDINGS) and not base.startswith(".")


def list_images(archive: Archive, source: Bytes, ignored: list[str]) -> Iterator[ArchiveImage]:
    """The images of an archive in its order; names of members that are none go to `ignored`.

    Raises DamagedData for names that are there twice (or differ in case alone, which some file
    systems take for the same) and for folders where none should be.
    """
    path = archive.path
    if archive.form is Form.NESTED:
        for tar in class_tars(source, path):
            for member in class_images(source, path, tar):
                yield ArchiveImage("train", tar.wnid, *member)
    elif archive.form is Form.FLAT_TAR:
        seen: set[str] = set()
        for member in flat_images(source, path):
            class_id = class_in_name(member.name)
            name = canonical_name(member.name)
            _refuse_twice(name, seen, path)
            yield ArchiveImage(archive.split, class_id, name, member.offset, member.size)
    else:
        yield from _in_folders(source, path, ignored)


def list_files(archive: Archive, source: Bytes) -> Iterator[Member]:
    """The files of the devkit or of the bounding boxes, in the archive's order.

    Raises DamagedData for names that are there twice, and for what a devkit has beside its folder.
    """
    seen: set[str] = set()
    for member in scan(source, archive.path):
        if archive.kind is ArchiveKind.DEVKIT and not _DEVKIT.match(member.name):
            raise DamagedData(f"{archive.path}: member {member.name!r} is no part of a devkit")
        _refuse_twice(member.name, seen, archive.path)
        yield member


def class_tars(source: Bytes, path: Path) -> Iterator[ClassTar]:
    """The inner tars of a training archive, in the archive's order."""
    found: set[str] = set()
    for member in scan(source, path):
        match = _CLASS_TAR.fullmatch(member.name)
        if match is None:
            raise DamagedData(f"{path}: member {member.name!r} is no class archive nXXXXXXXX.tar")
        _refuse_twice(member.name, found, path)
        yield ClassTar(wnid=match[1], start=member.offset, size=member.size)


def class_images(source: Bytes, path: Path, tar: ClassTar) -> Iterator[Member]:
    """The images of one inner tar; their places are in the outer file."""
    inside = Path(f"{path}:{tar.wnid}.tar")
    return _flat(scan(source, inside, tar.start, tar.start + tar.size), inside)


def flat_images(source: Bytes, path: Path) -> Iterator[Member]:
    """The images of the validation or test archive, in the archive's order."""
    members = scan(source, path)
    return _flat((each._replace(name=each.name.removeprefix("test/")) for each in members), path)


def _flat(members: Iterator[Member], path: Path) -> Iterator[Member]:
    """Pass on members that are plain, visible file names and all different."""
    seen: set[str] = set()
    for member in members:
        if "/" in member.name:
            raise DamagedData(f"{path}: member {member.name!r} lies in a folder; refused")
        if member.name.startswith("."):
            raise DamagedData(f"{path}: member {member.name!r} is a hidden file; refused")
        if member.name.lower().endswith(".tar"):
            raise DamagedData(f"{path}: member {member.name!r} is a tar, no image; refused")
        _refuse_twice(member.name, seen, path)
        yield member


def _refuse_twice(name: str, seen: set[str], path: Path) -> None:
    """Refuse a name that was seen before, in whatever case."""
    folded = name.casefold()
    if folded in seen:
        raise DamagedData(f"{path}: member {name!r} is there twice (names differ by case at most)")
    seen.add(folded)


def _in_folders(source: Bytes, path: Path, ignored: list[str]) -> Iterator[ArchiveImage]:
    """Images of `[ANYTHING/][SPLIT/]CLASS/NAME`, or flat in a split's folder."""
    seen: set[str] = set()
    folders: dict[str, str] = {}
    for member in scan(source, path):
        if not is_image(member.name):
            ignored.append(member.name)
            continue
        place = _place_in_folders(member.name)
        if place is None:
            raise DamagedData(
                f"{path}: member {member.name!r} lies in no class folder; expected "
                "CLASS/NAME, train/CLASS/NAME or val/NAME"
            )
        split, class_id = place
        name = member.name.rsplit("/", 1)[-1]
        class_id = class_id or class_in_name(name)
        folder = f"{split}/{class_id}"
        if folders.setdefault(folder.casefold(), folder) != folder:
            raise DamagedData(
                f"{path}: member {member.name!r} lies in a folder that differs by case alone "
                f"from {folders[folder.casefold()]!r}"
            )
        _refuse_twice(f"{folder}/{canonical_name(name)}", seen, path)
        yield ArchiveImage(split, class_id, canonical_name(name), member.offset, member.size)


def _place_in_folders(name: str) -> tuple[str | None, str | None] | None:
    """Split and class that a member's folders say; None where it lies in no such place."""
    folders = name.split("/")[:-1]
    if any(folder.startswith(".") for folder in folders):
        return None
    for number, folder in enumerate(folders):
        if folder in SPLITS:
            below = folders[number + 1 :]
            if len(below) > 1:
                return None
            return SPLITS[folder], below[0] if below else None
    return (None, folders[-1]) if folders else None
