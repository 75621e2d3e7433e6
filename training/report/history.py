"""A run as its log tells it, whichever version wrote it and whether or not it is over.

Keys that are not known are left alone, values that are missing or no numbers leave a gap, and a
last line that is not whole yet is not read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import DamagedData, ToolError

_LONGEST_LINE = 1 << 24  # bytes; a start line with a whole recipe has some thousands
_STATES = {  # what the reason of an `end` line means
    "failed": "failed",
    "finished": "finished",
    "max-steps": "stopped at --max-steps",
    "max-time": "stopped at --max-time",
    "patience": "stopped: no better for --patience epochs",
    "signal": "stopped by a signal",
}

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A line of the log, and when it was written."""

    epoch: float  # epochs that are over, with the share of the next one
    hours: float  # of running: the time between a stop and the next start does not count
    line: Line


@dataclass(frozen=True, kw_only=True)
class Run:
    """The history of one run."""

    name: str  # short, and another one for each run
    log: Path
    steps: tuple[Point, ...]
    evals: tuple[Point, ...]
    start: Line  # the latest `start` line; empty where there is none
    starts: int  # how often it was started
    hours: float
    state: str

    @property
    def best(self) -> Point | None:
        """The evaluation with the highest top-1, the earlier one of equals."""
        known = [point for point in self.evals if result(point.line, "top1") is not None]
        return max(known, key=lambda point: result(point.line, "top1") or 0.0, default=None)

    def part(self, *names: str) -> Any:
        """What stands under these names in the start line; None where nothing does."""
        value: Any = self.start
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def number(line: Line, key: str) -> float | None:
    """A finite number of a line; None for whatever else stands there."""
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def result(line: Line, key: str) -> float | None:
    """A number of an evaluation: of the averaged weights where the run has them."""
    averaged = line.get("ema")
    return number(averaged if isinstance(averaged, Mapping) else line, key)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of these folders (or logs), each under a name of its own.

    Raises ToolError where there is no log, DamagedData where a line in its middle is not one.
    """
    logs = [path / "log.jsonl" if path.is_dir() else path for path in paths]
    return [_read(log, name) for log, name in zip(logs, _names(paths), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path that tell it from the others."""
    whole = [
        Path(os.path.abspath(path.parent if path.name == "log.jsonl" else path))  # noqa: PTH100
        for path in paths
    ]
    deepest = max(len(path.parts) for path in whole)
    for count in range(1, deepest + 1):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({place})" for place, path in enumerate(whole, 1)]


def _read(log: Path, name: str) -> Run:
    lines = list(_lines(log))
    starts = [line for line in lines if line.get("kind") == "start"]
    start = starts[-1] if starts else {}
    points = _placed(lines, start)
    steps = tuple(point for point in points if point.line.get("kind") == "step")
    return Run(
        name=name,
        log=log,
        steps=steps,
        evals=tuple(point for point in points if point.line.get("kind") == "eval"),
        start=start,
        starts=len(starts),
        hours=points[-1].hours if points else 0.0,
        state=_state(lines),
    )


def _lines(log: Path) -> Iterator[Line]:
    """The whole lines of a log."""
    try:
        file = log.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise ToolError(
            f"{log} does not exist; give folders that `resnet train --out` wrote into"
        ) from None
    with file:
        for place, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                return  # torn apart by a kill, or being written at this moment
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise DamagedData(
                    f"{log}, line {place}, is not a line of a training log; give a log that "
                    "`resnet train` wrote, or take that line out"
                )
            yield record


def _placed(lines: Sequence[Line], start: Line) -> list[Point]:
    """The lines with their places; those without a position or a time are left out."""
    plan = start.get("plan")
    an_epoch = number(plan, "steps_per_epoch") if isinstance(plan, Mapping) else None
    points: list[Point] = []
    before, since = 0.0, None  # seconds of the calls that ended; when this one began
    for line in lines:
        time, epoch = number(line, "time"), number(line, "epoch")
        if time is None or epoch is None:
            continue
        if since is None or line.get("kind") == "start":
            before, since = points[-1].hours * 3600 if points else 0.0, time
        step = number(line, "step") or 0.0
        hours = (before + max(0.0, time - since)) / 3600
        share = min(step / an_epoch, 1.0) if an_epoch else 0.0
        points.append(Point(epoch=epoch + share, hours=hours, line=line))
    return points


def _state(lines: Sequence[Line]) -> str:
    """How the run stands: what its last start came to."""
    last = next((line for line in reversed(lines) if line.get("kind") in ("start", "end")), {})
    if last.get("kind") != "end":
        return "under way, or cut off"
    reason = str(last.get("reason"))
    return _STATES.get(reason, reason)
