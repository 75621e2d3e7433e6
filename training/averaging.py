"""The exponential moving average of a network's weights, and of batch norm's statistics.

torch's own AveragedModel waits for the device in every step (it looks at its counter there);
this one counts on the host. Early averages are of what there is: step t takes the decay
min(decay, (1 + t) / (10 + t)), a function of the position, so that nothing but the weights
has to be saved.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Follows a network. Its own `network` is in evaluation mode and takes no gradients."""

    def __init__(self, followed: nn.Module, decay: float) -> None:
        """Begin with the weights as they are. Both networks keep their tensors from now on."""
        self.network = copy.deepcopy(followed).requires_grad_(requires_grad=False).eval()
        self._decay = decay
        ours, theirs = self.network.state_dict(), followed.state_dict()
        floating = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        self._averages = [ours[name] for name in floating]
        self._followed = [theirs[name] for name in floating]
        self._counts: list[tuple[Tensor, Tensor]] = [
            (ours[name], theirs[name]) for name in ours if name not in floating
        ]

    def update(self, step: int) -> None:
        """Take in the weights after `step` steps of the run, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averages, self._followed, step)
        with torch.no_grad():
            for ours, theirs in self._counts:
                ours.copy_(theirs)
