"""One loader in a process of its own: what it is asked for, what is measured, what it answers.

Needs no library, so that every peer's Python can run it. The answer is the last line of the
output: a JSON object with

  rate    images/s between two batches well inside the epoch: what was prepared before the first
          of them is as much as what is prepared but not handed out at the last
  first   seconds from the library's import to the first batch
  start   seconds from the process's start to the first batch, imports counted
  memory  bytes of this process and its children, pages that several share counted once
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_marks: list[float] = []


@dataclass(frozen=True)
class Spec:
    """What a loader is to do."""

    data: str  # folder of pictures or of shards, as the loader has it
    batches: int  # of one epoch, or as many as are looked at
    batch: int
    size: int
    workers: int  # processes or threads
    asked: float  # time.time() when the process was asked for
    skip: int = 0  # samples before the first: an epoch that is resumed
    listed: int = 0  # pretend to have so many files
    shuffle: str = "full"  # ours alone
    window: int = 16  # ours alone: shards that block shuffle mixes
    cold: bool = False  # its data are not to be in the page cache

    @property
    def edge(self) -> int:
        """Batches at either end that are not counted: workers hold up to two each."""
        return min(2 * self.workers, self.batches // 4)


def imported() -> None:
    """Called by a loader when its library is there: from now on it is its own time."""
    _marks.append(time.perf_counter())


def measure(loader: Callable[[Spec], Iterator[int]], spec: Spec) -> None:
    """Run a loader, print the answer and end the process at once, workers left half-way."""
    times: list[float] = []
    counts: list[int] = []
    memory, start = 0, 0.0
    for count in loader(spec):
        times.append(time.perf_counter())
        counts.append(count)
        if len(times) == 1:
            start = time.time() - spec.asked
        if len(times) == spec.batches - spec.edge:
            memory = resident(os.getpid())
            break
    if memory == 0:
        sys.exit(f"{len(times)} batches instead of {spec.batches}")
    seconds = times[-1] - times[spec.edge]
    answer = {
        "rate": sum(counts[spec.edge + 1 :]) / seconds,
        "first": times[0] - _marks[0],
        "start": start,
        "memory": memory,
    }
    print(json.dumps(answer), flush=True)
    end()


def end() -> None:
    """End this process and its children now, without what libraries would do on the way out."""
    for child in children(os.getpid()):
        os.kill(child, 9)
    os._exit(0)


def resident(pid: int) -> int:
    """Bytes of memory of a process and all its descendants: the sum of their PSS."""
    total = sum(map(resident, children(pid)))
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended, or the kernel has no such file
        return total
    return total + next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def children(pid: int) -> list[int]:
    """Processes that were started by any thread of one."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return found
