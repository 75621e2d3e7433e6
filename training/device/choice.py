"""Which device a process gets, and why; what is wrong where the one it needs is not to be had."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from shards.errors import ToolError, UsageError
from training.device.cpu import Device, DeviceKind, DeviceRequest
from training.device.cuda import Cuda, cuda_devices
from training.device.sdaa import (
    SPAS_PER_CARD,
    VISIBLE,
    Sdaa,
    chosen_by_user,
    sdaa_cards,
    sdaa_device_count,
    sdaa_devices,
)

_REMEDY = (
    "run inside the vendor's image, after `source /opt/tecoai/setvars.sh`, with the Python that "
    "has torch_sdaa; or ask for the CPU with --device cpu"
)


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
        device = _choose_sdaa(requested, local_rank, sdaa_cards(dev))
        if device is not None:
            return device
    count, problem = cuda_devices()
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
        return cuda_devices()[0]
    return sdaa_device_count() if device.kind == "sdaa" else None


def _choose_sdaa(requested: DeviceRequest, local_rank: int, cards: list[str]) -> Device | None:
    count, problem = sdaa_devices()
    if count:
        _check_whole_cards(count)
        _check_index("sdaa", local_rank, count)
        return Sdaa(index=local_rank, reason=_reason(requested, count, len(cards)))
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


def _reason(requested: DeviceRequest, count: int, cards: int) -> str:
    if requested == "sdaa":
        return "asked for"
    chosen = chosen_by_user(" by {}")
    missing = cards * SPAS_PER_CARD - count
    if missing > 0 and not chosen:
        return (
            f"{_plural(count, 'SDAA device')} found; {_plural(cards, 'card')} in /dev should be "
            f"{cards * SPAS_PER_CARD}, look for lost ones with teco-smi"
        )
    return f"{_plural(count, 'SDAA device')} found{chosen}"


def _check_whole_cards(count: int) -> None:
    """A card of which some SPAs are gone would hold up all others, or fail in the middle."""
    if count % SPAS_PER_CARD == 0 or chosen_by_user("{}"):
        return
    raise ToolError(
        f"torch_sdaa sees {_plural(count, 'SDAA device')}, and a card has {SPAS_PER_CARD}: some "
        "of a card have dropped out; find it with `teco-smi -c` and reset it, or choose those to "
        f"use with {VISIBLE}=0,1,2,3"
    )


def _check_index(kind: DeviceKind, local_rank: int, count: int) -> None:
    if local_rank < count:
        return
    chosen = chosen_by_user(" ({} shows no more)") if kind == "sdaa" else ""
    raise UsageError(
        f"process {local_rank} of this machine needs {kind}:{local_rank}, but there are only "
        f"{_plural(count, f'{kind} device')}{chosen}; start at most {count} processes here"
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
