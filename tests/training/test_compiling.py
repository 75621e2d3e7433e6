"""Compilers that fail, at any moment: training goes on as it would have without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.device import Device
from training.device.compiling import Call, compiled_or_eager
from training.model import unwrap


class _FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(_: Any, _gradient: Tensor) -> Tensor:
        raise RuntimeError("no kernel for it\nand a page of C++")


def no_compiler(_: nn.Module) -> Call:
    raise FileNotFoundError("g++")


def fails_when_called(network: nn.Module) -> Call:
    def call(images: Tensor) -> Tensor:
        network(images)
        raise AssertionError("scheduling_ctor")

    return call


def fails_backwards(network: nn.Module) -> Call:
    return lambda images: _FailsBackwards.apply(network(images))


def fails_at_another_size(network: nn.Module) -> Call:
    def call(images: Tensor) -> Tensor:
        if len(images) == 3:
            raise IndexError("EXPAND")
        return network(images)

    return call


def works(network: nn.Module) -> Call:
    return network.__call__


def small_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The state after steps of 2, 2, 3 and 2 pictures."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pictures = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for count in (2, 2, 3, 2):
        model(pictures[:count]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return unwrap(model).state_dict()


@pytest.mark.parametrize(
    ("compile_network", "said"),
    [
        (no_compiler, "FileNotFoundError: g++"),
        (fails_when_called, "AssertionError: scheduling_ctor"),
        (fails_backwards, "RuntimeError: no kernel for it"),
        (fails_at_another_size, "IndexError: EXPAND"),
        (works, None),
    ],
)
def test_training_is_the_same_with_every_compiler(
    compile_network: Callable[[nn.Module], Call], said: str | None
) -> None:
    notes: list[str] = []
    model = compiled_or_eager(small_network(), compile_network, notes.append)
    assert isinstance(unwrap(model), nn.Sequential)
    ours, plain = trained(model), trained(small_network())
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert [f"could not be compiled ({said}); it runs as it is" in note for note in notes] == (
        [True] if said else []
    )


def test_a_device_without_memory_is_no_failure_of_the_compiler() -> None:
    def full(_: nn.Module) -> Call:
        raise torch.OutOfMemoryError("12 GB")

    model = compiled_or_eager(small_network(), full, pytest.fail)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.rand(2, 3, 4, 4))


@pytest.mark.slow
def test_torch_s_own_compiler_computes_what_the_network_does() -> None:
    """On this CPU; without a C++ compiler it is the network itself, and a note."""
    notes: list[str] = []
    model = Device(index=0, reason="").compiled(small_network(), notes.append)
    ours, plain = trained(model), trained(small_network())
    assert len(notes) <= 1
    for name, value in plain.items():
        assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-5), name
