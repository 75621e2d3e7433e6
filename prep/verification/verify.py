"""Whether data is whole, whatever it lies in: archives, folders of images, shards.

What a path holds is told first, and all of it is checked: a folder may have archives and what was
extracted from them. Nothing that is found ends the check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from prep.archives import SPLITS
from prep.ilsvrc import ARCHIVES
from prep.inflate import is_compressed
from prep.oddities import Oddity
from prep.sources import ARCHIVE_ENDINGS
from prep.verification.archives import ArchiveReport, check_archives
from prep.verification.folders import FolderReport, check_folders
from prep.verification.md5sums import Sums
from prep.verification.shards import ShardChecks, check_shards
from prep.verification.tree import Place, find_places
from shards.errors import ToolError, UsageError
from shards.evidence import is_begun
from shards.index import INDEX_NAME
from shards.manifest import MANIFEST_NAME
from shards.progress import Progress
from shards.verify import Report

_NUMBERED_TAR: Final = "*-" + 6 * "[0-9]" + ".tar"  # a shard
_PLAIN_CHECKS: Final = ShardChecks()
_PUBLISHED_NAMES: Final = frozenset(each.name for each in ARCHIVES)
_LOOKED_FOR: Final = (
    f"looked for archives (*{', *'.join(ARCHIVE_ENDINGS)}), for shards ({MANIFEST_NAME} in it or "
    f"in its folders), for {'/, '.join(SPLITS)}/ or Kaggle's ILSVRC/Data/CLS-LOC with images, for "
    "class folders and for images (.JPEG, .jpg, .png), in it and in its folders"
)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """All reports. `missing` are findings about files that are listed and not there."""

    archives: tuple[ArchiveReport, ...]
    folders: tuple[FolderReport, ...]
    splits: tuple[Report, ...]
    missing: tuple[str, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """Everything that is missing, damaged or altered."""
        return (*self.missing, *(each for report in self._reports for each in report.findings))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing and no damage."""
        notes = [each.notes for each in self.archives]
        notes += [each.notes for each in self.folders]
        notes += [each.notes for each in self.splits]
        return tuple(each for part in notes for each in part)

    @property
    def oddities(self) -> tuple[Oddity, ...]:
        """What is odd about images that are whole."""
        odd = [
            *(each.oddities for each in self.archives),
            *(each.oddities for each in self.folders),
        ]
        return tuple(each for part in odd for each in part)

    @property
    def bytes(self) -> int:
        """Bytes of everything that was looked at."""
        return sum(report.bytes for report in self._reports)

    @property
    def _reports(self) -> tuple[ArchiveReport | FolderReport | Report, ...]:
        return (*self.archives, *self.folders, *self.splits)


@dataclass(kw_only=True)
class Targets:
    """What is to be checked, each once."""

    archives: list[Path] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)  # whose archives were taken

    def __bool__(self) -> bool:
        return bool(self.archives or self.places or self.shards)

    def add(self, other: Targets) -> None:
        """Take what was found elsewhere, and not here already."""
        self.archives += _new(other.archives, self.archives)
        self.shards += _new(other.shards, self.shards)
        self.folders += _new(other.folders, self.folders)
        known = {each.path.resolve() for each in self.places}
        self.places += [each for each in other.places if each.path.resolve() not in known]


def _new(paths: Iterable[Path], known: Iterable[Path]) -> list[Path]:
    places = {each.resolve() for each in known}
    return [each for each in paths if each.resolve() not in places]


def verify(
    paths: Iterable[Path],
    *,
    sums: Sums,
    labels: Path | None,
    decode: bool,
    shards: ShardChecks = _PLAIN_CHECKS,
    workers: int,
    progress: Progress,
) -> Verified:
    """Check everything that the paths are or hold, and mend shards where `shards` says so.

    Raises ToolError for a path that is none of it, UsageError for sums that fit no archive.
    """
    targets = find_targets(paths, sums)
    if shards.repair and not targets.shards:
        raise UsageError("--repair is for shards, and there are none at the paths given")
    splits = check_shards(
        targets.shards,
        replace(shards, decode=decode, labels=labels),
        workers=workers,
        progress=progress,
    )
    return Verified(
        archives=tuple(
            check_archives(
                targets.archives, sums, decode=decode, workers=workers, progress=progress
            )
        ),
        folders=tuple(
            check_folders(
                targets.places, labels=labels, decode=decode, workers=workers, progress=progress
            )
        ),
        splits=tuple(splits),
        missing=tuple(_missing(targets, sums)),
    )


def find_targets(paths: Iterable[Path], sums: Sums) -> Targets:
    """Tell what the paths are. Raises ToolError with what was looked for where one is nothing."""
    targets = Targets()
    for path in paths:
        found = _look(path, sums) if path.is_dir() else _look_at_file(path, sums)
        if not found and path.is_dir():
            for folder in _folders(path):
                found.add(_look(folder, sums))
        if not found:
            raise ToolError(f"{path} was not recognised; {_LOOKED_FOR}")
        targets.add(found)
    return targets


def _look_at_file(path: Path, sums: Sums) -> Targets:
    if not path.exists():
        raise ToolError(f"{path} does not exist; give an archive, a folder of images, or shards")
    known = _is_archive_name(path.name) or path.name in sums.by_name or bool(sums.alone)
    if known or (path.is_file() and is_compressed(path)):
        return Targets(archives=[path])
    return Targets()


def _is_archive_name(name: str) -> bool:
    visible = not name.startswith(".")
    return visible and (name.endswith(ARCHIVE_ENDINGS) or name in _PUBLISHED_NAMES)


def _look(path: Path, sums: Sums) -> Targets:
    """What lies right in a folder, and in its train/, val/ and test/."""
    if _is_shards(path):
        return Targets(shards=[path])
    shards = [each for each in _folders(path) if _is_shards(each)]
    places = [each for each in find_places(path) if each.path not in shards]
    splits = [each for each in _folders(path) if each.name in SPLITS and each not in shards]
    archives = [each for folder in (path, *splits) for each in _archives_in(folder, sums)]
    return Targets(archives=archives, places=places, shards=shards, folders=[path])


def _archives_in(folder: Path, sums: Sums) -> list[Path]:
    """Files of a folder that are named as archives are, or that have a sum."""
    names = sorted(each.name for each in folder.iterdir())
    return [folder / each for each in names if _is_archive_name(each) or each in sums.by_name]


def _is_shards(folder: Path) -> bool:
    """Whether a folder holds shards, finished or not."""
    unfinished = is_begun(folder) or any(folder.glob(_NUMBERED_TAR))
    return unfinished or any((folder / name).is_file() for name in (MANIFEST_NAME, INDEX_NAME))


def _folders(path: Path) -> list[Path]:
    visible = (each for each in path.iterdir() if not each.name.startswith("."))
    return sorted(each for each in visible if each.is_dir())


def _missing(targets: Targets, sums: Sums) -> Iterator[str]:
    """Files that have a sum and are in none of the folders that were looked into."""
    found = {each.name for each in targets.archives}
    if targets.folders:
        where = ", ".join(map(str, targets.folders))
        for name in sorted(set(sums.by_name) - found):
            yield f"{name} is listed in {sums.origin} and missing in {where}"
