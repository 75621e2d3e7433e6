"""Shares of a machine's cores: by topologies written to files, and by processes that settle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from training.affinity import in_order, share
from training.place import Place


def place(number: int, count: int, launcher: str = "resnet") -> Place:
    return Place(launcher=launcher, rank=number, size=count, local_rank=number, local_size=count)


@pytest.fixture
def topology(tmp_path: Path) -> Callable[..., Path]:
    """Write what /sys/devices/system tells: {node: cpulist}, {cpu: (package, core)}."""

    def write(nodes: Mapping[int, str], cores: Mapping[int, tuple[int, int]]) -> Path:
        for node, cpus in nodes.items():
            folder = tmp_path / "node" / f"node{node}"
            folder.mkdir(parents=True)
            (folder / "cpulist").write_text(f"{cpus}\n")
        for cpu, (package, core) in cores.items():
            folder = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
            folder.mkdir(parents=True)
            (folder / "physical_package_id").write_text(f"{package}\n")
            (folder / "core_id").write_text(f"{core}\n")
        return tmp_path

    return write


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("cores", [7, 8, 64])
def test_shares_are_contiguous_even_and_of_all_cores(cores: int, count: int) -> None:
    shares = [share(range(100, 100 + cores), place(number, count)) for number in range(count)]
    assert [core for each in shares for core in each] == list(range(100, 100 + cores))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_with_fewer_cores_than_processes_nobody_is_confined() -> None:
    assert [share([4, 5], place(number, 3)) for number in range(3)] == [[4, 5]] * 3


def test_cores_of_a_node_and_threads_of_a_core_stand_together(
    topology: Callable[..., Path],
) -> None:
    """Two packages of two cores with two threads each, numbered as Linux often does."""
    system = topology(
        {0: "0,2,4,6", 1: "1,3,5,7"},
        {cpu: (cpu % 2, cpu // 2 % 2) for cpu in range(8)},
    )
    ordered = in_order(range(8), system)
    assert ordered == [0, 4, 2, 6, 1, 5, 3, 7]
    assert [share(ordered, place(number, 4)) for number in range(4)] == [
        [0, 4], [2, 6], [1, 5], [3, 7],
    ]  # fmt: skip
    assert in_order([7, 5, 2], system) == [2, 5, 7]


def test_a_range_of_a_node_is_read(topology: Callable[..., Path]) -> None:
    system = topology({0: "2-3", 1: "0-1,4"}, {})
    assert in_order(range(5), system) == [2, 3, 0, 1, 4]


def test_a_machine_that_tells_nothing_keeps_its_numbers(tmp_path: Path) -> None:
    assert in_order([3, 1, 2], tmp_path) == [1, 2, 3]


SETTLE = """
import json, os, sys, threading
from training.affinity import settle
from training.place import place_of
threads = settle(place_of(os.environ), sys.argv[1])
seen = []
thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))))
thread.start(); thread.join()
print(json.dumps([threads, seen[0], os.environ.get("OMP_NUM_THREADS")]))
"""


def settled(affinity: str, **environment: str) -> tuple[int, list[int], str | None]:
    """(threads, cores of a thread, OMP_NUM_THREADS) of a process that has settled."""
    kept = {name: each for name, each in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", SETTLE, affinity],
        env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    threads, cores, omp = json.loads(done.stdout)
    return threads, cores, omp


def rank_of(number: int, count: int, **more: str) -> dict[str, str]:
    names = {"RANK": number, "WORLD_SIZE": count, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": count}
    return {name: str(value) for name, value in names.items()} | more


CORES = sorted(os.sched_getaffinity(0))
SEVERAL = pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be shared out")


@SEVERAL
def test_two_processes_and_their_threads_have_half_the_cores_each() -> None:
    found = [settled("auto", **rank_of(number, 2)) for number in (0, 1)]
    assert sorted(found[0][1] + found[1][1]) == CORES
    for threads, cores, omp in found:
        assert 1 <= threads <= len(cores)
        assert omp == str(threads)


@SEVERAL
@pytest.mark.parametrize(
    ("affinity", "environment"),
    [
        ("none", rank_of(0, 2)),
        ("auto", {}),
        ("auto", rank_of(0, len(CORES) + 1)),
    ],
    ids=["off", "alone", "more processes than cores"],
)
def test_nobody_is_confined_who_need_not_be(affinity: str, environment: dict[str, str]) -> None:
    assert settled(affinity, **environment)[1] == CORES


@SEVERAL
def test_the_users_number_of_threads_stays() -> None:
    assert settled("auto", **rank_of(0, 2), OMP_NUM_THREADS="7")[2] == "7"


@SEVERAL
def test_cores_that_srun_has_bound_are_not_divided_again() -> None:
    slurm = {
        "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }  # fmt: skip
    bound: Any = slurm | {"SLURM_CPUS_ON_NODE": str(2 * len(CORES))}
    shared: Any = slurm | {"SLURM_CPUS_ON_NODE": str(len(CORES))}
    assert settled("auto", **bound)[1] == CORES
    assert settled("auto", **shared)[1] == CORES[: len(CORES) // 2]
