from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.model import build_model, plain_weights, unwrap
from training.optim import load_momentum, make_sgd, momentum_state, set_lr, split_by_decay
from training.recipes import SEED


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return build_model("resnet18", 1000, seed=1)


@pytest.mark.parametrize(
    ("name", "parameters", "by_name", "by_type"),
    [
        ("resnet18", 11_689_512, 34, 40),
        ("resnet50", 25_557_032, 98, 106),
        ("resnet101", 44_549_160, 200, 208),
    ],
)
def test_size_and_decay_groups(name: str, parameters: int, by_name: int, by_type: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 1000)
    assert sum(each.numel() for each in model.parameters()) == parameters
    for policy, exempt in (("bn-in-name", by_name), ("norm", by_type)):
        decayed, free = split_by_decay(model, policy)  # type: ignore[arg-type]
        assert len(free) == exempt
        assert len(decayed) + len(free) == len(list(model.parameters()))
        assert any(each is model.fc.bias for each in decayed)


def test_the_vendors_rule_misses_only_the_down_sampling_norms(resnet18: nn.Module) -> None:
    by_name = {id(each) for each in split_by_decay(resnet18, "bn-in-name")[1]}
    missed = [
        name
        for name, parameter in resnet18.named_parameters()
        if any(parameter is each for each in split_by_decay(resnet18, "norm")[1])
        and id(parameter) not in by_name
    ]
    assert len(missed) == 6
    assert all("downsample.1" in name for name in missed)


@pytest.mark.parametrize("init", ["fan_in", "fan_out"])
def test_convolutions_start_with_the_recipes_deviation(init: str) -> None:
    model = build_model("resnet18", 10, init=init, seed=3)  # type: ignore[arg-type]
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            inputs = module.in_channels if init == "fan_in" else module.out_channels
            fan = inputs * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.05), name
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_model("resnet18", 3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_wrappers_leave_no_trace_in_names(resnet18: nn.Module) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    wrapped = Wrapper(Wrapper(resnet18))
    assert unwrap(wrapped) is resnet18
    weights = plain_weights(wrapped.state_dict())
    assert weights.keys() == resnet18.state_dict().keys()
    compiled = {f"_orig_mod.module.{name}": each for name, each in weights.items()}
    assert plain_weights(compiled).keys() == weights.keys()


def test_momentum_survives_in_any_memory_format() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    optimizer = make_sgd(model, SEED, fused=False)
    set_lr(optimizer, 0.1)
    model(torch.randn(2, 3, 5, 5)).square().mean().backward()
    optimizer.step()
    saved = momentum_state(optimizer, model)
    assert all(each.is_contiguous() for each in saved.values())
    fresh = make_sgd(model, SEED, fused=False)
    load_momentum(fresh, model, saved)
    for parameter in model.parameters():
        ours = fresh.state[parameter]["momentum_buffer"]
        assert torch.equal(ours, optimizer.state[parameter]["momentum_buffer"])
        assert ours.stride() == parameter.stride()
