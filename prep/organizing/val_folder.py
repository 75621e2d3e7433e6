"""What lies in a folder of validation images: flat, in class folders, half done, or mixed up.

One look at the names; no image is opened. Links are never followed, and what is no validation
image is kept as a stray with what it is.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from prep.archives import IMAGE_ENDINGS, SPLITS
from prep.labels import canonical_name
from shards.errors import ToolError, UsageError
from shards.progress import Progress

WNID: Final = re.compile(r"n[0-9]{8}")
_IMAGE = re.compile(r"ILSVRC2012_val_[0-9]{8}\.(?i:jpe?g|png)")
# Where a data set keeps its validation images: the usual two names, and Kaggle's tree.
_INSIDE: Final = ("val", "validation", "CLS-LOC/val", "Data/CLS-LOC/val", "ILSVRC/Data/CLS-LOC/val")


class ImageFile(NamedTuple):
    """A file with a validation image's name; `folder` is "" where it lies flat."""

    folder: str
    name: str
    size: int

    @property
    def path(self) -> str:
        """Its path beneath the validation folder."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


@dataclass(frozen=True, kw_only=True)
class LeftAlone:
    """Something that stays where it is: its path beneath the validation folder, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        shown = self.path if self.path.isprintable() else ascii(self.path)
        return f"{shown}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Stray(LeftAlone):
    """What is no validation image.

    `disturbs`: whether torchvision's ImageFolder, and readers like it, would take it for data.
    """

    disturbs: bool


@dataclass(kw_only=True)
class ValidationFolder:
    """The files of every image by the name that ILSVRC2012 gave it, and all else."""

    path: Path
    images: dict[str, list[ImageFile]] = field(default_factory=lambda: defaultdict(list))
    # What the folders are where no image belongs into them, and the paths of what is no image.
    folders: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    _strays: dict[str, list[Stray]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def look(cls, path: Path) -> ValidationFolder:
        """List a folder and the folders in it. Raises ToolError where every image is a link."""
        found = cls(path=path)
        for entry in _entries(path):
            if not entry.is_dir(follow_symlinks=False):
                found._add("", entry)
            elif entry.name.startswith("."):
                hidden = Stray(path=entry.name, reason="a hidden folder", disturbs=True)
                found._strays[""].append(hidden)
            else:
                found._look_into(entry.name)
        if not found.images:
            raise ToolError(
                f"{path} holds no validation image that is a file of its own; where they are "
                "symbolic links, organise the folder that these point into"
            )
        return found

    def _look_into(self, folder: str) -> None:
        self.folders[folder] = "a folder without validation images"
        try:
            entries = _entries(self.path / folder)
        except PermissionError:
            if WNID.fullmatch(folder):
                raise
            self.folders[folder] = "a folder that may not be read"  # such as lost+found
            return
        if not entries:
            self.folders[folder] = "an empty folder"
        for entry in entries:
            self._add(folder, entry)

    def _add(self, folder: str, entry: os.DirEntry[str]) -> None:
        name, is_image = entry.name, is_validation_image(entry.name)
        if is_image and entry.is_file(follow_symlinks=False):
            size = entry.stat(follow_symlinks=False).st_size
            self.images[canonical_name(name)].append(ImageFile(folder, name, size))
            return
        disturbs = _leads_to_folder(entry) or (
            bool(folder) and not is_image and name.lower().endswith(IMAGE_ENDINGS)
        )
        path = f"{folder}/{name}" if folder else name
        self.others.add(path)
        self._strays[folder].append(Stray(path=path, reason=_kind(entry), disturbs=disturbs))

    def strays(self, used: Iterable[str]) -> Iterator[Stray]:
        """What is no validation image; of a folder without any, the folder alone.

        `used` are the folders that images belong into.
        """
        holding = {file.folder for files in self.images.values() for file in files} | set(used)
        yield from self._strays[""]
        for folder, kind in self.folders.items():
            if folder in holding:
                yield from self._strays[folder]
            else:
                yield Stray(path=folder, reason=kind, disturbs=True)


def find_validation_folder(path: Path, progress: Progress) -> Path:
    """The folder of validation images that `path` is, or the only one that lies in it.

    Raises ToolError where there is none, UsageError where there are several.
    """
    if not path.exists():
        raise ToolError(f"{path} does not exist; give the folder of the validation images")
    if not path.is_dir():
        raise UsageError(
            f"{path} is no folder; `imagenet-prep extract {path} --out DIR` puts the images of an "
            "archive straight into class folders"
        )
    if _holds_images(path):
        return path
    inside = [path / each for each in _INSIDE if (path / each).is_dir()]
    inside = [each for each in inside if _holds_images(each)]
    if len(inside) == 1:
        progress.note(f"the validation images of {path} are in {inside[0]}")
        return inside[0]
    if inside:
        raise UsageError(
            f"{path} holds several folders of validation images; give one of them: "
            + ", ".join(map(str, inside))
        )
    raise ToolError(
        f"{path} holds no validation images; looked for ILSVRC2012_val_*.JPEG in it, in its "
        f"folders, and in {', '.join(_INSIDE)}. From ILSVRC2012_img_val.tar, `imagenet-prep "
        "extract` makes class folders at once"
    )


def is_validation_image(name: str) -> bool:
    """Whether a name is that of a validation image, as ILSVRC2012 or Hugging Face has it."""
    return name.startswith("ILSVRC2012_val_") and bool(_IMAGE.fullmatch(canonical_name(name)))


def _holds_images(path: Path) -> bool:
    """Whether validation images, or links, lie in a folder or in one of its class folders."""
    for entry in _entries(path):
        if not entry.is_dir(follow_symlinks=False):
            if is_validation_image(entry.name):
                return True
        elif entry.name not in SPLITS:
            with contextlib.suppress(PermissionError):
                if any(is_validation_image(each.name) for each in _entries(Path(entry))):
                    return True
    return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in one order whatever the file system's is."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda each: each.name)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a reader that follows links finds a folder; not where a link leads nowhere."""
    with contextlib.suppress(OSError):
        return entry.is_dir()
    return False


def _kind(entry: os.DirEntry[str]) -> str:
    """What a stray is, in words."""
    if entry.is_symlink():
        return "a symbolic link"
    if entry.is_dir():
        return "a folder"
    if not entry.is_file():
        return "no regular file"
    return "a hidden file" if entry.name.startswith(".") else "no validation image"
