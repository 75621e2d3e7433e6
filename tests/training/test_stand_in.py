"""The stand-in for torch_sdaa itself: it computes what the CPU does, and refuses what cards do."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.device import choose
from training.distributed import joined, place_from_environment, sum_integers
from training.model import build_model

pytestmark = pytest.mark.usefixtures("simulated_sdaa")


def raised(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except Exception as error:  # noqa: BLE001 - which one is torch's affair
        return f"{type(error).__name__}: {error}"
    return ""


# --- refusals ---------------------------------------------------------------------------------


def refusals() -> dict[str, str]:
    """What each forbidden thing raises, in a process with the simulated cards."""
    device = choose("sdaa")
    device.activate()
    import torch_sdaa.amp

    here, other = torch.ones(2, 3, device="sdaa:0"), torch.ones(2, 3, device="sdaa:1")
    attempts: dict[str, Callable[[], object]] = {
        "double": here.double,
        "double sum": lambda: here.sum(dtype=torch.float64),
        "double range": lambda: torch.arange(3.0, dtype=torch.float64, device="sdaa"),
        "double there": lambda: torch.ones(2, dtype=torch.float64).to("sdaa"),
        "cuda": here.cuda,
        "two devices": lambda: here + other,
        "host and device": lambda: here + torch.ones(2, 3),
        "no such device": lambda: torch.ones(1, device="sdaa:4"),
        "sparse": here.to_sparse,
        "bf16": lambda: torch_sdaa.amp.autocast(dtype=torch.bfloat16),
        "DataParallel": lambda: torch.nn.DataParallel(torch.nn.Linear(2, 2)),
        "models": lambda: importlib.import_module("torch_sdaa.models"),
        "double buffer": lambda: build_model("resnet18", 2).to(device.torch_device).double(),
    }
    return {name: raised(attempt) for name, attempt in attempts.items()}


def test_the_stand_in_refuses_what_the_cards_do(spas: Any) -> None:
    said = spas.run(refusals, world=1)[0]
    for name in ("double", "double sum", "double range", "double there", "double buffer"):
        assert "no float64" in said.pop(name)
    expected = {
        "cuda": "NVIDIA|CUDA",
        "two devices": "same device",
        "host and device": "same device",
        "no such device": "sdaa:4 is not there",
        "sparse": "no sparse tensors",
        "bf16": "float16, not torch.bfloat16",
        "DataParallel": "does not support DataParallel",
        "models": "No module named 'torch_sdaa.models'",
    }
    assert said.keys() == expected.keys()
    for name, message in expected.items():
        assert any(part in said[name] for part in message.split("|")), (name, said[name])


def same_as_the_cpu() -> dict[str, bool]:
    device = choose("sdaa")
    import torch_sdaa

    device.activate()
    torch.manual_seed(1)
    first = torch.randn(4, device="sdaa")
    device.manual_seed(1)
    host = torch.arange(24.0).view(2, 3, 4)
    there = host.to("sdaa:1")
    into = torch.empty(0, device="sdaa:1")
    torch.add(there, 1, out=into)
    view = there[1, :, 1:]
    view.mul_(2)
    changed = host.clone()
    changed[1, :, 1:].mul_(2)
    return {
        "random numbers follow the seed": bool(torch.equal(first, torch.randn(4, device="sdaa"))),
        "an out= argument grows": torch.equal(into.cpu(), host + 1),
        "a view is its base": torch.equal(there.cpu(), changed),
        "an index may be on the host": there[:, torch.tensor([0, 2])].shape == (2, 2, 4),
        "memory is counted": torch.sdaa.memory_allocated(1) >= 2 * 24 * 4,  # type: ignore[attr-defined]
        "the environment was set before the import": torch_sdaa.CONV_WEIGHT_CHWN,
    }


def test_the_stand_in_is_the_cpu_under_another_name(spas: Any) -> None:
    (found,) = spas.run(same_as_the_cpu, world=1)
    assert all(found.values()), found


def older_spellings() -> int:
    """The device as a torch_sdaa without torch.sdaa has it; what is current at the end."""
    device = choose("sdaa", 1)
    module = torch.sdaa  # type: ignore[attr-defined]
    del torch.sdaa  # type: ignore[attr-defined]
    try:
        device.activate()
        device.manual_seed(3)
        device.copied()()
        assert device.peak_memory() is None
    finally:
        torch.sdaa = module  # type: ignore[attr-defined]
    return int(module.current_device())


def test_an_older_torch_sdaa_will_do(spas: Any) -> None:
    assert spas.run(older_spellings, world=1) == [1]


def reduce_badly() -> list[str]:
    with joined(choose("sdaa", place_from_environment()[2])) as world:
        number = torch.ones(2, device=world.device)
        assert sum_integers([1 << 40], world) == [2 << 40]
        attempts = [
            lambda: torch.distributed.all_reduce(number.long()),
            lambda: torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.AVG),
            lambda: torch.distributed.all_reduce(torch.ones(2)),
            lambda: torch.distributed.all_reduce(number.half()),
        ]
        return [raised(attempt) for attempt in attempts]


def test_the_stand_in_reduces_float32_of_the_device_alone(spas: Any) -> None:
    for said in spas.run(reduce_badly, world=2):
        assert "reduce torch.int64" in said[0]
        assert "AVG" in said[1]
        assert "not on cpu" in said[2]
        assert "reduce torch.float16" in said[3]


def exchange_objects() -> tuple[list[Any], list[Any]]:
    """What the vendor's evaluation does over tccl: gather and broadcast objects."""
    with joined(choose("sdaa", place_from_environment()[2])) as world:
        gathered: list[Any] = [None] * world.size
        dist.all_gather_object(gathered, {"rank": world.rank})
        told: list[Any] = [["accuracy", 78.5]] if world.is_main else [None]
        dist.broadcast_object_list(told, src=0)
        return gathered, told


def test_objects_travel_over_tccl(spas: Any) -> None:
    expected = ([{"rank": 0}, {"rank": 1}], [["accuracy", 78.5]])
    assert spas.run(exchange_objects, world=2) == [expected] * 2


def what_else_torch_sdaa_has() -> dict[str, bool]:
    device = choose("sdaa", 1)
    device.activate()
    api: Any = torch.sdaa  # type: ignore[attr-defined]
    tensor = torch.ones(3, device="sdaa")
    side = api.Stream()
    side.wait_stream(api.current_stream())
    with api.stream(side):
        doubled = tensor * 2
    api.current_stream().wait_stream(side)
    api.manual_seed_all(5)
    state = api.default_generators[1].get_state()
    first = torch.rand(2, device="sdaa")
    api.default_generators[1].set_state(state)
    free, total = device.memory() or (0, 0)
    device.synchronize()
    return {
        "work on another stream is done": float(doubled.sum()) == 6,
        "the seed can be asked for": api.initial_seed()
        == 5
        == api.default_generators[1].initial_seed(),
        "a generator's state is that of the device": torch.equal(
            first, torch.rand(2, device="sdaa")
        ),
        "there is a generator a device": len(api.default_generators) == api.device_count() == 4,
        "memory that is held is not free": 0 < free < total == 1 << 34,
        "a device has a name": device.name == "SIMULATED SPA",
        "torch calls it": device.profiler_activity == torch.profiler.ProfilerActivity.PrivateUse1,
    }


def test_the_rest_of_torch_sdaa_is_there(spas: Any) -> None:
    (found,) = spas.run(what_else_torch_sdaa_has, world=1)
    assert all(found.values()), found


# --- FusedSGD ---------------------------------------------------------------------------------


def step_both_ways(nesterov: bool, restored: bool) -> tuple[list[str], list[str], float]:
    """A ResNet's steps by FusedSGD and by torch's SGD: classes, notes, the greatest difference."""
    device = choose("sdaa")
    device.activate()
    notes: list[str] = []
    made: list[str] = []
    states = []
    for place in (device.torch_device, torch.device("cpu")):
        weights = [nn.Parameter(each.to(place)) for each in build_model("resnet18", 3).parameters()]
        groups = [
            {"params": weights[::2], "weight_decay": 2.0**-15},
            {"params": weights[1::2], "weight_decay": 0.0},
        ]
        chosen = device if place.type == "sdaa" else choose("cpu")
        optimizer = chosen.sgd(groups, momentum=0.875, nesterov=nesterov, note=notes.append)
        for group in optimizer.param_groups:
            group["lr"] = 0.25
        if restored:
            for each in weights:
                optimizer.state[each]["momentum_buffer"] = torch.full_like(each, 0.125)
        for step in range(3):
            for each in weights:
                each.grad = torch.sin(each.detach() + step)
            optimizer.step()
        momentum = [optimizer.state[each]["momentum_buffer"] for each in weights]
        states.append([each.detach().cpu() for each in (*weights, *momentum)])
        made.append(type(optimizer).__module__)
    apart = max(float((a - b).abs().max()) for a, b in zip(*states, strict=True))
    return made, notes, apart


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_sgd_is_torch_s_to_the_bit(spas: Any, nesterov: bool) -> None:
    for restored in (False, True):
        (found,) = spas.run(step_both_ways, nesterov, restored, world=1)
        assert found == (["torch_sdaa.optim", "torch.optim.sgd"], [], 0.0)


def with_another_fused_sgd(kind: str) -> tuple[str, list[str]]:
    """The optimiser that is used, and the notes, where torch_sdaa's is not as we need it."""
    device = choose("sdaa")
    device.activate()
    import torch_sdaa.optim

    real = torch_sdaa.optim.FusedSGD

    class Renamed(real):
        def step(self) -> None:
            for state in self.state.values():
                state["momentum_buffer"] = state.pop("moment")
            super().step()
            for state in self.state.values():
                state["moment"] = state.pop("momentum_buffer")

    class Forgetful(real):
        def step(self) -> None:
            self.state.clear()
            super().step()

    class Broken(real):
        def step(self) -> None:
            raise RuntimeError("no kernel\nand a page of C++")

    others = {"renamed": Renamed, "forgetful": Forgetful, "broken": Broken}
    notes: list[str] = []
    weight = nn.Parameter(torch.ones(2, device="sdaa"))
    try:
        if kind == "missing":
            del torch_sdaa.optim.FusedSGD
        else:
            torch_sdaa.optim.FusedSGD = others[kind]
        made = device.sgd([{"params": [weight]}], momentum=0.9, nesterov=False, note=notes.append)
    finally:
        torch_sdaa.optim.FusedSGD = real
    return type(made).__module__, notes


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("renamed", "its state is moment of "),
        ("forgetful", "its "),
        ("broken", "RuntimeError: no kernel)"),
        ("missing", "AttributeError: "),
    ],
)
def test_torch_s_sgd_takes_the_place_of_another_fused_sgd(spas: Any, kind: str, why: str) -> None:
    (module, notes) = spas.run(with_another_fused_sgd, kind, world=1)[0]
    assert module == "torch.optim.sgd"
    assert [f"FusedSGD is not used ({why}" in note for note in notes] == [True]


# --- teco_inductor ----------------------------------------------------------------------------


def compile_with(**options: Any) -> str:
    """What the compiler's failure is called; empty where it compiles."""
    choose("sdaa").activate()
    import torch_sdaa._inductor  # noqa: F401 - registers the backend

    def twice(tensor: Tensor) -> Tensor:
        return tensor * 2

    torch._dynamo.reset()
    compiled = torch.compile(twice, backend="teco_inductor", **options)
    return raised(lambda: compiled(torch.ones(3, device="sdaa")))


def compile_all_ways() -> list[str]:
    return [
        compile_with(),
        compile_with(options={"x": True}),
        compile_with(mode="max-autotune"),
        compile_with(dynamic=True),
    ]


def compile_a_network(failure: str) -> tuple[list[str], float]:
    """The notes of a device whose compiler fails so, and how far two steps are from eager ones."""
    device = choose("sdaa")
    device.activate()
    os.environ["SDAA_SIMULATOR_COMPILER"] = failure
    torch._dynamo.reset()
    notes: list[str] = []
    results = []
    for compiled in (True, False):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
        )
        with torch.no_grad():
            for each in network.parameters():
                each.copy_(torch.linspace(-1, 1, each.numel()).view_as(each))
        network.to(device.torch_device)
        model = device.compiled(network, notes.append) if compiled else network
        for count in (2, 3):
            images = torch.linspace(0, 1, 48 * count, device="sdaa").view(count, 3, 4, 4)
            model(images).square().sum().backward()
        results.append(
            [
                *(each.grad.cpu() for each in network.parameters()),
                *map(torch.clone, network.cpu().buffers()),
            ]
        )
    del os.environ["SDAA_SIMULATOR_COMPILER"]
    return notes, max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))


def test_the_stand_in_compiles_without_options_alone(spas: Any) -> None:
    plain, options, mode, dynamic = spas.run(compile_all_ways, world=1)[0]
    assert plain == ""
    assert "takes no options or mode" in options
    assert "takes no options or mode" in mode
    assert "no dynamic shapes" in dynamic


@pytest.mark.parametrize(
    ("failure", "notes"),
    [("", 0), ("InductorError", 1), ("AssertionError", 1), ("IndexError", 1), ("RuntimeError", 1)],
)
def test_a_network_that_does_not_compile_runs_as_it_is(spas: Any, failure: str, notes: int) -> None:
    """Pictures of two batch sizes, forwards and backwards."""
    told, apart = spas.run(compile_a_network, failure, world=1)[0]
    assert len(told) == notes
    assert all("could not be compiled" in each for each in told)
    assert apart == 0
