"""From sources to shards in one call: found, planned, written split by split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prep.sources import Source, collect
from shards.plan import Plan, PlanOptions
from shards.progress import Progress
from shards.writer import Written, write_shards


def build_shards(
    sources: Sequence[Source],
    out: Path,
    *,
    labels: Path | None,
    classes: Path | None,
    seed: int,
    samples_per_shard: int,
    workers: int,
    progress: Progress,
) -> list[Written]:
    """Write OUT/<split>/ for each source straight from where its images lie.

    The same call completes a killed one. Raises ToolError and its kinds as `collect` and
    `write_shards` do.
    """
    samples, listed = collect(sources, labels=labels, classes=classes, progress=progress)
    written = []
    for split, found in samples.items():
        options = PlanOptions(split=split, seed=seed, samples_per_shard=samples_per_shard)
        plan = Plan(samples=found, classes=listed, options=options)
        written.append(write_shards(plan, out / split, workers=workers, progress=progress))
    return written
