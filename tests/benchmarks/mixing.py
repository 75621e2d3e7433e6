"""How well block shuffle mixes, by the window: a table.

    python tests/benchmarks/mixing.py [--samples N] [--shard-size N] [--batch N] [--json FILE]

The set is as large as ImageNet, of 1000 classes alike; its shards are what `imagenet-prep shard`
makes, a random sample each, or, as a warning, shards in the order of classes. For each window:

- shards a batch: different shards whose samples meet in a batch, on average
- classes a batch: different classes in a batch, on average
- deviation: standard deviation of the number of samples that a class has in a batch
- together again: how often two samples of one batch are in one batch in the next epoch too, as
  a multiple of what a full shuffle gives
- seconds: to make an epoch's order
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _bench import machine

from shards.order import Stream, epoch_order, permutation

CLASSES = 1000
WINDOWS = (1, 4, 16, 64)
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Set:
    """A set of samples, by canonical number: their shards and classes."""

    title: str
    shards: npt.NDArray[np.uint32]
    classes: Numbers


@dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one way to shuffle a set."""

    shuffle: str
    shards_a_batch: float
    classes_a_batch: float
    deviation: float
    together_again: float
    seconds: float


def main() -> None:
    options = parse()
    rows = {each.title: list(measure(each, options)) for each in sets(options)}
    for title, found in rows.items():
        show(title, found)
    if options.json:
        result = {
            "machine": machine(),
            "rows": [asdict(row) | {"set": title} for title in rows for row in rows[title]],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256, help="the global batch")
    parser.add_argument("--epochs", type=int, default=5, help="how many are counted")
    parser.add_argument("--quick", action="store_true", help="two epochs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.quick:
        options.epochs = 2
    return options


def sets(options: argparse.Namespace) -> Iterator[Set]:
    size = options.samples
    classes = np.arange(size) * CLASSES // size  # keys sort by class
    in_order = np.arange(size) // options.shard_size
    planned = np.empty(size, np.uint32)
    planned[permutation(0, Stream.PLAN, 0, size)] = in_order
    yield Set(title="shards that are random samples", shards=planned, classes=classes)
    yield Set(
        title="shards in the order of classes", shards=in_order.astype(np.uint32), classes=classes
    )


def measure(each: Set, options: argparse.Namespace) -> Iterator[Row]:
    full = measure_one(each, options, "full", 0, 1.0)
    for window in WINDOWS:
        name = f"block, {window} shard{'s' if window > 1 else ''}"
        yield measure_one(each, options, name, window, full.together_again)
    yield measure_one(each, options, "full", 0, full.together_again)


def measure_one(
    each: Set, options: argparse.Namespace, name: str, window: int, usual: float
) -> Row:
    """The figures of a window, 0 for a full shuffle; `usual` is what "together again" is of."""
    size, batch = options.samples, options.batch
    orders, seconds = [], []
    for epoch in range(options.epochs):
        started = time.perf_counter()
        if window:
            order = epoch_order(0, epoch, size, shuffle="block", shards=each.shards, window=window)
        else:
            order = epoch_order(0, epoch, size, shuffle="full")
        seconds.append(time.perf_counter() - started)
        orders.append(order[: size // batch * batch].reshape(-1, batch))
    again = [met_again(one, other, size) for one, other in pairwise(orders)]
    per_batch = np.concatenate([class_counts(each.classes[order]) for order in orders])
    return Row(
        shuffle=name,
        shards_a_batch=float(np.mean([different(each.shards[order]) for order in orders])),
        classes_a_batch=float((per_batch > 0).sum(axis=1).mean()),
        deviation=float(per_batch.std(axis=1).mean()),
        together_again=float(np.mean(again)) / usual,
        seconds=float(np.median(seconds)),
    )


def different(batches: npt.NDArray[np.integer]) -> float:
    """Different values in a row, on average."""
    rows = np.sort(batches, axis=1)
    return float((np.diff(rows, axis=1) != 0).sum(axis=1).mean()) + 1


def class_counts(batches: Numbers) -> npt.NDArray[np.int16]:
    """How many samples of each class are in each batch: shape (batches, CLASSES)."""
    places = batches + np.arange(len(batches))[:, None] * CLASSES
    counts = np.bincount(places.reshape(-1), minlength=len(batches) * CLASSES)
    return counts.reshape(-1, CLASSES).astype(np.int16)


def met_again(one: Numbers, other: Numbers, size: int) -> float:
    """The share of the pairs that met in a batch of `one` that also met in one of `other`."""
    batch_of = np.full((2, size), -1)
    for numbers, batches in zip(batch_of, (one, other), strict=True):
        numbers[batches] = np.arange(len(batches))[:, None]
    kept = (batch_of >= 0).all(axis=0)
    both = np.unique(batch_of[0][kept] * len(other) + batch_of[1][kept], return_counts=True)[1]
    pairs = one.shape[0] * one.shape[1] * (one.shape[1] - 1) / 2
    return float((both * (both - 1) / 2).sum() / pairs)


def show(title: str, rows: list[Row]) -> None:
    print(
        f"\n| {title} | shards a batch | classes a batch | deviation | together again | seconds |"
    )
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.shuffle} | {row.shards_a_batch:.1f} | {row.classes_a_batch:.1f} | "
            f"{row.deviation:.3f} | {row.together_again:,.2f}x | {row.seconds:.2f} |"
        )


if __name__ == "__main__":
    main()
