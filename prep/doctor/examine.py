"""What this machine has and lacks for preparing and training, each finding with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prep.doctor.cards import cards
from prep.doctor.machine import machine
from prep.doctor.software import software
from shards.finding import Finding, Status

if TYPE_CHECKING:
    from prep.doctor.disk import Rates
    from prep.doctor.routes import Route


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Everything that was found, and the command to run next.

    `rates` and `routes` are those of the path's disk; there are none without a path.
    """

    findings: list[Finding]
    rates: Rates | None
    routes: list[Route]
    next: str


def examine(path: Path | None) -> Examination:
    """Look at the software, the machine and its cards, and at what lies at `path` and its disk.

    Raises OSError where `path` cannot be read.
    """
    findings = [*software(), *machine(), *cards()]
    if path is None:
        following = "imagenet-prep doctor PATH, with the folder of your archives"
        return Examination(findings=findings, rates=None, routes=[], next=following)
    if any(each.what == "packages" and each.status is Status.PROBLEM for each in findings):
        return Examination(findings=findings, rates=None, routes=[], next="make install")
    # What looks at data stands on NumPy; the lines above are for those who lack it, too.
    from prep.doctor.data import examine_data

    data = examine_data(path)
    return Examination(
        findings=[*findings, *data.findings],
        rates=data.rates,
        routes=data.routes,
        next=data.next,
    )
