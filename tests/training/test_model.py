from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from training.config import MODELS
from training.model import build_model, plain_weights, unwrap


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return build_model("resnet18", 1000, seed=1)


@pytest.mark.parametrize(
    ("name", "parameters"),  # num_params of torchvision's weights
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 1000)
    assert sum(each.numel() for each in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("init", "first"),  # deviation of the first one as the vendor's network, and torchvision's, has
    [("fan_in", 0.1175), ("fan_out", 0.0251)],
)
def test_convolutions_start_with_the_recipes_deviation(init: str, first: float) -> None:
    model = build_model("resnet18", 10, init=init, seed=3)  # type: ignore[arg-type]
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            inputs = module.in_channels if init == "fan_in" else module.out_channels
            fan = inputs * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.05), name
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
    assert model.conv1.weight.std().item() == pytest.approx(first, rel=0.03)


def test_the_classifier_starts_as_torchs_linear(resnet18: nn.Module) -> None:
    """Uniform up to 1 / sqrt(inputs), weights and biases."""
    most = 1 / math.sqrt(512)
    for each in (resnet18.fc.weight, resnet18.fc.bias):
        assert 0.99 * most < each.abs().max().item() <= most
        assert each.std().item() == pytest.approx(most / math.sqrt(3), rel=0.05)
        assert each.mean().item() == pytest.approx(0, abs=0.1 * most)


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


def test_saved_weights_are_no_longer_the_networks(resnet18: nn.Module) -> None:
    """They are written in the background while training goes on."""
    weights = plain_weights(resnet18.state_dict())
    pointers = {each.data_ptr() for each in resnet18.state_dict().values()}
    assert not pointers & {each.data_ptr() for each in weights.values()}


def test_a_residual_may_start_as_nothing() -> None:
    for name, last in (("resnet18", "bn2"), ("resnet50", "bn3")):
        model = build_model(name, 3, zero_init_residual=True)
        norms = {
            key: each for key, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)
        }
        for key, norm in norms.items():
            assert bool((norm.weight == (0 if key.endswith(last) else 1)).all()), key


@pytest.mark.parametrize("name", MODELS)
def test_the_small_stem_keeps_small_pictures_large(name: str) -> None:
    """32 pixels come to the last stage as 4, through the ImageNet stem as 1."""
    with torch.device("meta"):
        for stem, side in (("small", 4), ("imagenet", 1)):
            options: dict[str, Any] = {"stem": stem}
            model = build_model(name, 10, **options).eval()
            shapes: list[torch.Size] = []
            model.layer4.register_forward_hook(lambda *each, to=shapes: to.append(each[2].shape))
            assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
            assert shapes[0][2:] == (side, side)
    assert "conv1.bias" not in model.state_dict()
