"""What happened since the last log line, without touching the device in between.

Losses are summed on the device; reading them is the only point at which the host waits for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.loader import Loader
from shards.stream import StreamLoader
from training.distributed import World, sum_floats


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The steps between two readings, over all processes unless said otherwise."""

    steps: int
    samples: int
    loss: float  # mean over the samples, as trained (with label smoothing)
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

    def __init__(self, world: World, loader: Loader | StreamLoader) -> None:
        self._world = world
        self._loader = loader
        self.restart()

    def restart(self) -> None:
        """Forget everything and start the clock."""
        self.steps = 0
        self._samples = 0
        self._loss_sum = torch.zeros((), device=self._world.device)
        self._waited = self._loader.stats().wait_seconds
        self._started = time.perf_counter()

    def add(self, loss: Tensor, own_samples: int, global_samples: int) -> None:
        """Count a step: its mean loss over this process's samples, and how many there were."""
        self.steps += 1
        self._samples += global_samples
        self._loss_sum += loss.detach().float() * own_samples

    def read(self) -> Interval:
        """The interval up to now; waits for the device. All processes read together."""
        total = float(sum_floats(self._loss_sum, self._world))
        interval = Interval(
            steps=self.steps,
            samples=self._samples,
            loss=total / self._samples,
            seconds=max(time.perf_counter() - self._started, 1e-9),
            wait_seconds=self._loader.stats().wait_seconds - self._waited,
        )
        self.restart()
        return interval
