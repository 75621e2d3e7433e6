"""Our loader in a process of its own: `python _ours.py WHAT SPEC`, as `_loaders.py` does it.

loader  batches of `shards.loader.Loader`
bare    the work of one of its threads without it, until told to begin and for some seconds
held    the loader with one thread, watched from outside: see `_lock.py`
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import _lock
import numpy as np
import torch
from _measured import Spec, imported, measure

from shards.dataset import Dataset
from shards.loader import Loader
from shards.order import epoch_order
from shards.render import Renderer, targets_of
from shards.transform import TrainTransform

SECONDS = 5.0  # that the bare work and the lock are watched for
CHUNK = 64  # samples whose crops are chosen in one call


def opened(spec: Spec, dataset: Dataset, threads: int) -> Loader:
    return Loader(
        dataset,
        TrainTransform(image_size=spec.size),
        global_batch=spec.batch,
        shuffle=spec.shuffle,  # type: ignore[arg-type]
        window=spec.window,
        drop_last=True,
        threads=threads,
    )


def loader(spec: Spec) -> Iterator[int]:
    """The batches of an epoch, from the step that holds sample `skip`."""
    imported()
    dataset = Dataset.open(Path(spec.data))
    batches = opened(spec, dataset, spec.workers)
    batches.load_state_dict({**batches.state_dict(), "step": spec.skip // spec.batch})
    return (len(batch.labels) for batch in batches)


def bare(spec: Spec) -> None:
    """One of `workers` processes that take every workers-th sample: read, cut, decode, resize.

    Prints `ready`, begins at a line on stdin and prints what it reached.
    """
    torch.set_num_threads(1)
    dataset = Dataset.open(Path(spec.data))
    renderer = Renderer(TrainTransform(image_size=spec.size))
    order = epoch_order(0, 0, len(dataset), shuffle="full")[spec.skip :: spec.workers]
    (target,) = targets_of(torch.empty((1, spec.size, spec.size, 3), dtype=torch.uint8))
    render(dataset, renderer, order[:CHUNK], target)  # the first images fill caches of ours
    print("ready", flush=True)
    sys.stdin.readline()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        numbers = np.take(order, range(count, count + CHUNK), mode="wrap")
        render(dataset, renderer, numbers, target)
        count += CHUNK
    print(json.dumps({"rate": count / (time.perf_counter() - started)}), flush=True)


def render(dataset: Dataset, renderer: Renderer, numbers: np.ndarray, target: torch.Tensor) -> None:
    """Make the pictures of samples, one over the other."""
    places = dataset.places(numbers)
    choices = renderer.choices(0, 0, numbers, dataset.widths[numbers], dataset.heights[numbers])
    buffer = bytearray(max(place.size for place in places))
    for place, choice in zip(places, choices, strict=True):
        data = memoryview(buffer)[: place.size]
        dataset.read_into(data, place)
        renderer.render(data, place.info, target, choice)


def held(spec: Spec) -> None:
    """Shows the watcher what the lock looks like, then loads with one thread.

    Seconds are of processor time: being preempted, which hits held and free time alike, is not
    taken for either.
    """
    dataset = Dataset.open(Path(spec.data))
    with opened(spec, dataset, 1) as one:
        _lock.show()
        batches = itertools.chain.from_iterable(one.epoch(epoch) for epoch in itertools.count())
        next(batches)
        print("begin", flush=True)
        started, count = time.process_time(), 0
        while (seconds := time.process_time() - started) < SECONDS:
            count += len(next(batches).labels)
        print(json.dumps({"images": count, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    given = Spec(**json.loads(sys.argv[2]))
    if sys.argv[1] == "loader":
        measure(loader, given)
    else:
        {"bare": bare, "held": held}[sys.argv[1]](given)
