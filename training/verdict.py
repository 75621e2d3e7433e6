"""What all processes do after a step: go on, save, or save and stop.

A signal may have reached any of them, and of the clocks only rank 0's counts. One process
decides by itself after every step. Several add up three numbers every k steps, about once a
second: rank 0 chooses k by the steps' time and sends it along, so all count alike and nobody
waits for a collective that another never enters. Clocks are monotonic: setting the
machine's time changes nothing.
"""

from __future__ import annotations

import enum
import time

import torch

from training.distributed import World, sum_floats, sum_integers
from training.stopping import Signals, stopped_early

_SECONDS = 1.0  # between two exchanges, about
_MOST_STEPS = 1000  # between two exchanges


class Verdict(enum.Enum):
    """What to do next."""

    GO_ON = 0
    SAVE = 1
    STOP_BY_SIGNAL = 2
    STOP_BY_TIME = 3


def end_if_any_received(signals: Signals, world: World) -> None:
    """Raise Stopped on all processes where a signal has come to one of them, as they began."""
    (received,) = sum_integers([int(signals.received is not None)], world)
    if received:
        raise stopped_early(f"{signals.received or 'a signal to another process'} asked for it")


class Agreement:
    """Finds one verdict for all processes."""

    def __init__(
        self,
        world: World,
        signals: Signals,
        *,
        started: float,
        max_minutes: float | None,
        save_minutes: float | None,
    ) -> None:
        """`started` is the value of time.monotonic() that --max-time counts from."""
        self._world = world
        self._signals = signals
        self._ends = None if max_minutes is None else started + 60 * max_minutes
        self._save_seconds = None if save_minutes is None else 60 * save_minutes
        self._saved_at = self._asked_at = time.monotonic()
        self._steps = 0  # since all were asked
        self._period = 1  # steps until all are asked again

    def after_step(self) -> Verdict:
        """The verdict after a step; mostly to go on, without asking anyone."""
        self._steps += 1
        if self._world.size > 1 and self._steps < self._period:
            return Verdict.GO_ON
        return self.now()

    def ask_soon(self) -> None:
        """Steps that take another time follow: all are asked after the first of them."""
        self._period = 1

    def now(self) -> Verdict:
        """The verdict at a point that all processes come to."""
        clock = self._by_clock()
        if self._world.size == 1:
            return Verdict.STOP_BY_SIGNAL if self._signals.received else clock
        own = [float(self._signals.received is not None), 0.0, 0.0]
        if self._world.is_main:
            own[1:] = [float(clock.value), float(self._next_period())]
        tensor = torch.tensor(own, dtype=torch.float32).to(self._world.device)
        signals, clock_value, period = sum_floats(tensor, self._world).tolist()
        self._period, self._steps = int(period), 0
        self._asked_at = time.monotonic()
        return Verdict.STOP_BY_SIGNAL if signals else Verdict(int(clock_value))

    def saved(self) -> None:
        """A checkpoint was begun: --save-minutes count from here."""
        self._saved_at = time.monotonic()

    def _by_clock(self) -> Verdict:
        now = time.monotonic()
        if self._ends is not None and now >= self._ends:
            return Verdict.STOP_BY_TIME
        if self._save_seconds is not None and now - self._saved_at >= self._save_seconds:
            return Verdict.SAVE
        return Verdict.GO_ON

    def _next_period(self) -> int:
        """Steps that take about _SECONDS, by those since all were asked last."""
        a_step = (time.monotonic() - self._asked_at) / max(self._steps, 1)
        return max(1, min(_MOST_STEPS, round(_SECONDS / max(a_step, 1e-6))))
