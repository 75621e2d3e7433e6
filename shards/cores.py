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
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return None
    limits = [limit for line in lines for limit in _limits(line, mount)]
    return min(limits, default=None)


def _limits(line: str, mount: Path) -> Iterator[float]:
    """The limits on the way from a group (a line of /proc/self/cgroup) to the root."""
    number, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if number == "0":
        roots, read = (mount, mount / "unified"), _limit_2
    elif "cpu" in controllers.split(","):
        roots, read = (mount / controllers, mount / "cpu"), _limit_1
    else:
        return
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    for root in roots:
        for count in range(len(parts), -1, -1):
            limit = read(root.joinpath(*parts[:count]))
            if limit is not None:
                yield limit


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
