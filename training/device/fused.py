"""torch_sdaa's FusedSGD, taken where it does what torch's SGD does.

Nothing public says how its state is called or whether it takes a state that was put there, as
going on from a checkpoint does. So it is tried on a few numbers first, on the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.device.cpu import Groups, Note, first_line

Make = Callable[[Groups], torch.optim.Optimizer]
_RATE = 0.25
_DECAY = 0.125


def fused_or_plain_sgd(
    groups: Groups, device: torch.device, *, momentum: float, nesterov: bool, note: Note
) -> torch.optim.Optimizer:
    """FusedSGD, or torch's SGD and a note that says why; both at a learning rate of 0."""

    def plain(each: Groups) -> torch.optim.Optimizer:
        return torch.optim.SGD(each, lr=0.0, momentum=momentum, nesterov=nesterov)

    try:
        fused_class = importlib.import_module("torch_sdaa.optim").FusedSGD

        def fused(each: Groups) -> torch.optim.Optimizer:
            return fused_class(each, 0.0, momentum=momentum, weight_decay=0.0, nesterov=nesterov)

        problem = _difference(fused, plain, device)
    except Exception as error:  # noqa: BLE001 - another version's may raise anything
        problem = f"{type(error).__name__}: {first_line(error)}"
    if problem is None:
        return fused(groups)
    note(f"torch_sdaa's FusedSGD is not used ({problem}); torch's SGD does the same more slowly")
    return plain(groups)


def _difference(fused: Make, plain: Make, device: torch.device) -> str | None:
    """What FusedSGD does otherwise than torch's SGD does on the CPU; None where nothing."""
    for restored, steps in ((False, 2), (True, 1)):
        ours = _after(steps, fused, device, restored=restored)
        theirs = _after(steps, plain, torch.device("cpu"), restored=restored)
        if ours.keys() != theirs.keys():
            return f"its state is {', '.join(sorted(ours.keys() ^ theirs.keys()))}"
        for name, value in theirs.items():
            if not torch.allclose(ours[name], value, rtol=1e-5, atol=1e-6):
                return f"its {name} differs from torch's" + " after a restart" * restored
    return None


def _after(steps: int, make: Make, device: torch.device, *, restored: bool) -> dict[str, Tensor]:
    """Two parameters and their state after some steps, on the CPU; `restored` gives it one."""
    decayed, exempt = (nn.Parameter(torch.linspace(-1, 1, size).to(device)) for size in (6, 4))
    optimizer = make(
        [
            {"params": [decayed], "weight_decay": _DECAY},
            {"params": [exempt], "weight_decay": 0.0},
        ]
    )
    parameters = {"decayed": decayed, "exempt": exempt}
    for group in optimizer.param_groups:
        group["lr"] = _RATE
    if restored:
        for each in parameters.values():
            optimizer.state[each]["momentum_buffer"] = torch.full_like(each, 0.5)
    for step in range(steps):
        for each in parameters.values():
            each.grad = torch.full_like(each, 1.0 + step)
        optimizer.step()
    found = {f"weight {name}": each for name, each in parameters.items()}
    for name, each in parameters.items():
        for key, value in optimizer.state[each].items():
            if value is not None:
                found[f"{key} of {name}"] = value
    return {name: torch.as_tensor(value).detach().cpu() for name, value in found.items()}
