"""Cores, memory, open files and shared memory: what this process may use, not what is built in.

A container sees the whole machine in /proc, and is slowed down or killed at the limits of its
control group. So both are read, and the smaller one counts.
"""

from __future__ import annotations

import itertools
import os
import platform
import resource
from pathlib import Path
from typing import Final

from shards.cores import control_groups, quota
from shards.finding import Finding, note, ok, problem

# Sharding all of ImageNet holds 1.28 million places and the index of the same length, about
# 1 GB together; a process that trains has torch and its decoded batches besides.
_MEMORY: Final = 4 << 30
# A trainer holds all shards of both splits open, and shards.reader reserves 256 for the rest.
_OPEN_FILES: Final = 1_282 + 50 + 256
_SHARED_MEMORY: Final = 1 << 30  # containers have 64 MiB unless they are given more


def machine(root: Path = Path("/")) -> list[Finding]:
    """Cores, memory, open files and /dev/shm; `root` is where /proc and /sys are found."""
    return [_cores(root), _memory(memory_limit(root)), _open_files(), _shared_memory()]


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes, by the tightest limit on the way from this process's control groups to the root.

    Version 1 and version 2 are understood (Linux, Documentation/admin-guide/cgroup-v2.rst and
    cgroup-v1/memory.rst). In a container the files of its own group may lie at the top, where
    its path does not exist: then those count. None without a limit.
    """
    file = {1: "memory.limit_in_bytes", 2: "memory.max"}
    groups = control_groups("memory", root / "proc/self/cgroup", root / "sys/fs/cgroup")
    limits = (_number(group / file[version]) for version, group in groups)
    return min(itertools.chain.from_iterable(limits), default=None)


def _number(path: Path) -> list[int]:
    """The number in a file; none where it is missing or says `max`."""
    text = _text(path).strip()
    return [int(text)] if text.isdigit() else []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _cores(root: Path) -> Finding:
    cores, architecture = len(os.sched_getaffinity(0)), platform.machine()
    limit = quota(root / "proc/self/cgroup", root / "sys/fs/cgroup")
    flags = _text(root / "proc/cpuinfo").split()
    vector = ", AVX2" if "avx2" in flags else ""
    found = f"{cores} usable, {architecture}{vector}"
    if limit is not None and limit < cores:
        return note(
            "cores",
            f"{found}, but processor time for {limit:.3g} alone (the control group's quota)",
            "give the container more (docker run --cpus); threads are started for that much alone",
        )
    if architecture == "x86_64" and not vector:
        return note(
            "cores", f"{found}, no AVX2", "JPEGs decode slower; a virtual machine may be hiding it"
        )
    return ok("cores", found)


def _memory(limit: int | None) -> Finding:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limited = limit is not None and limit < physical
    usable = min(physical, limit or physical)
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
