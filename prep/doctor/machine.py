"""Cores, memory, open files and shared memory: what this process may use, not what is built in.

A container sees the whole machine in /proc, and is slowed down or killed at the limits of its
control group. So both are read, and the smaller one counts.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prep.doctor.finding import Finding, note, ok, problem
from shards.parallel import available_cores

# Sharding all of ImageNet holds 1.28 million places and the index of the same length, about
# 1 GB together; a process that trains has torch and its decoded batches besides.
_MEMORY: Final = 4 << 30
# A trainer holds all shards of both splits open, and shards.reader reserves 256 for the rest.
_OPEN_FILES: Final = 1_282 + 50 + 256
_SHARED_MEMORY: Final = 1 << 30  # containers have 64 MiB unless they are given more


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the control groups of this process allow; None where they set no limit."""

    memory: int | None  # bytes
    cores: float | None  # processor time a second


def machine(root: Path = Path("/")) -> list[Finding]:
    """Cores, memory, open files and /dev/shm; `root` is where /proc and /sys are found."""
    limits = cgroup_limits(root)
    return [_cores(limits, root), _memory(limits), _open_files(), _shared_memory()]


def cgroup_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits on the way from this process's control groups up to the root.

    Version 1 and version 2 are understood (Linux, Documentation/admin-guide/cgroup-v2.rst and
    cgroup-v1/memory.rst). In a container the files of its own group may lie at the top, where
    its path does not exist: then those count.
    """
    memory, cores = [], []
    base = root / "sys/fs/cgroup"
    for controllers, group in _memberships(root):
        if not controllers:
            for folder in _upwards(base, group):
                memory += _numbers(folder / "memory.max", 1)
                cores += _quota(_numbers(folder / "cpu.max", 2))
        if "memory" in controllers:
            for folder in _upwards(base / "memory", group):
                memory += _numbers(folder / "memory.limit_in_bytes", 1)
        if "cpu" in controllers:
            for folder in _upwards(base / "cpu", group):
                quota = _numbers(folder / "cpu.cfs_quota_us", 1)
                cores += _quota(quota + _numbers(folder / "cpu.cfs_period_us", 1))
    return Limits(memory=min(memory, default=None), cores=min(cores, default=None))


def _memberships(root: Path) -> Iterator[tuple[list[str], str]]:
    """Controllers (none for version 2) and group of every hierarchy this process is in."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        yield [each for each in controllers.split(",") if each], group


def _upwards(base: Path, group: str) -> list[Path]:
    """The folders of a group and of all groups above it."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _numbers(path: Path, count: int) -> list[int]:
    """The numbers in a file; none where it is missing or says `max`."""
    words = _text(path).split()
    whole = len(words) == count and all(word.lstrip("-").isdigit() for word in words)
    return [int(word) for word in words] if whole else []


def _quota(numbers: list[int]) -> list[float]:
    """Processor time a second from microseconds of quota and period; -1 is no limit."""
    return [numbers[0] / numbers[1]] if len(numbers) == 2 and numbers[0] > 0 else []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _cores(limits: Limits, root: Path) -> Finding:
    cores, architecture = available_cores(), platform.machine()
    flags = _text(root / "proc/cpuinfo").split()
    vector = ", AVX2" if "avx2" in flags else ""
    found = f"{cores} usable, {architecture}{vector}"
    if limits.cores is not None and limits.cores < cores:
        return note(
            "cores",
            f"{found}, but processor time for {limits.cores:.3g} alone (the control group's quota)",
            f"give --workers {max(1, round(limits.cores))}, or the container more (docker run "
            "--cpus): threads above the quota only wait",
        )
    if architecture == "x86_64" and not vector:
        return note(
            "cores", f"{found}, no AVX2", "JPEGs decode slower; a virtual machine may be hiding it"
        )
    return ok("cores", found)


def _memory(limits: Limits) -> Finding:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limited = limits.memory is not None and limits.memory < physical
    usable = min(physical, limits.memory or physical)
    found = f"{usable / 1e9:.1f} GB" + (
        f" (the control group's limit; the machine has {physical / 1e9:.1f} GB)" if limited else ""
    )
    if usable >= _MEMORY:
        return ok("memory", found)
    return note(
        "memory",
        found,
        f"{_MEMORY / 1e9:.1f} GB suit all of ImageNet"
        + ("; give the container more (docker run --memory)" if limited else ""),
    )


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        return problem(
            "open files",
            f"at most {hard:,}; ImageNet's shards take {_OPEN_FILES:,} a process",
            f"raise the hard limit (ulimit -Hn {_OPEN_FILES}, or docker run --ulimit "
            f"nofile={_OPEN_FILES}), or make larger shards (--samples-per-shard 5000)",
        )
    most = "without a limit" if hard == resource.RLIM_INFINITY else f"at most {hard:,}"
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        return ok("open files", f"{most}; the soft limit of {soft:,} is raised where needed")
    return ok("open files", most)


def _shared_memory(path: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 - looked at, not used
    if not path.is_dir():
        return note(str(path), "missing", _shared_memory_remedy())
    status = os.statvfs(path)
    size = status.f_blocks * status.f_frsize
    if size < _SHARED_MEMORY:
        return note(str(path), f"{size / 1e6:,.0f} MB", _shared_memory_remedy())
    return ok(str(path), f"{size / 1e9:.1f} GB (this loader uses threads and needs none)")


def _shared_memory_remedy() -> str:
    return (
        "this loader uses threads and needs none, but collectives between processes (NCCL) and "
        "other loaders do: docker run --ipc=host, or --shm-size=8g"
    )
