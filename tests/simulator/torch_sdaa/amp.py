"""torch_sdaa.amp: autocast to float16, and a scaler that keeps float64 off the device."""

import torch
from torch.amp.grad_scaler import OptState


class autocast(torch.autocast):  # noqa: N801 - the vendor's name
    """Mixed precision in float16, the only one that the matrix unit has."""

    def __init__(self, *, enabled: bool = True, dtype: torch.dtype = torch.float16) -> None:
        if dtype != torch.float16:
            raise RuntimeError(f"SDAA's autocast is for float16, not {dtype}")
        super().__init__("sdaa", dtype=dtype, enabled=enabled)


class GradScaler(torch.amp.GradScaler):
    """torch's scaler on sdaa."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        *,
        enabled: bool = True,
    ) -> None:
        super().__init__(
            "sdaa", init_scale, growth_factor, backoff_factor, growth_interval, enabled
        )

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """As torch's, which computes the inverse in float64 on the device."""
        if not self._enabled:
            return
        scale, _ = self._check_scale_growth_tracker("unscale_")
        state = self._per_optimizer_states[id(optimizer)]
        if state["stage"] is not OptState.READY:
            raise RuntimeError("unscale_() has already been called since the last update()")
        found = torch.zeros((), device=scale.device)
        state["found_inf_per_device"] = self._unscale_grads_(
            optimizer, scale.reciprocal(), found, False
        )
        state["stage"] = OptState.UNSCALED
