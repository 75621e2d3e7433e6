"""How long work tells what it is doing, without knowing who listens.

The command line shows a live display on a terminal and `LineProgress` elsewhere; a library
user passes `Silent()`, or any object with the three methods of `Progress`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

_SECONDS = 5.0  # between lines


class Progress(Protocol):
    """What long-running functions call. `advance` may be called from any thread."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a phase of `total` units ("images", "bytes", ...), ending the one before."""

    def advance(self, amount: int) -> None:
        """Count `amount` more units of the phase as done."""

    def note(self, message: str) -> None:
        """Tell the user one line that is worth knowing and is no error."""


class Silent:
    """Progress that nobody listens to."""

    def start(self, what: str, total: int, unit: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def note(self, message: str) -> None:
        pass


class LineProgress:
    """Progress as a line every few seconds, for logs and pipes; shorter phases are mute."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self.start("", 0, "")

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a phase."""
        with self._lock:
            self._what, self._total, self._unit = what, total, unit
            self._done = 0
            self._started = self._shown = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count work as done. Called for every image, so it mostly just adds."""
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._shown >= _SECONDS:
                self._shown = now
                self._say(self._line(now - self._started))

    def note(self, message: str) -> None:
        """Say a line."""
        self._say(f"note: {message}")

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        left = duration((self._total - self._done) / rate) if self._done else "unknown"
        share = 100 * self._done / max(self._total, 1)
        return f"{self._what}: {share:.0f} %, {quantity(rate, self._unit)}/s, {left} left"


def quantity(amount: float, unit: str) -> str:
    """An amount of a unit, as people read it."""
    return f"{amount / 1e6:,.1f} MB" if unit == "bytes" else f"{amount:,.0f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
