"""Which sample comes when: pure integer functions of a seed, the same on every machine for ever.

NumPy's Generator methods may change between its versions, so every permutation and draw here
is built on one documented 64-bit mix. FORMAT.md gives the functions and test vectors.
"""

from __future__ import annotations

import enum
import functools
from typing import Literal

import numpy as np
import numpy.typing as npt

from shards.errors import UsageError

# How an epoch is ordered: every sample anywhere ("full"), shards and then the samples of a few
# shards at a time ("block": reads stay near each other), or by canonical number ("none").
Shuffle = Literal["full", "block", "none"]

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


class Stream(enum.IntEnum):
    """What a derived sequence is for; sequences of different streams are unrelated."""

    PLAN = 1  # samples into shards
    EPOCH = 2  # samples of an epoch
    DRAWS = 3  # augmentation of a sample
    SUBSET = 4  # which samples of a class
    SHARDS = 5  # shards of an epoch, in a block shuffle
    MIXING = 6  # batches mixed with themselves, in training


def mix64(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit integers one to one: SplitMix64's output for the state `value`.

    Constants: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014, with Stafford's mix 13. Arithmetic is modulo 2**64.
    """
    z = value + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mix_one(value: int) -> int:
    return int(mix64(np.array([value & _MASK], np.uint64))[0])


@functools.lru_cache(maxsize=64)  # every batch of an epoch asks for the same one, at 15 us
def stream_key(seed: int, stream: Stream, number: int) -> int:
    """The 64-bit key of sequence `number` (an epoch, say) of a stream under a seed."""
    return _mix_one(_mix_one(_mix_one(seed) ^ stream) ^ number)


def permutation(seed: int, stream: Stream, number: int, size: int) -> npt.NDArray[np.int64]:
    """The order of 0..size-1 that sorts mix64(key ^ i) ascending. int64, shape (size,).

    mix64 is one to one, so no two sort keys are equal and every sorting algorithm agrees.
    """
    key = np.uint64(stream_key(seed, stream, number))
    return np.argsort(mix64(key ^ np.arange(size, dtype=np.uint64)))


def draws(
    seed: int, epoch: int, samples: npt.NDArray[np.int64], first: int, count: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) that belong to samples: shape (len(samples), count).

    Column j is draw number first + j of each sample in that epoch, whoever asks for it: the
    top 53 bits of mix64(mix64(key ^ sample) ^ number), divided by 2**53.
    """
    key = np.uint64(stream_key(seed, Stream.DRAWS, epoch))
    own = mix64(key ^ samples.astype(np.uint64))
    numbers = np.arange(first, first + count, dtype=np.uint64)
    bits = mix64(own[:, None] ^ numbers[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def epoch_order(
    seed: int,
    epoch: int,
    size: int,
    *,
    shuffle: Shuffle,
    shards: npt.NDArray[np.uint32] | None = None,
    window: int = 16,
) -> npt.NDArray[np.int64]:
    """Canonical sample numbers in the order an epoch visits them. int64, shape (size,).

    `shards`, shape (size,), is the shard number of every sample by canonical number; with
    `window`, the shards whose samples are mixed with each other, it says what "block" does.
    With a window of all shards that is the same order as "full".
    """
    if shuffle == "none":
        return np.arange(size)
    full = permutation(seed, Stream.EPOCH, epoch, size)
    if shuffle == "full":
        return full
    assert shuffle == "block", shuffle
    if window < 1:
        raise UsageError(f"a block shuffle needs a window of at least 1 shard, not {window}")
    if shards is None or len(shards) != size:
        found = "none" if shards is None else f"{len(shards)}"
        raise UsageError(f"a block shuffle needs the shards of all {size} samples, found {found}")
    groups = _window_groups(seed, epoch, shards, window)
    # Stable, so that within a group the samples stay as the full permutation has them.
    return full[np.argsort(groups[full], kind="stable")]


def _window_groups(
    seed: int, epoch: int, shards: npt.NDArray[np.uint32], window: int
) -> npt.NDArray[np.uint16 | np.uint32]:
    """The group of every sample: its shard's place among the permuted shards, over the window."""
    count = int(shards.max()) + 1 if len(shards) else 0
    order = permutation(seed, Stream.SHARDS, epoch, count)
    # NumPy sorts 16-bit integers by radix, several times faster than wider ones.
    few = count <= window << 16
    group: npt.NDArray[np.uint16 | np.uint32] = np.empty(count, np.uint16 if few else np.uint32)
    group[order] = np.arange(count) // window
    return group[shards]


def rank_slice(size: int, rank: int, world: int) -> tuple[int, int]:
    """The part [first, last) of a global batch of `size` that belongs to `rank` of `world`.

    Parts follow each other in rank order and differ in size by at most one.
    """
    return size * rank // world, size * (rank + 1) // world


def steps_per_epoch(samples: int, global_batch: int, *, drop_last: bool) -> int:
    """Global batches in an epoch; the short last one counts unless it is dropped."""
    return samples // global_batch if drop_last else -(-samples // global_batch)
