"""What this machine's processors can load: images a second by threads, and what limits them.

Figures are of the data that is given, as training would read it; nothing is written. A short
measurement on a machine that does other work tells of that other work too.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from shards.augment import random_resized_crops
from shards.cores import available_cores
from shards.cutting import Box
from shards.dataset import Dataset
from shards.decode import Decoder
from shards.errors import DamagedData
from shards.loader import Batch, Loader
from shards.order import epoch_order
from shards.progress import Progress
from shards.transform import TrainTransform

_CHUNK = 64  # images of the decode limit whose crops are chosen at a time


class Batches(Protocol):
    """A loader, as far as it is measured here."""

    def epoch(self, epoch: int, /) -> Iterator[Batch]:
        """The batches of an epoch."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured: crops of `image_size` pixels in batches, so many seconds a point."""

    image_size: int = 224
    batch_size: int = 256
    seconds: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """The loader with a number of threads."""

    threads: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class LoaderBench:
    """What a machine loads of a split.

    Attributes:
        images: in the split.
        cores: that this process may use.
        points: by threads, ascending; the last has one for each core.
        decode_limit: images/s that as many threads read and decode, each as much as its crop
            needs, without resizing and without batches.
        ways: pictures by how they were decoded: cut, shortened, whole, pillow.
    """

    split: str
    images: int
    image_size: int
    batch_size: int
    cores: int
    points: tuple[Point, ...]
    decode_limit: float
    ways: Mapping[str, int]

    @property
    def images_per_second(self) -> float:
        """With a thread for each core."""
        return self.points[-1].images_per_second

    def cores_for(self, images_per_second: float) -> int:
        """Cores like these that a rate takes, each adding what those here do on average."""
        return math.ceil(images_per_second * self.cores / self.images_per_second)


def bench_loader(folder: Path, options: BenchOptions, progress: Progress) -> LoaderBench:
    """Measure how fast a split is loaded with 1, 2, 4, ... threads, up to one for each core.

    Raises ToolError where there are no finished shards, DamagedData for a sample that cannot be
    decoded.
    """
    transform = TrainTransform(image_size=options.image_size)
    counts = thread_counts(available_cores())
    points: list[Point] = []
    ways: dict[str, int] = {}
    with Dataset.open(folder) as dataset:
        progress.start("measuring", len(counts) + 1, "points")
        for threads in counts:
            with Loader(
                dataset, transform, global_batch=options.batch_size, threads=threads
            ) as loader:
                rate = loading_rate(loader, options.seconds)
                points.append(Point(threads=threads, images_per_second=rate))
                for way, count in loader.stats().ways.items():
                    ways[way] = ways.get(way, 0) + count
            progress.advance(1)
        limit = _decode_limit(dataset, transform, counts[-1], options.seconds)
        progress.advance(1)
        return LoaderBench(
            split=dataset.split,
            images=len(dataset),
            image_size=options.image_size,
            batch_size=options.batch_size,
            cores=counts[-1],
            points=tuple(points),
            decode_limit=limit,
            ways=ways,
        )


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and the number of cores."""
    powers = itertools.takewhile(lambda each: each < cores, (2**each for each in itertools.count()))
    return [*powers, cores]


def loading_rate(loader: Batches, seconds: float) -> float:
    """Images a second, epoch after epoch, from the first batch on: starting does not count."""
    batches = _endless(loader)
    next(batches)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or not count:
        count += len(next(batches).labels)
    return count / elapsed


def _endless(loader: Batches) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _decode_limit(
    dataset: Dataset, transform: TrainTransform, threads: int, seconds: float
) -> float:
    """Images a second over all threads, each taking every threads-th image in random order."""
    order = epoch_order(0, 0, len(dataset), shuffle="full")

    def decode(first: int) -> float:
        decoder, count, started = Decoder(), 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or not count:
            turns = (first + threads * np.arange(count, count + _CHUNK)) % len(order)
            _decode(dataset, transform, decoder, order[turns])
            count += _CHUNK
        return count / elapsed

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(decode, range(threads)))


def _decode(
    dataset: Dataset,
    transform: TrainTransform,
    decoder: Decoder,
    samples: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> None:
    places = dataset.places(samples)
    boxes = random_resized_crops(
        0,
        0,
        samples,
        dataset.widths[samples],
        dataset.heights[samples],
        scale=transform.scale,
        ratio=transform.ratio,
    )
    buffer = bytearray(max(place.size for place in places))
    for sample, place, box in zip(samples.tolist(), places, boxes.tolist(), strict=True):
        data = memoryview(buffer)[: place.size]
        dataset.read_into(data, place)
        try:
            decoder.decode(data, place.info, Box(*box))
        except DamagedData as error:
            raise DamagedData(f"{dataset.describe(sample)}: {error}") from None
