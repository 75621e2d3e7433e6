"""`imagenet-prep shard`: archives or class folders into shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import labels_option, workers_option
from shards.console import PATH, command, counted, emit, showing_progress, speed, table_lines

if TYPE_CHECKING:
    from prep.build import BuildOptions
    from shards.sidecars import ForReader
    from shards.transcode import JpegMode
    from shards.writer import Check, OnBad, Written


@command("shard")
@click.argument("sources", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Folder for train/ and val/.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="This split alone.")
@labels_option
@click.option(
    "--classes",
    type=PATH,
    help="File with one class id a line, in the order of labels; images of other classes are left "
    "out.  [default: sorted class names]",
)
@click.option("--per-class", type=click.IntRange(min=1), help="So many images of each class.")
@click.option(
    "--samples-per-shard",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Images of a shard.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    metavar="MB",
    help="Instead: as many images as fit into so many million bytes.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the shuffle, and of --per-class.",
)
@click.option(
    "--jpeg",
    type=click.Choice(["keep", "restart", "reencode"]),
    default="keep",
    show_default=True,
    help="keep: the source's bytes. restart: the same pixels with restart markers, which lets the "
    "loader decode less (needs jpegtran). reencode: smaller pictures.",
)
@click.option("--max-side", type=click.IntRange(min=1), help="reencode: longest side in pixels.")
@click.option("--short-side", type=click.IntRange(min=1), help="reencode: shorter side in pixels.")
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    help="reencode: JPEG quality.",
)
@click.option("--restart", is_flag=True, help="reencode: with restart markers too.")
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What becomes of an image that cannot be read: the run ends, or it is left out and listed "
    "in the manifest.",
)
@click.option(
    "--for",
    "for_readers",
    default="timm,dali",
    show_default=True,
    metavar="LIST",
    help="Also write what these readers want: timm, dali, wids; or none.",
)
@click.option(
    "--check",
    type=click.Choice(["fast", "full"]),
    default="fast",
    show_default=True,
    help="How shards of an earlier run are known to be whole: by size, or by SHA-256 too.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written and how long it takes.")
@workers_option
def shard(
    sources: tuple[Path, ...],
    out: Path,
    split: str | None,
    labels: Path | None,
    classes: Path | None,
    per_class: int | None,
    samples_per_shard: int,
    shard_size: int | None,
    seed: int,
    jpeg: JpegMode,
    max_side: int | None,
    short_side: int | None,
    quality: int,
    restart: bool,
    on_bad: OnBad,
    for_readers: str,
    check: Check,
    dry_run: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Write WebDataset shards straight from archives or class folders.

    SOURCES are ILSVRC2012's tars, a folder that holds them, Kaggle's tree, Hugging Face's
    archives, or folders of class folders (DIR/train/CLASS/*.jpg). Makes OUT/train/ and OUT/val/,
    each with its shards, an index, a manifest and SHA256SUMS.

    The same images and options give the same bytes, whatever they lie in and however many
    workers write them. Killed or stopped, the same command goes on.
    """
    from prep.build import BuildOptions, build_shards
    from shards.parallel import threads_that_write
    from shards.transcode import make_encoder
    from shards.writer import WriteOptions

    options = BuildOptions(
        labels=labels,
        classes=classes,
        per_class=per_class,
        seed=seed,
        samples_per_shard=samples_per_shard,
        shard_size=None if shard_size is None else shard_size * 1_000_000,
        write=WriteOptions(
            encoder=make_encoder(
                jpeg, max_side=max_side, short_side=short_side, quality=quality, restart=restart
            ),
            on_bad=on_bad,
            for_readers=_readers(for_readers),
            check=check,
        ),
    )
    workers = workers or threads_that_write()
    if dry_run:
        _plan_shards(sources, split, options, workers, as_json)
        return
    with showing_progress() as progress:
        written = build_shards(sources, split, out, options, workers=workers, progress=progress)
    lines = []
    for each in written:
        manifest = each.manifest
        rate = speed(each.images, each.seconds) if each.written else "was whole already"
        lines.append(
            f"{each.folder}: {manifest.samples} images in "
            f"{counted(len(manifest.shards), 'shard')}, {len(manifest.classes)} classes ({rate})"
        )
        if manifest.kept is not None:
            lines.append(f"{each.folder}: {counted(manifest.kept, 'image')} kept as they were")
        if manifest.skipped:
            lines.append(
                f"{each.folder}: {counted(len(manifest.skipped), 'image')} left out, "
                f"{manifest.skipped[0].name} first ({manifest.skipped[0].reason})"
            )
    emit(as_json, {"splits": [_written_data(each) for each in written]}, lines)


def _written_data(written: Written) -> dict[str, object]:
    manifest = written.manifest
    return {
        "folder": written.folder,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "written": written.written,
        "fingerprint": manifest.plan["fingerprint"],
        "content": manifest.content,
        "kept": manifest.kept,
        "skipped": [each._asdict() for each in manifest.skipped],
        "seconds": written.seconds,
    }


def _readers(names: str) -> tuple[ForReader, ...]:
    """The readers that --for names."""
    from typing import get_args

    from shards.errors import UsageError
    from shards.sidecars import ForReader

    wanted = [name for name in names.split(",") if name != "none"]
    strangers = [name for name in wanted if name not in get_args(ForReader)]
    if strangers:
        raise UsageError(
            f"--for takes {', '.join(get_args(ForReader))} or none, not {strangers[0]!r}"
        )
    return tuple(reader for reader in get_args(ForReader) if reader in wanted)


def _plan_shards(
    sources: Sequence[Path], split: str | None, options: BuildOptions, workers: int, as_json: bool
) -> None:
    """Print what `shard` would write, and how long at the rate of a trial."""
    from prep.build import plan_shards
    from prep.sources import find_sources
    from shards.trial import trial

    with showing_progress() as progress:
        plans = plan_shards(find_sources(sources, split), options, progress)
        rates = [trial(plan, options.write.encoder, workers) for plan in plans]
    splits = [
        {
            "split": plan.options.split,
            "samples": len(plan.samples),
            "shards": plan.shards,
            "bytes": plan.bytes,
            "seconds": len(plan.samples) / rate,
            "fingerprint": plan.fingerprint,
        }
        for plan, rate in zip(plans, rates, strict=True)
    ]
    rows = [
        (plan.options.split, len(plan.samples), plan.shards, f"{plan.bytes / 1e9:,.3f} GB",
         f"{rate:,.0f}", f"{len(plan.samples) / rate / 60:,.1f} min")
        for plan, rate in zip(plans, rates, strict=True)
    ]  # fmt: skip
    names = ("split", "images", "shards", "bytes", "images/s here, unwritten", "time")
    emit(as_json, {"splits": splits}, table_lines(names, rows))
