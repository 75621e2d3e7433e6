"""An NVIDIA GPU, and how many of them torch can use."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shards.errors import ToolError
from training.device.cpu import (
    AmpRequest,
    Device,
    Groups,
    Note,
    Precision,
    first_line,
    unheard,
)

if TYPE_CHECKING:
    import torch
    from torch.profiler import ProfilerActivity


@dataclass(frozen=True, kw_only=True)
class Cuda(Device):
    """An NVIDIA GPU."""

    kind = "cuda"
    backend = "nccl"
    pin_memory = True

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cuda", self.index)

    @property
    def name(self) -> str:
        import torch

        return str(torch.cuda.get_device_name(self.index))

    @property
    def profiler_activity(self) -> ProfilerActivity:
        from torch.profiler import ProfilerActivity

        return ProfilerActivity.CUDA

    def activate(self) -> None:
        import torch

        try:
            torch.cuda.set_device(self.index)
        except RuntimeError as error:
            raise ToolError(
                f"cuda:{self.index} does not answer ({first_line(error)}); look at it with "
                "nvidia-smi, or choose others with CUDA_VISIBLE_DEVICES"
            ) from error

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize(self.index)

    def copied(self) -> Callable[[], None]:
        import torch

        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def memory(self) -> tuple[int, int] | None:
        import torch

        free, total = torch.cuda.mem_get_info(self.index)
        return int(free), int(total)

    def peak_memory(self) -> int | None:
        import torch

        return int(torch.cuda.max_memory_allocated(self.index))

    def reset_peak_memory(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats(self.index)

    def be_deterministic(self) -> None:
        # cuBLAS reads it when it is first used; without it torch refuses its products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        super().be_deterministic()

    def precision(self, amp: AmpRequest) -> Precision:
        if amp == "off":
            return "fp32"
        return "bf16" if amp == "bf16" else "fp16"

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        import torch

        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(
            "cuda", dtype=torch.float16 if precision == "fp16" else torch.bfloat16
        )

    def grad_scaler(self, precision: Precision, init_scale: float) -> torch.amp.GradScaler:
        import torch

        return torch.amp.GradScaler("cuda", init_scale=init_scale, enabled=precision == "fp16")

    def ddp_arguments(self) -> dict[str, Any]:
        return {"device_ids": [self.index]}

    def sgd(
        self,
        groups: Groups,
        *,
        momentum: float,
        nesterov: bool,
        note: Note = unheard,  # noqa: ARG002 - as the base class has it
    ) -> torch.optim.Optimizer:
        """torch's fused kernel, which needs no wait for the gradient scaler's check."""
        import torch

        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)


def cuda_devices() -> tuple[int, str]:
    """(number of GPUs torch can use, what is wrong where that is 0)."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return count, ""
    if caught:  # a driver too old for this torch, say
        return 0, f"torch cannot use CUDA ({first_line(caught[0].message)})"
    return 0, "torch finds no CUDA GPU"
