"""`resnet doctor`: what is wrong with this machine's devices, and between machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.console import PATH, command, show_findings
from training.commands.base import RankCommand
from training.commands.options import (
    device_option,
    join_timeout_option,
    master_option,
    node_rank_option,
    nodes_option,
)
from training.commands.processes import take_place

if TYPE_CHECKING:
    from training.device import DeviceRequest


@command("doctor", RankCommand)
@device_option
@click.option("--cards", type=click.IntRange(min=1), help="Cards to try.  [default: all]")
@click.option(
    "--nproc", type=click.IntRange(min=1), help="Processes, one a device, to try instead of cards."
)
@nodes_option
@node_rank_option
@master_option
@join_timeout_option
@click.option(
    "--report",
    type=PATH,
    hidden=True,
    help="As a process of the doctor's own: leave what was measured in that folder.",
)
def resnet_doctor(
    device: DeviceRequest,
    cards: int | None,
    nproc: int | None,
    nodes: int,
    node_rank: int,
    master: str | None,
    join_timeout: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Say what is wrong with this machine's devices, and between machines.

    Looks at what `imagenet-prep doctor` does, at SDAA cards most closely: their health, driver,
    toolkit and processes. Then every device multiplies matrices and takes copies, against the
    clock and against the CPU, and all of them add up a tensor together, each in a process of its
    own as in training. Between machines run it on each, with the options of `resnet train`:

    \b
        resnet doctor --nodes 2 --node-rank K --master HOST:29500

    Every line is ok, a note or a problem, with a remedy. Exits with 1 when there is a problem.
    """
    from training.doctor.examine import Asked, examine_devices, take_part

    asked = Asked(
        device=device,
        cards=cards,
        nproc=nproc,
        nodes=nodes,
        node_rank=node_rank,
        master=master,
        join_seconds=join_timeout,
    )
    if report is not None:
        take_place("auto", join_timeout)
        take_part(asked, report)
        return
    from prep.doctor.examine import examine
    from prep.doctor.sdaa import sdaa_cards

    machine = examine(None).findings  # before our own processes hold the cards
    found = examine_devices(asked, before=machine, cards_there=len(sdaa_cards()))
    show_findings(as_json, vars(found), found.findings, found.next)
