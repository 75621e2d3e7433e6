"""From measurements to findings: which device is slow, wrong, occupied or gone."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from shards.cores import available_cores
from shards.finding import Finding, counted, note, ok, problem
from training.doctor.report import Product, Reduction, Report, Survey

_SLOW: Final = 0.7  # of its siblings' speed: more than clocks and neighbours explain
_WRONG: Final = 1e-2  # fp16 is off by 1e-3; a broken device by its result
_HELD: Final = 0.1  # of the memory: what a driver keeps for itself is less
_SICK: Final = "run the command again; if it stays so, leave the device out and ask its vendor"


def refused(what: str, sentence: str, remedy: str) -> Finding:
    """A problem that an error told: its remedy, if it has its own, stands behind a semicolon."""
    found, _, own = sentence.partition("; ")
    return problem(what, found, own or remedy)


def judge_survey(survey: Survey, cards_there: int) -> list[Finding]:
    """The kind of device, and whether torch sees all; `cards_there`: cards the system shows."""
    if survey.count is None:
        return [ok("device", f"{survey.kind} ({survey.reason})")]
    found = f"{counted(survey.count, survey.kind + ' device')} ({survey.reason})"
    if survey.per_card > 1:
        found += f", {survey.per_card} a card"
    there = cards_there * survey.per_card
    if survey.per_card > 1 and survey.visible is None and survey.count < there:
        return [
            problem(
                "device",
                f"{found}; {counted(cards_there, 'card')} should have {there}",
                "see what teco-smi says of each card, and restart the machine",
            )
        ]
    return [ok("device", found)]


def judge_share(survey: Survey) -> list[Finding]:
    """What each process of a run gets of the machine, and may lock of its memory."""
    cores, processes = available_cores(), survey.processes
    found = f"{counted(cores, 'core')} for {counted(processes, 'process', 'processes')}"
    if cores < processes:
        share = note(
            "cores a process",
            found,
            "decoding JPEGs needs more: give the container more (docker run --cpus), or start "
            "fewer processes (--nproc)",
        )
    else:
        share = ok("cores a process", f"{found}: {cores // processes} each")
    return [share] if survey.count is None else [share, _locked_memory()]


def _locked_memory() -> Finding:
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if most == resource.RLIM_INFINITY:
        return ok("locked memory", "without a limit")
    return note(
        "locked memory",
        f"at most {most / 1e6:,.1f} MB",
        "network cards that read memory by themselves (RDMA) need more: docker run --ulimit "
        "memlock=-1, or ulimit -l unlimited",
    )


def judge_devices(reports: Sequence[Report], survey: Survey) -> Iterator[Finding]:
    """A finding for each device; accelerators are compared with their siblings."""
    for report in reports:
        what = report.device if survey.count is not None else f"{report.device}:{report.rank}"
        siblings = reports if survey.count is not None else ()
        yield _judge_device(what if len(reports) > 1 else report.device, report, siblings)


def _judge_device(what: str, report: Report, siblings: Iterable[Report]) -> Finding:
    if report.failure:
        return refused(what, report.failure, "leave it out, or restart the machine")
    found = ", ".join(_measured(report))
    if wrong := [
        f"{name} gives no numbers" if error is None else f"{name} is off by {error:.2g}"
        for name, error in ((name, product.error) for name, product in _products(report))
        if error is None or error > _WRONG
    ]:
        return problem(what, f"multiplies wrongly ({', '.join(wrong)}): {found}", _SICK)
    if slow := list(_slower(report, list(siblings))):
        return problem(what, f"{' and '.join(slow)}: {found}", _SICK)
    if report.total and report.free is not None and report.free < (1 - _HELD) * report.total:
        remedy = "another process computes there: wait for it, or end it"
        return note(what, found, remedy)
    return ok(what, found)


def _measured(report: Report) -> Iterator[str]:
    if report.name:
        yield report.name
    for name, product in _products(report):
        yield f"{product.rate / 1e12:.3g} TFLOPS in {name}"
    if report.copy is not None:
        yield f"{report.copy / 1e9:.3g} GB/s from the host"
    if report.total and report.free is not None:
        yield f"{report.free / 1e9:.1f} of {report.total / 1e9:.1f} GB free"


def _products(report: Report) -> list[tuple[str, Product]]:
    named = (("fp32", report.fp32), ("fp16", report.fp16))
    return [(name, product) for name, product in named if product is not None]


def _slower(report: Report, siblings: list[Report]) -> Iterator[str]:
    """In what a device is behind the middle one; of two, behind the faster."""
    for name, product in _products(report):
        rates = [
            each.rate
            for other in siblings
            for each_name, each in _products(other)
            if each_name == name
        ]
        middle = statistics.median_high(rates or [product.rate])
        if product.rate < _SLOW * middle:
            yield f"{name} at {product.rate / middle:.0%} of its siblings' speed"


def judge_reduction(reduction: Reduction, nodes: int) -> Finding:
    """The all-reduce, with the rate at which bytes went over the slowest link."""
    over = f" on {counted(nodes, 'machine')}" if nodes > 1 else ""
    # A ring moves 2 (n - 1) / n of the bytes over each of its links.
    moved = 2 * (reduction.processes - 1) / reduction.processes * reduction.bytes
    found = (
        f"{counted(reduction.processes, 'process', 'processes')}{over} by {reduction.backend}: "
        f"{reduction.bytes / 1e6:.0f} MB in {reduction.seconds * 1e3:.1f} ms, "
        f"{moved / reduction.seconds / 1e9:.3g} GB/s"
    )
    if not reduction.right:
        remedy = "check cables and cards one pair at a time (--nproc 2), and ask the vendor"
        return problem("all-reduce", f"wrong sum: {found}", remedy)
    return ok("all-reduce", found)
