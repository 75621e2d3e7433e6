"""torchvision's ResNets by name, initialised as a recipe says, and their weights by plain names.

The networks are torchvision's own (ResNet-50 and deeper put the stride on the 3 x 3
convolution, "v1.5"), so weights move both ways without renaming.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from training.config import MODELS

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def build_model(
    name: str, classes: int, *, init: Literal["fan_in", "fan_out"] = "fan_in", seed: int = 0
) -> nn.Module:
    """The network `name` with `classes` outputs, on the CPU: a pure function of its arguments.

    Convolutions get Kaiming-normal weights for ReLU in mode `init`; batch norm starts at 1 and
    0; the classifier keeps nn.Linear's default. torch's global generator is left as it was.
    """
    assert name in MODELS, name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=init, nonlinearity="relu")
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, without DistributedDataParallel or torch.compile around it."""
    for attribute in ("module", "_orig_mod"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return model


def plain_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under names without wrappers' prefixes, contiguous and on the CPU."""
    return {_plain_name(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _plain_name(name: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        if name.startswith(prefix):
            return _plain_name(name[len(prefix) :])
    return name
