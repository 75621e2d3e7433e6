"""The samples of a batch become its pictures: each read, made, or replaced where it is damaged."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from shards.dataset import Dataset, Place
from shards.errors import DamagedData
from shards.order import draws
from shards.parallel import PerThread
from shards.render import Choice, Renderer, targets_of

OnBad: TypeAlias = Literal["raise", "substitute"]

# Numbers of a sample's draws that choose what stands in for it: the first, and how many.
_SUBSTITUTE_DRAWS: Final = (48, 8)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is to be made: one rank's part of a batch, whose pictures the threads fill in.

    `samples`, int64 (n,), and `labels`, int64 (n,), are corrected where a sample is replaced.
    """

    epoch: int
    targets: tuple[torch.Tensor, ...]  # the pictures, see `targets_of`
    samples: npt.NDArray[np.int64]
    labels: torch.Tensor
    places: list[Place]
    choices: list[Choice | None]

    def __len__(self) -> int:
        return len(self.places)


@dataclass
class _Own:
    """What a thread has to itself."""

    buffer: bytearray = field(default_factory=bytearray)
    read_seconds: float = 0.0
    substituted: int = 0

    def room(self, size: int) -> memoryview:
        if len(self.buffer) < size:
            self.buffer = bytearray(size + size // 4)
        return memoryview(self.buffer)[:size]


class Filler:
    """Makes pictures from a dataset; safe to use from any number of threads."""

    def __init__(self, dataset: Dataset, renderer: Renderer, seed: int, on_bad: OnBad) -> None:
        self.dataset = dataset
        self.renderer = renderer
        self._seed = seed
        self._on_bad = on_bad
        self._own = PerThread(_Own)

    def prepare(
        self,
        epoch: int,
        samples: npt.NDArray[np.int64],
        labels: torch.Tensor,
        images: torch.Tensor,
    ) -> Pictures:
        """Look up and choose, for all samples at once, what making them needs."""
        dataset = self.dataset
        return Pictures(
            epoch=epoch,
            targets=targets_of(images) if len(images) else (),
            samples=samples,
            labels=labels,
            places=dataset.places(samples),
            choices=self.renderer.choices(
                self._seed, epoch, samples, dataset.widths[samples], dataset.heights[samples]
            ),
        )

    def fill(self, pictures: Pictures, part: slice) -> int:
        """Make some of the pictures; the encoded bytes that were read.

        Raises DamagedData, naming shard, key and offset, for a sample that cannot be decoded,
        unless another one stands in for it.
        """
        own, total = self._own.mine(), 0
        for at in range(*part.indices(len(pictures))):
            place, target = pictures.places[at], pictures.targets[at]
            try:
                self._make(own, place, target, pictures.choices[at])
            except DamagedData as error:
                damaged = int(pictures.samples[at])
                reason = DamagedData(f"{self.dataset.describe(damaged)}: {error}")
                if self._on_bad == "raise":
                    raise reason from None
                place = self._substitute(own, pictures, at, reason)
            total += place.size
        return total

    def _make(self, own: _Own, place: Place, target: torch.Tensor, choice: Choice | None) -> None:
        data = own.room(place.size)
        started = time.perf_counter()
        self.dataset.read_into(data, place)
        own.read_seconds += time.perf_counter() - started
        self.renderer.render(data, place.info, target, choice)

    def _substitute(self, own: _Own, pictures: Pictures, at: int, reason: DamagedData) -> Place:
        """Make another sample's picture instead: a function of (seed, epoch, sample) alone."""
        dataset, damaged = self.dataset, pictures.samples[at : at + 1]
        (numbers,) = draws(self._seed, pictures.epoch, damaged, *_SUBSTITUTE_DRAWS)
        others = (numbers * len(dataset)).astype(np.int64)
        choices = self.renderer.choices(
            self._seed, pictures.epoch, others, dataset.widths[others], dataset.heights[others]
        )
        places = dataset.places(others)
        for other, place, choice in zip(others.tolist(), places, choices, strict=True):
            try:
                self._make(own, place, pictures.targets[at], choice)
            except DamagedData:
                continue
            pictures.samples[at] = other
            pictures.labels[at] = int(dataset.labels[other])
            own.substituted += 1
            return place
        raise DamagedData(f"{reason}; and so are {len(others)} others that could stand in for it")

    @property
    def read_seconds(self) -> float:
        """Time spent reading, over all threads."""
        return sum(own.read_seconds for own in self._own.all())

    @property
    def substituted(self) -> int:
        """Samples that another one stood in for."""
        return sum(own.substituted for own in self._own.all())
