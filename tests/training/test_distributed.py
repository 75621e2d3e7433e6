"""Collectives over real processes."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shards.errors import ToolError, UsageError
from training.device import choose
from training.distributed import (
    World,
    broadcast_buffers,
    check_agreement,
    from_main,
    gather_bytes,
    joined,
    place_from_environment,
    software,
    sum_integers,
)

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


def compare_facts(facts: list[dict[str, Any]]) -> str:
    with joined(choose("cpu")) as world:
        check_agreement(facts[world.rank], world)
        return "agreed"


def test_machines_that_differ_are_named_on_all_of_them(ranks: Any) -> None:
    same: dict[str, Any] = {"torch": "2.7.1", "train split": "abc", "configuration": {"lr": 0.1}}
    assert ranks.run(compare_facts, [same, same], world=2) == ["agreed"] * 2
    other = same | {"train split": "xyz", "configuration": {"lr": 0.2, "seed": 3}}
    host = socket.gethostname()
    sentence = (
        f"process 0 on {host} and process 2 on {host} differ in train split (abc and xyz); "
        "configuration, lr (0.1 and 0.2); configuration, seed (None and 3); make the machines equal"
    )
    found = ranks.run(compare_facts, [same, same, other], world=3)
    assert found == [("ToolError", sentence)] * 3


def gather(payloads: list[bytes]) -> list[bytes]:
    with joined(choose("cpu")) as world:
        return gather_bytes(payloads[world.rank], world)


def test_bytes_of_all_come_to_all(ranks: Any) -> None:
    payloads = [bytes(range(256)) * 3, b"", b"\xff"]
    assert ranks.run(gather, payloads, world=3) == [payloads] * 3


def test_alone_what_is_gathered_is_ones_own() -> None:
    assert gather_bytes(b"own", ALONE) == [b"own"]
    check_agreement(software(), ALONE)


def join_as(environments: list[dict[str, str]]) -> str:
    """Join as a process of another environment than the pool's."""
    os.environ.update(environments[int(os.environ["RANK"])])
    try:
        with joined(choose("cpu")):
            return "joined"
    finally:
        os.environ.pop("IMAGENET_RESNET_JOIN_SECONDS", None)


def test_who_does_not_come_is_named(ranks: Any) -> None:
    soon = {"IMAGENET_RESNET_JOIN_SECONDS": "0.5", "WORLD_SIZE": "4"}
    (kind, said), second = ranks.run(join_as, [soon, soon], world=2)
    assert kind == "ToolError"
    assert said.startswith("processes 2 to 3 of 4 did not come to 127.0.0.1:")
    assert "within 0.5 s (process 0 on" in said
    assert second[0] in {"ToolError", "PeerLost"}


def test_a_first_process_that_is_not_there_is_named(ranks: Any) -> None:
    soon = {"IMAGENET_RESNET_JOIN_SECONDS": "0.5", "WORLD_SIZE": "2", "RANK": "1"}
    ((kind, said),) = ranks.run(join_as, [soon], world=1)
    assert kind == "ToolError"
    assert "process 1 of 2 on" in said
    assert "did not find process 0 at 127.0.0.1:" in said


def test_processes_of_launches_of_different_sizes_are_told(ranks: Any) -> None:
    (first, said), (second, also_said) = ranks.run(join_as, [{}, {"WORLD_SIZE": "3"}], world=2)
    assert first == "ToolError"
    assert "process 1 on" in said
    assert "was started as one of 3, and process 0 on" in said
    if second == "ToolError":
        assert "was started as one of 2, and process 1 on" in also_said
    else:  # process 0, and the store with it, was gone first
        assert second == "PeerLost"


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with (
            pytest.raises(
                ToolError, match=r"process 0 cannot be met at 127\.0\.0\.1:.* MASTER_PORT"
            ),
            joined(choose("cpu")),
        ):
            pass


def test_a_nonsensical_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK 3 and WORLD_SIZE 2"):
        place_from_environment()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="whole numbers"):
        place_from_environment()
