"""The MD5 of an archive in the same pass that extracts it.

MD5 goes front to back, extraction takes the parts of an archive side by side. A thread follows
behind the first part that is not finished yet, and reads what the others have just brought into
the page cache; so the disk is read once.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Final

from shards.durable import named

_CHUNK: Final = 1 << 20


class Md5Follower:
    """Digests a file up to where the parts before are finished; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._state = threading.Condition()
        self._begun: set[int] = set()
        self._reach = 0
        self._closed = False
        self._error: OSError | None = None
        self._digest = hashlib.md5(usedforsecurity=False)
        self._thread = threading.Thread(target=self._run, name="md5", daemon=True)

    def __enter__(self) -> Md5Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._state:
            self._closed = True
            self._state.notify()
        self._thread.join()

    def begin(self, start: int) -> None:
        """A part from `start` on is going to be read; parts begin in the archive's order."""
        with self._state:
            self._begun.add(start)

    def finish(self, start: int, end: int) -> None:
        """The part [start, end) was read."""
        with self._state:
            self._begun.discard(start)
            self._reach = max(self._reach, end)
            self._state.notify()

    def result(self) -> str:
        """The digest of the whole file, when the thread has come to its end."""
        with self._state:
            self._begun.clear()
            self._reach = self._size
            self._state.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()

    def _allowed(self, position: int) -> int:
        """Bytes from `position` on that may be read now; waits while there are none."""
        with self._state:
            while not self._closed:
                limit = min(self._begun, default=self._reach)
                if limit > position:
                    return limit - position
                self._state.wait()
        return 0

    def _run(self) -> None:
        position = 0
        try:
            with named(self._path), self._path.open("rb", buffering=0) as file:
                while position < self._size and (allowed := self._allowed(position)):
                    data = file.read(min(_CHUNK, allowed))
                    if not data:
                        return
                    self._digest.update(data)
                    position += len(data)
        except OSError as error:
            self._error = error
