"""Independent jobs on a few threads, results as they come, stopped at once by the first failure.

Threads, because the work (reading, hashing, decoding, writing) releases the interpreter lock.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from shards.cores import available_cores

Job = TypeVar("Job")
Result = TypeVar("Result")
Own = TypeVar("Own")


class Stopped(Exception):
    """Raised inside a job that was asked to stop because another one failed, or by Ctrl-C."""


class Stop:
    """A flag that jobs look at between small pieces of work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask every job to end."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped where the work is to end."""
        if self._event.is_set():
            raise Stopped


class PerThread(Generic[Own]):
    """One thing for each thread that asks for its own, which lives as long as this does."""

    def __init__(self, make: Callable[[], Own]) -> None:
        self._make = make
        self._local = threading.local()
        self._all: list[Own] = []

    def mine(self) -> Own:
        """This thread's, made when it asks for the first time."""
        try:
            own: Own = self._local.own
        except AttributeError:
            own = self._local.own = self._make()
            self._all.append(own)
        return own

    def all(self) -> list[Own]:
        """Those of all threads that have asked."""
        return list(self._all)


def threads_that_write() -> int:
    """Threads that keep the cores busy while some of them wait for the disk."""
    return available_cores() + max(1, available_cores() // 2)


def run_jobs(
    work: Callable[[Job, Stop], Result], jobs: Iterable[Job], workers: int
) -> Iterator[Result]:
    """Call `work(job, stop)` for every job on `workers` threads; yield results as they finish.

    At most twice `workers` jobs are in flight, so any number of jobs takes flat memory. The
    first exception (Ctrl-C and a closed iterator too) stops the others and is raised here.
    """
    stop = Stop()
    waiting = iter(jobs)
    running: set[concurrent.futures.Future[Result]] = set()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for job in waiting:
                    running.add(pool.submit(work, job, stop))
                    if len(running) >= 2 * workers:
                        break
                if not running:
                    return
                done, running = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                # What was finished is handed out before a failure ends the iteration.
                for future in sorted(done, key=lambda each: each.exception() is not None):
                    yield future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
