"""torch_sdaa.optim: FusedSGD, with the arguments that the vendor's trainer gives it."""

from collections.abc import Callable
from typing import Any

import torch


class FusedSGD(torch.optim.Optimizer):
    """torch's SGD in one pass over all parameters of a group, all of them on the device."""

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,  # noqa: FBT002 - the vendor's signature
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for each in group["params"]:
                if each.grad is not None:
                    self._step(each, group)

    def _step(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        if parameter.device.type != "sdaa" or parameter.grad.is_sparse:
            raise RuntimeError(
                f"FusedSGD takes dense parameters on sdaa, not on {parameter.device}"
            )
        change = parameter.grad.add(parameter, alpha=group["weight_decay"])
        if group["momentum"]:
            state = self.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(group["momentum"]).add_(change)
            else:
                state["momentum_buffer"] = change.clone()
            held = state["momentum_buffer"]
            change = change.add(held, alpha=group["momentum"]) if group["nesterov"] else held
        parameter.add_(change, alpha=-group["lr"])
