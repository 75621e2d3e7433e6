"""The one place that names accelerators: Tecorigin SDAA, NVIDIA CUDA, and the CPU.

`choose` picks a device and says why; everything else in this package asks the `Device` it
returns and never spells "sdaa" or "cuda" itself. A machine that has SDAA cards but no working
torch_sdaa is an error with its remedy, never a silent run on the CPU.

torch is imported inside the functions on purpose: `prepare_environment` has to run before it,
because torch loads an installed torch_sdaa by itself (its backend autoload).

Nothing in the `Sdaa` class could be run on the hardware; it follows the spellings of the
vendor's published code (torch.sdaa, torch_sdaa.amp, the older torch_sdaa.core.sdaa_model), and
the tests run it on a simulated torch_sdaa with the same spellings (tests/simulator).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from shards.errors import ToolError, UsageError

if TYPE_CHECKING:
    import torch

DeviceKind = Literal["sdaa", "cuda", "cpu"]
DeviceRequest = Literal["auto", "sdaa", "cuda", "cpu"]
AmpRequest = Literal["auto", "off", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]

SDAA_ENVIRONMENT: Mapping[str, str] = {
    # Weights in the layout the convolution library wants; the vendor's launcher sets it always.
    "TORCH_SDAA_CONV_WEIGHT_CHWN": "1",
    # torch must not load torch_sdaa by itself: where that fails, `import torch` would fail, even
    # for the CPU. We load it, where it is wanted, and say what is wrong.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}
_REMEDY = (
    "run inside the vendor's image, after `source /opt/tecoai/setvars.sh`, with the Python that "
    "has torch_sdaa; or ask for the CPU with --device cpu"
)


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
    fused_sgd = False  # whether torch's fused SGD runs here; it saves the scaler's wait a step

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cpu")

    def activate(self) -> None:
        """Make this the current device; on sdaa and cuda it must precede init_process_group."""

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

    def copied(self) -> Callable[[], None]:
        """Mark this point of the device's queue; calling the result waits until it is reached."""
        return _nothing

    def manual_seed(self, seed: int) -> None:
        """Seed torch's generators, on the host and on the device."""
        import torch

        torch.manual_seed(seed)

    def peak_memory(self) -> int | None:
        """Most bytes this process has held on the device, or None where nobody counts."""
        return None


@dataclass(frozen=True, kw_only=True)
class Cuda(Device):
    """An NVIDIA GPU."""

    kind = "cuda"
    backend = "nccl"
    pin_memory = True
    fused_sgd = True

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cuda", self.index)

    def activate(self) -> None:
        import torch

        torch.cuda.set_device(self.index)

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

    def copied(self) -> Callable[[], None]:
        import torch

        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def peak_memory(self) -> int | None:
        import torch

        return int(torch.cuda.max_memory_allocated(self.index))


@dataclass(frozen=True, kw_only=True)
class Sdaa(Device):
    """One of the four SPAs of a Tecorigin card.

    Mixed precision is fp16 only: the matrix unit has no bf16, which is emulated and clipped.
    Batches are not page-locked: how the vendor's torch pins memory is not documented.
    """

    kind = "sdaa"
    backend = "tccl"
    processes_per_card = 4

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("sdaa", self.index)

    def activate(self) -> None:
        _sdaa_api().set_device(self.index)

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
        scope: AbstractContextManager[Any] = _sdaa_amp().autocast(enabled=True)
        return scope

    def grad_scaler(self, precision: Precision, init_scale: float) -> torch.amp.GradScaler:
        import torch

        if precision != "fp16":
            return torch.amp.GradScaler("cpu", enabled=False)
        scaler: torch.amp.GradScaler = _sdaa_amp().GradScaler(init_scale=init_scale)
        return scaler

    def ddp_arguments(self) -> dict[str, Any]:
        # The vendor's trainer: one bucket of 110 MB holds all of ResNet-50; no device_ids.
        return {"bucket_cap_mb": 110}

    def copied(self) -> Callable[[], None]:
        import torch

        if not hasattr(torch, "sdaa"):
            return self._reached
        event = torch.sdaa.Event()
        event.record()
        wait: Callable[[], None] = event.synchronize
        return wait

    def _reached(self) -> None:
        """Wait for the queue, which is in order, without an event: older ones have none known."""
        import torch

        torch.ones((), device=self.torch_device).item()

    def manual_seed(self, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        if hasattr(torch, "sdaa"):  # the vendor's code seeds an older one by torch alone
            torch.sdaa.manual_seed_all(seed)

    def peak_memory(self) -> int | None:
        import torch

        count = getattr(getattr(torch, "sdaa", None), "max_memory_allocated", None)
        return None if count is None else int(count())


def prepare_environment() -> None:
    """Set what torch_sdaa reads when it is loaded. Call before anything imports torch.

    Values that the user has set stay; on machines without torch_sdaa they mean nothing.
    """
    for name, value in SDAA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def choose(requested: DeviceRequest, local_rank: int = 0, *, dev: Path = Path("/dev")) -> Device:
    """The device of process `local_rank` of this machine; "auto" tries sdaa, cuda, cpu.

    `dev` is where device files lie. Raises ToolError where the asked-for device, or the SDAA
    cards that are plainly there, cannot be used, and UsageError where there are fewer devices
    than processes.
    """
    if requested not in get_args(DeviceRequest):
        raise UsageError(
            f"--device {requested}: choose one of {', '.join(get_args(DeviceRequest))}"
        )
    if requested == "cpu":
        return Device(index=local_rank, reason="asked for")
    if requested in ("auto", "sdaa"):
        device = _choose_sdaa(requested, local_rank, _sdaa_cards(dev))
        if device is not None:
            return device
    count, problem = _cuda_devices()
    if count:
        _check_index("cuda", local_rank, count)
        reason = "asked for" if requested == "cuda" else f"{_plural(count, 'CUDA GPU')} found"
        return Cuda(index=local_rank, reason=reason)
    if requested == "cuda":
        raise ToolError(f"--device cuda: {problem}; choose another --device, or mend the driver")
    return Device(index=local_rank, reason=f"no SDAA card here, and {problem}")


def device_count(device: Device) -> int | None:
    """How many devices of this kind the machine has; None for the CPU, which has no such count."""
    if device.kind == "cuda":
        return _cuda_devices()[0]
    return int(_sdaa_api().device_count()) if device.kind == "sdaa" else None


def _choose_sdaa(requested: DeviceRequest, local_rank: int, cards: list[str]) -> Device | None:
    count, problem = _sdaa_devices()
    if count:
        _check_index("sdaa", local_rank, count)
        reason = "asked for" if requested == "sdaa" else f"{_plural(count, 'SDAA device')} found"
        return Sdaa(index=local_rank, reason=reason)
    if cards:
        raise ToolError(
            f"this machine has {_plural(len(cards), 'SDAA card')} ({', '.join(cards)}) but "
            f"{problem}; {_REMEDY}"
        )
    if requested == "sdaa":
        raise ToolError(
            f"--device sdaa: no SDAA card (/dev/tcaicard*) here and {problem}; {_REMEDY}"
        )
    return None


def _sdaa_cards(dev: Path) -> list[str]:
    found = [path for path in dev.glob("tcaicard*") if re.fullmatch(r"tcaicard\d+", path.name)]
    return sorted((str(path) for path in found), key=lambda name: (len(name), name))


def _sdaa_devices() -> tuple[int, str]:
    """(number of SDAA devices torch can use, what is wrong where that is 0)."""
    prepare_environment()
    if importlib.util.find_spec("torch_sdaa") is None:
        return 0, "torch_sdaa is not installed in this Python"
    try:
        with _stdout_to_stderr():  # it says its versions, and stdout is for results
            importlib.import_module("torch_sdaa")
        count = int(_sdaa_api().device_count())
    except Exception as error:  # noqa: BLE001 - without a driver the import raises anything
        return 0, f"torch_sdaa does not load ({type(error).__name__}: {_first_line(error)})"
    return count, "" if count else "torch_sdaa sees no device"


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Lead what Python and libraries write to stdout to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _sdaa_api() -> Any:
    """torch.sdaa, or the module that older versions had in its place."""
    import torch

    if hasattr(torch, "sdaa"):
        return torch.sdaa
    return importlib.import_module("torch_sdaa.core.sdaa_model")


def _sdaa_amp() -> Any:
    return importlib.import_module("torch_sdaa.amp")


def _cuda_devices() -> tuple[int, str]:
    """(number of GPUs torch can use, what is wrong where that is 0)."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return count, ""
    if caught:  # a driver too old for this torch, say
        return 0, f"torch cannot use CUDA ({_first_line(caught[0].message)})"
    return 0, "torch finds no CUDA GPU"


def _check_index(kind: DeviceKind, local_rank: int, count: int) -> None:
    if local_rank >= count:
        raise UsageError(
            f"process {local_rank} of this machine needs {kind}:{local_rank}, but there are only "
            f"{_plural(count, f'{kind} device')}; start at most {count} processes here"
        )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _nothing() -> None:
    pass
