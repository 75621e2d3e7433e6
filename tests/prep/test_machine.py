"""The limits of control groups count, in both of their versions, in and out of containers."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from prep.doctor.machine import machine, memory_limit
from shards.cores import quota
from shards.finding import Status

GIB = 1 << 30
UNLIMITED = 9_223_372_036_854_771_712  # what version 1 says where there is no limit


@pytest.fixture
def system(tmp_path: Path) -> Callable[[str, Mapping[str, str]], Path]:
    """A root folder with /proc/self/cgroup and files under /sys/fs/cgroup."""

    def make(groups: str, files: Mapping[str, str]) -> Path:
        written = {"proc/self/cgroup": groups}
        written |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
        for name, text in written.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("groups", "files", "memory", "cores"),
    [
        pytest.param("0::/", {}, None, None, id="no limits"),
        pytest.param(
            "0::/", {"memory.max": "max", "cpu.max": "max 100000"}, None, None, id="unlimited"
        ),
        pytest.param(
            "0::/",
            {"memory.max": str(8 * GIB), "cpu.max": "150000 100000"},
            8 * GIB,
            1.5,
            id="version 2 in a container",
        ),
        pytest.param(
            "0::/user/session/job",
            {
                "user/memory.max": str(4 * GIB),
                "user/session/memory.max": "max",
                "user/session/job/memory.max": str(6 * GIB),
                "user/session/job/cpu.max": "400000 100000",
                "user/cpu.max": "800000 100000",
            },
            4 * GIB,
            4.0,
            id="the tightest group above counts",
        ),
        pytest.param(
            "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc",
            {
                "memory/memory.limit_in_bytes": str(2 * GIB),
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            2 * GIB,
            0.5,
            id="version 1 in a container, where the path does not exist",
        ),
        pytest.param(
            "5:memory:/job\n3:cpu:/job\n0::/",
            {
                "memory/memory.limit_in_bytes": str(UNLIMITED),
                "memory/job/memory.limit_in_bytes": str(3 * GIB),
                "cpu/job/cpu.cfs_quota_us": "-1",
                "cpu/job/cpu.cfs_period_us": "100000",
            },
            3 * GIB,
            None,
            id="version 1 on a host",
        ),
        pytest.param(
            "0::/../other", {"memory.max": str(GIB)}, GIB, None, id="a path that leads out"
        ),
    ],
)
def test_limits(
    system: Callable[[str, Mapping[str, str]], Path],
    groups: str,
    files: Mapping[str, str],
    memory: int | None,
    cores: float | None,
) -> None:
    root = system(groups, files)
    assert memory_limit(root) == memory
    assert quota(root / "proc/self/cgroup", root / "sys/fs/cgroup") == cores


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None


def test_limits_below_the_machine_s_are_notes(
    system: Callable[[str, Mapping[str, str]], Path],
) -> None:
    root = system("0::/", {"memory.max": str(2 * GIB), "cpu.max": "50000 100000"})
    found = {each.what: each for each in machine(root)}
    assert found["memory"].status is Status.NOTE
    assert found["memory"].found.startswith("2.1 GB (the control group's limit; the machine has ")
    assert "docker run --memory" in found["memory"].remedy
    assert found["cores"].status is Status.NOTE
    assert "processor time for 0.5 alone" in found["cores"].found
    assert "docker run --cpus" in found["cores"].remedy


def test_limits_above_the_machine_s_are_none(
    system: Callable[[str, Mapping[str, str]], Path],
) -> None:
    root = system("0::/", {"memory.max": str(1 << 60), "cpu.max": "100000000 100000"})
    found = {each.what: each for each in machine(root)}
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["memory"].found == f"{physical / 1e9:.1f} GB"
    assert "processor time" not in found["cores"].found


def test_the_cores_are_those_that_this_process_may_use() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "from prep.doctor.machine import machine; print(machine()[0].found)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 usable, ")


@pytest.mark.parametrize(
    ("soft", "hard", "status", "text"),
    [
        (1_024, 1_500, "problem", "at most 1,500; ImageNet's shards take 1,588 a process"),
        (1_024, 2_000, "ok", "at most 2,000; the soft limit of 1,024 is raised where needed"),
        (1_800, 2_000, "ok", "at most 2,000"),
    ],
)
def test_the_hard_limit_of_open_files_counts(soft: int, hard: int, status: str, text: str) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < hard:
        pytest.skip(f"the hard limit here is {limit} already")
    code = (
        f"import resource, json; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "from prep.doctor.machine import machine; each = machine()[2]; "
        "print(json.dumps([each.what, each.status.value, each.found, each.remedy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    what, found_status, found, remedy = json.loads(done.stdout)
    assert (what, found_status, found) == ("open files", status, text)
    assert ("ulimit -Hn" in remedy) == (status == "problem")


def test_shared_memory_is_never_a_problem() -> None:
    found = machine()[3]
    assert found.what.endswith("/shm")
    assert found.status is not Status.PROBLEM
