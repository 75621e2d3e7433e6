"""Measuring: what the doctor's own processes do, one a device, as the ranks of a run are started.

Everything that touches a device happens here, away from the process that speaks to the user: a
driver in trouble raises anything, crashes or hangs.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from shards.errors import ToolError, UsageError
from training.device import Device, DeviceRequest, choose, device_count
from training.distributed import World, joined, meet, sum_floats
from training.doctor.report import Product, Reduction, Report, Survey
from training.place import Place, place_of
from training.processes import processes_here

_SIDES: Final = (512, 1024, 2048, 4096)  # of the matrices, until a product takes so long:
_LONG: Final = 0.005  # seconds, which hides what starting it takes
_TIMED: Final = 0.1  # seconds that each measurement takes at least
_COPIED: Final = 64 << 20  # bytes
_REDUCED: Final = 32 << 20  # bytes; of ResNet-50 there are 102 MB of gradients
_REDUCTIONS: Final = 5


def survey(request: DeviceRequest, cards: int | None, nproc: int | None) -> Survey:
    """Which devices there are for torch, and how many processes are to measure them.

    Without `cards` and `nproc`: all devices, and on the CPU one process.
    """
    try:
        device = choose(request)
        count = device_count(device)
        wanted = cards is not None or nproc is not None
        processes = processes_here(request, cards, nproc) if wanted else count or 1
    except ToolError as error:
        return Survey(refused=str(error), usage=isinstance(error, UsageError))
    return Survey(
        kind=device.kind,
        reason=device.reason,
        processes=processes,
        per_card=device.processes_per_card,
        count=count,
        visible=os.environ.get(f"{device.kind.upper()}_VISIBLE_DEVICES"),
    )


def measure_alone(request: DeviceRequest, folder: Path) -> None:
    """Measure the only device there is."""
    measure(choose(request), 0).write(folder)


def measure_together(request: DeviceRequest, folder: Path, *, seconds: float) -> None:
    """As one of several processes: measure a device, then all of them at once.

    Where a device failed, on whichever machine, nobody tries it together: it would wait. The
    other processes have so many seconds to tell.
    """
    place = place_of(os.environ)
    assert place is not None
    device = choose(request, place.local_rank)
    report = measure(device, place.rank)
    report.write(folder)
    store = meet(place)
    limit = timedelta(seconds=seconds)
    if _all_are_well(store, place, limit, well=not report.failure):
        with joined(device, store) as world:
            _reduce(device, world).write(folder, place.rank)


def measure(device: Device, rank: int) -> Report:
    """A device by itself. Never raises: what it said is in the report."""
    place = str(device.torch_device)
    try:
        device.activate()
        free, total = device.memory() or (None, None)
        return Report(
            rank=rank,
            device=place,
            name=device.name,
            free=free,
            total=total,
            fp32=_product(device, torch.float32),
            fp16=_product(device, torch.float16) if _has_fp16(device) else None,
            copy=None if device.kind == "cpu" else _copy_rate(device),
        )
    except ToolError as error:
        return Report(rank=rank, device=place, failure=str(error))
    except Exception as error:  # noqa: BLE001 - a device in trouble raises anything
        said = next(iter(str(error).strip().splitlines()), "")
        return Report(rank=rank, device=place, failure=f"{type(error).__name__}: {said}")


def _has_fp16(device: Device) -> bool:
    try:
        return device.precision("fp16") == "fp16"
    except UsageError:
        return False


def _product(device: Device, dtype: torch.dtype) -> Product:
    """How fast and how exactly it multiplies matrices."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        (torch.rand(_SIDES[0], _SIDES[0], generator=generator) - 0.5).to(dtype) for _ in range(2)
    )
    place = device.torch_device
    expected = left.float() @ right.float()
    found = (left.to(place) @ right.to(place)).cpu().float()
    error = float((found - expected).abs().max() / expected.abs().max())
    rate = 0.0
    for side in _SIDES:
        matrix = torch.rand(side, side, generator=generator).to(dtype).to(place)
        seconds = _seconds(partial(torch.matmul, matrix, matrix), device)
        rate = 2 * side**3 / seconds
        if seconds >= _LONG:
            break
    return Product(rate=rate, error=error if math.isfinite(error) else None)


def _copy_rate(device: Device) -> float:
    """Bytes a second from the host, from page-locked memory where batches come from it."""
    host = torch.zeros(_COPIED // 4)
    if device.pin_memory:
        host = host.pin_memory()
    return _COPIED / _seconds(lambda: host.to(device.torch_device), device)


def _seconds(work: Callable[[], object], device: Device) -> float:
    """What one call takes; the first, which sets things up, is not counted."""
    work()
    device.synchronize()
    count = 1
    while True:
        started = time.perf_counter()
        for _ in range(count):
            work()
        device.synchronize()
        seconds = time.perf_counter() - started
        if seconds >= _TIMED:
            return seconds / count
        count *= 2


def _all_are_well(store: Store, place: Place, limit: timedelta, *, well: bool) -> bool:
    """Whether every process, on every machine, says so; each of them learns it."""
    store.set(f"doctor/{place.rank}", "well" if well else "failed")
    told = [f"doctor/{rank}" for rank in range(place.size)]
    store.wait(told, limit)
    answer = all(store.get(each) == b"well" for each in told)
    store.set(f"doctor/knows/{place.rank}", "")
    if place.rank == 0:  # which holds the store
        store.wait([f"doctor/knows/{rank}" for rank in range(place.size)], limit)
    return answer


def _reduce(device: Device, world: World) -> Reduction:
    """Sums over all processes: the first is checked, those after it are timed."""
    tensor = torch.full((_REDUCED // 4,), float(world.rank + 1)).to(world.device)
    summed = sum_floats(tensor, world).cpu()
    expected = world.size * (world.size + 1) / 2
    right = bool((summed == expected).all())
    times = []
    for _ in range(_REDUCTIONS):
        device.synchronize()
        started = time.perf_counter()
        sum_floats(tensor.zero_(), world)
        device.synchronize()
        times.append(time.perf_counter() - started)
    return Reduction(
        processes=world.size,
        backend=device.backend,
        bytes=_REDUCED,
        seconds=statistics.median(times),
        right=right,
    )
