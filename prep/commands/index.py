"""`imagenet-prep index`: an index of what lies there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import labels_option, threads_or_cores, workers_option
from shards.console import PATH, command, counted, emit, showing_progress

if TYPE_CHECKING:
    from shards.writer import OnBad


@command("index")
@click.argument("sources", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Folder for train/ and val/.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="This split alone; also says which one it is where no name does.",
)
@labels_option
@click.option(
    "--classes",
    type=PATH,
    help="File with one class id a line, in the order of labels.  [default: ILSVRC2012's where "
    "labels and names are, else for shards the numbers, for archives the sorted class names]",
)
@click.option(
    "--label-field",
    metavar="NAME",
    help="Field of each sample's .json that has its label, for shards without a .cls; `a.b` is b "
    "in the object a.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What becomes of a sample that cannot be used: the run fails, or the sample is left out "
    "and listed in the manifest.",
)
@workers_option
def index(
    sources: tuple[Path, ...],
    out: Path,
    split: str | None,
    labels: Path | None,
    classes: Path | None,
    label_field: str | None,
    on_bad: OnBad,
    workers: int | None,
    as_json: bool,
) -> None:
    """Make data trainable as it lies: shards of others, ILSVRC2012's archives, class folders.

    \b
    SOURCES are shards or archives (tars, folders that hold tars, or patterns), or class folders
      imagenet-prep index /data/archives --out /data/index
      imagenet-prep index /data/imagenet --out /data/index
      imagenet-prep index '/data/wds/imagenet1k-train-{0000..1023}.tar' --out /data/index
      imagenet-prep index /data/img2dataset --split train --label-field class --out /data/index
      resnet train --shards /data/index

    Nothing is copied or extracted. OUT/train/ and OUT/val/ get a link to each tar or class folder,
    an index, a manifest and SHA256SUMS; every byte is read once. Shards are any WebDataset tars of
    JPEGs and PNGs with a .cls, or a .json and --label-field; the split stands in their names. What
    is odd is refused with the member's name. The same command completes a killed run and knows a
    finished one by the sizes and times of its files: when one has moved or changed, run it again.
    Of class folders only those are read again that have changed.
    """
    from prep.index_part import IndexOptions
    from prep.indexing import index_tars

    options = IndexOptions(
        split=split, labels=labels, classes=classes, label_field=label_field, on_bad=on_bad
    )
    with showing_progress() as progress:
        done = index_tars(
            sources, out, options, workers=threads_or_cores(workers), progress=progress
        )
    lines = []
    for each in done:
        size = sum(tar.bytes for tar in each.manifest.shards)
        rate = f"{each.seconds:.1f} s, {size / 1e6 / each.seconds:,.0f} MB/s"
        lines.append(
            f"{each.folder}: {each.manifest.samples} images in "
            f"{counted(len(each.manifest.shards), 'folder' if each.manifest.is_loose else 'tar')}, "
            f"{len(each.manifest.classes)} classes "
            f"({rate if each.written else 'was whole already'})"
        )
    emit(
        as_json,
        {
            "splits": [
                {
                    "folder": each.folder,
                    "samples": each.manifest.samples,
                    "tars": 0 if each.manifest.is_loose else len(each.manifest.shards),
                    "folders": len(each.manifest.shards) if each.manifest.is_loose else 0,
                    "skipped": [bad._asdict() for bad in each.manifest.skipped],
                    "written": each.written,
                    "content": each.manifest.content,
                    "seconds": each.seconds,
                }
                for each in done
            ],
        },
        lines,
    )
