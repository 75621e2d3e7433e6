"""Which cores a process may use: its affinity, and the time that its cgroup may take of them.

A container with `--cpus 4` on a machine of 64 cores sees all 64, and is stopped for the rest
of each tenth of a second in which its threads have used up 0.4 s.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores' worth of time this process may use: cpuset, affinity and cgroup quota respected."""
    cores, limit = len(os.sched_getaffinity(0)), quota()
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float | None:
    """The cores' worth of time that cgroups (version 1 and 2) allow; None without a limit.

    The smallest limit of the process's group and all groups above it counts. `groups` and
    `mount` are where Linux shows them.
    """
    read = {1: _limit_1, 2: _limit_2}
    found = (read[version](group) for version, group in control_groups("cpu", groups, mount))
    return min((limit for limit in found if limit is not None), default=None)


def control_groups(
    controller: str, groups: Path = _GROUPS, mount: Path = _MOUNT
) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every group above this process that may limit what a controller counts.

    In a container the files of its own group may lie at the top, where its path does not exist;
    so folders need not exist.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            version, roots = 2, (mount, mount / "unified")
        elif controller in controllers.split(","):
            version, roots = 1, (mount / controllers, mount / controller)
        else:
            continue
        parts = [part for part in path.split("/") if part not in {"", ".."}]
        for root in roots:
            for count in range(len(parts), -1, -1):
                yield version, root.joinpath(*parts[:count])


def _limit_2(group: Path) -> float | None:
    """cpu.max is `max 100000`, or microseconds that may be used of each period."""
    words = _words(group / "cpu.max")
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _limit_1(group: Path) -> float | None:
    """The same in two files; -1 is no limit."""
    used, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    return _ratio(used[0], period[0]) if used and period else None


def _ratio(used: str, period: str) -> float | None:
    if not used.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(used) / int(period)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
