"""torchvision's ResNets by name, initialised as a recipe says, and their weights by plain names.

The networks are torchvision's own (ResNet-50 and deeper put the stride on the 3 x 3
convolution, "v1.5"), so weights move both ways without renaming.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn

from training.config import MODELS, Stem
from training.recipes import InitMode

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def build_model(
    name: str,
    classes: int,
    *,
    init: InitMode = "fan_in",
    zero_init_residual: bool = False,
    stem: Stem = "imagenet",
    seed: int = 0,
) -> nn.Module:
    """The network `name` with `classes` outputs, on the CPU: a pure function of its arguments.

    Convolutions get Kaiming-normal weights for ReLU in mode `init`; batch norm starts at 1 and
    0, with `zero_init_residual` the last one of each block at 0 and 0; the classifier keeps
    nn.Linear's default. The stem "small" is for pictures of about 32 pixels: a 3 x 3 convolution
    of stride 1 and no pooling, as He et al. (2016, section 4.2) begin for CIFAR-10. torch's global
    generator is left as it was.
    """
    assert name in MODELS, name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=classes, zero_init_residual=zero_init_residual
        )
        if stem == "small":
            model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            model.maxpool = nn.Identity()
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
    """A state dict under names without wrappers' prefixes: contiguous copies on the CPU."""
    return {
        plain_name(name): tensor.detach().to(
            "cpu", copy=True, memory_format=torch.contiguous_format
        )
        for name, tensor in state.items()
    }


def plain_name(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    for prefix in WRAPPER_PREFIXES:
        if name.startswith(prefix):
            return plain_name(name[len(prefix) :])
    return name
