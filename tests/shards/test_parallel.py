"""Jobs side by side: all results, the first failure, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shards.cores import available_cores
from shards.parallel import Stop, Stopped, run_jobs


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_job_gives_its_result_once(workers: int) -> None:
    found = sorted(run_jobs(lambda job, _: job * job, range(100), workers))
    assert found == [job * job for job in range(100)]


def test_no_jobs_give_no_results() -> None:
    assert list(run_jobs(lambda job, _: job, [], 2)) == []


def test_jobs_are_taken_only_as_they_are_needed() -> None:
    taken = []

    def jobs() -> Iterator[int]:
        for job in range(1000):
            taken.append(job)
            yield job

    results = run_jobs(lambda job, _: job, jobs(), 2)
    next(results)
    assert len(taken) <= 8
    results.close()


def test_the_first_failure_stops_the_others_and_is_raised() -> None:
    stopped = threading.Event()
    begun = threading.Event()

    def work(job: int, stop: Stop) -> None:
        if job == 0:
            begun.wait()
            raise ValueError("the first failure")
        begun.set()
        try:
            while True:
                stop.check()
        except Stopped:
            stopped.set()
            raise

    before = threading.active_count()
    with pytest.raises(ValueError, match="the first failure"):
        list(run_jobs(work, range(1000), 2))
    assert stopped.is_set()
    assert threading.active_count() == before


def test_what_was_done_before_a_failure_is_handed_out_first() -> None:
    """Or an extraction would not record a class that it has finished."""

    def found_before_the_failure() -> list[str]:
        busy, failing = threading.Event(), threading.Event()

        def work(job: str, stop: Stop) -> str:
            if job == "busy":  # keeps one thread, so that the other one takes job after job
                busy.set()
                while True:
                    stop.check()
            if job == "fails":
                failing.set()
                raise ValueError("it fails")
            return job

        def jobs() -> Iterator[str]:
            yield "busy"
            busy.wait()
            yield "done"
            yield "fails"
            failing.wait()  # now both are over, and are found so in either order

        found: list[str] = []
        with pytest.raises(ValueError, match="it fails"):
            found.extend(run_jobs(work, jobs(), 2))
        return found

    assert [found_before_the_failure() for _ in range(40)] == [["done"]] * 40


def test_a_closed_iterator_stops_the_jobs() -> None:
    def work(job: int, stop: Stop) -> int:
        while job:
            stop.check()
        return job

    before = threading.active_count()
    results = run_jobs(work, range(10), 2)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def test_there_is_a_core() -> None:
    assert available_cores() >= 1
