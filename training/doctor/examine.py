"""`resnet doctor`: ask the devices through processes of their own, and judge what they say.

This process imports no torch before the devices have answered: where a driver makes torch crash
or hang, one sentence says so, and whatever needs no torch was looked at anyway.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shards.asking import Answer, ask
from shards.errors import ToolError, UsageError
from shards.finding import Finding, Status, counted, note, problem
from training.device import DeviceRequest
from training.doctor.judge import (
    judge_devices,
    judge_reduction,
    judge_share,
    judge_survey,
    refused,
)
from training.doctor.network import network
from training.doctor.report import Reduction, Report, Survey
from training.launch import JOIN_SECONDS, launch
from training.place import inside_launch

_SECONDS: Final = 180.0  # until the first process is given up
_LIMIT: Final = 200  # seconds until the kernel ends any of our processes
_MEND: Final = "mend what is a problem above, then: resnet doctor"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which devices are to be examined; without `cards` and `nproc` all of this machine's."""

    device: DeviceRequest = "auto"
    cards: int | None = None
    nproc: int | None = None
    nodes: int = 1
    node_rank: int = 0
    master: str | None = None
    join_seconds: float = JOIN_SECONDS  # how long other machines are waited for


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The findings, and the measurements that they were made of."""

    findings: list[Finding]
    device: str | None = None  # the kind; None where none answered
    processes: int = 0  # on this machine
    devices: list[Report] = field(default_factory=list)
    reduction: Reduction | None = None
    next: str = _MEND


def examine_devices(
    asked: Asked, *, before: Sequence[Finding], cards_there: int, seconds: float = _SECONDS
) -> Examined:
    """Measure each device, and all together.

    `before` was found without torch and comes first; `cards_there` are the SDAA cards that the
    system shows. The first process, which loads torch, is given up after so many seconds.
    Raises UsageError for what was asked and cannot be.
    """
    if inside_launch():
        raise UsageError(
            "the doctor starts its own processes: run it without torchrun, and for several "
            "machines with --nodes, --node-rank and --master on each"
        )
    ways = network(asked.master) if asked.nodes > 1 else []
    if importlib.util.find_spec("torch") is None:
        untried = note("device", "not tried without torch", "make install")
        return Examined(findings=[*before, *ways, untried])
    with tempfile.TemporaryDirectory(prefix="imagenet-resnet-doctor-") as name:
        folder = Path(name)
        survey = _survey(asked, folder, seconds)
        if isinstance(survey, Finding):
            return Examined(findings=[*before, *ways, survey])
        failed = [] if _is_alone(survey, asked) else _measure(survey, asked, folder)
        reports, reduction = Report.read_all(folder), Reduction.read(folder)
    findings = [
        *before,
        *judge_survey(survey, cards_there),
        *judge_share(survey),
        *judge_devices(reports, survey),
        *ways,
        *failed,
    ]
    if reduction is not None:
        findings.append(judge_reduction(reduction, asked.nodes))
    well = all(each.status is not Status.PROBLEM for each in findings)
    return Examined(
        findings=findings,
        device=survey.kind,
        processes=survey.processes,
        devices=reports,
        reduction=reduction,
        next=_command(survey, asked) if well else _MEND,
    )


def take_part(asked: Asked, folder: Path) -> None:
    """What a process that was started by `examine_devices` does: leave reports in `folder`."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_LIMIT)  # ends what hangs in a library, too, whoever holds the interpreter
    from training.doctor.measure import measure_alone, measure_together, survey

    if inside_launch():
        measure_together(asked.device, folder, seconds=_LIMIT)
    else:
        found = survey(asked.device, asked.cards, asked.nproc)
        found.write(folder)
        if not found.refused and _is_alone(found, asked):
            measure_alone(asked.device, folder)
    signal.alarm(0)


def _is_alone(survey: Survey, asked: Asked) -> bool:
    return survey.processes * asked.nodes == 1


def _survey(asked: Asked, folder: Path, seconds: float) -> Survey | Finding:
    """What torch shows, by a process that may crash; or what is wrong."""
    numbers = {"--cards": asked.cards, "--nproc": asked.nproc, "--nodes": asked.nodes}
    given = [str(part) for each in numbers.items() if each[1] is not None for part in each]
    program = str(Path(sys.argv[0]).resolve())
    own = ["doctor", "--device", asked.device, "--report", str(folder), *given]
    answer = ask([sys.executable, program, *own], seconds)
    found = Survey.read(folder)
    if found is not None and found.usage:
        raise UsageError(found.refused)
    if found is not None and found.refused:
        return refused("device", found.refused, "see the lines above")
    if found is None or (_is_alone(found, asked) and answer.code != 0):
        return _crashed(answer, seconds)
    return found


def _crashed(answer: Answer, seconds: float) -> Finding:
    """A process that ended, or did not, without having told anything."""
    if answer.code is None:
        found = f"no answer within {seconds:.0f} s: torch or the driver hangs"
    elif answer.code < 0:
        found = f"{signal.Signals(-answer.code).name} ended the process that loaded torch"
    else:
        last = next(iter(answer.text.strip().splitlines()[::-1]), "no output")
        found = f"torch cannot be used: {last}"
    remedy = (
        "check that driver, toolkit and torch belong together; --device cpu leaves the cards out"
    )
    return problem("device", found, remedy)


def _measure(survey: Survey, asked: Asked, folder: Path) -> list[Finding]:
    """Start a process a device, as a run does; what went wrong, besides what they report."""
    own = ["doctor", "--device", survey.kind, "--report", str(folder)]
    try:
        code = launch(
            own,
            nproc=survey.processes,
            nodes=asked.nodes,
            node_rank=asked.node_rank,
            master=asked.master,
            join_seconds=asked.join_seconds,
        )
    except UsageError:
        raise
    except ToolError as error:
        return [_stopped(survey, asked, folder, str(error))]
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    return [_stopped(survey, asked, folder, f"exit code {code}")] if code else []


def _stopped(survey: Survey, asked: Asked, folder: Path, sentence: str) -> Finding:
    """What the launch ended with, told of the devices whose processes left no report."""
    first = asked.node_rank * survey.processes
    wanted = range(first, first + survey.processes)
    silent = sorted({*wanted} - {each.rank for each in Report.read_all(folder)})
    if not silent or (asked.nodes > 1 and len(silent) == len(wanted)):
        check = "check the cards' links, or the network between machines"
        return refused("all-reduce", sentence, check)
    devices = ", ".join(f"{survey.kind}:{rank - first}" for rank in silent)
    found = f"{counted(len(silent), 'device')} gave no answer ({devices}): {sentence}"
    return refused("devices", found, "leave them out, or restart the machine")


def _command(survey: Survey, asked: Asked) -> str:
    """How to train on all that was examined."""
    command = f"resnet train --shards DIR --device {survey.kind}"
    if survey.count is not None and survey.processes % survey.per_card == 0:
        command += f" --cards {survey.processes // survey.per_card}"
    elif survey.processes > 1:
        command += f" --nproc {survey.processes}"
    if asked.nodes > 1:
        command += f" --nodes {asked.nodes} --node-rank {asked.node_rank} --master {asked.master}"
    return command
