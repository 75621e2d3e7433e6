"""What the trainer asks of a device, answered for the CPU; the accelerators override it.

torch is imported inside the functions on purpose: `prepare_environment` has to run before it,
because torch loads an installed torch_sdaa by itself (its backend autoload).
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shards.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.profiler import ProfilerActivity

DeviceKind = Literal["sdaa", "cuda", "cpu"]
DeviceRequest = Literal["auto", "sdaa", "cuda", "cpu"]
AmpRequest = Literal["auto", "off", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]
Note = Callable[[str], None]  # takes a sentence for the user
Groups = list[dict[str, Any]]  # of parameters, as torch's optimisers take them


def unheard(_message: str) -> None:
    """A note that nobody reads."""


def first_line(error: object) -> str:
    """The first line of a message; those of libraries go on for pages."""
    return (str(error).strip().splitlines() or [""])[0]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device of one process; as it stands the CPU, whose answers the others override.

    `index` counts devices of this kind on this machine.
    """

    index: int
    reason: str  # why this device was chosen, for the user

    kind = "cpu"
    backend = "gloo"  # torch.distributed's name of the collectives for this device
    processes_per_card = 1  # devices that one physical card shows up as
    pin_memory = False  # whether page-locked batches make copies to the device asynchronous

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    @property
    def name(self) -> str:
        """What the maker calls it."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        return platform.machine()

    @property
    def profiler_activity(self) -> ProfilerActivity:
        """What torch.profiler calls the work of this device."""
        from torch.profiler import ProfilerActivity

        return ProfilerActivity.CPU

    def activate(self) -> None:
        """Make this the current device; on sdaa and cuda it must precede init_process_group.

        Raises ToolError where the device does not answer.
        """

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""

    def copied(self) -> Callable[[], None]:
        """Mark this point of the device's queue; calling the result waits until it is reached."""
        return self.synchronize

    def memory(self) -> tuple[int, int] | None:
        """(free, all) bytes of the device's memory; None for the host's, which others share."""
        return None

    def peak_memory(self) -> int | None:
        """Most bytes this process has held on the device, or None where nobody counts."""
        return None

    def reset_peak_memory(self) -> None:
        """Count the most bytes from here on."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch's generators, on the host and on the device."""
        import torch

        torch.manual_seed(seed)

    def be_deterministic(self) -> None:
        """Take only algorithms that give the same bits again, as far as torch knows them.

        An operation that has none raises RuntimeError. Call before anything is computed.
        """
        import torch

        torch.use_deterministic_algorithms(mode=True)

    def precision(self, amp: AmpRequest) -> Precision:
        """What an --amp choice means here. Raises UsageError for what the device cannot do."""
        if amp == "fp16":
            raise UsageError(
                "--amp fp16 is for accelerators; on the CPU choose --amp bf16 or --amp off"
            )
        return "bf16" if amp == "bf16" else "fp32"

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Mixed precision for the forward pass and the loss."""
        import torch

        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def grad_scaler(
        self,
        precision: Precision,  # noqa: ARG002 - the accelerators' need it
        init_scale: float,  # noqa: ARG002
    ) -> torch.amp.GradScaler:
        """The loss scaler that fp16 needs; a disabled one, which changes nothing, otherwise."""
        import torch

        return torch.amp.GradScaler("cpu", enabled=False)

    def ddp_arguments(self) -> dict[str, Any]:
        """Keyword arguments of DistributedDataParallel."""
        return {}

    def sgd(
        self,
        groups: Groups,
        *,
        momentum: float,
        nesterov: bool,
        note: Note = unheard,  # noqa: ARG002 - what an accelerator has to say about its own
    ) -> torch.optim.Optimizer:
        """SGD as torch defines it, at a learning rate of 0, by this device's fastest way.

        Its state is torch's on every device: `momentum_buffer` of each parameter, no more.
        """
        import torch

        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)

    def compiled(self, model: nn.Module, note: Note) -> nn.Module:
        """`model`, wrapped by DistributedDataParallel or not, with its network compiled.

        Where the compiler fails the network runs as it is, and `note` is told once. A wrapper
        stays the outermost, so gradients are exchanged the same way in both cases.
        """
        from training.device.compiling import compiled_or_eager

        return compiled_or_eager(model, self.compile_network, note)

    def compile_network(self, network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network as this device's compiler makes it at its first call."""
        import torch

        return partial(torch.compile(network))
