"""A split in folders, listed: its images, and whatever else lies there, by name.

One folder a job, names and sizes alone: 1.28 million files take 10 s when they are cached.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from prep.archives import SPLITS, Form, is_image
from prep.labels import class_in_name
from prep.sources import KAGGLE_ROOTS
from shards.durable import TEMPORARY_PREFIX
from shards.parallel import Stop, run_jobs
from shards.progress import Progress

# Where Kaggle's tree has train/, val/ and test/, from whichever folder of it one starts.
_SPLIT_OF_NAME: Final = {
    "ILSVRC2012_trai": "train",
    "ILSVRC2012_val_": "val",
    "ILSVRC2012_test": "test",
}


class TreeFile(NamedTuple):
    """An image of a tree: its folder (position in `Tree.folders`), name and bytes."""

    folder: int
    name: str
    size: int


class Place(NamedTuple):
    """A folder that holds a split; which one where its name says so."""

    path: Path
    split: str | None


@dataclass(kw_only=True)
class Tree:
    """The images of a split.

    `folders` begins with the split's own; the others are its class folders, by name. `strays` are
    paths of what is no image, `findings` sentences about what cannot stay as it is.
    """

    path: Path
    split: str | None
    folders: list[Path]
    files: list[TreeFile] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    leftovers: int = 0  # temporary files of a killed extraction
    findings: list[str] = field(default_factory=list)

    @property
    def form(self) -> Form:
        """How the images lie."""
        return Form.CLASS_FOLDERS if len(self.folders) > 1 else Form.FLAT_FOLDER

    def class_of(self, file: TreeFile) -> str | None:
        """The class that an image's folder says, or that its name carries in a flat one.

        Raises DamagedData for a name that carries two.
        """
        return self.folders[file.folder].name if file.folder else class_in_name(file.name)

    def path_of(self, file: TreeFile) -> str:
        """The whole path of an image."""
        return f"{self.folders[file.folder]}/{file.name}"


@dataclass(kw_only=True)
class _Folder:
    """What was found in one folder; files by the place of their inode on the disk."""

    files: list[tuple[int, str, int]] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    leftovers: int = 0
    findings: list[str] = field(default_factory=list)


def find_places(path: Path) -> list[Place]:
    """The folders with images that `path` is or holds: its splits, Kaggle's, or itself; or none.

    Beside a split with images, one that is empty is a place as well.
    """
    for root in KAGGLE_ROOTS:
        if (path / root).is_dir():
            return find_places(path / root)
    splits = [Place(path / name, split) for name, split in SPLITS.items() if (path / name).is_dir()]
    if any(_holds_images(each.path) for each in splits):
        return [each for each in splits if _holds_images(each.path) or not _holds_files(each.path)]
    return [Place(path, SPLITS.get(path.name))] if _holds_images(path) else []


def _holds_images(path: Path) -> bool:
    """Whether images lie in a folder, or right in one of its folders."""
    inside = []
    for entry in _visible(path):
        if is_image(entry.name):
            return True
        if entry.is_dir():
            inside.append(entry.path)
    return any(is_image(entry.name) for each in inside for entry in _visible(each))


def _holds_files(path: Path) -> bool:
    return any(not entry.is_dir() for entry in _visible(path))


def _visible(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder; nothing of one that may not be read, of which listing it will tell."""
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def list_tree(place: Place, *, workers: int, progress: Progress) -> Tree:
    """List a split's folder and its class folders."""
    with os.scandir(place.path) as entries:
        names = [each.name for each in entries if each.is_dir() and not each.name.startswith(".")]
    strange = [name for name in names if not name.isprintable()]
    tree = Tree(
        path=place.path,
        split=place.split,
        folders=[place.path, *(place.path / name for name in sorted(set(names) - set(strange)))],
        findings=[_unprintable(place.path, "a folder", name) for name in strange],
    )
    progress.start(f"listing {place.path}", len(tree.folders), "folders")

    def look(number: int, stop: Stop) -> tuple[int, _Folder]:
        stop.check()
        found = _list(tree.folders[number], is_root=number == 0)
        progress.advance(1)
        return number, found

    listed = dict(run_jobs(look, range(len(tree.folders)), workers))
    for number in range(len(tree.folders)):
        _add(tree, number, listed.pop(number))
    if not tree.files:
        tree.findings.append(f"{tree.path} holds no images")
    elif tree.split is None:
        tree.split = _split_of(tree.files[0].name)
    return tree


def _add(tree: Tree, number: int, found: _Folder) -> None:
    """Take what was found in a folder; in the order of inodes, files are read without seeking."""
    tree.files += [TreeFile(number, name, size) for _, name, size in sorted(found.files)]
    tree.strays += found.strays
    tree.leftovers += found.leftovers
    tree.findings += found.findings
    if number and not found.files and not found.findings:
        tree.findings.append(f"{tree.folders[number]} holds no images")
    if not number and len(tree.folders) > 1:
        tree.findings += [
            f"{tree.folders[0]}/{name} lies beside the class folders, in none of them"
            for _, name, _ in sorted(found.files, key=lambda each: each[1])
        ]


def _split_of(name: str) -> str | None:
    """The split that an image's name tells; a training image is named for its class."""
    return _SPLIT_OF_NAME.get(name[:15]) or ("train" if class_in_name(name) else None)


def _list(folder: Path, *, is_root: bool) -> _Folder:
    found = _Folder()
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if is_root and entry.is_dir():
                    continue
                _take(found, entry)
    except OSError as error:
        found.findings.append(f"{folder} cannot be listed ({os.strerror(error.errno or 0)})")
    return found


def _take(found: _Folder, entry: os.DirEntry[str]) -> None:
    """Sort one entry of a folder into images, strays and what is wrong."""
    name = entry.name
    if name.startswith("."):
        found.leftovers += name.startswith(TEMPORARY_PREFIX)
        return
    if not name.isprintable():
        found.findings.append(_unprintable(Path(entry.path).parent, "a file", name))
    elif not is_image(name):
        found.strays.append(entry.path)
    elif entry.is_file():
        found.files.append((entry.inode(), name, entry.stat().st_size))
    else:
        found.findings.append(f"{entry.path} is {_kind(entry)}, no image")


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_dir():
        return "a folder"
    return "a link that leads nowhere" if entry.is_symlink() else "no regular file"


def _unprintable(folder: Path, what: str, name: str) -> str:
    return (
        f"{folder} holds {what} whose name is no printable UTF-8, {os.fsencode(name)!r}; rename it"
    )
