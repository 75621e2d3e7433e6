"""The folder of one run: where its files lie, which checkpoint is the latest whole one.

    RUN/log.jsonl                                 the run's history
    RUN/config.toml                               what was asked for, as --config takes it
    RUN/checkpoints/epoch-0007.pt                 7 epochs are over
    RUN/checkpoints/epoch-0007-step-000120.pt     and 120 steps of the next one
    RUN/last.pt, RUN/best.pt                      hard links (copies where links are not possible)

A link is made under a temporary name and renamed, so both names always are whole files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shards.durable import atomic_file, folder_lock, remove_leftovers, sync_folder, temporary_name
from shards.errors import ToolError
from training.checkpoint import Checkpoint, save_checkpoint

_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?\.pt")


class RunFolder:
    """Paths of a run and what is done to them; only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.jsonl"
        self.configuration = path / "config.toml"
        self.best = path / "best.pt"
        self.last = path / "last.pt"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second run and clear what a killed one left behind."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolError(
                f"{self.path} cannot be made ({error.strerror}); choose another --out"
            ) from error
        with folder_lock(self.path):
            for folder in (self.path, self.checkpoints):
                remove_leftovers(folder)
            yield

    def place_at(self, path: Path) -> tuple[int, int]:
        """(epoch, step) of a checkpoint's name."""
        match = _NAME.fullmatch(path.name)
        assert match is not None, path
        return int(match[1]), int(match[2] or 0)

    def saved(self) -> list[Path]:
        """The checkpoints there are, earliest first."""
        if not self.checkpoints.is_dir():
            return []
        files = (path for path in self.checkpoints.iterdir() if path.is_file())
        return sorted(filter(_is_checkpoint, files), key=self.place_at)

    def path_at(self, place: tuple[int, int]) -> Path:
        """Where the checkpoint of (epoch, step) lies."""
        epoch, step = place
        return self.checkpoints / (
            f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "") + ".pt"
        )

    def save(
        self, checkpoint: Checkpoint, *, keep: int, instead_of: tuple[int, int] | None = None
    ) -> Path:
        """Write a checkpoint, point last.pt (and best.pt) at it, then drop the oldest.

        The one of the place `instead_of` (epoch, step) is dropped too.
        """
        place = checkpoint.position.place
        path = self.path_at(place)
        save_checkpoint(path, checkpoint)
        self.point_at(path, checkpoint)
        if instead_of is not None:
            self.path_at(instead_of).unlink(missing_ok=True)
        for old in [each for each in self.saved() if self.place_at(each) <= place][:-keep]:
            old.unlink()
        return path

    def point_at(self, path: Path, checkpoint: Checkpoint) -> None:
        """Make last.pt this checkpoint, and best.pt too where it is the best one."""
        self.link(path, self.last)
        if checkpoint.best is not None and checkpoint.position.place == checkpoint.best.place:
            self.link(path, self.best)

    def set_aside(self, path: Path) -> Path:
        """Give a file a name under which nobody looks for a checkpoint; what it is now."""
        names = (path.with_name(f"{path.name}.aside{number or ''}") for number in itertools.count())
        free = next(name for name in names if not name.exists())
        return path.rename(free)

    def link(self, path: Path, name: Path) -> None:
        """Make `name` another name of the file at `path`, in one step."""
        temporary = temporary_name(name)
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            with path.open("rb") as source, atomic_file(name) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            return
        temporary.replace(name)
        # Renaming one link of a file onto another leaves both, by POSIX.
        temporary.unlink(missing_ok=True)
        sync_folder(name.parent)


def _is_checkpoint(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None
