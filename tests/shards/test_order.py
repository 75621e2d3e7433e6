"""Orders and draws: pinned for ever, held against the same functions in plain Python."""

from __future__ import annotations

import hashlib
from itertools import combinations, pairwise

import numpy as np
import pytest

from shards.errors import UsageError
from shards.order import (
    Stream,
    draws,
    epoch_order,
    mix64,
    permutation,
    rank_slice,
    steps_per_epoch,
    stream_key,
)

MASK = 2**64 - 1


def mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31


def key_of(seed: int, stream: int, number: int) -> int:
    return mix(mix(mix(seed) ^ stream) ^ number)


def test_mix64_is_pinned() -> None:
    # The first is the published first output of SplitMix64 for the seed 0.
    assert [hex(value) for value in mix64(np.arange(4, dtype=np.uint64)).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x910a2dec89025cc1",
        "0x975835de1c9756ce",
        "0x1d0b14e4db018fed",
    ]


def test_mix64_is_the_plain_arithmetic_over_the_whole_range() -> None:
    values = [0, 1, 2**31, 2**63, MASK, *(mix(n) for n in range(200))]
    assert mix64(np.array(values, np.uint64)).tolist() == [mix(value) for value in values]


def test_stream_keys_are_pinned() -> None:
    assert hex(stream_key(0, Stream.PLAN, 0)) == "0x44e5b98100c67fb0"
    assert hex(stream_key(0, Stream.EPOCH, 0)) == "0xd5f095a997147825"
    assert hex(stream_key(42, Stream.DRAWS, 90)) == "0x8ab684b6ca852511"
    assert hex(stream_key(0, Stream.SHARDS, 0)) == "0x1ebd290bd8b65f5"


@pytest.mark.parametrize("seed", [0, 1, 2**40, MASK])
def test_stream_keys_are_the_plain_arithmetic(seed: int) -> None:
    for stream in Stream:
        for number in (0, 1, 89):
            assert stream_key(seed, stream, number) == key_of(seed, stream, number)


def test_permutations_are_pinned() -> None:
    assert permutation(0, Stream.EPOCH, 0, 10).tolist() == [2, 8, 1, 5, 3, 6, 7, 0, 9, 4]
    assert permutation(0, Stream.EPOCH, 1, 10).tolist() == [3, 8, 5, 7, 1, 6, 2, 4, 0, 9]
    assert permutation(7, Stream.PLAN, 0, 10).tolist() == [5, 0, 3, 9, 2, 4, 8, 7, 6, 1]


def test_a_permutation_sorts_the_mixed_positions() -> None:
    key = key_of(5, Stream.EPOCH, 3)
    expected = sorted(range(1000), key=lambda position: mix(key ^ position))
    assert permutation(5, Stream.EPOCH, 3, 1000).tolist() == expected


@pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 1000])
def test_a_permutation_has_every_sample_once(size: int) -> None:
    found = permutation(1, Stream.EPOCH, 0, size)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(size))


def test_epochs_seeds_and_streams_give_different_orders() -> None:
    orders = {
        tuple(permutation(seed, stream, number, 50).tolist())
        for seed in (0, 1)
        for stream in Stream
        for number in (0, 1, 2)
    }
    assert len(orders) == 2 * len(Stream) * 3


def test_every_place_gets_every_sample_equally_often() -> None:
    places = np.array([permutation(0, Stream.EPOCH, epoch, 10) for epoch in range(4000)])
    for place in range(10):
        counts = np.bincount(places[:, place], minlength=10)
        # Chi squared with 9 degrees of freedom: 33.7 is exceeded by chance once in 10,000.
        assert ((counts - 400) ** 2 / 400).sum() < 33.7


def test_draws_are_pinned() -> None:
    found = draws(0, 0, np.array([0, 1, 1_281_166]), 0, 2)
    assert found.tolist() == [
        [0.5771590192435001, 0.5237240282166948],
        [0.410108083376418, 0.5471132573337485],
        [0.08999056924524251, 0.7258439250309807],
    ]


def test_draws_are_the_plain_arithmetic() -> None:
    key = key_of(3, Stream.DRAWS, 8)
    found = draws(3, 8, np.array([4, 70_000]), 5, 3)
    expected = [
        [(mix(mix(key ^ sample) ^ number) >> 11) * 2.0**-53 for number in (5, 6, 7)]
        for sample in (4, 70_000)
    ]
    assert found.tolist() == expected


def test_a_draw_does_not_depend_on_who_asks_for_what_else() -> None:
    together = draws(1, 2, np.arange(100), 0, 6)
    assert draws(1, 2, np.array([57]), 4, 1)[0, 0] == together[57, 4]


def test_draws_are_uniform_and_unrelated() -> None:
    found = draws(0, 0, np.arange(20_000), 0, 3)
    assert found.min() >= 0
    assert found.max() < 1
    for column in found.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        # Chi squared with 19 degrees of freedom: 50.8 is exceeded by chance once in 10,000.
        assert ((counts - 1000) ** 2 / 1000).sum() < 50.8
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 0.03


def test_without_shuffling_an_epoch_is_in_key_order() -> None:
    assert epoch_order(9, 9, 5, shuffle="none").tolist() == [0, 1, 2, 3, 4]


def test_a_full_shuffle_is_the_epoch_s_permutation() -> None:
    expected = permutation(4, Stream.EPOCH, 6, 300).tolist()
    assert epoch_order(4, 6, 300, shuffle="full").tolist() == expected


# --- block shuffle ----------------------------------------------------------------------------


def block_order(shards: np.ndarray, window: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    found = epoch_order(seed, epoch, len(shards), shuffle="block", shards=shards, window=window)
    assert found.dtype == np.int64
    return found.tolist()


def plan(samples: int, shard_size: int) -> np.ndarray:
    """The shard of every sample, as a plan of seed 0 has it."""
    places = np.argsort(permutation(0, Stream.PLAN, 0, samples))
    return (places // shard_size).astype(np.uint32)


UNEVEN = np.repeat(np.arange(9, dtype=np.uint32), [1, 40, 3, 3, 17, 1, 0, 100, 2])[
    permutation(3, Stream.PLAN, 0, 167)
]
SETS = {
    "even": plan(1000, 50),
    "short last shard": plan(1003, 50),
    "uneven, one empty": UNEVEN,
    "one shard": np.zeros(60, np.uint32),
    "a shard a sample": np.arange(60, dtype=np.uint32),
    "one sample": np.zeros(1, np.uint32),
    "empty": np.zeros(0, np.uint32),
}
every_set = pytest.mark.parametrize("shards", SETS.values(), ids=SETS.keys())


def test_block_orders_are_pinned() -> None:
    shards = np.array([3, 0, 1, 0, 2, 1, 3, 0, 2, 4, 4, 1], np.uint32)
    assert block_order(shards, 1) == [1, 3, 7, 6, 0, 10, 9, 2, 5, 11, 8, 4]
    assert block_order(shards, 2) == [1, 3, 6, 7, 0, 2, 10, 5, 11, 9, 8, 4]
    assert block_order(shards, 2, epoch=1) == [3, 5, 7, 1, 2, 11, 8, 4, 9, 10, 6, 0]
    assert block_order(shards, 2, seed=1234, epoch=7) == [10, 7, 3, 1, 9, 8, 6, 0, 4, 11, 2, 5]


def test_the_block_order_of_imagenet_is_pinned() -> None:
    order = epoch_order(0, 3, 1_281_167, shuffle="block", shards=plan(1_281_167, 1000), window=16)
    digest = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "c53f68ed526fc5e8"


@every_set
@pytest.mark.parametrize("window", [1, 2, 3, 16, 1000])
def test_a_block_shuffle_is_its_definition(shards: np.ndarray, window: int) -> None:
    count = max(shards.tolist(), default=-1) + 1
    order = permutation(5, Stream.SHARDS, 2, count).tolist()
    full = permutation(5, Stream.EPOCH, 2, len(shards)).tolist()
    expected = []
    for first in range(0, count, window):
        group = set(order[first : first + window])
        expected += [sample for sample in full if shards[sample] in group]
    assert block_order(shards, window, seed=5, epoch=2) == expected


@every_set
@pytest.mark.parametrize("window", [1, 7, 64])
def test_a_block_shuffle_has_every_sample_once(shards: np.ndarray, window: int) -> None:
    for epoch in range(3):
        found = block_order(shards, window, epoch=epoch)
        assert sorted(found) == list(range(len(shards)))


@pytest.mark.parametrize("window", [1, 3, 6, 19])
def test_a_window_s_shards_are_read_before_the_next_window_s(window: int) -> None:
    shards = plan(1003, 50)
    visited = shards[block_order(shards, window)]
    first = {shard: visited.tolist().index(shard) for shard in range(21)}
    last = {shard: 1002 - visited[::-1].tolist().index(shard) for shard in range(21)}
    by_time = sorted(first, key=lambda shard: first[shard])
    begins = 0
    for start in range(0, 21, window):
        group = by_time[start : start + window]
        size = int(np.isin(shards, group).sum())
        assert all(begins <= first[shard] <= last[shard] < begins + size for shard in group)
        begins += size


@every_set
def test_a_window_of_all_shards_is_a_full_shuffle(shards: np.ndarray) -> None:
    full = epoch_order(0, 0, len(shards), shuffle="full").tolist()
    for window in (max(shards.tolist(), default=0) + 1, 2**20, 2**40):
        assert block_order(shards, window) == full


def test_seeds_and_epochs_give_different_shards_and_samples() -> None:
    shards = plan(1000, 50)
    orders = [block_order(shards, 2, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    for one, other in combinations(orders, 2):
        assert shards[one[:100]].tolist() != shards[other[:100]].tolist()
        assert np.mean(np.array(one) == np.array(other)) < 0.02


def test_more_groups_than_16_bits_can_count_are_kept_apart() -> None:
    shards = np.arange(70_000, dtype=np.uint32)
    assert block_order(shards, 1) == permutation(0, Stream.SHARDS, 0, 70_000).tolist()


@pytest.mark.parametrize(
    ("shards", "window", "said"),
    [
        (None, 4, "needs the shards of all 10 samples, found none"),
        (np.zeros(9, np.uint32), 4, "needs the shards of all 10 samples, found 9"),
        (np.zeros(10, np.uint32), 0, "window of at least 1 shard, not 0"),
    ],
)
def test_what_a_block_shuffle_lacks_is_said(
    shards: np.ndarray | None, window: int, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        epoch_order(0, 0, 10, shuffle="block", shards=shards, window=window)


# --- ranks and steps --------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7, 32])
def test_rank_slices_share_a_batch_without_gap_or_overlap(world: int) -> None:
    for size in range(70):
        slices = [rank_slice(size, rank, world) for rank in range(world)]
        assert slices[0][0] == 0
        assert slices[-1][1] == size
        assert all(one[1] == other[0] for one, other in pairwise(slices))
        sizes = {last - first for first, last in slices}
        assert max(sizes) - min(sizes) <= 1
        assert size < world or min(sizes) > 0


@pytest.mark.parametrize("batch", [1, 2, 7, 16, 100])
def test_steps_hold_every_sample_or_all_full_batches(batch: int) -> None:
    for samples in range(120):
        kept = steps_per_epoch(samples, batch, drop_last=False)
        dropped = steps_per_epoch(samples, batch, drop_last=True)
        assert sum(min(batch, samples - step * batch) for step in range(kept)) == samples
        assert dropped * batch <= samples < (dropped + 1) * batch
