"""What comes before the work: data that have an index, and processes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prep.commands.options import threads_or_cores
from shards.console import INTERRUPTED, counted, say, showing_progress
from training.commands.base import speaks_first

if TYPE_CHECKING:
    from training.affinity import Affinity


def with_index(shards: Path, splits: Sequence[str]) -> Path:
    """The folder of finished splits: that of the shards, or an index of class folders.

    That is made here when there is none, before processes are started: each of them finds it.
    """
    from prep.folders import cache_place, find_folders, keep_index
    from shards.manifest import Manifest

    sources = find_folders(shards, splits)
    if not sources:
        for split in splits:
            Manifest.read(shards / split)
        return shards
    place = cache_place(shards)
    with showing_progress() as progress:
        counts = keep_index(
            sources, splits, place, workers=threads_or_cores(None), progress=progress
        )
    if speaks_first():
        beside = f"{shards.absolute()}-shards"
        command = shlex.join(["imagenet-prep", "shard", str(shards), "--out", beside])
        say(
            f"note: {shards} holds {counted(sum(counts.values()), 'image')} in class folders, "
            f"which are read one by one by the index in {place}; shards are easier on disks and "
            f"copied faster, and a run goes on with them: `{command}`"
        )
    return place


def take_place(affinity: Affinity, join_seconds: float) -> int:
    """What a process of a launch does before anything else; the threads that it is to use."""
    from training.affinity import settle
    from training.children import follow_launcher
    from training.launch import JOIN_VARIABLE, check_seconds
    from training.place import place_of

    follow_launcher()
    check_seconds("--join-timeout", join_seconds)
    os.environ[JOIN_VARIABLE] = str(join_seconds)
    return settle(place_of(os.environ), affinity)


def launch_if_several(
    processes: int, *, nodes: int = 1, max_restarts: int | None = 0, **options: Any
) -> None:
    """Start this command once for each process and exit, unless this is one of them already."""
    from training.launch import RESTARTS, launch
    from training.place import inside_launch

    if inside_launch() or (processes * nodes == 1 and not max_restarts):
        return
    restarts = RESTARTS if max_restarts is None else max_restarts
    try:
        code = launch(
            sys.argv[1:], nproc=processes, nodes=nodes, max_restarts=restarts, say=say, **options
        )
    finally:
        if sys.stderr.isatty():  # a process that was killed may have left the cursor hidden
            click.echo("\x1b[?25h", nl=False, err=True)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    click.get_current_context().exit(code)
