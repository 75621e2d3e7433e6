"""How many processes a command runs as, here and over all machines.

A card shows up as one device on cuda and as four (its SPAs) on sdaa; every device has a process
of its own. Inside a launch the numbers are the launcher's.
"""

from __future__ import annotations

import os

from shards.errors import UsageError
from training.device import DeviceRequest, choose, device_count
from training.place import place_of


def processes_here(device: DeviceRequest, cards: int | None, nproc: int | None) -> int:
    """Processes on this machine, by --cards or --nproc; one card where neither is given.

    Raises UsageError where both are given, or cards where there are none, or a launcher has
    started another number.
    """
    if cards is not None and nproc is not None:
        raise UsageError("--cards and --nproc say the same thing; give one of them")
    place = place_of(os.environ)
    if place is not None:
        if nproc is not None and nproc != place.local_size:
            raise UsageError(
                f"--nproc {nproc}: {place.launcher} has started {place.local_size} here; start as "
                "many with it, or one alone, which starts its own"
            )
        return place.local_size
    if nproc is not None:
        return nproc
    chosen = choose(device)
    if cards is not None and chosen.kind == "cpu":
        raise UsageError(
            f"--cards {cards}: there is no card to use ({chosen.reason}); on the CPU give --nproc"
        )
    processes = (cards or 1) * chosen.processes_per_card
    there = device_count(chosen)
    if there is not None and processes > there:
        raise UsageError(
            f"--cards {cards or 1} is {processes} processes, but this machine shows {there} "
            f"{chosen.kind} devices; give fewer cards, or --nproc {there}"
        )
    return processes


def world_size(processes: int, nodes: int) -> int:
    """Processes over all machines."""
    place = place_of(os.environ)
    return processes * nodes if place is None else place.size
