"""What an extraction has finished: one JSON object a line, in the hidden folder beside the tree.

A line is written after a sync of the whole file system, so what it says survives a power cut; an
fsync for each of 1.28 million images would take hours. A torn last line, which a kill can leave,
is passed over. Files are not listed: a folder is known by the number of its files and by a
digest of their names that parts of it add up to.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import xxhash

from shards.durable import RECORDS, atomic_write_bytes, named, sync_file_system

_NAME: Final = "extract.jsonl"
_SYNC_SECONDS: Final = 5.0  # between bulk syncs: what a power cut can cost
_WHOLE: Final = ""  # the part that is all of the archive


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What a folder got: files, their bytes, and the digest of their names."""

    files: int = 0
    bytes: int = 0
    names: int = 0

    def __add__(self, other: Filled) -> Filled:
        return Filled(
            files=self.files + other.files,
            bytes=self.bytes + other.bytes,
            names=(self.names + other.names) % (1 << 64),
        )

    @classmethod
    def of(cls, name: str, size: int) -> Filled:
        """One file."""
        return cls(files=1, bytes=size, names=xxhash.xxh3_64_intdigest(name.encode()))


@dataclass(frozen=True, kw_only=True)
class Done:
    """The record of a finished part of an archive, or of the whole of it.

    `archive` is the digest by which it is known, `size` its bytes and `mtime` the time of its last
    change in nanoseconds; `group` is the place that it alone may fill ("" where several may),
    `removed` its path where it was removed afterwards.
    """

    archive: str
    size: int
    mtime: int
    group: str
    labels: str
    part: str
    folders: Mapping[str, Filled] = field(default_factory=dict)
    md5: str | None = None
    removed: str | None = None

    @property
    def total(self) -> Filled:
        """All folders together."""
        return add_up([self])[1]


def add_up(parts: Iterable[Done]) -> tuple[dict[str, Filled], Filled]:
    """What all the parts put into each folder, and in all."""
    folders: dict[str, Filled] = {}
    total = Filled()
    for part in parts:
        for name, filled in part.folders.items():
            folders[name] = folders.get(name, Filled()) + filled
            total += filled
    return folders, total


class Journal:
    """The records of OUT; those given to `add` are written in bulk, from whichever thread."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out / RECORDS / _NAME
        self._records = list(self._read())
        self._waiting: list[Done] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._synced = time.monotonic()
        self._lost = False  # the disk has lost something, and tells it once
        self._stale = False  # the file has records that were dropped
        self.forget(lambda each: bool(each.group) and not os.path.lexists(out / each.group))

    def _read(self) -> Iterable[Done]:
        with named(self._path):
            text = self._path.read_text("utf-8", "replace") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
                folders = {name: Filled(**filled) for name, filled in row.pop("folders").items()}
                yield Done(**row, folders=folders)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def forget(self, unwanted: Callable[[Done], bool]) -> None:
        """Drop records, on the disk with the next `flush`.

        Those of a place that somebody has removed are dropped at once: another archive may fill it.
        """
        with self._lock:
            kept = [each for each in self._records if not unwanted(each)]
            self._stale = self._stale or len(kept) < len(self._records)
            self._records = kept
            self._waiting = [each for each in self._waiting if not unwanted(each)]

    def parts(self, archive: str) -> dict[str, Done]:
        """Finished parts of an archive by name; the last record of a part counts."""
        with self._lock:
            records = [*self._records, *self._waiting]
        return {each.part: each for each in records if each.archive == archive and each.part}

    def whole(self, archive: str, size: int) -> Done | None:
        """The record that all of an archive of this size is extracted."""
        wanted = (archive, size, _WHOLE)
        found = [each for each in self._records if (each.archive, each.size, each.part) == wanted]
        return found[-1] if found else None

    def removed(self) -> dict[Path, Done]:
        """Archives that were removed after they were extracted, by path."""
        return {Path(each.removed): each for each in self._records if each.removed is not None}

    def others(self, archive: str, group: str) -> bool:
        """Whether another archive has filled the place that this one alone may fill."""
        return bool(group) and any(
            each.group == group and each.archive != archive for each in self._records
        )

    def expected(self) -> dict[str, Filled]:
        """What all archives together have put into each folder."""
        with self._lock:
            records = [*self._records, *self._waiting]
        whole = {each.archive: each for each in records if each.part == _WHOLE}
        parts = {(each.archive, each.part): each for each in records if each.archive not in whole}
        return add_up([*whole.values(), *parts.values()])[0]

    def labels(self, group: str) -> str | None:
        """The digest of the labels with which a group was extracted."""
        found = [each.labels for each in self._records if each.group == group]
        return found[-1] if found else None

    def add(self, done: Done) -> None:
        """Take the record of a part; every few seconds one thread syncs and writes them all."""
        with self._lock:
            self._waiting.append(done)
        if time.monotonic() - self._synced < _SYNC_SECONDS or not self._writing.acquire(False):
            return
        try:
            self._write()
        finally:
            self._writing.release()

    def flush(self) -> None:
        """Sync and write what is waiting."""
        with self._writing:
            self._write()

    def _write(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            stale, self._stale = self._stale, False
        if self._lost or not (waiting or stale):
            return
        try:
            self._sync(waiting)
        except OSError:
            # Which files were lost nobody knows, and the next sync would say nothing of it.
            self._lost = True
            raise
        if stale:
            atomic_write_bytes(self._path, _lines([*self._records, *waiting]).encode())
        else:
            with named(self._path), self._path.open("a") as file:
                file.write(("\n" if file.tell() else "") + _lines(waiting))
                file.flush()
                os.fsync(file.fileno())
        with self._lock:
            self._records += waiting
        self._synced = time.monotonic()

    def _sync(self, records: Iterable[Done]) -> None:
        """Flush every file system on which files of the records lie: a split may have its own."""
        folders = {folder for each in records for folder in each.folders}
        devices = {self._out.stat().st_dev: self._out}
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                place = self._out / folder
                devices.setdefault(place.stat().st_dev, place)
        for place in devices.values():
            sync_file_system(place)


def _lines(records: Iterable[Done]) -> str:
    return "".join(json.dumps(asdict(done)) + "\n" for done in records)
