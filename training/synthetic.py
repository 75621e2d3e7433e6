"""Training without pictures: one batch of noise over and over, to see what the rest can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from shards.loader import Batch, LoaderStats, stats_of
from shards.order import rank_slice
from shards.render import Tally

SYNTHETIC: Final = "synthetic:"  # in the place of shards without an index
# What a command says when it makes a SyntheticLoader.
NOTHING_LEARNT: Final = "one batch of noise is trained on over and over: only the speed means much"


class SyntheticLoader:
    """What the trainer asks of a loader, answered at once; one rank's part of every batch.

    Batches are as those of `shards.loader.Loader`, and all of them the same memory. `samples` are
    -1 as those of a stream are.
    """

    def __init__(
        self,
        *,
        image_size: int,
        global_batch: int,
        steps: int,
        classes: int,
        rank: int,
        world: int,
        pin_memory: bool,
    ) -> None:
        self.steps = steps
        self._global_batch = global_batch
        self._first, last = rank_slice(global_batch, rank, world)
        count = last - self._first
        generator = torch.Generator().manual_seed(rank)
        shape = (count, image_size, image_size, 3)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self._images = images.pin_memory() if pin_memory else images
        self._labels = torch.arange(self._first, last) % classes
        self._samples = np.full(count, -1)

    def epoch(self, _epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The steps of an epoch from `first_step` on."""
        for step in range(first_step, self.steps):
            start = step * self._global_batch + self._first
            yield Batch(
                images=self._images,
                labels=self._labels,
                samples=self._samples,
                positions=np.arange(start, start + len(self._samples)),
                global_size=self._global_batch,
                step=step,
            )

    def stats(self) -> LoaderStats:
        """Nothing was read and nobody waited."""
        return stats_of(Tally(), samples=0, bytes=0, wait_seconds=0.0, read_seconds=0.0)

    def close(self) -> None:
        """Nothing is open."""
