"""From where a run goes on: its latest whole checkpoint, and its folder made to fit that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.errors import DamagedData, ToolError, UsageError
from training.checkpoint import Best, Checkpoint, OtherSchema, load_checkpoint
from training.config import TrainConfig
from training.place import restarts
from training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run goes on."""

    path: Path
    checkpoint: Checkpoint
    passed_over: tuple[tuple[Path, str], ...] = ()  # those that are not whole, and why


def find_start(config: TrainConfig, folder: RunFolder) -> Start | None:
    """The checkpoint to go on from, by --resume; None for a new run.

    A run that was restarted after a loss goes on with what it saved itself, however it began.
    """
    saved, first_try = folder.saved(), restarts() == 0
    if config.resume == "never" and first_try:
        if saved:
            raise UsageError(
                f"{folder.path} holds a run already ({saved[-1].name}); give another --out, or "
                "--resume auto to go on with it"
            )
        return None
    if isinstance(config.resume, Path):
        checkpoint = load_checkpoint(config.resume)
        later = [path for path in saved if folder.place_at(path) > checkpoint.position.place]
        if not later:
            return Start(path=config.resume, checkpoint=checkpoint)
        if first_try:
            raise UsageError(
                f"{folder.path} holds a later checkpoint ({later[-1].name}) than {config.resume}; "
                "move it away to go back, or give another --out"
            )
    return latest_whole(folder)


def latest_whole(folder: RunFolder) -> Start | None:
    """The latest checkpoint that is whole; last.pt and best.pt where none of the others is.

    None where the run has none yet. Raises DamagedData where it has some and none is whole,
    OtherSchema where a later one was written by another version.
    """
    passed_over: list[tuple[Path, str]] = []
    links = [path for path in (folder.last, folder.best) if path.exists()]
    for path in [*reversed(folder.saved()), *links]:
        try:
            checkpoint = load_checkpoint(path)
        except OtherSchema:
            raise
        except DamagedData as error:
            passed_over.append((path, str(error)))
        else:
            return Start(path=path, checkpoint=checkpoint, passed_over=tuple(passed_over))
    if passed_over:
        raise DamagedData(
            f"none of the {len(passed_over)} checkpoints in {folder.path} is whole "
            f"({passed_over[0][1]}); move them away to start anew"
        )
    return None


def settle(folder: RunFolder, start: Start) -> tuple[Best | None, list[str]]:
    """Make a run's folder fit what it goes on from; rank 0 calls it.

    Checkpoints that are not whole are set aside, so that they count for nothing any more, and
    best.pt becomes what the start calls the best. Returns that, or None where it has no file, and
    what is to be said.
    """
    notes = [
        f"{why}; it is {folder.set_aside(path).name} now, going back to {start.path.name}"
        for path, why in start.passed_over
        if path.exists()
    ]
    if start.path.parent == folder.checkpoints:
        folder.link(start.path, folder.last)
    best = start.checkpoint.best
    if best is not None:
        found = next((path for path in _candidates(folder, start) if _is_of(path, best)), None)
        if found is None:
            notes.append(
                f"the best so far (top-1 {best.top1:.2f} % after epoch {best.epoch}) has no file "
                "any more; the best is looked for anew"
            )
            best = None
        elif found != folder.best:
            folder.link(found, folder.best)
    if best is None and folder.best.exists():
        notes.append(
            f"{folder.best} is of no moment before {start.path.name}; it is "
            f"{folder.set_aside(folder.best).name} now"
        )
    return best, notes


def with_best(start: Start, best: Best | None) -> Start:
    """The start with another best."""
    return dataclasses.replace(start, checkpoint=dataclasses.replace(start.checkpoint, best=best))


def _candidates(folder: RunFolder, start: Start) -> Iterator[Path]:
    """Where the best checkpoint of a start may lie: in this run, or in the one it comes from."""
    best = start.checkpoint.best
    assert best is not None
    yield folder.best
    if start.checkpoint.position.place == best.place:
        yield start.path
    yield folder.path_at(best.place)
    for place in start.path.resolve().parents[:2]:  # of RUN/last.pt, of RUN/checkpoints/...
        yield RunFolder(place).best
        yield RunFolder(place).path_at(best.place)


def _is_of(path: Path, best: Best) -> bool:
    """Whether a file is the whole checkpoint that had this result."""
    try:
        found = load_checkpoint(path)
    except ToolError:
        return False
    return found.position.place == best.place and found.best == best
