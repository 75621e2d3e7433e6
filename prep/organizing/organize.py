"""Flat validation images into class folders, in place: valprep.sh's job, which can be repeated.

One look at the folder makes a plan, which renames alone carry out: nothing is copied, replaced or
deleted, and whatever is no validation image stays where it is and is named. Each rename is whole
by itself, so a run that was killed anywhere (or a valprep.sh that was) is completed by the next,
and a finished folder is not touched.

Nothing of our own remains in the folder: torchvision's ImageFolder takes every folder in it,
hidden ones too, for a class.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prep.labels import ImageLabels, class_in_name, find_labels
from prep.organizing.val_folder import (
    WNID,
    ImageFile,
    LeftAlone,
    Stray,
    ValidationFolder,
    find_validation_folder,
)
from shards.durable import sync_file_system
from shards.errors import ToolError
from shards.hashing import hash_file
from shards.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Organized:
    """What was done in `folder`, or would be done where `dry_run`.

    `doubles` are files of images that are there twice, with the same bytes; `problems` images
    that are not where they belong, or whose class is not known; `strays` all that is no image.
    """

    folder: Path
    labels: str | None  # where they are from; None where names and folders told all
    dry_run: bool
    moved: int
    in_place: int
    classes: int  # folders with images in the end
    doubles: tuple[LeftAlone, ...]
    strays: tuple[Stray, ...]
    problems: tuple[LeftAlone, ...]
    seconds: float


class _Move(NamedTuple):
    """A rename of `file` into its class folder, to the name that ILSVRC2012 gave the image."""

    class_id: str
    name: str
    file: ImageFile


@dataclass(kw_only=True)
class _Plan:
    moves: list[_Move] = field(default_factory=list)
    in_place: list[ImageFile] = field(default_factory=list)
    doubles: list[LeftAlone] = field(default_factory=list)
    problems: list[LeftAlone] = field(default_factory=list)

    def used(self) -> set[str]:
        """The folders that hold images once the plan is carried out."""
        return {move.class_id for move in self.moves} | {file.folder for file in self.in_place}


def organize_validation(
    path: Path, *, labels: Path | None, dry_run: bool, progress: Progress
) -> Organized:
    """Move the flat validation images in `path` into class folders, by renames alone.

    `path` is the images' folder or holds it (val/, or Kaggle's tree). Raises ToolError or
    UsageError, with nothing moved, where there are no images or no labels for them; ToolError or
    OSError where a rename fails: what was moved before stays moved.
    """
    started = time.perf_counter()
    folder = find_validation_folder(path, progress)
    with _locked(folder) as descriptor:
        found = ValidationFolder.look(folder)
        known = _find_labels(found, labels, progress)
        plan = _Planner(found, known, progress).plan()
        if plan.moves and not dry_run:
            _move(folder, descriptor, plan.moves, progress)
            sync_file_system(folder)
    return Organized(
        folder=folder,
        labels=None if known is None else known.origin,
        dry_run=dry_run,
        moved=len(plan.moves),
        in_place=len(plan.in_place),
        classes=len(plan.used()),
        doubles=tuple(plan.doubles),
        strays=tuple(found.strays(plan.used())),
        problems=tuple(plan.problems),
        seconds=time.perf_counter() - started,
    )


def _find_labels(
    found: ValidationFolder, given: Path | None, progress: Progress
) -> ImageLabels | None:
    """The labels; None where none are found and names and folders tell every class."""
    # Of an image that is there twice, the file in a folder counts: it sorts behind the flat one.
    sizes = {name: max(files).size for name, files in found.images.items()}
    files = itertools.chain.from_iterable(found.images.values())
    needed = any(not file.folder and class_in_name(file.name) is None for file in files)
    try:
        return find_labels(found.path, sizes, given, progress)
    except ToolError as error:
        if needed or given is not None:
            raise
        progress.note(f"the images in class folders were not checked against labels: {error}")
        return None


# --- planning ---------------------------------------------------------------------------------


class _Planner:
    """Decides what becomes of each image; opens only images that are there twice."""

    def __init__(
        self, found: ValidationFolder, labels: ImageLabels | None, progress: Progress
    ) -> None:
        self._found = found
        self._labels = labels
        self._origin = "its name and folder" if labels is None else labels.origin
        self._progress = progress
        self._plan = _Plan()

    def plan(self) -> _Plan:
        """Where every image goes, or why it stays."""
        several: list[tuple[str, str, list[ImageFile]]] = []
        for name, files in sorted(self._found.images.items()):
            classes = self._classes(name, files)
            if len(classes) != 1:
                self._refuse(files, classes)
                continue
            (class_id,) = classes
            here = [file for file in files if file.folder in ("", class_id)]
            for file in files:
                if file not in here:
                    self._problem(
                        file,
                        f"in the wrong folder, {self._origin} says {class_id}: move it out, beside "
                        "the class folders, and run the same command again",
                    )
            if len(here) > 1:
                several.append((class_id, name, here))
            elif here:
                self._place(class_id, name, here[0])
        if several:
            self._progress.start("comparing images that are there twice", len(several), "images")
        for class_id, name, here in several:
            self._place_one(class_id, name, here)
            self._progress.advance(1)
        return self._plan

    def _classes(self, name: str, files: Iterable[ImageFile]) -> set[str]:
        """What the labels and the names of its files say is the class of an image.

        Where there are no labels, the folders of a wnid's name that it lies in.
        """
        stated = {class_in_name(file.name) for file in files}
        if self._labels is not None:
            stated.add(self._labels.by_stem.get(name.rsplit(".", 1)[0]))
        classes = {each for each in stated if each is not None}
        if not classes and self._labels is None:
            return {file.folder for file in files if WNID.fullmatch(file.folder)}
        return classes

    def _refuse(self, files: Iterable[ImageFile], classes: set[str]) -> None:
        reason = f"{self._origin} has no label for it: pass labels that have one by --labels"
        if classes:
            reason = (
                f"of uncertain class, {' or '.join(sorted(classes))}, by its name and by "
                f"{self._origin}: mend its name, or pass the right labels by --labels"
            )
        for file in files:
            self._problem(file, reason)

    def _place(self, class_id: str, name: str, file: ImageFile) -> None:
        """Let an image stay in its place, or plan the move there."""
        if (file.folder, file.name) == (class_id, name):
            self._plan.in_place.append(file)
            return
        obstacles = self._found.others & {class_id, f"{class_id}/{name}"}
        if obstacles:
            reason = "is in its way: move that away and run the same command again"
            self._problem(file, f"{obstacles.pop()} {reason}")
        else:
            self._plan.moves.append(_Move(class_id, name, file))

    def _place_one(self, class_id: str, name: str, files: list[ImageFile]) -> None:
        """Take one of several files for the image; the others stay, as doubles or problems."""
        # The one in its place, else one in the class folder, else a flat one.
        place = (class_id, name)
        first, *others = sorted(files, key=lambda each: (each[:2] != place, not each.folder))
        differing = [file for file in others if not self._same_bytes(first, file)]
        for file in others:
            if file in differing:
                self._differs(file, first)
            else:
                double = LeftAlone(path=file.path, reason=f"the same bytes as {first.path}")
                self._plan.doubles.append(double)
        if differing and first[:2] != place:
            self._differs(first, differing[0])
        else:
            self._place(class_id, name, first)

    def _same_bytes(self, one: ImageFile, other: ImageFile) -> bool:
        paths = (self._found.path / one.path, self._found.path / other.path)
        return one.size == other.size and hash_file(paths[0]) == hash_file(paths[1])

    def _differs(self, file: ImageFile, other: ImageFile) -> None:
        self._problem(
            file,
            f"{other.path} is the same image with other bytes: remove the damaged one and run the "
            "same command again",
        )

    def _problem(self, file: ImageFile, reason: str) -> None:
        self._plan.problems.append(LeftAlone(path=file.path, reason=reason))


# --- moving -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, locked itself: a lock file would have to lie in the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some network file systems lock no folders; every rename is safe without.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ToolError(
                    f"{folder} is being organised by another process; wait for it to end"
                ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _move(folder: Path, descriptor: int, moves: Iterable[_Move], progress: Progress) -> None:
    """Carry the moves out, class by class."""
    ordered = sorted(moves)
    progress.start("moving images into class folders", len(ordered), "images")
    for class_id, group in itertools.groupby(ordered, key=lambda move: move.class_id):
        with _class_folder(folder, class_id, descriptor) as target:
            for move in group:
                source = target if move.file.folder else descriptor
                try:
                    _rename_new(move.file.name, move.name, source, target)
                except (FileNotFoundError, FileExistsError) as error:
                    raise ToolError(
                        f"{folder / move.file.path} was to become {class_id}/{move.name}, but "
                        f"something changed meanwhile ({error.strerror}): another program is at "
                        "work in the folder; wait for it to end and run the same command again"
                    ) from None
                except OSError as error:  # it knows the names within their folders alone
                    error.filename = str(folder / move.file.path)
                    raise
                progress.advance(1)


@contextlib.contextmanager
def _class_folder(root: Path, class_id: str, descriptor: int) -> Iterator[int]:
    """A descriptor of a class folder, which is made when missing."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(class_id, dir_fd=descriptor)
        target = os.open(class_id, flags, dir_fd=descriptor)
    except OSError as error:
        error.filename = str(root / class_id)
        raise
    try:
        yield target
    finally:
        os.close(target)


def _rename_new(old: str, new: str, source: int, target: int) -> None:
    """Rename from one open folder into another, where rename(2) alone would replace a file."""
    try:
        os.stat(new, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
