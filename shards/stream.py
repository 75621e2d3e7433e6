"""Batches from shards without an index: patterns of tars, commands, standard input.

INEXACT, since a tar that is read front to back cannot be otherwise: shards are drawn at random
with replacement, so an epoch is a number of steps and not every sample once, and a run that is
resumed sees other samples than one that never stopped. What can be promised is: as many steps on
every rank whatever the number of shards, so no rank waits for another; the same crops, decoding
and batches as `shards.loader`; an error that names URL and key for whatever cannot be read or
decoded, and never a sample left out. `imagenet-prep index` makes such a set exact.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import torch

from shards.cores import available_cores
from shards.crew import Crew, Job
from shards.errors import DamagedData, ToolError, UsageError
from shards.loader import Batch, LoaderStats, stats_of
from shards.render import Choice, Renderer, targets_of
from shards.transform import EvalTransform, TrainTransform
from shards.urls import STDIN, SampleStream, StopSign, StreamSample, expand

# What a command says when it makes a StreamLoader.
INEXACT: Final = (
    "shards without an index are drawn with replacement: an epoch is not every image once, and "
    "resuming does not repeat what was; `imagenet-prep index SHARDS --out DIR` makes them exact"
)
_CHUNK: Final = 4  # samples a thread takes at a time, as in the loader


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A batch whose pictures are being made."""

    batch: Batch
    bytes: int  # encoded
    job: Job


_Work: TypeAlias = "tuple[concurrent.futures.Future[_Begun], Callable[[], _Begun]]"


class StreamLoader:
    """Batches of one rank; endless but for its steps an epoch, and for standard input.

    A batch is that of `shards.loader.Loader`, in memory of its own. `samples` are -1, as samples
    of a stream have no numbers; `positions` count those of the epoch over all ranks, and crops
    and augmentation follow from (seed, epoch, position). An epoch goes on in the shards where the
    last one stopped.

    Args:
        urls: a pattern 'DIR/x-{000..099}.tar', a `pipe:` command (run by a shell), an address
            that webdataset knows, '-' for standard input; or a list of them, taken as it is.
            Compressed tars go through a command: 'pipe:gzip -dc DIR/x-{000..099}.tar.gz'.
        transform: of training; evaluation has to count every image once and is refused.
        batch_size: samples a step of this rank.
        steps: steps in an epoch, the same number on all ranks.
        seed: of shards, crops and augmentation. Every rank draws its own shards.
        threads: that decode and resize; one more reads. By default one for each core.
        prefetch: batches in the making.
        label_field: name of the label in each sample's .json (`a.b` is b in a); None takes .cls.
        classes: how many there are: a label beyond them is an error. None if that is not known.
        shuffle: samples that wait in memory, encoded, for the next one to be drawn from; 1 takes
            them as they are stored.
        pin_memory: whether batches lie in page-locked memory.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        transform: TrainTransform,
        *,
        batch_size: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        threads: int | None = None,
        prefetch: int = 3,
        label_field: str | None = None,
        classes: int | None = None,
        shuffle: int = 1000,
        pin_memory: bool = False,
    ) -> None:
        threads = available_cores() if threads is None else threads
        if min(batch_size, steps, threads, prefetch, shuffle) < 1 or not 0 <= rank < world:
            raise UsageError(
                f"a stream needs a batch ({batch_size}), steps ({steps}), threads ({threads}), "
                f"prefetch ({prefetch}) and a shuffle buffer ({shuffle}) of at least 1 and a rank "
                f"({rank}) below world ({world})"
            )
        if isinstance(transform, EvalTransform):
            raise UsageError(
                "evaluation counts every image once, which shards without an index cannot promise; "
                "`imagenet-prep index SHARDS --out DIR` makes such a set exact"
            )
        self.steps = steps
        self._urls = expand(urls)
        if self._urls == [STDIN] and world > 1:
            raise UsageError(f"standard input (-) has one reader, not {world}; give shards")
        self._renderer = Renderer(transform)
        self._batch_size = batch_size
        self._rank, self._world = rank, world
        self._seed = seed
        self._prefetch = prefetch
        self._label_field, self._classes, self._shuffle = label_field, classes, shuffle
        self._pin_memory = pin_memory
        self._samples, self._bytes = 0, 0
        self._wait_seconds, self._read_seconds = 0.0, 0.0
        self._stream: SampleStream | None = None
        self._live: Generator[Batch, None, None] | None = None
        self._closed = False
        self._stop = StopSign()
        self._crew = Crew(threads, "loader")
        self._reader = _Reader()

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches for the steps of an epoch, from `first_step` on. One under way ends.

        Raises DamagedData, naming URL and key, for a shard or sample that cannot be read or
        decoded, and ToolError where standard input ends too early.
        """
        if self._live is not None:
            self._live.close()
        self._live = self._run(epoch, first_step)
        return self._live

    def _run(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        pending: collections.deque[concurrent.futures.Future[_Begun]] = collections.deque()
        steps = iter(range(first_step, self.steps))
        try:
            while True:
                while len(pending) < self._prefetch and (step := next(steps, None)) is not None:
                    pending.append(self._reader.submit(partial(self._begin, epoch, step)))
                if not pending:
                    return
                yield self._wait(pending.popleft())
        finally:
            for each in pending:
                _leave(each)

    def _wait(self, pending: concurrent.futures.Future[_Begun]) -> Batch:
        started = time.perf_counter()
        begun = pending.result()
        begun.job.result()
        self._wait_seconds += time.perf_counter() - started
        self._samples += len(begun.batch.labels)
        self._bytes += begun.bytes
        return begun.batch

    # --- in the reader's thread ---

    def _begin(self, epoch: int, step: int) -> _Begun:
        """Read a step's samples, choose their crops, set the threads to work."""
        samples = self._read(epoch, step)
        first = (step * self._world + self._rank) * self._batch_size
        positions = np.arange(first, first + self._batch_size)
        choices = self._renderer.choices(
            self._seed,
            epoch,
            positions,
            np.array([sample.info.width for sample in samples]),
            np.array([sample.info.height for sample in samples]),
        )
        size = self._renderer.transform.image_size
        batch = Batch(
            images=torch.empty(
                (len(samples), size, size, 3), dtype=torch.uint8, pin_memory=self._pin_memory
            ),
            labels=torch.tensor([sample.label for sample in samples]),
            samples=np.full(len(samples), -1),
            positions=positions,
            global_size=self._batch_size * self._world,
            step=step,
        )
        targets = targets_of(batch.images)
        chunks = [slice(at, at + _CHUNK) for at in range(0, len(samples), _CHUNK)]
        job = Job(partial(self._fill, samples, targets, choices), chunks)
        self._crew.begin(job)
        return _Begun(batch=batch, bytes=sum(len(sample.data) for sample in samples), job=job)

    def _read(self, epoch: int, step: int) -> list[StreamSample]:
        started = time.perf_counter()
        if self._stream is None:
            self._stream = SampleStream(
                self._urls,
                label_field=self._label_field,
                classes=self._classes,
                shuffle=self._shuffle,
                # A resumed run draws other shards than the one that began.
                seed=f"{self._seed} {epoch} {step} {self._rank}",
                stop=self._stop,
            )
        try:
            samples = list(itertools.islice(self._stream, self._batch_size))
        except BaseException:
            self._forget_stream()  # it would be taken for one that has come to its end
            raise
        self._read_seconds += time.perf_counter() - started
        if len(samples) == self._batch_size:
            return samples
        raise ToolError(
            f"standard input ended at step {step} of {self.steps} in epoch {epoch}, "
            f"{len(samples)} samples into a batch of {self._batch_size}; it is read once, so it "
            "has to have as many samples as all epochs take"
        )

    def _forget_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    # --- in the pool's threads ---

    def _fill(
        self,
        samples: list[StreamSample],
        targets: tuple[torch.Tensor, ...],
        choices: list[Choice | None],
        part: slice,
    ) -> int:
        for at in range(*part.indices(len(samples))):
            sample = samples[at]
            try:
                self._renderer.render(
                    memoryview(sample.data), sample.info, targets[at], choices[at]
                )
            except DamagedData as error:
                raise DamagedData(f"{sample.place}: {error}") from None
        return len(samples[part])

    # --- what is said of it, and its end ---

    def stats(self) -> LoaderStats:
        """What was done up to now; reading counts the time of the one thread that reads."""
        return stats_of(
            self._renderer.tally(),
            samples=self._samples,
            bytes=self._bytes,
            wait_seconds=self._wait_seconds,
            read_seconds=self._read_seconds,
        )

    def close(self) -> None:
        """End the epoch under way, stop the threads, and kill commands that still run."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            self._live.close()
        self._stop.set()
        self._reader.close()
        self._crew.close()
        self._forget_stream()
        self._stop.close()

    def __enter__(self) -> StreamLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leave(pending: concurrent.futures.Future[_Begun]) -> None:
    """Have a batch that nobody waits for made no further."""
    if not pending.cancel() and pending.done() and pending.exception() is None:
        pending.result().job.cancel()


class _Reader:
    """One thread that does what it is given, in that order.

    A pool of one would do, but that a program cannot end while a thread of it waits for data.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], _Begun]) -> concurrent.futures.Future[_Begun]:
        """Do this after all else that was given."""
        if not self._thread.is_alive():
            raise RuntimeError("this loader is closed")
        future: concurrent.futures.Future[_Begun] = concurrent.futures.Future()
        self._work.put((future, work))
        return future

    def _run(self) -> None:
        while (given := self._work.get()) is not None:
            future, work = given
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                    future.set_exception(error)

    def close(self) -> None:
        """Wait for what is being done, and end."""
        self._work.put(None)
        self._thread.join()
