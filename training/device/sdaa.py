"""Tecorigin's SDAA cards: one of their SPAs as a device, and how many of them torch can use.

Nothing here could be run on the hardware. It follows the spellings of the vendor's published
code (torch.sdaa, torch_sdaa.amp, the older torch_sdaa.core.sdaa_model), asks before it uses what
that code does not show, and the tests run it on a simulated torch_sdaa with the same spellings
(tests/simulator).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import ToolError, UsageError
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
    from torch import nn
    from torch.profiler import ProfilerActivity

ENVIRONMENT: Mapping[str, str] = {
    # Weights in the layout the convolution library wants; the vendor's launcher sets it always.
    "TORCH_SDAA_CONV_WEIGHT_CHWN": "1",
    # An operator that the cards lack runs on the host instead of ending the run.
    "TORCH_SDAA_RUNTIME_AUTOFALLBACK": "1",
    # torch must not load torch_sdaa by itself: where that fails, `import torch` would fail, even
    # for the CPU. We load it, where it is wanted, and say what is wrong.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}
VISIBLE = "SDAA_VISIBLE_DEVICES"  # the numbers of those that a process is to see
SPAS_PER_CARD = 4


@dataclass(frozen=True, kw_only=True)
class Sdaa(Device):
    """One of the four SPAs of a Tecorigin card.

    Mixed precision is fp16 only: the matrix unit has no bf16, which is emulated and clipped.
    Batches are not page-locked: how the vendor's torch pins memory is not documented.
    """

    kind = "sdaa"
    backend = "tccl"
    processes_per_card = SPAS_PER_CARD

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("sdaa", self.index)

    @property
    def name(self) -> str:
        return str(getattr(_properties(self.index), "name", None) or "SDAA SPA")

    @property
    def profiler_activity(self) -> ProfilerActivity:
        """The vendor's own where its torch has it, else what torch calls devices like this."""
        from torch.profiler import ProfilerActivity

        theirs: ProfilerActivity | None = getattr(ProfilerActivity, "SDAA", None)
        return theirs or ProfilerActivity.PrivateUse1

    def activate(self) -> None:
        try:
            _api().set_device(self.index)
        except Exception as error:  # a device that is lost may raise anything
            raise ToolError(
                f"sdaa:{self.index} does not answer ({type(error).__name__}: {first_line(error)}); "
                f"look at it with `teco-smi -c`, or choose others with {VISIBLE}"
            ) from error

    def synchronize(self) -> None:
        """Without torch.sdaa by a copy to the host: the queue is in order."""
        import torch

        if hasattr(torch, "sdaa"):
            torch.sdaa.synchronize(self.index)
        else:
            torch.ones((), device=self.torch_device).item()

    def copied(self) -> Callable[[], None]:
        import torch

        if not hasattr(torch, "sdaa"):  # of older ones no event is known
            return self.synchronize
        event = torch.sdaa.Event()
        event.record()
        wait: Callable[[], None] = event.synchronize
        return wait

    def memory(self) -> tuple[int, int] | None:
        """Where nothing tells what others hold, free is what this process does not hold."""
        import torch

        total = getattr(_properties(self.index), "total_memory", None)
        api: Any = getattr(torch, "sdaa", None)
        if hasattr(api, "mem_get_info"):
            free, total = api.mem_get_info(self.index)
            return int(free), int(total)
        if total is None or not hasattr(api, "memory_allocated"):
            return None
        return int(total) - int(api.memory_allocated(self.index)), int(total)

    def peak_memory(self) -> int | None:
        import torch

        count = getattr(getattr(torch, "sdaa", None), "max_memory_allocated", None)
        return None if count is None else int(count())

    def reset_peak_memory(self) -> None:
        import torch

        reset = getattr(getattr(torch, "sdaa", None), "reset_peak_memory_stats", None)
        if reset is not None:
            reset()

    def manual_seed(self, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        if hasattr(torch, "sdaa"):  # the vendor's code seeds an older one by torch alone
            torch.sdaa.manual_seed_all(seed)

    def precision(self, amp: AmpRequest) -> Precision:
        if amp == "bf16":
            raise UsageError(
                "--amp bf16 is not real on SDAA (emulated and clipped at 65407); "
                "choose --amp fp16 or --amp off"
            )
        return "fp32" if amp == "off" else "fp16"

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        if precision == "fp32":
            return contextlib.nullcontext()
        scope: AbstractContextManager[Any] = _amp().autocast(enabled=True)
        return scope

    def grad_scaler(self, precision: Precision, init_scale: float) -> torch.amp.GradScaler:
        import torch

        if precision != "fp16":
            return torch.amp.GradScaler("cpu", enabled=False)
        scaler: torch.amp.GradScaler = _amp().GradScaler(init_scale=init_scale)
        return scaler

    def ddp_arguments(self) -> dict[str, Any]:
        # The vendor's trainer: one bucket of 110 MB holds all of ResNet-50; no device_ids.
        return {"bucket_cap_mb": 110}

    def sgd(
        self, groups: Groups, *, momentum: float, nesterov: bool, note: Note = unheard
    ) -> torch.optim.Optimizer:
        """torch_sdaa's FusedSGD where it is there and does what torch's does."""
        from training.device.fused import fused_or_plain_sgd

        return fused_or_plain_sgd(
            groups, self.torch_device, momentum=momentum, nesterov=nesterov, note=note
        )

    def compile_network(self, network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """The vendor's compiler, which takes no mode, no options and no open sizes."""
        import torch

        importlib.import_module("torch_sdaa._inductor")  # registers its name
        # Otherwise a second size of pictures is taken for an open one.
        torch._dynamo.config.automatic_dynamic_shapes = False  # noqa: SLF001 - its public switch
        return partial(torch.compile(network, backend="teco_inductor"))


def sdaa_devices() -> tuple[int, str]:
    """(number of SDAA devices torch can use, what is wrong where that is 0)."""
    prepare_environment()
    if importlib.util.find_spec("torch_sdaa") is None:
        return 0, "torch_sdaa is not installed in this Python"
    try:
        with stdout_to_stderr():  # it says its versions, and stdout is for results
            importlib.import_module("torch_sdaa")
        count = int(_api().device_count())
    except Exception as error:  # noqa: BLE001 - without a driver the import raises anything
        return 0, f"torch_sdaa does not load ({type(error).__name__}: {first_line(error)})"
    if count:
        return count, ""
    return 0, f"torch_sdaa sees no device{chosen_by_user(', where {} chooses')}"


def chosen_by_user(text: str) -> str:
    """`text` with the variable by which the user chose devices in it; empty without one."""
    value = os.environ.get(VISIBLE)
    return "" if value is None else text.format(f"{VISIBLE}={value}")


def sdaa_cards(dev: Path) -> list[str]:
    """The device files of the cards in `dev`, in the order of their numbers."""
    found = [path for path in dev.glob("tcaicard*") if re.fullmatch(r"tcaicard\d+", path.name)]
    return sorted((str(path) for path in found), key=lambda name: (len(name), name))


def prepare_environment() -> None:
    """Set what torch_sdaa reads when it is loaded. Call before anything imports torch.

    Values that the user has set stay; on machines without torch_sdaa they mean nothing.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def sdaa_device_count() -> int:
    """SDAA devices that a torch_sdaa which is loaded shows."""
    return int(_api().device_count())


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Lead what Python and libraries write to stdout to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _api() -> Any:
    """torch.sdaa, or the module that older versions had in its place."""
    import torch

    if hasattr(torch, "sdaa"):
        return torch.sdaa
    return importlib.import_module("torch_sdaa.core.sdaa_model")


def _amp() -> Any:
    return importlib.import_module("torch_sdaa.amp")


def _properties(index: int) -> Any:
    """What torch.sdaa tells of a device; None where it tells nothing."""
    with contextlib.suppress(Exception):
        return _api().get_device_properties(index)
    return None
