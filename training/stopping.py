"""How a run is stopped from outside: saved, and with an exit code of its own.

SIGTERM and SIGUSR1 (a cluster's warning before it takes the machine away) only leave a note
here; training/verdict.py has all processes act on it after the same step. This file needs no
torch: the command line and the launcher know the exit code from here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from shards.errors import ToolError

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not finished, and worth starting again
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A cluster manager and a launcher may both pass one signal on: within so many seconds of the
# first another one is the same.
SAME_SECONDS = 2.0


class Stopped(ToolError):
    """A run was stopped and saved; the same command goes on with it."""

    exit_code = STOPPED


class Signals:
    """Remembers that a signal asked for an end; a second one ends the process at once.

    Use as a context manager. Outside the main thread, where Python takes no signals, it
    listens to none.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # the first one's name
        self._received_at = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number).name, now
        elif now - self._received_at > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
