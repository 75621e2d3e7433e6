"""Where a loader stands: interrupted at any step, on any number of ranks, it goes on exactly."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.dataset import Dataset
from shards.errors import UsageError
from shards.loader import Loader
from shards.order import epoch_order
from shards.transform import TrainTransform

SMALL = TrainTransform(image_size=8)
SAMPLES = 51
Seen = list[tuple[tuple[int, ...], bytes]]  # of every step: samples, and pixels


@pytest.fixture(scope="module")
def train(shards: Path) -> Iterator[Dataset]:
    with Dataset.open(shards / "train") as dataset:
        yield dataset


def loader(dataset: Dataset, **options: Any) -> Loader:
    chosen = {"global_batch": 8, "threads": 2} | options
    return Loader(dataset, chosen.pop("transform", SMALL), **chosen)


def seen(batches: Any) -> Seen:
    return [(tuple(batch.samples), batch.images.numpy().tobytes()) for batch in batches]


def all_ranks(dataset: Dataset, world: int, state: dict[str, Any] | None, **options: Any) -> Seen:
    """What is left of an epoch over all ranks, each begun from the same state."""
    ranks = []
    for rank in range(world):
        with loader(dataset, rank=rank, world=world, **options) as one:
            if state is not None:
                one.load_state_dict(state)
            ranks.append(seen(one))
    assert len({len(each) for each in ranks}) == 1
    return [
        (sum((samples for samples, _ in step), ()), b"".join(pixels for _, pixels in step))
        for step in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_interrupted_equals_uninterrupted(seed: int, train: Dataset) -> None:
    """At a step of any epoch, with any batch, from one number of ranks to another."""
    generator = random.Random(seed)
    batch = generator.choice([1, 7, 8, 50, 51, 60])
    drop_last = generator.random() < 0.5 and batch <= SAMPLES
    world, later = generator.choice([1, 2, 3, 5]), generator.choice([1, 2, 3, 5])
    options = {"global_batch": batch, "drop_last": drop_last, "seed": seed}
    epoch = generator.randrange(3)
    with loader(train, **options) as whole:
        steps = len(whole)
        expected = seen(whole.epoch(epoch))
    for stop in {0, steps // 2, steps - 1, steps}:
        state = None
        with loader(train, world=world, rank=world - 1, **options) as one:
            batches = one.epoch(epoch)
            for _ in range(stop):
                next(batches)
            state = json.loads(json.dumps(one.state_dict()))
        rest = all_ranks(train, later, state, threads=generator.choice([1, 3]),
                         prefetch=generator.choice([1, 4]), **options)  # fmt: skip
        if stop < steps:
            assert rest == expected[stop:]
        else:
            with loader(train, **options) as following:
                assert rest == seen(following.epoch(epoch + 1))


def test_what_was_prefetched_is_not_handed_out(train: Dataset) -> None:
    with loader(train, prefetch=5) as one:
        next(one.epoch(0))
        assert (one.state_dict()["epoch"], one.state_dict()["step"]) == (0, 1)


def test_resumed_twice(train: Dataset) -> None:
    with loader(train) as whole:
        expected = seen(whole)
    found: Seen = []
    state = None
    for count in (2, 3, 99):
        with loader(train) as one:
            if state is not None:
                one.load_state_dict(state)
            for _, batch in zip(range(count), one, strict=False):
                found += seen([batch])
            state = one.state_dict()
    assert found == expected
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 0)


def test_iterating_goes_on_where_it_stopped_and_then_into_the_next_epoch(train: Dataset) -> None:
    with loader(train) as one, loader(train) as other:
        expected = [seen(other.epoch(epoch)) for epoch in range(3)]
        found: Seen = []
        for batch in one:
            found += seen([batch])
            if batch.step == 3:
                break
        assert found + seen(one) == expected[0]
        assert [seen(one), seen(one)] == expected[1:]


def test_a_state_is_taken_while_an_epoch_is_under_way(train: Dataset) -> None:
    with loader(train) as one:
        before = one.state_dict()
        expected = seen(one)
        batches = one.epoch(5)
        next(batches)
        one.load_state_dict(before)
        assert list(batches) == []
        assert seen(one) == expected


def test_its_length_is_the_number_of_its_steps(train: Dataset) -> None:
    for batch, drop_last in ((8, False), (8, True), (51, True), (52, True), (52, False)):
        with loader(train, global_batch=batch, drop_last=drop_last) as one:
            assert len(one) == len(list(one))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1 is needed, not 2"),
        ({"version": None}, "version 1 is needed, not None"),
        ({"data": "0" * 64}, "has data '000"),
        ({"seed": 5}, "has seed 5, this loader has 0"),
        ({"global_batch": 16}, "has global_batch 16, this loader has 8"),
        ({"shuffle": "none"}, "has shuffle 'none', this loader has 'full'"),
        ({"drop_last": True}, "has drop_last True"),
        ({"step": 8}, "step 8 of an epoch of 7"),
        ({"step": -1}, "step -1 of an epoch"),
        ({"epoch": "one"}, "epoch 'one'"),
    ],
)
def test_another_loader_s_state_is_refused(
    change: dict[str, Any], message: str, train: Dataset
) -> None:
    with loader(train) as one:
        state = one.state_dict() | change
        with pytest.raises(UsageError, match=message):
            one.load_state_dict(state)
        assert seen(one)[0][0] == tuple(epoch_order(0, 0, SAMPLES, shuffle="full")[:8])


def test_a_state_says_nothing_of_ranks_threads_or_sizes(train: Dataset) -> None:
    with loader(train) as one, loader(
        train, world=3, rank=2, threads=1, transform=TrainTransform(image_size=4)
    ) as other:  # fmt: skip
        assert one.state_dict() == other.state_dict()


# --- orders and sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_block_shuffle_reads_a_window_of_shards_at_a_time(window: int, train: Dataset) -> None:
    options: dict[str, Any] = {"shuffle": "block", "window": window}
    with loader(train, **options) as one:
        order = np.array([sample for samples, _ in seen(one.epoch(2)) for sample in samples])
    assert order.tolist() == epoch_order(
        0, 2, SAMPLES, shuffle="block", shards=train.shards, window=window
    ).tolist()  # fmt: skip
    assert sorted(order) == list(range(SAMPLES))
    if window == 1:
        changes = int((np.diff(train.shards[order]) != 0).sum())
        assert changes == len(set(train.shards.tolist())) - 1
    assert all_ranks(train, 3, None, **options) == all_ranks(train, 1, None, **options)


def test_the_size_of_pictures_is_a_function_of_the_step(train: Dataset) -> None:
    def size(epoch: int, step: int) -> int:
        return 4 + 2 * epoch + (step >= 3)

    with loader(train, image_size=size, prefetch=4) as one:
        for epoch in (0, 1, 0):
            for batch in one.epoch(epoch):
                side = size(epoch, batch.step)
                assert batch.images.shape[1:] == (side, side, 3)
                with loader(train, transform=TrainTransform(image_size=side)) as fixed:
                    expected = next(iter(fixed.epoch(epoch, batch.step)))
                    assert torch.equal(batch.images, expected.images)


def test_a_size_beyond_the_transform_s_is_refused(train: Dataset) -> None:
    for size in (0, 9):
        with (
            loader(train, image_size=lambda *_, size=size: size) as one,
            pytest.raises(UsageError, match=f"step 0 is {size}; it must be from 1 to 8"),
        ):
            list(one)
