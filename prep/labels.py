"""Which class a validation image has, and which index a class has.

Labels come from a file the user names, else from Kaggle's solution or a devkit archive beside the
images, else, for the official validation images alone, from the table that ships with the
package. Nothing that merely looks like the official archive is given its labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from prep import ilsvrc
from prep.devkit import read_devkit
from prep.ilsvrc import ARCHIVES, ArchiveKind
from shards.durable import named
from shards.errors import DamagedData, ToolError
from shards.hashing import hash_file
from shards.progress import Progress
from shards.sample import Class
from shards.tar import BLOCK, padding, trailer

_CLASS_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_KAGGLE_HEADER = ["ImageId", "PredictionString"]
_KAGGLE_LABELS = "LOC_val_solution.csv"
_KAGGLE_DEPTH = 4  # ILSVRC/Data/CLS-LOC/val lies so many folders below it
# x_y.JPEG is image y of synset x (the devkit's readme.txt); Hugging Face appends _x to any name.
_SUFFIXED = re.compile(r"(.+)_(n\d{8})(\.\w+)")
_PREFIXED = re.compile(r"(n\d{8})_.+\.\w+")
_LARGEST_FILE = 64 << 20  # bytes; 50,000 lines take 2 MB


@dataclass(frozen=True, kw_only=True)
class ImageLabels:
    """Class ids of images by file name without its ending, and where they were read."""

    origin: str
    by_stem: Mapping[str, str]

    def __post_init__(self) -> None:
        for class_id in set(self.by_stem.values()):
            if not _CLASS_ID.fullmatch(class_id):
                raise DamagedData(
                    f"{self.origin}: {class_id!r} cannot be a class: it names folders"
                )

    def digest(self) -> str:
        """A digest of the labels, whatever file they were read from."""
        return xxhash.xxh3_128_hexdigest(repr(sorted(self.by_stem.items())).encode())

    def class_of(self, name: str) -> str:
        """The class id of an image. Raises ToolError where there is none."""
        stem = name.rsplit(".", 1)[0]
        if stem not in self.by_stem:
            raise ToolError(
                f"{self.origin} has no label for the image {name} (it has "
                f"{len(self.by_stem)}); it belongs to other images: pass the right one by --labels"
            )
        return self.by_stem[stem]


def class_in_name(name: str) -> str | None:
    """The wnid that the file name of an image carries, as training images and Hugging Face's do.

    Raises DamagedData where it carries two that differ.
    """
    suffixed, prefixed = _SUFFIXED.fullmatch(name), _PREFIXED.fullmatch(name)
    if suffixed and prefixed and suffixed[2] != prefixed[1]:
        raise DamagedData(f"the name {name!r} carries two classes, {prefixed[1]} and {suffixed[2]}")
    if suffixed:
        return suffixed[2]
    return prefixed[1] if prefixed else None


def canonical_name(name: str) -> str:
    """The name that ILSVRC2012 gave an image: without Hugging Face's suffix."""
    suffixed = _SUFFIXED.fullmatch(name)
    return suffixed[1] + suffixed[3] if suffixed else name


def read_labels(path: Path) -> ImageLabels:
    """Read labels from a devkit archive, Kaggle's LOC_val_solution.csv, or a text file.

    A text file has lines of `IMAGE-NAME CLASS`, or one class a line in order of image number.
    """
    try:
        with named(path), path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist; --labels needs a file of labels") from None
    if data[:2] == b"\x1f\x8b":
        return _numbered(str(path), read_devkit(path).validation_wnids())
    if len(data) > _LARGEST_FILE:
        raise DamagedData(f"{path} is too large for a file of labels ({_LARGEST_FILE} bytes)")
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise DamagedData(f"{path} is neither a devkit archive nor text") from None
    return _parse_lines(str(path), [line.strip() for line in lines if line.strip()])


def _parse_lines(origin: str, lines: list[str]) -> ImageLabels:
    if not lines:
        raise DamagedData(f"{origin} holds no labels")
    if lines[0].split(",") == _KAGGLE_HEADER:
        # ImageId,CLASS X Y X Y ...: the first word after the comma is the label.
        return _named(origin, [line.replace(",", " ", 1).split()[:2] for line in lines[1:]])
    rows = [line.split() for line in lines]
    if {len(row) for row in rows} != {1}:
        return _named(origin, rows)
    if all(line.isdecimal() for line in lines):
        raise DamagedData(
            f"{origin} holds numbers: if they are the devkit's ground truth, give the whole "
            "devkit archive, which says what they mean"
        )
    return _numbered(origin, lines)


def _named(origin: str, rows: list[list[str]]) -> ImageLabels:
    """Labels from rows of an image's name and its class."""
    if not rows or {len(row) for row in rows} != {2}:
        raise DamagedData(
            f"{origin} is no file of labels: expected lines of `IMAGE-NAME CLASS`, one class a "
            f"line, or the header {','.join(_KAGGLE_HEADER)}"
        )
    by_stem: dict[str, str] = {}
    for name, class_id in rows:
        stem = name.rsplit(".", 1)[0]
        if by_stem.setdefault(stem, class_id) != class_id:
            raise DamagedData(f"{origin} has two labels for the image {name}")
    return ImageLabels(origin=origin, by_stem=by_stem)


def _numbered(origin: str, wnids: Iterable[str]) -> ImageLabels:
    """Labels in order of image number, from 1."""
    by_stem = {f"ILSVRC2012_val_{n:08d}": wnid for n, wnid in enumerate(wnids, 1)}
    return ImageLabels(origin=origin, by_stem=by_stem)


def find_labels(
    place: Path, sizes: Mapping[str, int] | None, given: Path | None, progress: Progress
) -> ImageLabels:
    """Labels for validation images: given by hand, from a file beside them, or built in.

    `place` is their archive, or their folder; then `sizes` are the bytes of all of them by name.
    The built-in table is used where size and MD5 say that this is the official archive, or names
    and sizes that a folder holds what was in it.
    """
    if given is not None:
        return read_labels(given)
    beside = labels_beside(place)
    if beside is not None:
        return read_labels(beside)
    if sizes is None:
        official = is_official(place, ArchiveKind.VALIDATION, progress)
    else:
        official = is_official_set(sizes)
    if official:
        return built_in_labels()
    raise ToolError(
        f"{place} does not hold the official validation images, all and alone, and neither a "
        f"devkit nor {_KAGGLE_LABELS} lies beside it, so the images have no labels; pass --labels "
        f"FILE (a devkit archive, {_KAGGLE_LABELS}, or lines of `IMAGE-NAME WNID`)"
    )


def labels_beside(place: Path) -> Path | None:
    """Kaggle's solution in one of the folders above, or a devkit archive in the next one."""
    place = place.absolute()
    for folder in (place, *place.parents)[: _KAGGLE_DEPTH + 1]:
        if (folder / _KAGGLE_LABELS).is_file():
            return folder / _KAGGLE_LABELS
    folders = (place, place.parent) if place.is_dir() else (place.parent,)
    devkits = [each for folder in folders for each in sorted(folder.glob("[!.]*devkit*.tar.gz"))]
    return devkits[0] if devkits else None


def built_in_labels() -> ImageLabels:
    """The labels of the official validation images."""
    classes = ilsvrc.classes()
    wnids = [classes[label].wnid for label in ilsvrc.validation_labels()]
    return _numbered("the built-in table", wnids)


def is_official_set(sizes: Mapping[str, int]) -> bool:
    """Whether files, by name and bytes, are what the official validation archive holds.

    A tar is as long as its members' sizes make it, so 50,000 files of the right names that would
    not fill an archive of the published size are not its members.
    """
    published = next(each for each in ARCHIVES if each.kind is ArchiveKind.VALIDATION)
    if len(sizes) != ilsvrc.VALIDATION_IMAGES:
        return False
    numbers = range(1, ilsvrc.VALIDATION_IMAGES + 1)
    if not all(f"ILSVRC2012_val_{number:08d}.JPEG" in sizes for number in numbers):
        return False
    members = sum(BLOCK + size + padding(size) for size in sizes.values())
    return members + len(trailer(members)) == published.bytes


def is_official(path: Path, kind: ArchiveKind, progress: Progress) -> bool:
    """Whether a file is the published archive of that kind, by its size and then its MD5."""
    published = next(each for each in ARCHIVES if each.kind is kind)
    size = path.stat().st_size
    if size != published.bytes:
        return False
    progress.start(f"MD5 of {path.name}", size, "bytes")
    return hash_file(path, "md5", progress.advance)[1] == published.md5


def read_classes(path: Path) -> tuple[str, ...]:
    """A class list: one class id a line (anything after it is ignored), in the order of labels."""
    try:
        with named(path):
            lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist; --classes needs a file of class ids") from None
    except UnicodeDecodeError:
        raise DamagedData(f"{path} is no text file; --classes needs one class id a line") from None
    ids = tuple(line.split()[0] for line in lines if line.strip())
    if not ids or len(set(ids)) != len(ids):
        raise DamagedData(f"{path} must list each class once; it has {len(ids)} lines")
    return ids


def class_list(found: set[str], given: Path | Sequence[Class] | None) -> tuple[Class, ...]:
    """The classes in the order of their indices: sorted ids.

    ILSVRC2012's 1000 when all are there, else what was found, else what `given` lists or is.
    Raises ToolError where it lists none of what was found.
    """
    if given is not None and not isinstance(given, Path):
        return tuple(given)
    names = {each.wnid: each.name for each in ilsvrc.classes()}
    if given is not None:
        ids = read_classes(given)
        if found and not found & set(ids):
            raise ToolError(
                f"{given} lists none of the classes that were found ({min(found)!r} is one)"
            )
        return tuple(Class(each, names.get(each, each)) for each in ids)
    return tuple(Class(each, names.get(each, each)) for each in sorted(found))


def note_numbering(found: Sequence[Class], progress: Progress) -> None:
    """Tell the user of a command with `--classes` where labels are not ILSVRC2012's."""
    if found and {each.id for each in found} != {each.wnid for each in ilsvrc.classes()}:
        progress.note(
            f"{len(found)} classes found, not ILSVRC2012's 1000: labels are positions in their "
            "sorted list (--classes FILE gives another list)"
        )
