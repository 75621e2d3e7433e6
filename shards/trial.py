"""How fast a plan's shards would be made here: a little of the work, whose result goes nowhere."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shards.parallel import Stop, run_jobs
from shards.plan import Plan
from shards.reader import Reader
from shards.shard import ShardWriter
from shards.writer import BadImage, add_image

if TYPE_CHECKING:
    from shards.transcode import Encoder

_SECONDS: Final = 2.0


def trial(plan: Plan, encoder: Encoder | None, workers: int) -> float:
    """Images a second of this machine for a plan: read, encoded, hashed, but not written."""
    nowhere = Path(os.devnull)
    started = time.perf_counter()
    end = started + _SECONDS
    with Reader(plan.samples.layout, plan.samples.places) as reader:

        def write(shard: int, stop: Stop) -> int:
            count = 0
            with nowhere.open("wb") as file:
                members = plan.members(shard)
                writer = ShardWriter(file, nowhere, len(members))
                for number in members.tolist():
                    stop.check()
                    if time.perf_counter() > end:
                        break
                    with contextlib.suppress(BadImage):
                        add_image(writer, plan, number, encoder, reader)
                    count += 1
            return count

        done = sum(run_jobs(write, range(min(plan.shards, 4 * workers)), workers))
    return max(done, 1) / (time.perf_counter() - started)
