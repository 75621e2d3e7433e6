"""Waiting for signals, the end of a child, and messages at once."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType
from typing import Any

from training.link import Link
from training.stopping import STOP_SIGNALS


class Attention:
    """Wakes this process up for signals, the end of a child, and messages."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._before: dict[int, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> Attention:
        for end in (self._reader, self._writer):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, *STOP_SIGNALS, signal.SIGCHLD):
            before = signal.getsignal(number)
            if number == signal.SIGCHLD or before is not signal.SIG_IGN:  # as nohup wants it
                self._before[number] = signal.signal(number, _nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, link: Link | None, seconds: float | None) -> tuple[list[int], bool]:
        """(signals that came, whether the link can be read), after some time at the latest."""
        watched: list[socket.socket | Link] = [self._reader]
        watched += [] if link is None else [link]
        readable = select.select(watched, [], [], seconds)[0]
        numbers: list[int] = []
        if self._reader in readable:
            noticed = self._reader.recv(4096)
            numbers = [each for each in noticed if each in self._before and each != signal.SIGCHLD]
        return numbers, link in readable


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """What a signal does by itself: wake `Attention.wait` up."""
