"""Collectives over real processes, and the gradient that they average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import ToolError, UsageError
from shards.order import rank_slice
from training.device import choose
from training.distributed import (
    World,
    broadcast_buffers,
    check_agreement,
    from_main,
    joined,
    place_from_environment,
    sum_integers,
)
from training.loop import share_of_loss
from training.model import build_model

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
TOP = (1 << 64) - 1


def join_and_sum(values: list[list[int]]) -> list[int]:
    with joined(choose("cpu")) as world:
        return sum_integers(values[world.rank], world)


@pytest.mark.parametrize("world", [2, 3])
def test_integers_are_summed_exactly_modulo_2_64(ranks: Any, world: int) -> None:
    values = [
        [0, 1, TOP, 1 << 63, 50_000, 0x0123456789ABCDEF],
        [0, 2, TOP, 1 << 63, 16_777_217, 0xFEDCBA9876543210],
        [0, 3, 1, 5, 1, 0xFFFF0000FFFF0001],
    ][:world]
    expected = [sum(column) % (1 << 64) for column in zip(*values, strict=True)]
    assert ranks.run(join_and_sum, values, world=world) == [expected] * world


def test_alone_a_sum_is_the_value() -> None:
    assert sum_integers([5, TOP, TOP + 2], ALONE) == [5, TOP, 1]


def different_buffers() -> dict[str, Tensor]:
    with joined(choose("cpu")) as world:
        model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(5))
        with torch.no_grad():
            for number, buffer in enumerate(model.buffers()):
                if buffer.is_floating_point():
                    buffer.copy_(torch.arange(buffer.numel()) + 10.0 * number + 100.0 * world.rank)
        broadcast_buffers(model, world)
        return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_buffers_become_those_of_rank_0(ranks: Any) -> None:
    first, *others = ranks.run(different_buffers, world=3)
    assert first["0.running_mean"].tolist() == [0, 1, 2]
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


def fail_on_main(kind: str) -> str:
    with joined(choose("cpu")) as world:

        def produce() -> str:
            assert world.rank == 0
            if kind == "tool":
                raise UsageError("rank 0 says no")
            if kind == "disk":
                raise OSError(28, "No space left on device", "/full")
            return "made on rank 0"

        return from_main(produce, world)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("fine", "made on rank 0"),
        ("tool", ("UsageError", "rank 0 says no")),
        ("disk", ("OSError", "[Errno 28] No space left on device: '/full'")),
    ],
)
def test_what_rank_0_makes_or_fails_at_all_have(ranks: Any, kind: str, answer: object) -> None:
    assert ranks.run(fail_on_main, kind, world=2) == [answer] * 2


def compare_facts(facts: list[dict[str, str]]) -> str:
    with joined(choose("cpu")) as world:
        check_agreement(facts[world.rank], world)
        return "agreed"


def test_machines_that_differ_are_named(ranks: Any) -> None:
    same = {"torch": "2.7.1", "train split": "abc"}
    assert ranks.run(compare_facts, [same, same], world=2) == ["agreed"] * 2
    other = same | {"train split": "xyz"}
    left_behind, (kind, sentence) = ranks.run(compare_facts, [same, other], world=2)
    assert left_behind[0] == kind == ToolError.__name__
    assert left_behind[1].startswith("process 0 of 2 lost its connection")
    assert sentence.startswith("process 1 on ")
    assert "another train split (xyz) than process 0 (abc)" in sentence


def test_a_nonsensical_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK 3 and WORLD_SIZE 2"):
        place_from_environment()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="whole numbers"):
        place_from_environment()


def gradients(global_batch: int) -> list[Tensor]:
    """Gradients of one global batch, cut as the loader cuts it. Batch norm as in evaluation:

    in training it normalises each process's slice by itself, whatever is averaged after.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((global_batch, 3, 40, 40), generator=generator)
    labels = torch.randint(7, (global_batch,), generator=generator)
    with joined(choose("cpu")) as world:
        network = build_model("resnet18", 7, seed=2).eval()
        model = DistributedDataParallel(network) if world.size > 1 else network
        first, last = rank_slice(global_batch, world.rank, world.size)
        scaled, _ = share_of_loss(
            model(images[first:last]),
            labels[first:last],
            label_smoothing=0.1,
            global_size=global_batch,
            world=world.size,
        )
        scaled.backward()
        return [parameter.grad for parameter in network.parameters()]


def test_uneven_shares_give_the_gradient_of_the_whole_batch(ranks: Any) -> None:
    (alone,) = ranks.run(gradients, 8, world=1)
    for together in ranks.run(gradients, 8, world=3):
        for ours, whole in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-6)
