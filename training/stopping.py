"""How a run is stopped from outside: saved, and with an exit code of its own.

SIGTERM, SIGUSR1 (a cluster's warning before it takes the machine away) and SIGHUP (the terminal is
gone) only leave a note here; training/verdict.py has all processes act on it after the same step.
This file needs no torch: the command listens before it loads any, and the launcher knows the
exit code from here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from shards.errors import ToolError
from training.place import command_began

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: not finished, and worth starting again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# A cluster manager and a launcher may both pass one signal on, and a session that ends sends two:
# within so many seconds of the first another one is the same.
SAME_SECONDS = 2.0


class Stopped(ToolError):
    """A run was stopped and nothing is lost; the same command goes on with it."""

    exit_code = STOPPED


def stopped_early(why: str) -> Stopped:
    """How a run ends that was asked to before it did anything."""
    return Stopped(
        f"stopped before training began, because {why}; nothing is lost, and the same command "
        "begins it or goes on from its last checkpoint"
    )


class Signals:
    """Remembers that a signal asked for an end; a second one ends the process at once.

    Use as a context manager. Outside the main thread, where Python takes no signals, it
    listens to none. A signal that is ignored, as nohup wants it, stays so.
    """

    def __init__(self) -> None:
        self.began = command_began()  # what --max-time counts from
        self.received: str | None = None  # the first one's name
        self._received_at = 0.0
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def end_if_received(self) -> None:
        """Raise Stopped where a signal has come. For work that leaves nothing to be saved."""
        if self.received is not None:
            raise stopped_early(f"{self.received} asked for it")

    @contextlib.contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Let a signal end what is done in here wherever it is, as Ctrl-C would."""
        self._at_once = True
        try:
            self.end_if_received()
            yield
        finally:
            self._at_once = False
        self.end_if_received()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            leave_terminal()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number).name, now
        elif now - self._received_at > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._at_once:
            self.end_if_received()


def ignore_signals() -> None:
    """Let a signal change nothing any more: how the process ends is settled.

    Python puts handlers back before it takes torch down, which lasts a second; this stays.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_terminal() -> None:
    """Write to nowhere instead of a terminal that is gone: a line that fails would end the run."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
                os.dup2(nowhere.fileno(), output)
