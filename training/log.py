"""log.jsonl: a run's history, one JSON object a line, each with its `kind` and position.

The file reads as one undisturbed history: when a run goes on from a checkpoint, the lines of
work that will be done again are cut off first, and so is a line that a kill tore apart. Lines
that a full disk does not take wait until there is room.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from shards.durable import named
from shards.errors import DamagedData


class RunLog:
    """Appends lines to a run's log. Use as a context manager; only rank 0 has one."""

    def __init__(self, path: Path, resume_at: tuple[int, int]) -> None:
        """Open the log of a run that starts or goes on at (epoch, step)."""
        cut_back(path, resume_at)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()  # checkpoints are written, and the log synced, by a thread
        self._waiting = bytearray()  # lines that the disk has not taken yet
        self.failure: OSError | None = None  # why not

    def write(self, kind: str, values: Mapping[str, object]) -> dict[str, object]:
        """Append one line. Returns what was written, or waits to be: see `failure`."""
        record = {"kind": kind, "time": round(time.time(), 3), **values}
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
        with self._lock:
            self._waiting += line.encode() + b"\n"
            self._flush()
        return record

    def _flush(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
            self.failure = None
        except OSError as error:
            self.failure = error

    def rewind(self, place: tuple[int, int]) -> None:
        """Take back what was written beyond (epoch, step)."""
        with self._lock:
            self._waiting.clear()
            cut_back(self._path, place)

    def sync(self) -> None:
        """Make the lines so far durable: before a checkpoint that lies beyond them.

        Raises OSError, with the log's name, where lines still wait.
        """
        with self._lock, named(self._path):
            self._flush()
            if self.failure is not None:
                raise self.failure
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Make the log durable and close it."""
        try:
            self.sync()
        finally:
            self._file.close()


def cut_back(path: Path, resume_at: tuple[int, int]) -> None:
    """Cut the log at its first line that lies beyond (epoch, step), and any torn last line.

    Raises DamagedData where a line in the middle is not one of a log.
    """
    if not path.exists():
        return
    kept = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") or _place(path, number, line) > resume_at:
                break
            kept += len(line)
    if kept < path.stat().st_size:
        os.truncate(path, kept)


def _place(path: Path, number: int, line: bytes) -> tuple[int, int]:
    """The position a line was written at: what a checkpoint must have passed to keep it."""
    try:
        record = json.loads(line)
        return int(record["epoch"]), int(record["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedData(
            f"{path}, line {number}, is not a line of a training log; move the file away or "
            "choose another --out"
        ) from error


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
