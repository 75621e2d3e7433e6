"""The bytes of a file, front to back, and their digest: a tar is read and digested in one pass.

A disk gives a tar's headers, its images and its sum in the time of the sum alone; jumping from
header to header of 1.28 million images takes a hard disk longer than reading everything. The
digest is taken by a thread that follows behind, so that what is done with the bytes costs no time
of its own: with 110 kB images looked at on the way, one tar gives 1,220 MB/s instead of 730.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shards.durable import named

_CHUNK: Final = 1 << 20
_AHEAD: Final = 8  # chunks that may be read before they are digested


class HashedBytes:
    """Bytes of a file (see shards.tar.Bytes); each read begins where the last ended, or later.

    `step` is told the bytes of each chunk. Close it, or use it as a context manager.
    """

    def __init__(self, path: Path, step: Callable[[int], None], algorithm: str = "sha256") -> None:
        self._path = path
        self._step = step
        self._file = path.open("rb", buffering=0)
        self.end = path.stat().st_size
        self._chunk = b""
        self._begin = 0  # of `_chunk` in the file
        self._digest = hashlib.new(algorithm, usedforsecurity=False)
        self._following: queue.Queue[bytes] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._follow, name=algorithm, daemon=True)
        self._thread.start()

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end alone."""
        parts = []
        while count > 0 and self._reach(position):
            start = position - self._begin
            part = self._chunk[start : start + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def hexdigest(self) -> str:
        """The digest of the whole file; what was not read yet is read now."""
        while self._load():
            pass
        self._stop()
        return self._digest.hexdigest()

    def _reach(self, position: int) -> bool:
        """Load chunks up to that which has `position`; False where the file ends before."""
        assert position >= self._begin, "a file that is digested is read front to back"
        while position >= self._begin + len(self._chunk):
            if not self._load():
                return False
        return True

    def _load(self) -> bool:
        self._begin += len(self._chunk)
        with named(self._path):
            self._chunk = self._file.read(_CHUNK)
        self._step(len(self._chunk))
        if self._chunk:
            self._following.put(self._chunk)
        return bool(self._chunk)

    def _follow(self) -> None:
        while chunk := self._following.get():
            self._digest.update(chunk)

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._following.put(b"")
            self._thread.join()

    def close(self) -> None:
        """Close the file."""
        self._stop()
        self._file.close()

    def __enter__(self) -> HashedBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
