"""Each process of a machine on its share of the cores, with as many threads as those are.

Threads inherit the affinity of the process, so this comes before there are any. Shares are
contiguous where cores of one NUMA node, and hardware threads of one core, stand together: with
as many processes as nodes, or a multiple, no share crosses from one node to another.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from shards.cores import quota
from training.place import OURS, SLURM, TORCHRUN, Place

Affinity = Literal["auto", "none"]
_SYSTEM = Path("/sys/devices/system")
_SET_VARIABLE = "IMAGENET_RESNET_THREADS"  # that OMP_NUM_THREADS was set here


def settle(place: Place | None, affinity: Affinity) -> int:
    """Take this process's share of the cores; the number of threads that it is to use.

    Sets OMP_NUM_THREADS, for torch, unless the user has: call it before torch is imported. With
    `affinity` "none" the process may go on running on any core.
    """
    cores = sorted(os.sched_getaffinity(0))
    if place is None:
        own, sharing = cores, 1
    elif _is_bound(place, cores):
        own, sharing = cores, place.local_size
    else:
        own, sharing = share(in_order(cores), place), place.local_size
    limit = quota()
    threads = len(own) if limit is None else min(len(own), math.ceil(limit / sharing))
    threads = max(1, threads)
    if affinity == "auto" and len(own) < len(cores):
        os.sched_setaffinity(0, own)
    if place is not None or threads < len(cores):
        _set_omp_threads(threads)
    return threads


def _set_omp_threads(threads: int) -> None:
    """Unless the user has; what the command that started this process has set is not the user's."""
    if "OMP_NUM_THREADS" not in os.environ or _SET_VARIABLE in os.environ:
        os.environ["OMP_NUM_THREADS"] = os.environ[_SET_VARIABLE] = str(threads)


def share(cores: Sequence[int], place: Place) -> list[int]:
    """The cores of one process of a machine; all of them where there are fewer than processes."""
    number, count = place.local_rank % place.local_size, place.local_size
    if len(cores) < count:
        return list(cores)
    return list(cores[len(cores) * number // count : len(cores) * (number + 1) // count])


def in_order(cores: Sequence[int], system: Path = _SYSTEM) -> list[int]:
    """The cores by NUMA node, then by package and physical core; by number where nobody tells."""
    nodes = {core: node for node, those in _nodes(system) for core in those}

    def key(core: int) -> tuple[int, int, int, int]:
        topology = system / "cpu" / f"cpu{core}" / "topology"
        package, physical = (
            _number(topology / name) for name in ("physical_package_id", "core_id")
        )
        return nodes.get(core, 0), package, physical, core

    return sorted(cores, key=key)


def _is_bound(place: Place, cores: Sequence[int]) -> bool:
    """Whether the launcher has given each process cores of its own already, as srun may do."""
    if place.launcher in {OURS, TORCHRUN}:
        return False
    allocated = os.environ.get("SLURM_CPUS_ON_NODE", "") if place.launcher == SLURM else ""
    return len(cores) < (int(allocated) if allocated.isdigit() else os.cpu_count() or 1)


def _nodes(system: Path) -> Iterator[tuple[int, list[int]]]:
    for folder in (system / "node").glob("node[0-9]*"):
        try:
            ranges = (folder / "cpulist").read_text().strip().split(",")
        except OSError:
            continue
        bounds = [part.split("-") for part in ranges if part]
        cores = [core for part in bounds for core in range(int(part[0]), int(part[-1]) + 1)]
        yield int(folder.name[4:]), cores


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
