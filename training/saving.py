"""Checkpoints behind the training: copied at once, written by a thread, one at a time.

A save costs the training the copy; encoding, writing and syncing run beside the next steps. A
kill in between leaves whole files, because a file gets its name when it is on the disk. One that
cannot be written (a full disk) ends nothing: it is said, training goes on, and only a run
whose last checkpoint is missing fails, at its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from shards.errors import ToolError
from training.checkpoint import Best, Checkpoint
from training.distributed import World, from_main
from training.log import RunLog
from training.run_folder import RunFolder


class _Writing(threading.Thread):
    """Writes one checkpoint, after the log lines that lie before it."""

    def __init__(self, log: RunLog, write: Callable[[], Path], best: Best | None) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._log, self._write = log, write
        self.best = best  # as the checkpoint has it
        self.path: Path | None = None
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._log.sync()
            self.path = self._write()
        except Exception as error:  # noqa: BLE001 - the training's thread judges it
            self.failure = error

    def outcome(self) -> Path | ToolError:
        """The file, or why there is none; waits. Raises what no disk is to blame for."""
        self.join()
        if self.path is not None:
            return self.path
        assert self.failure is not None
        if isinstance(self.failure, OSError):
            return ToolError(f"{self.failure.filename}: {self.failure.strerror}; make room")
        if isinstance(self.failure, ToolError):
            return self.failure
        raise self.failure


class Saver:
    """Saves a run. All processes have one and call it together; rank 0's writes."""

    def __init__(
        self,
        folder: RunFolder,
        log: RunLog | None,
        world: World,
        *,
        keep: int,
        latest: Path | None,
        best: Best | None,
        note: Callable[[str], None],
    ) -> None:
        """`log` is rank 0's. `latest` is the checkpoint that the run went on from, if any.

        `best` is what that one calls the best.
        """
        self._folder = folder
        self._log = log
        self._world = world
        self._keep = keep
        self._note = note
        self._writing: _Writing | None = None
        self._latest = latest  # whole
        self._best = best  # of the latest one
        self._failure: ToolError | None = None  # of the newest, where it could not be written

    def save(
        self, take: Callable[[], Checkpoint], *, instead_of: tuple[int, int] | None = None
    ) -> None:
        """Copy the run's state, by `take` on rank 0, and begin to write it.

        The checkpoint of the place `instead_of` (epoch, step) is removed when this one is whole.
        """
        if self._log is None:
            return
        self._settle()
        checkpoint = take()
        self._writing = _Writing(
            self._log,
            lambda: self._folder.save(checkpoint, keep=self._keep, instead_of=instead_of),
            checkpoint.best,
        )
        self._writing.start()

    def look(self) -> None:
        """Say it soon where the one under way has failed; costs nothing and waits for nothing."""
        if self._writing is not None and not self._writing.is_alive():
            self._settle()

    def latest(self) -> Path | None:
        """The latest whole checkpoint, if any, waited for; equal on all processes."""
        return from_main(self._settled, self._world)

    def best(self) -> Best | None:
        """The best of the latest whole checkpoint, so that there is a file of it; as `latest`."""
        return from_main(self._settled_best, self._world)

    def finish(self) -> Path:
        """The checkpoint saved last, once it is whole. Raises ToolError where it could not be."""
        return from_main(self._last_one, self._world)

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            self._writing.join()

    def _settled(self) -> Path | None:
        self._settle()
        return self._latest

    def _settled_best(self) -> Best | None:
        self._settle()
        return self._best

    def _last_one(self) -> Path:
        self._settle()
        if self._failure is not None:
            raise ToolError(
                f"{self._failure}, then start the same command again: "
                + (f"it goes on from {self._latest}" if self._latest else "nothing was saved yet")
            )
        assert self._latest is not None
        return self._latest

    def _settle(self) -> None:
        """Wait for the one under way and take note of how it went."""
        if self._writing is None:
            return
        outcome, best = self._writing.outcome(), self._writing.best
        self._writing = None
        if isinstance(outcome, Path):
            self._latest, self._best, self._failure = outcome, best, None
            return
        self._failure = outcome
        self._note(
            f"{outcome}; training goes on, and the last whole checkpoint is "
            + (self._latest.name if self._latest else "none yet")
        )
