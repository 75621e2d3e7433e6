"""From sources to shards in one call: found, planned, written split by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prep.inflated import readable_in_place
from prep.labels import note_numbering
from prep.sources import Source, collect
from shards.plan import DEFAULT_SAMPLES_PER_SHARD, Plan, PlanOptions
from shards.progress import Progress
from shards.sample import Class
from shards.sidecars import write_timm_info
from shards.writer import WriteOptions, Written, write_shards


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a user may ask of shards besides their source; see PlanOptions and WriteOptions."""

    labels: Path | None = None
    classes: Path | Sequence[Class] | None = None  # a file, or the list itself
    per_class: int | None = None
    seed: int = 0
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD
    shard_size: int | None = None
    write: WriteOptions = field(default_factory=WriteOptions)


def plan_shards(sources: Sequence[Source], options: BuildOptions, progress: Progress) -> list[Plan]:
    """The plan of each split of the sources. Raises ToolError and its kinds as `collect` does."""
    samples, listed = collect(
        sources, labels=options.labels, classes=options.classes, progress=progress
    )
    if options.classes is None:
        note_numbering(listed, progress)
    encoder = options.write.encoder
    plans = []
    for split, found in samples.items():
        per_class = options.per_class
        chosen = found if per_class is None else found.subset(per_class, options.seed)
        plan_options = PlanOptions(
            split=split,
            seed=options.seed,
            samples_per_shard=options.samples_per_shard,
            shard_size=options.shard_size,
            per_class=per_class,
            jpeg="keep" if encoder is None else encoder.describe(),
        )
        plans.append(Plan(samples=chosen, classes=listed, options=plan_options))
    return plans


def build_shards(
    paths: Sequence[Path],
    split: str | None,
    out: Path,
    options: BuildOptions,
    *,
    workers: int,
    progress: Progress,
) -> list[Written]:
    """Write OUT/<split>/ for each split found at the paths, straight from where its images lie.

    The same call completes a killed one. Raises ToolError and its kinds as `find_sources`,
    `collect` and `write_shards` do.
    """
    with readable_in_place(paths, split, out, workers=workers, progress=progress) as sources:
        written = [
            write_shards(
                plan, out / plan.options.split, options.write, workers=workers, progress=progress
            )
            for plan in plan_shards(sources, options, progress)
        ]
    if "timm" in options.write.for_readers:
        write_timm_info(out)
    return written
