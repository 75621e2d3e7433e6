"""Orders and draws: pinned for ever, held against the same functions in plain Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

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
    assert epoch_order(9, 9, 5, shuffle=False).tolist() == [0, 1, 2, 3, 4]


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
