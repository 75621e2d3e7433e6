"""Which parameters decay, steps bit for bit as torch's, and optimisers' state in and out."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch
from devices import ON_DEVICE
from torch import Tensor, nn

from shards.errors import DamagedData, ToolError
from training.device import Device, choose
from training.model import build_model
from training.optim import (
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_lr,
    split_by_decay,
)
from training.recipes import Recipe, find_recipe
from training.settings import changed

SEED = find_recipe("seed")


@pytest.fixture(scope="module")
def device() -> Device:
    return choose(ON_DEVICE["device"])  # type: ignore[arg-type]


def small(device: Device) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))
    model = nn.Sequential(*layers).to(device.torch_device)
    return model.to(memory_format=torch.channels_last)


def named(device: Device) -> nn.Module:
    """A network whose layers are called as a ResNet's."""
    torch.manual_seed(0)
    down = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    layers = {
        "conv1": nn.Conv2d(3, 4, 3),
        "bn1": nn.BatchNorm2d(4),
        "downsample": down,
        "flat": nn.Flatten(),
        "fc": nn.Linear(36, 5),
    }
    model = nn.Sequential(OrderedDict(layers)).to(device.torch_device)
    return model.to(memory_format=torch.channels_last)


NO_BIAS = ("conv1.weight", "downsample.0.weight", "fc.weight")  # neither biases nor norms


def pictures(device: Device, step: int) -> Tensor:
    drawn = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
    return drawn.to(device.torch_device)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, device: Device) -> None:
    for step in steps:
        set_lr(optimizer, 0.1 / (1 + step))
        model(pictures(device, step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# --- decay ---


@pytest.mark.parametrize(
    ("name", "by_name", "by_type"),
    [("resnet18", 34, 40), ("resnet50", 98, 106), ("resnet101", 200, 208)],
)
def test_how_many_parameters_do_not_decay(name: str, by_name: int, by_type: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 1000)
    total = len(list(model.parameters()))
    counts = {"none": 0, "bn-in-name": by_name, "norm": by_type, "norm-and-bias": by_type + 1}
    for policy, exempt in counts.items():
        decayed, free = split_by_decay(model, policy)  # type: ignore[arg-type]
        assert (len(free), len(decayed)) == (exempt, total - exempt)
        assert any(each is model.fc.bias for each in free) == (policy == "norm-and-bias")


@pytest.mark.parametrize(("name", "missed"), [("resnet18", 6), ("resnet50", 8), ("resnet101", 8)])
def test_the_vendors_rule_misses_only_the_down_sampling_norms(name: str, missed: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 3)
    by_name, by_type = (
        {id(each) for each in split_by_decay(model, policy)[1]} for policy in ("bn-in-name", "norm")
    )
    assert by_name < by_type
    names = [key for key, each in model.named_parameters() if id(each) in by_type - by_name]
    assert len(names) == missed
    assert all("downsample.1" in key for key in names)


# --- steps ---


def assert_same_parameters(ours: nn.Module, theirs: nn.Module, device: Device) -> None:
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name)), name
        assert not torch.equal(parameter, named(device).get_parameter(name)), name


@pytest.mark.parametrize("nesterov", [False, True])
def test_twenty_steps_are_torchs_bit_for_bit(device: Device, *, nesterov: bool) -> None:
    ours, theirs = named(device), named(device)
    recipe = changed(SEED, {"nesterov": nesterov})
    rest = (theirs.conv1, theirs.downsample, theirs.fc)  # a norm among them, without "bn" there
    torchs = torch.optim.SGD(
        [
            {"params": [each for module in rest for each in module.parameters()]},
            {"params": theirs.bn1.parameters(), "weight_decay": 0.0},
        ],
        lr=0.1,
        momentum=0.875,
        weight_decay=2**-15,
        nesterov=nesterov,
    )
    train(ours, make_optimizer(ours, recipe, device), range(20), device)
    train(theirs, torchs, range(20), device)
    assert_same_parameters(ours, theirs, device)


def test_a_group_may_learn_at_a_share_of_the_rate(device: Device) -> None:
    optimizer = make_optimizer(small(device), changed(SEED, {"no_decay": "norm"}), device)
    optimizer.param_groups[0]["lr_scale"] = 0.1
    set_lr(optimizer, 2.0)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.2), 2.0]


def test_lars_is_mlperfs(device: Device) -> None:
    """Its rate is inside of the momentum, which is corrected where the rate changes.

    As NVIDIA's SGDwFASTLARS (MLPerf training, ResNet-50 in MXNet) takes a step, in float64.
    """
    pytest.importorskip("timm.optim")
    model = named(device)
    expected = {name: each.detach().double() for name, each in model.named_parameters()}
    moved = {name: torch.zeros_like(each) for name, each in expected.items()}
    optimizer = make_optimizer(model, find_recipe("mlperf"), device)
    rates = [2.0, 4.0, 6.0, 5.0, 3.0, 1.0]
    for step, (last, rate) in enumerate(zip([rates[0], *rates], rates, strict=False)):
        set_lr(optimizer, rate)
        model(pictures(device, step)).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            weight, gradient, local = expected[name], parameter.grad.double(), rate
            if name in NO_BIAS:
                norms = weight.norm(), gradient.norm()
                local = rate * 0.001 * norms[0] / (norms[1] + 5e-5 * norms[0])
                gradient = gradient + 5e-5 * weight
            moved[name] = 0.9 * rate / last * moved[name] - local * gradient
            expected[name] = weight + moved[name]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(parameter, named(device).get_parameter(name)), name


def test_lamb_is_timms_with_the_values_of_a3(device: Device) -> None:
    optim = pytest.importorskip("timm.optim")
    ours, theirs = named(device), named(device)
    parameters = dict(theirs.named_parameters())
    timms = optim.Lamb(
        [
            {"params": [parameters[name] for name in NO_BIAS], "weight_decay": 0.02},
            {
                "params": [each for name, each in parameters.items() if name not in NO_BIAS],
                "weight_decay": 0.0,
            },
        ],
        lr=0.1,
        betas=(0.9, 0.999),
        eps=1e-6,
        max_grad_norm=1.0,
    )
    train(ours, make_optimizer(ours, find_recipe("a3"), device), range(20), device)
    train(theirs, timms, range(20), device)
    assert_same_parameters(ours, theirs, device)


def test_without_timm_it_is_said_what_to_install(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)  # as where it is not installed
    wanted = (
        r"recipe a3, which trains with LAMB, needs timm: pip install 'imagenet-resnet\[recipes\]'"
    )
    with pytest.raises(ToolError, match=wanted):
        make_optimizer(small(device), find_recipe("a3"), device)


# --- state ---


def recipes() -> list[Recipe]:
    return [SEED, find_recipe("a3"), find_recipe("mlperf")]


@pytest.mark.parametrize("recipe", recipes(), ids=lambda each: each.optimizer)
def test_going_on_from_saved_state_is_bit_for_bit(device: Device, recipe: Recipe) -> None:
    if recipe.optimizer != "sgd":
        pytest.importorskip("timm.optim")
    whole, part = small(device), small(device)
    train(whole, make_optimizer(whole, recipe, device), range(6), device)
    first = make_optimizer(part, recipe, device)
    assert optimizer_state(first, part) == {}
    train(part, first, range(3), device)
    saved = optimizer_state(first, part)
    assert saved.keys() == dict(part.named_parameters()).keys()
    for state in saved.values():
        for value in state.values():
            if isinstance(value, Tensor):
                assert value.device.type == "cpu"
                assert value.is_contiguous()
    train(part, first, range(3, 4), device)  # what is saved stays what it was
    load_optimizer_state(first, part, {})  # as before the first step
    assert optimizer_state(first, part) == {}
    again = small(device)
    train(again, make_optimizer(again, recipe, device), range(3), device)
    second = make_optimizer(again, recipe, device)
    load_optimizer_state(second, again, saved)
    train(again, second, range(3, 6), device)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


def test_state_lies_in_memory_as_its_parameter_does(device: Device) -> None:
    model = small(device)
    optimizer = make_optimizer(model, SEED, device)
    train(model, optimizer, range(1), device)
    fresh = make_optimizer(model, SEED, device)
    load_optimizer_state(fresh, model, optimizer_state(optimizer, model))
    for parameter in model.parameters():
        assert fresh.state[parameter]["momentum_buffer"].stride() == parameter.stride()


def test_state_of_another_model_is_refused(device: Device) -> None:
    model = small(device)
    optimizer = make_optimizer(model, SEED, device)
    train(model, optimizer, range(1), device)
    saved: dict[str, Any] = optimizer_state(optimizer, model)
    other = {**saved, "3.weight": {"momentum_buffer": torch.zeros(5, 35)}}
    with pytest.raises(DamagedData, match=r"optimiser state of 3.weight has another shape"):
        load_optimizer_state(make_optimizer(model, SEED, device), model, other)
    del saved["3.weight"]
    with pytest.raises(DamagedData, match="does not belong to its model"):
        load_optimizer_state(make_optimizer(model, SEED, device), model, saved)
