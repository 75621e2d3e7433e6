"""The optimiser: which parameters decay, and its state in and out of checkpoints.

Only momentum is saved and restored. Learning rate, weight decay and implementation flags
follow from the configuration and the device, so a run can resume on another kind of device.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from shards.errors import DamagedData
from training.model import unwrap
from training.recipes import Recipe

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def split_by_decay(
    model: nn.Module, policy: Literal["bn-in-name", "norm"]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters that decay, parameters that do not), each in the model's order.

    "bn-in-name" is the vendor's rule: no decay where the name contains "bn". In ResNets it
    misses the batch norm of the down-sampling branches (6 parameters of ResNet-18, 8 of
    ResNet-50 and -101). "norm" takes all weights and biases of normalisation layers.
    """
    plain = unwrap(model)
    if policy == "bn-in-name":
        exempt = {name for name, _ in plain.named_parameters() if "bn" in name}
    else:
        exempt = {
            f"{owner}.{name}"
            for owner, module in plain.named_modules()
            if isinstance(module, _NORMS)
            for name, _ in module.named_parameters(recurse=False)
        }
    named = list(plain.named_parameters())
    return (
        [parameter for name, parameter in named if name not in exempt],
        [parameter for name, parameter in named if name in exempt],
    )


def make_sgd(model: nn.Module, recipe: Recipe, *, fused: bool) -> torch.optim.SGD:
    """SGD with the recipe's momentum and decay. The caller sets the learning rate each epoch.

    `fused` takes torch's fused kernel, which needs no wait for the gradient scaler's check.
    """
    decayed, exempt = split_by_decay(model, recipe.no_decay)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, fused=fused or None)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def momentum_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Momentum by parameter name, contiguous on the CPU; empty before the first step."""
    buffers: dict[str, Tensor] = {}
    for name, parameter in unwrap(model).named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            buffers[name] = buffer.detach().cpu().contiguous()
    return buffers


def load_momentum(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]
) -> None:
    """Put saved momentum back, in each parameter's place and memory layout.

    Raises DamagedData where names or shapes are not those of the model.
    """
    parameters = dict(unwrap(model).named_parameters())
    if saved and saved.keys() != parameters.keys():
        raise DamagedData("the checkpoint's optimiser state does not belong to its model")
    for name, buffer in saved.items():
        parameter = parameters[name]
        if buffer.shape != parameter.shape:
            raise DamagedData(f"the checkpoint's optimiser state of {name} has another shape")
        restored = torch.empty_like(parameter, requires_grad=False)
        optimizer.state[parameter]["momentum_buffer"] = restored.copy_(buffer)
