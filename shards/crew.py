"""Threads that work off jobs part by part, and stay in order wherever Ctrl-C strikes the caller.

An executor of the standard library does not: an interrupt inside its `submit` can leave a lock
taken, and then everybody waits for ever. Here whatever the caller's thread does is either one
indivisible operation, or may be done again.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Final

import torch

# Seconds between two looks at whether a job is complete; what usually ends the wait is its lock.
_LOOK: Final = 0.2

_Queue = queue.SimpleQueue  # its operations are indivisible


class Job:
    """Work in parts: `work(part)` for each, by whichever threads, in whichever order."""

    def __init__(self, work: Callable[[slice], int], parts: Sequence[slice]) -> None:
        self._work = work
        self._count = len(parts)
        self._todo = collections.deque(parts)
        self._results: list[int] = []
        self._failures: list[tuple[int, BaseException]] = []
        self._cancelled = False
        self._complete = threading.Lock()
        self._complete.acquire()

    def do(self) -> None:
        """Do parts until none is left to begin; what fails is raised where it is waited for."""
        while self._todo:
            try:
                part = self._todo.popleft()
            except IndexError:  # another thread was faster
                return
            result = 0
            try:
                if not self._cancelled:
                    result = self._work(part)
            except BaseException as error:  # noqa: BLE001
                self._failures.append((part.start, error))
            self._results.append(result)
            if len(self._results) == self._count:
                with contextlib.suppress(RuntimeError):  # two threads saw the last one come
                    self._complete.release()

    def cancel(self) -> None:
        """Have the parts that were not begun done by doing nothing."""
        self._cancelled = True

    def wait(self) -> None:
        """Wait until no thread works on it any more."""
        while len(self._results) < self._count:
            self._complete.acquire(timeout=_LOOK)

    def result(self) -> int:
        """Wait, and add up what the parts came to. Raises what the first of them raised."""
        self.wait()
        if self._failures:
            raise min(self._failures, key=lambda failure: failure[0])[1]
        return sum(self._results)


class Crew:
    """Threads in which torch uses one core each: parallelism is over parts alone."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._jobs: _Queue[Job | None] = _Queue()
        before = torch.get_num_threads()
        ready = threading.Barrier(count + 1)
        # Not waited for when Python ends, or one that nobody closed would keep it from ending.
        threads = [
            threading.Thread(
                target=_work, args=(self._jobs, ready), name=f"{name}_{number}", daemon=True
            )
            for number in range(count)
        ]
        self._stop = weakref.finalize(self, _end, self._jobs, threads)
        try:
            for thread in threads:
                thread.start()
            ready.wait()
        except BaseException:  # Ctrl-C: do not leave threads waiting for this one
            ready.abort()
            raise
        # torch keeps its number of threads by thread, but the last one set anywhere is what a new
        # thread begins with.
        torch.set_num_threads(before)

    def begin(self, job: Job) -> None:
        """Have a job done, after those begun before; to begin it again changes nothing."""
        for _ in range(self._count):
            self._jobs.put(job)

    def abandon(self, jobs: Sequence[Job]) -> None:
        """Leave jobs undone as far as they are, and wait until no thread works on them."""
        for job in jobs:
            job.cancel()
            self.begin(job)  # Ctrl-C may have come before it was
        for job in jobs:
            job.wait()

    def close(self) -> None:
        """Wait for what is being done, and stop the threads."""
        self._stop()


def _work(jobs: _Queue[Job | None], ready: threading.Barrier) -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # before its first question a thread takes the number set last
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    while (job := jobs.get()) is not None:
        job.do()
        del job  # its pictures need not stay until there is another one


def _end(jobs: _Queue[Job | None], threads: Sequence[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        if thread.ident is not None:  # it was started
            thread.join()
