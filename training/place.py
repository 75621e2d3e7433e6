"""Where this process stands among those of a run: started by us, torchrun, SLURM or MPI.

One table says which variables tell it. A shell inside a SLURM allocation (sbatch, salloc) and
a launcher's only task are members of nothing: a command starts its own processes there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import UsageError

LAUNCHER_VARIABLE = "IMAGENET_RESNET_LAUNCHER"  # the number of the process that started this one
RESTART_VARIABLE = "IMAGENET_RESNET_RESTART"  # how often this run was restarted
BEGAN_VARIABLE = "IMAGENET_RESNET_BEGAN"  # time.monotonic() when the command that launches began
LOCALHOST = "127.0.0.1"
# Derived ports: below Linux' ephemeral ones (32768 and up), above those of well-known services.
_FIRST_PORT, _PORTS = 15000, 15000


@dataclass(frozen=True, kw_only=True)
class _Launcher:
    """What a launcher calls the four numbers; of several names the first that is set counts."""

    name: str
    rank: str
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]
    local_rank_needed: bool = True  # without it these variables are another launcher's
    alone: bool = False  # whether one process of one is a launch, too


OURS = "resnet"
TORCHRUN = "torchrun"
SLURM = "srun"
_LAUNCHERS = (
    _Launcher(
        name=TORCHRUN,
        rank="RANK",
        size=("WORLD_SIZE",),
        local_rank=("LOCAL_RANK",),
        local_size=("LOCAL_WORLD_SIZE",),
        local_rank_needed=False,
        alone=True,
    ),
    _Launcher(
        name="Open MPI's mpirun",
        rank="OMPI_COMM_WORLD_RANK",
        size=("OMPI_COMM_WORLD_SIZE",),
        local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
        local_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(  # Hydra, of MPICH and Intel MPI; PALS. srun sets PMI_RANK, too, but not the others
        name="mpiexec",
        rank="PMI_RANK",
        size=("PMI_SIZE",),
        local_rank=("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        local_size=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
    # The shell of sbatch has SLURM_PROCID and SLURM_NTASKS as well: only steps have SLURM_STEP_*.
    _Launcher(
        name=SLURM,
        rank="SLURM_PROCID",
        size=("SLURM_STEP_NUM_TASKS",),
        local_rank=("SLURM_LOCALID",),
        local_size=("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process of a launch."""

    launcher: str
    rank: int
    size: int
    local_rank: int  # this process's number on its machine
    local_size: int  # processes on its machine


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that the environment describes; None for a process that no launcher started.

    Raises UsageError for variables that are not numbers or contradict each other.
    """
    for launcher in _LAUNCHERS:
        size = _first(launcher.size, environment)
        local_rank = _first(launcher.local_rank, environment)
        if launcher.rank not in environment or size is None:
            continue
        if launcher.local_rank_needed and local_rank is None:
            continue
        place = _read(launcher, size, local_rank or "0", environment)
        if place.size > 1 or launcher.alone:
            return place
    return None


def inside_launch() -> bool:
    """Whether a launcher (ours, torchrun, srun, mpirun) started this process as one of several."""
    return place_of(os.environ) is not None


def restarts() -> int:
    """How often the launch that this process belongs to was restarted after a loss."""
    return int(os.environ.get(RESTART_VARIABLE, "0"))


def command_began() -> float:
    """time.monotonic() at which this machine's command began: now, or as our launcher says.

    The clock is one for all processes of a machine, so restarts do not set it back.
    """
    return float(os.environ.get(BEGAN_VARIABLE, time.monotonic()))


def master_of(place: Place, environment: Mapping[str, str]) -> tuple[str, int]:
    """(host, port) where process 0 of this launch is met.

    MASTER_ADDR and MASTER_PORT say it. Where they are not set, SLURM's list of machines does,
    and processes of one machine meet there. Raises UsageError where nobody knows.
    """
    host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if not host:
        host = _derived_host(place, environment)
    if not port and place.launcher != TORCHRUN:
        port = _derived_port(place, environment)
    if not host or not port:
        raise UsageError(
            f"{place.launcher} started {place.size} processes, but where process 0 is to be met "
            "is not known: set MASTER_ADDR to a name of its machine and MASTER_PORT to a free "
            "port there, the same for all processes"
        )
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"MASTER_PORT {port}: it must be a number from 1 to 65535")
    return host, int(port)


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes them: node[003-005,9],gpu1 is node003."""
    head = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", head[0] if head else "")


def _read(launcher: _Launcher, size: str, local_rank: str, environment: Mapping[str, str]) -> Place:
    names = f"{launcher.rank}, {launcher.size[0]} and {launcher.local_rank[0]}"
    try:
        rank, number, local = int(environment[launcher.rank]), int(size), int(local_rank)
        here = _tasks_here(_first(launcher.local_size, environment) or "1", environment)
    except ValueError:
        raise UsageError(f"{names} must be whole numbers, as {launcher.name} sets them") from None
    if not 0 <= rank < number or local < 0:
        raise UsageError(
            f"{launcher.rank} {rank} and {launcher.size[0]} {number} do not fit together"
        )
    return Place(
        launcher=OURS if LAUNCHER_VARIABLE in environment else launcher.name,
        rank=rank,
        size=number,
        local_rank=local,
        local_size=max(1, here),
    )


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    return next((environment[name] for name in names if name in environment), None)


def _tasks_here(text: str, environment: Mapping[str, str]) -> int:
    """A number, or SLURM's numbers of all machines, 4(x2),3 being 4, 4 and 3."""
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        for _ in range(int(times or 1))
    ]
    node = int(environment.get("SLURM_NODEID", "0")) if len(counts) > 1 else 0
    if node >= len(counts):
        raise ValueError(text)
    return counts[node]


def _derived_host(place: Place, environment: Mapping[str, str]) -> str | None:
    if place.local_size == place.size:
        return LOCALHOST
    if place.launcher != SLURM:
        return None
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    # Task 0 is on the first machine. srun may have been called on another one than that.
    return first_host(_first(names, environment) or "") or environment.get(
        "SLURM_LAUNCH_NODE_IPADDR"
    )


def _derived_port(place: Place, environment: Mapping[str, str]) -> str | None:
    """A port that all processes of this launch find and another launch hardly does."""
    if place.launcher == SLURM and environment.get("SLURM_JOB_ID", "").isdigit():
        step = environment.get("SLURM_STEP_ID", "")
        number = int(environment["SLURM_JOB_ID"]) * 7 + (int(step) if step.isdigit() else 0)
        return str(_FIRST_PORT + number % _PORTS)
    if place.local_size == place.size:  # one machine: they have one parent
        return str(_FIRST_PORT + os.getppid() % _PORTS)
    return None
