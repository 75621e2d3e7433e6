"""`imagenet-prep doctor`: what this machine and these data have and lack."""

from __future__ import annotations

from pathlib import Path

import click

from shards.console import PATH, command, show_findings


@command("doctor")
@click.argument("path", type=PATH, required=False)
def prep_doctor(path: Path | None, as_json: bool) -> None:
    """Say what this machine and the data at PATH have and lack, and what to run next.

    Looks at Python, torch, decoders, cores, memory, limits and cards. With PATH also at its disk
    (which is measured for about two seconds), at the archives, class folders and shards there,
    at what is missing, and at the room, the time and the command of each way to data that can be
    trained on: shards, an index of the archives as they lie, class folders.

    Every line is ok, a note or a problem, with a remedy. Exits with 1 when there is a problem.
    """
    from prep.doctor.examine import examine

    found = examine(path)
    show_findings(as_json, vars(found), found.findings, found.next)
