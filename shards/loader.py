"""The loader: an epoch is an order over an index, cut into global batches, decoded by threads.

Exact: every sample of an epoch is handed out once over all ranks, the global batches are the
same at any world size, and any step can be the first one. Nothing about the order or the
augmentation is state, so there is nothing to save but a position.

Threads, not processes: reading, decoding and resizing release the interpreter lock, so one
process feeds its device without fork, shared memory or pickling. Images are resized straight
into a ring of preallocated uint8 batches.

The loader knows nothing of torch.distributed; rank and world are arguments.
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from shards.augment import flips, random_resized_crops
from shards.dataset import Dataset
from shards.decode import decode_rgb
from shards.errors import DamagedData, UsageError
from shards.order import epoch_order, rank_slice, steps_per_epoch

# Samples a thread takes at a time: enough to hide the cost of handing over work (about 30 us),
# few enough that all threads end a batch together.
_CHUNK = 4
# Handed-out batches whose images stay untouched: the newest and the one before it, so that a
# copy to a device may still be under way when the next batch is asked for.
_HELD = 2


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """RandomResizedCrop to image_size x image_size pixels (antialiased bilinear) and mirroring.

    `scale` bounds the crop's share of the area, `ratio` its width / height; `flip` is the
    probability of mirroring left to right.
    """

    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UsageError(f"--image-size must be at least 1, not {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Short side to `resize` pixels (antialiased bilinear), then the central square."""

    image_size: int
    resize: int

    def __post_init__(self) -> None:
        if not 0 < self.image_size <= self.resize:
            raise UsageError(
                f"evaluation crops {self.image_size} pixels out of a short side of {self.resize}"
            )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        images: uint8, shape (n, image_size, image_size, 3), RGB. A view of a buffer that is
            used again: valid until the batch after the next one is asked for.
        labels: int64, shape (n,).
        samples: int64, shape (n,): canonical sample numbers.
        positions: int64, shape (n,): where in the epoch's order the samples stand.
        global_size: samples of this step over all ranks.
        step: the step within the epoch, from 0.
    """

    images: torch.Tensor
    labels: torch.Tensor
    samples: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    global_size: int
    step: int


@dataclass
class LoaderStats:
    """Sums over a loader's life: samples and encoded bytes decoded, seconds spent waiting."""

    samples: int = 0
    bytes: int = 0
    wait_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Pending:
    batch: Batch
    slot: int
    parts: list[concurrent.futures.Future[int]]


class Loader:
    """Batches of one rank, epoch after epoch.

    Rank r of `world` gets `rank_slice(n, r, world)` of every global batch of n samples: slices
    differ by at most one, and are empty only where n < world. All ranks have equally many steps.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: TrainTransform | EvalTransform,
        *,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool,
        drop_last: bool,
        threads: int,
        prefetch: int = 3,
        pin_memory: bool = False,
    ) -> None:
        if global_batch < 1 or threads < 1 or prefetch < 1 or not 0 <= rank < world:
            raise UsageError(
                f"a loader needs a global batch ({global_batch}), threads ({threads}) and "
                f"prefetch ({prefetch}) of at least 1 and a rank ({rank}) below world ({world})"
            )
        self.stats = LoaderStats()
        self.steps = steps_per_epoch(len(dataset), global_batch, drop_last=drop_last)
        self._dataset = dataset
        self._transform = transform
        self._global_batch = global_batch
        self._rank, self._world = rank, world
        self._seed = seed
        self._shuffle = shuffle
        self._prefetch = prefetch
        size = transform.image_size
        largest = -(-min(global_batch, len(dataset)) // world)
        self._ring = torch.empty(
            (prefetch + _HELD - 1, largest, size, size, 3),
            dtype=torch.uint8,
            pin_memory=pin_memory,
        )
        self._free = collections.deque(range(len(self._ring)))
        self._held: collections.deque[int] = collections.deque()
        self._live: Generator[Batch, None, None] | None = None
        self._pool = _start_threads(threads)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; starting late costs nothing more.

        Raises DamagedData, naming shard, key and offset, for a sample that cannot be decoded.
        """
        if self._live is not None:
            self._live.close()  # an epoch left half-way gives its part of the ring back
        self._live = self._run(epoch, first_step)
        return self._live

    def _run(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        order = epoch_order(self._seed, epoch, len(self._dataset), shuffle=self._shuffle)
        pending: collections.deque[_Pending] = collections.deque()
        steps = iter(range(first_step, self.steps))
        try:
            while True:
                while len(self._held) >= _HELD:
                    self._free.append(self._held.popleft())
                while len(pending) < self._prefetch and (step := next(steps, None)) is not None:
                    pending.append(self._begin(epoch, step, order, self._free.popleft()))
                if not pending:
                    return
                ready = pending[0]
                self._wait(ready)
                pending.popleft()
                self._held.append(ready.slot)
                yield ready.batch
        finally:
            _abandon(pending)
            self._free.extend(each.slot for each in pending)

    def _begin(self, epoch: int, step: int, order: npt.NDArray[np.int64], slot: int) -> _Pending:
        """Choose a step's samples and crops and set the threads to work on them."""
        start = step * self._global_batch
        global_size = min(self._global_batch, len(order) - start)
        first, last = rank_slice(global_size, self._rank, self._world)
        positions = np.arange(start + first, start + last)
        samples = order[positions]
        images = self._ring[slot, : len(samples)]
        batch = Batch(
            images=images,
            labels=torch.from_numpy(self._dataset.labels[samples].astype(np.int64)),
            samples=samples,
            positions=positions,
            global_size=global_size,
            step=step,
        )
        parts = self._submit(epoch, samples, images)
        return _Pending(batch=batch, slot=slot, parts=parts)

    def _submit(
        self, epoch: int, samples: npt.NDArray[np.int64], images: torch.Tensor
    ) -> list[concurrent.futures.Future[int]]:
        chunks = [slice(at, at + _CHUNK) for at in range(0, len(samples), _CHUNK)]
        if isinstance(self._transform, EvalTransform):
            resize = self._transform.resize
            return [
                self._pool.submit(self._fill_evaluation, samples[chunk], images[chunk], resize)
                for chunk in chunks
            ]
        boxes = random_resized_crops(
            self._seed,
            epoch,
            samples,
            self._dataset.widths[samples],
            self._dataset.heights[samples],
            scale=self._transform.scale,
            ratio=self._transform.ratio,
        )
        mirrored = flips(self._seed, epoch, samples, self._transform.flip)
        return [
            self._pool.submit(
                self._fill_training, samples[chunk], images[chunk], boxes[chunk], mirrored[chunk]
            )
            for chunk in chunks
        ]

    def _fill_training(
        self,
        samples: npt.NDArray[np.int64],
        images: torch.Tensor,
        boxes: npt.NDArray[np.int64],
        mirrored: npt.NDArray[np.bool_],
    ) -> int:
        total = 0
        for sample, target, box, mirror in zip(samples, images, boxes, mirrored, strict=True):
            pixels, size = self._decode(int(sample))
            top, left, height, width = box
            _resize_into(target, pixels[top : top + height, left : left + width])
            if mirror:
                target.copy_(target.flip(1))
            total += size
        return total

    def _fill_evaluation(
        self, samples: npt.NDArray[np.int64], images: torch.Tensor, resize: int
    ) -> int:
        total = 0
        for sample, target in zip(samples, images, strict=True):
            pixels, size = self._decode(int(sample))
            target.copy_(_resize_and_crop(pixels, resize, target.shape[0]))
            total += size
        return total

    def _decode(self, sample: int) -> tuple[npt.NDArray[np.uint8], int]:
        try:
            encoded = self._dataset.read(sample)
            return decode_rgb(encoded.data, encoded.info), len(encoded.data)
        except DamagedData as error:
            raise DamagedData(f"{self._dataset.describe(sample)}: {error}") from None

    def _wait(self, ready: _Pending) -> None:
        started = time.perf_counter()
        self.stats.bytes += sum(part.result() for part in ready.parts)
        self.stats.wait_seconds += time.perf_counter() - started
        self.stats.samples += len(ready.batch.samples)

    def close(self) -> None:
        """End the epoch under way and stop the threads."""
        if self._live is not None:
            self._live.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start_threads(count: int) -> concurrent.futures.ThreadPoolExecutor:
    """Threads in which torch uses one core each: parallelism is over images alone.

    torch keeps its number of threads by thread, but the last one set anywhere is what a new
    thread begins with. So all of ours are started first, and the caller's number is set again.
    """
    before = torch.get_num_threads()
    pool = concurrent.futures.ThreadPoolExecutor(
        count, "loader", initializer=torch.set_num_threads, initargs=(1,)
    )
    everyone = threading.Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(everyone.wait)
        everyone.wait()
    except BaseException:  # Ctrl-C: do not leave threads waiting for this one
        everyone.abort()
        raise
    torch.set_num_threads(before)
    return pool


def _abandon(pending: collections.deque[_Pending]) -> None:
    """Cancel what has not begun and wait for what has: their slots will be used again."""
    parts = [part for each in pending for part in each.parts]
    # wait() would never return for a cancelled part that no thread comes across any more.
    concurrent.futures.wait([part for part in parts if not part.cancel()])


def _resize_into(target: torch.Tensor, pixels: npt.NDArray[np.uint8]) -> None:
    """Antialiased bilinear from uint8 (h, w, 3) into uint8 (H, W, 3), with no copy between.

    The operator behind torch.nn.functional.interpolate(antialias=True), called on channels-last
    views: interpolate itself allocates its result, which takes twice the time.
    """
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    torch.ops.aten._upsample_bilinear2d_aa.out(  # noqa: SLF001
        source, list(target.shape[:2]), False, None, None, out=target.permute(2, 0, 1)[None]
    )


def _resize_and_crop(pixels: npt.NDArray[np.uint8], resize: int, crop: int) -> torch.Tensor:
    """Resize(resize) and CenterCrop(crop) with torchvision's rounding; uint8 (crop, crop, 3)."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    resized = torch.empty(
        (int(resize * height / short), int(resize * width / short), 3), dtype=torch.uint8
    )
    _resize_into(resized, pixels)
    top, left = round((resized.shape[0] - crop) / 2.0), round((resized.shape[1] - crop) / 2.0)
    return resized[top : top + crop, left : left + crop]
