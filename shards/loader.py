"""The loader: an epoch is an order over an index, cut into global batches, decoded by threads.

Exact: every sample of an epoch is handed out once over all ranks, the global batches are the
same at any world size, and any step can be the first one. Nothing about the order or the
augmentation is state, so there is nothing to save but a position.

Threads, not processes: reading, decoding and resizing release the interpreter lock, so one
process feeds its device without fork, shared memory or pickling. Images are resized straight
into a ring of preallocated uint8 batches. Threads that are ahead of the consumer wait until there
is room in it.

The loader knows nothing of torch.distributed; rank and world are arguments.
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from shards.cores import available_cores
from shards.crew import Crew, Job
from shards.dataset import Dataset
from shards.decode import Way
from shards.errors import UsageError
from shards.filling import Filler, OnBad
from shards.order import Shuffle, epoch_order, rank_slice, steps_per_epoch
from shards.render import Renderer, Tally
from shards.transform import EvalTransform, TrainTransform

# Samples a thread takes at a time: few, so that all threads end a batch together.
_CHUNK: Final = 2
# Handed-out batches whose images stay untouched: the newest and the one before it, so that a
# copy to a device may still be under way when the next batch is asked for.
_HELD: Final = 2
_STATE_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        images: uint8, shape (n, size, size, 3), RGB. A view of a buffer that is used again:
            valid until the batch after the next one is asked for.
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


@dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """Sums over a loader's life. Stages are summed over threads, waiting is the consumer's."""

    samples: int  # handed out
    bytes: int  # encoded, of these
    wait_seconds: float  # until a batch that was asked for was complete
    read_seconds: float
    decode_seconds: float
    resize_seconds: float  # mirroring counted
    augment_seconds: float
    ways: Mapping[str, int]  # pictures by the way they were decoded, see `shards.decode.Way`
    substituted: int  # samples that another one stood in for


def stats_of(
    tally: Tally,
    *,
    samples: int,
    bytes: int,  # noqa: A002 - as the field is called
    wait_seconds: float,
    read_seconds: float,
    substituted: int = 0,
) -> LoaderStats:
    """What a loader counted, with what its threads did."""
    return LoaderStats(
        samples=samples,
        bytes=bytes,
        wait_seconds=wait_seconds,
        read_seconds=read_seconds,
        decode_seconds=tally.decode_seconds,
        resize_seconds=tally.resize_seconds,
        augment_seconds=tally.augment_seconds,
        ways={way.name.lower(): count for way, count in zip(Way, tally.ways, strict=True)},
        substituted=substituted,
    )


@dataclass(frozen=True, kw_only=True)
class _Pending:
    batch: Batch
    slot: int
    job: Job


class Loader:
    """Batches of one rank, epoch after epoch.

    Rank r of `world` gets `rank_slice(n, r, world)` of every global batch of n samples: slices
    differ by at most one, and are empty only where n < world. All ranks have equally many steps.

    A loader stands at a step of an epoch, at first at the beginning of epoch 0. `for batch in
    loader` hands out the rest of that epoch, after which it stands at the next one's beginning;
    `epoch` goes anywhere. Its state is where it stands, so resuming costs one permutation.

    Args:
        dataset: what is loaded; the caller closes it.
        transform: of training, or of evaluation.
        global_batch: samples a step, over all ranks.
        seed: of order, crops and augmentation.
        shuffle: "full", a permutation of all samples; "block", for disks that dislike random
            reads, mixes `window` shards at a time; "none" is the order of keys.
        drop_last: leave out the last global batch where it is short.
        threads: that read, decode and resize; by default one for each core. Ranks that share a
            machine share its cores: give each its part.
        prefetch: batches in the making.
        pin_memory: whether batches lie in page-locked memory.
        image_size: size of the pictures by (epoch, step), at most the transform's.
        on_bad: what becomes of a sample that cannot be decoded: "raise", or "substitute": another
            one stands in for it, the same one whichever rank has it, and is counted.
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
        shuffle: Shuffle = "full",
        window: int = 16,
        drop_last: bool = False,
        threads: int | None = None,
        prefetch: int = 3,
        pin_memory: bool = False,
        image_size: Callable[[int, int], int] | None = None,
        on_bad: OnBad = "raise",
    ) -> None:
        threads = available_cores() if threads is None else threads
        if global_batch < 1 or threads < 1 or prefetch < 1 or not 0 <= rank < world:
            raise UsageError(
                f"a loader needs a global batch ({global_batch}), threads ({threads}) and "
                f"prefetch ({prefetch}) of at least 1 and a rank ({rank}) below world ({world})"
            )
        if shuffle == "block" and dataset.is_loose:
            raise UsageError(
                f"{dataset.folder} is of class folders, and a block shuffle would mix the images "
                f"of {window} classes at a time; choose the full shuffle"
            )
        self.steps = steps_per_epoch(len(dataset), global_batch, drop_last=drop_last)
        self._dataset = dataset
        self._filler = Filler(dataset, Renderer(transform), seed, on_bad)
        self._largest_image = transform.image_size
        self._image_size = image_size
        self._global_batch = global_batch
        self._rank, self._world = rank, world
        self._seed = seed
        self._shuffle, self._window = shuffle, window
        self._drop_last = drop_last
        self._prefetch = prefetch
        self._next = (0, 0)  # epoch and step of the batch that is handed out next
        self._samples, self._bytes, self._wait_seconds = 0, 0, 0.0
        largest = -(-min(global_batch, len(dataset)) // world)
        self._ring = torch.empty(
            (prefetch + _HELD - 1, largest * transform.image_size**2 * 3),
            dtype=torch.uint8,
            pin_memory=pin_memory,
        )
        self._pending: collections.deque[_Pending] = collections.deque()
        self._held: collections.deque[int] = collections.deque(maxlen=_HELD)
        self._live: Generator[Batch, None, None] | None = None
        self._crew = Crew(threads, "loader")

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch at which the loader stands."""
        return self.epoch(*self._next)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; starting late costs nothing more.

        An iteration that is under way ends. Raises DamagedData, naming shard, key and offset,
        for a sample that cannot be decoded.
        """
        if self._live is not None:
            self._live.close()
        self._abandon()  # again: Ctrl-C may have come while the iteration ended
        self._next = (epoch, first_step)
        self._live = self._run(epoch, first_step)
        return self._live

    def _run(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        order = epoch_order(
            self._seed,
            epoch,
            len(self._dataset),
            shuffle=self._shuffle,
            shards=self._dataset.shards if self._shuffle == "block" else None,
            window=self._window,
        )
        steps = iter(range(first_step, self.steps))
        try:
            while True:
                while len(self._held) >= _HELD:
                    self._held.popleft()
                for step in itertools.islice(steps, self._prefetch - len(self._pending)):
                    self._begin(epoch, step, order)
                if not self._pending:
                    self._next = (epoch + 1, 0)
                    return
                ready = self._pending[0]
                self._wait(ready)
                step = ready.batch.step + 1
                self._next = (epoch, step) if step < self.steps else (epoch + 1, 0)
                self._held.append(ready.slot)
                self._pending.popleft()
                yield ready.batch
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Leave what is under way undone: nobody writes to its slots any more."""
        self._crew.abandon([each.job for each in self._pending])
        self._pending.clear()

    def _begin(self, epoch: int, step: int, order: npt.NDArray[np.int64]) -> None:
        """Choose a step's samples and set the threads to work on them."""
        start = step * self._global_batch
        global_size = min(self._global_batch, len(order) - start)
        first, last = rank_slice(global_size, self._rank, self._world)
        positions = np.arange(start + first, start + last)
        samples = order[positions]
        size = self._size(epoch, step)
        slot = self._free_slot()
        room = self._ring[slot, : len(samples) * size * size * 3]
        batch = Batch(
            images=room.view(len(samples), size, size, 3),
            labels=torch.from_numpy(self._dataset.labels[samples].astype(np.int64)),
            samples=samples,
            positions=positions,
            global_size=global_size,
            step=step,
        )
        pictures = self._filler.prepare(epoch, samples, batch.labels, batch.images)
        parts = [slice(at, at + _CHUNK) for at in range(0, len(samples), _CHUNK)]
        job = Job(partial(self._filler.fill, pictures), parts)
        self._pending.append(_Pending(batch=batch, slot=slot, job=job))
        self._crew.begin(job)

    def _free_slot(self) -> int:
        """A part of the ring that neither the threads nor the consumer have."""
        used = {*self._held, *(each.slot for each in self._pending)}
        return next(slot for slot in range(len(self._ring)) if slot not in used)

    def _size(self, epoch: int, step: int) -> int:
        if self._image_size is None:
            return self._largest_image
        size = self._image_size(epoch, step)
        if not 1 <= size <= self._largest_image:
            raise UsageError(
                f"the image size of epoch {epoch}, step {step} is {size}; it must be from 1 to "
                f"{self._largest_image}, the transform's"
            )
        return size

    def _wait(self, ready: _Pending) -> None:
        started = time.perf_counter()
        self._bytes += ready.job.result()
        self._wait_seconds += time.perf_counter() - started
        self._samples += len(ready.batch.samples)

    # --- what is said of it ---

    def stats(self) -> LoaderStats:
        """What was done up to now."""
        return stats_of(
            self._filler.renderer.tally(),
            samples=self._samples,
            bytes=self._bytes,
            wait_seconds=self._wait_seconds,
            read_seconds=self._filler.read_seconds,
            substituted=self._filler.substituted,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, after the batches handed out, and what that depends on.

        Plain numbers and strings. Neither rank nor world is among them: it may be loaded by
        another number of processes.
        """
        epoch, step = self._next
        return {"version": _STATE_VERSION, "epoch": epoch, "step": step, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """What decides which samples a step has."""
        return {
            "data": self._dataset.digest,
            "seed": self._seed,
            "global_batch": self._global_batch,
            "drop_last": self._drop_last,
            "shuffle": self._shuffle,
            "window": self._window if self._shuffle == "block" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where a state says. An iteration that is under way ends.

        Raises UsageError where the state is of other data or options, or none of a loader.
        """
        if state.get("version") != _STATE_VERSION:
            raise UsageError(
                f"a loader's state of version {_STATE_VERSION} is needed, "
                f"not {state.get('version')!r}"
            )
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise UsageError(
                    f"the loader's state has {name} {state.get(name)!r}, this loader has {mine!r}: "
                    "its steps would have other samples"
                )
        epoch, step = state.get("epoch"), state.get("step")
        if not (isinstance(epoch, int) and isinstance(step, int)) or epoch < 0:
            raise UsageError(f"the loader's state stands at epoch {epoch!r}, step {step!r}")
        if not 0 <= step <= self.steps:
            raise UsageError(f"the state stands at step {step} of an epoch of {self.steps}")
        if self._live is not None:
            self._live.close()
        self._next = (epoch, step)

    def close(self) -> None:
        """End the epoch under way and stop the threads."""
        if self._live is not None:
            self._live.close()
        self._abandon()
        self._crew.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
