"""The optimiser: which parameters decay, and its state in and out of checkpoints.

What is saved is what steps add up to (momentum, averages, counts). Learning rate, weight decay and
implementation flags follow from the configuration and the device, so a run can resume on another
kind of device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from shards.errors import DamagedData
from training.device import Device
from training.device.cpu import unheard
from training.extras import load_extra
from training.model import unwrap
from training.recipes import NoDecay, Recipe

# By parameter name, then by the optimiser's name of it: "momentum_buffer", "exp_avg", "step", ...
OptimizerState: TypeAlias = dict[str, dict[str, Tensor | float | int]]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_LARS_COEFFICIENT = 0.001  # MLPerf's eta
_LARS_EPS = 0.0  # as there
_GROUP_STATE = "step"  # what LAMB counts for a group instead of each parameter


def split_by_decay(
    model: nn.Module, policy: NoDecay
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters that decay, parameters that do not), each in the model's order.

    "bn-in-name" is the vendor's rule: no decay where the name contains "bn". In ResNets it
    misses the batch norm of the down-sampling branches (6 parameters of ResNet-18, 8 of
    ResNet-50 and -101). "norm" takes all weights and biases of normalisation layers,
    "norm-and-bias" those and all other biases, "none" nothing.
    """
    plain = unwrap(model)
    named = list(plain.named_parameters())
    norms = {
        f"{owner}.{name}"
        for owner, module in plain.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
    exempt = {
        "none": set(),
        "bn-in-name": {name for name, _ in named if "bn" in name},
        "norm": norms,
        "norm-and-bias": norms | {name for name, _ in named if name.endswith(".bias")},
    }[policy]
    return (
        [parameter for name, parameter in named if name not in exempt],
        [parameter for name, parameter in named if name in exempt],
    )


def make_optimizer(
    model: nn.Module, recipe: Recipe, device: Device, note: Callable[[str], None] = unheard
) -> torch.optim.Optimizer:
    """The recipe's optimiser for the model's parameters, at learning rate 0 until it is set.

    `note` is told where a device's own SGD is not to be had. Raises ToolError where LAMB or LARS
    is wanted and timm is not installed.
    """
    decayed, exempt = split_by_decay(model, recipe.no_decay)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, recipe.weight_decay), (exempt, 0.0))
        if parameters
    ]
    if recipe.optimizer == "sgd":
        return device.sgd(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, note=note)
    optimizers = load_extra(
        "timm.optim",
        needed_by=f"recipe {recipe.name}, which trains with {recipe.optimizer.upper()},",
        extra="recipes",
    )
    made: torch.optim.Optimizer
    if recipe.optimizer == "lars":
        made = optimizers.Lars(
            groups,
            lr=0.0,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            trust_coeff=_LARS_COEFFICIENT,
            eps=_LARS_EPS,
        )
    else:
        made = optimizers.Lamb(groups, lr=0.0, betas=(recipe.momentum, 0.999))
    return made


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate from the next step on; a group with an "lr_scale" so many times it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> OptimizerState:
    """What the optimiser has added up for each parameter; empty before the first step.

    Tensors are contiguous, on the CPU, and the caller's own.
    """
    counts = {
        parameter: group[_GROUP_STATE]
        for group in optimizer.param_groups
        if _GROUP_STATE in group
        for parameter in group["params"]
    }
    saved: OptimizerState = {}
    for name, parameter in unwrap(model).named_parameters():
        state = dict(optimizer.state.get(parameter, {}))
        if parameter in counts:
            state[_GROUP_STATE] = counts[parameter]
        if state:
            saved[name] = {key: _apart(value) for key, value in state.items() if value is not None}
    return saved


def _apart(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put saved state in the place of what there is, in each parameter's memory layout.

    Raises DamagedData where names or shapes are not those of the model.
    """
    parameters = dict(unwrap(model).named_parameters())
    if saved and saved.keys() != parameters.keys():
        raise DamagedData("the checkpoint's optimiser state does not belong to its model")
    owner = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop(_GROUP_STATE, None)
    grouped = _counts_by_group(optimizer)
    for name, state in saved.items():
        parameter = parameters[name]
        for key, value in state.items():
            if grouped and key == _GROUP_STATE:
                owner[parameter][key] = value.clone() if isinstance(value, Tensor) else value
            else:
                optimizer.state[parameter][key] = _restored(name, value, parameter)


def _counts_by_group(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this optimiser counts steps by group: timm's LAMB does, from its first step on."""
    return type(optimizer).__name__ == "Lamb"


def _restored(name: str, value: Any, parameter: nn.Parameter) -> Any:
    if not isinstance(value, Tensor) or not value.shape:  # a count
        return value
    if value.shape != parameter.shape:
        raise DamagedData(f"the checkpoint's optimiser state of {name} has another shape")
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
