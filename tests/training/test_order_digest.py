from __future__ import annotations

import numpy as np

from shards.order import epoch_order, rank_slice
from training.order_digest import MASK, digest_of, digest_text, expected_digest

M = MASK


def mix(value: int) -> int:
    """shards.order.mix64 in plain integers, as training/README.md gives it."""
    z = (value + 0x9E3779B97F4A7C15) & M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def test_it_is_the_documented_sum() -> None:
    positions, samples = np.arange(7), np.array([3, 1, 4, 1, 5, 9, 2])
    expected = sum(mix(p ^ mix(int(s))) for p, s in zip(range(7), samples, strict=True)) & M
    assert digest_of(positions, samples) == expected


def test_it_does_not_depend_on_who_consumes_what() -> None:
    size, batch, world = 103, 16, 3
    order = epoch_order(7, 2, size, shuffle="full")
    total = 0
    for start in range(0, 96, batch):
        for rank in reversed(range(world)):
            first, last = rank_slice(batch, rank, world)
            positions = np.arange(start + first, start + last)
            total += digest_of(positions, order[positions])
    assert total & M == expected_digest(seed=7, epoch=2, samples=size, used=96)


def test_it_tells_a_sample_at_another_position() -> None:
    order = np.arange(10)
    swapped = order.copy()
    swapped[[2, 7]] = swapped[[7, 2]]
    assert digest_of(np.arange(10), order) != digest_of(np.arange(10), swapped)


def test_its_value_never_changes() -> None:
    digest = expected_digest(seed=1234, epoch=0, samples=1000, used=896)
    assert digest_text(digest) == "3290cf2ee597561c"
