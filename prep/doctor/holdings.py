"""What lies in a folder of data: archives, folders of images, shards; found without reading it.

Names, sizes, the first members of archives and the manifests of shards are looked at, in the
folder and the folders right in it, so the answer takes a moment on a terabyte too. Whether the
bytes are right is for `imagenet-prep verify`.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from prep.archives import SPLITS, Form, is_image, recognise
from prep.ilsvrc import ARCHIVES, ArchiveKind
from prep.sources import find_sources
from prep.wholeness import why_unfinished
from shards.durable import RECORDS
from shards.errors import ToolError, UsageError
from shards.index import SHARDS_LAYOUT
from shards.linked import is_linked
from shards.loose import lost_folders
from shards.manifest import MANIFEST_NAME, Manifest, check_sizes

_ENTRIES: Final = 200_000  # of a folder that are looked at: more than validation images in one
_FOLDERS: Final = 64  # that are looked into
_TARS: Final = 64  # of a folder that are looked into; where there are more, they are shards
_COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_PUBLISHED_NAMES: Final = {each.name: each for each in ARCHIVES}


class State(enum.Enum):
    """How whole an archive looks."""

    PUBLISHED = "has the published size"
    WHOLE = "is whole; its size was not published"
    OTHER = "is whole, but not of the published size"
    UNFINISHED = "is not whole"
    COMPRESSED = "is compressed and was not looked into"
    STRANGE = "is no archive of images"
    UNREADABLE = "cannot be read"


@dataclass(frozen=True, kw_only=True)
class HeldArchive:
    """An archive that was found; `why` says what is wrong where something is."""

    path: Path
    kind: ArchiveKind | None  # which published archive it is, or has the name of
    split: str | None
    bytes: int
    state: State
    why: str = ""

    @property
    def published(self) -> int | None:
        """The size of the published archive of this kind, where it is known."""
        return next((each.bytes for each in ARCHIVES if each.kind is self.kind), None)

    @property
    def usable(self) -> bool:
        """Whether shards of a split can be made of it; the dogs of task 3 are part of no split."""
        whole = self.state in (State.PUBLISHED, State.WHOLE, State.OTHER)
        return whole and self.split is not None and self.kind is not ArchiveKind.TRAIN_DOGS


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A split that lies in folders; `classes` is None where all images are in one."""

    split: str
    path: Path
    classes: int | None


@dataclass(frozen=True, kw_only=True)
class HeldShards:
    """A split in shards; `damage` says what is wrong with them. Unfinished ones have no number.

    `linked` where they are tars as they lie, which `imagenet-prep index` linked, or `loose` where
    they are class folders that it did.
    """

    split: str
    path: Path
    samples: int
    shards: int
    bytes: int  # of the tars that are there
    finished: bool
    linked: bool
    loose: bool = False
    damage: str = ""


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """All that was found in a folder.

    `unnamed` is a folder of classes that does not say which split it is; `refused` says why
    another folder of images was not taken.
    """

    archives: tuple[HeldArchive, ...] = ()
    trees: tuple[Tree, ...] = ()
    shards: tuple[HeldShards, ...] = ()
    unnamed: Path | None = None
    refused: str = ""

    def __add__(self, other: Holdings) -> Holdings:
        return Holdings(
            archives=self.archives + other.archives,
            trees=self.trees + tuple(each for each in other.trees if each not in self.trees),
            shards=self.shards + other.shards,
            unnamed=self.unnamed,
            refused=self.refused,
        )

    def without_strangers(self) -> Holdings:
        """The same but for archives of others, which lie in any folder."""
        known = (each for each in self.archives if each.usable or each.kind is not None)
        return replace(self, archives=tuple(known), unnamed=None, refused="")


def find_holdings(path: Path) -> Holdings:
    """What lies at `path`: one archive, a folder with any of it, or nothing yet."""
    if not path.is_dir():
        return Holdings(archives=(held_archive(path),) if path.is_file() else ())
    if (path / MANIFEST_NAME).is_file():  # one split; the others lie beside it
        path = path.parent
    found = _look(path)
    if found.unnamed or found.refused or any(tree.path == path for tree in found.trees):
        return found  # its folders are classes
    folders = (each for each in _folders(_entries(path)) if each.name not in SPLITS)
    for folder in islice(folders, _FOLDERS):
        found += _look(folder).without_strangers()
    return found


def _look(folder: Path) -> Holdings:
    """What lies in one folder, and in its train/, val/ and test/."""
    entries = _entries(folder)
    places = [folder, *_folders(each for each in entries if each.name in SPLITS)]
    shards = tuple(held for place in places if (held := _shards(place)) is not None)
    archives = [each for each in entries if each.name.endswith((".tar", *_COMPRESSED))]
    if shards and shards[0].path == folder:
        archives = []
    found = _trees(places[1:] if archives else [folder])
    return replace(found, archives=tuple(_archives(archives)), shards=shards)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Visible entries of a folder by name; none of a folder that may not be listed."""
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        visible = (each for each in entries if not each.name.startswith("."))
        return sorted(islice(visible, _ENTRIES), key=lambda each: each.name)
    return []


def _folders(entries: Iterable[os.DirEntry[str]]) -> list[Path]:
    return [Path(each.path) for each in entries if each.is_dir()]


# --- archives ---------------------------------------------------------------------------------


def _archives(entries: Iterable[os.DirEntry[str]]) -> Iterator[HeldArchive]:
    strangers = 0
    for entry in entries:
        published = entry.name in _PUBLISHED_NAMES
        strangers += not published
        if (published or strangers <= _TARS) and entry.is_file():
            yield held_archive(Path(entry.path))


def held_archive(path: Path) -> HeldArchive:
    """An archive as its name, its size, its first members and its last bytes show it."""
    named = _PUBLISHED_NAMES.get(path.name)
    held = HeldArchive(
        path=path,
        kind=None if named is None else named.kind,
        split=None,
        bytes=path.stat().st_size,
        state=State.COMPRESSED,
    )
    if named is None and path.name.endswith(_COMPRESSED):
        return held
    try:
        return _judged(held)
    except ToolError as error:
        return replace(held, state=State.STRANGE, why=str(error))
    except OSError as error:
        return replace(held, state=State.UNREADABLE, why=os.strerror(error.errno or 0))


def _judged(held: HeldArchive) -> HeldArchive:
    missing = why_unfinished(held.path, is_tar=False)
    if missing:
        return replace(held, state=State.UNFINISHED, why=missing)
    found = recognise(held.path)
    held = replace(held, kind=found.kind, split=found.split)
    if held.bytes == held.published:
        return replace(held, state=State.PUBLISHED)
    unended = why_unfinished(held.path, is_tar=not found.compressed)
    if unended:
        return replace(held, state=State.UNFINISHED, why=unended)
    return replace(held, state=State.WHOLE if held.published is None else State.OTHER)


# --- folders ----------------------------------------------------------------------------------


def _trees(places: Iterable[Path]) -> Holdings:
    """Splits that lie in folders, and the folder of images that was not taken, if one was."""
    trees: list[Tree] = []
    for place in places:
        try:
            sources = find_sources([place], SPLITS.get(place.name))
        except UsageError as error:
            if _holds_classes(place):
                return _refusal(place, str(error))
            continue
        except (ToolError, PermissionError):
            continue
        for source in sources:
            nested = source.form is Form.CLASS_FOLDERS
            if not nested or _holds_classes(source.path):
                classes = len(_folders(_entries(source.path))) if nested else None
                trees.append(Tree(split=source.split, path=source.path, classes=classes))
    return Holdings(trees=tuple(trees))


def _refusal(place: Path, why: str) -> Holdings:
    """Why a folder of classes was not taken: most often the name of its split alone is missing."""
    try:
        find_sources([place], "train")
    except ToolError:
        return Holdings(refused=why)
    return Holdings(unnamed=place)


def _holds_classes(folder: Path) -> bool:
    """Whether the first folder in it has images; any other kind of folder looks the same."""
    first = next(iter(_folders(_entries(folder))), None)
    return first is not None and any(is_image(each.name) for each in _entries(first))


def _shards(folder: Path) -> HeldShards | None:
    """The shards in a folder as their manifest and the sizes of the files say; None for none."""
    finished = (folder / MANIFEST_NAME).is_file()
    linked, loose = is_linked(folder), False
    if not finished and not linked and not (folder / RECORDS / "shards").is_dir():
        return None
    tars = [each for each in _entries(folder) if each.name.endswith(".tar")]
    # Of tars that are indexed as they lie there are links, which may lead nowhere any more.
    size = sum(each.stat().st_size for each in tars if each.is_file())
    split, samples, count, damage = SPLITS.get(folder.name, folder.name), 0, len(tars), ""
    if finished:
        try:
            manifest = Manifest.read(folder)
        except ToolError as error:
            damage = str(error)
        else:
            split, samples, count = manifest.split, manifest.samples, len(manifest.shards)
            linked, loose = manifest.layout != SHARDS_LAYOUT, manifest.is_loose
            lost = list(check_sizes(folder, manifest.files()).values())
            if loose:
                lost += lost_folders(folder, [each.name for each in manifest.shards]).values()
            damage = f"{lost[0]} ({len(lost)} such files)" if lost else ""
    return HeldShards(
        split=split,
        path=folder,
        samples=samples,
        shards=count,
        bytes=size,
        finished=finished,
        linked=linked,
        loose=loose,
        damage=damage,
    )
