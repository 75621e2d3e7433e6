"""What happened since the last log line, without touching the device in between.

Losses are summed on the device; reading them is the only point at which the host waits for it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from training.distributed import World, sum_floats
from training.train_set import TrainLoader


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The steps between two readings, over all processes unless said otherwise."""

    steps: int
    trained: int  # samples, without those of steps that were left out
    samples: int
    loss: float  # mean over those trained on, as trained (with label smoothing); NaN without any
    seconds: float
    wait_seconds: float  # this process waited so long for its loader

    @property
    def images_per_second(self) -> float:
        return self.samples / self.seconds

    @property
    def wait_share(self) -> float:
        return self.wait_seconds / self.seconds


class Meter:
    """Adds up steps until it is read."""

    def __init__(self, world: World, loader: TrainLoader) -> None:
        self._world = world
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock."""
        self.steps = 0
        self._samples = self._trained = 0
        self._loss_sum = torch.zeros((), device=self._world.device)
        self._waited = self._loader.stats().wait_seconds
        self._started = time.perf_counter()

    def add(self, losses: Tensor | None, samples: int) -> None:
        """Count a step of `samples` over all processes: the sum of this one's losses.

        None for a step that was not trained on.
        """
        self.steps += 1
        self._samples += samples
        if losses is not None:
            self._trained += samples
            self._loss_sum += losses

    def read(self) -> Interval:
        """The interval up to now; waits for the device. All processes read together."""
        total = float(sum_floats(self._loss_sum, self._world))
        interval = Interval(
            steps=self.steps,
            trained=self._trained,
            samples=self._samples,
            loss=total / self._trained if self._trained else math.nan,
            seconds=max(time.perf_counter() - self._started, 1e-9),
            wait_seconds=self._loader.stats().wait_seconds - self._waited,
        )
        self.restart()
        return interval
