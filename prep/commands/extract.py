"""`imagenet-prep extract`: archives into class folders."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import labels_option, threads_or_cores, workers_option
from shards.console import PATH, command, emit, showing_progress, speed, table_lines

if TYPE_CHECKING:
    from prep.extraction.plan import Planned


@command("extract")
@click.argument("archives", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Folder for train/, val/ and test/.")
@labels_option
@click.option("--flat", is_flag=True, help="Leave validation images in one folder.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Where images go whose archive does not say: a tar of class folders.",
)
@click.option("--md5", is_flag=True, help="Take each archive's MD5 while it is read.")
@click.option(
    "--remove-archive",
    is_flag=True,
    help="Remove each archive when all that came out of it was synced and read back.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it needs.")
@workers_option
def extract(
    archives: tuple[Path, ...],
    out: Path,
    labels: Path | None,
    flat: bool,
    split: str | None,
    md5: bool,
    remove_archive: bool,
    dry_run: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Extract archives into class folders.

    ARCHIVES are told apart by what is in them; of a folder, all archives of images are taken.

    \b
    ILSVRC2012_img_train.tar              OUT/train/WNID/   its inner tars are read in place
    ILSVRC2012_img_val.tar                OUT/val/WNID/     or OUT/val/ with --flat
    ILSVRC2012_img_test*.tar              OUT/test/
    ILSVRC2012_img_train_t3.tar (dogs)    OUT/train_t3/WNID/
    ILSVRC2012_bbox_*.tar.gz              OUT/annotations/
    ILSVRC2012_devkit_t12.tar.gz          OUT/ILSVRC2012_devkit_t12/
    Hugging Face's *_images*.tar.gz       as the archives above, under ILSVRC2012's names
    a tar of class folders, or .tar.gz    OUT/SPLIT/CLASS/

    Killed or stopped, the same command completes it and reads again only what is not whole.
    You do not need this to train: `imagenet-prep shard` reads uncompressed archives as they are.
    """
    from prep.extraction.extract import extract as run
    from prep.extraction.extract import plan
    from prep.extraction.extraction import Options

    options = Options(
        labels=labels, split=split, flat=flat, md5=md5, remove_archives=remove_archive
    )
    if dry_run:
        with showing_progress() as progress:
            planned = plan(archives, out, options, progress)
        emit(as_json, *_extraction_plan(out, planned))
        return
    started = time.perf_counter()
    with showing_progress() as progress:
        results = run(archives, out, options, workers=threads_or_cores(workers), progress=progress)
    seconds = time.perf_counter() - started
    new = sum(each.written for each in results)
    lines = []
    for each in results:
        places = ", ".join(str(out / folder) for folder in each.folders)
        more = [f"MD5 {each.md5}"] if each.md5 else []
        more += [] if each.written else ["whole already"]
        more += ["archive removed"] if each.removed else []
        lines.append(
            ", ".join([f"{places}: {each.files:,} files, {each.bytes / 1e6:,.1f} MB", *more])
        )
    lines += [f"{new:,} files in {speed(new, seconds)}"] if new else []
    emit(as_json, {"archives": [vars(each) for each in results], "seconds": seconds}, lines)


def _extraction_plan(out: Path, planned: Sequence[Planned]) -> tuple[dict[str, object], list[str]]:
    """What an extraction would do, and whether the disk has room, as data and as lines."""
    existing = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
    disk = os.statvfs(existing)
    free, inodes = disk.f_bavail * disk.f_frsize, disk.f_favail
    needed = sum(each.missing.bytes for each in planned)
    needed_inodes = sum(each.inodes for each in planned)
    rows = [
        (each.archive.name, ", ".join(each.folders), each.files, each.missing.files,
         f"{each.missing.bytes / 1e6:,.1f} MB") for each in planned
    ]  # fmt: skip
    fits = needed <= free and (needed_inodes <= inodes or inodes == 0)
    lines = [
        *table_lines(("archive", "to", "files", "missing", "bytes missing"), rows),
        f"needs {needed / 1e9:,.3f} GB and {needed_inodes:,} inodes; {existing} has "
        f"{free / 1e9:,.3f} GB and {inodes:,} free" + ("" if fits else ": it does not fit"),
    ]
    data = {
        "archives": [vars(each) for each in planned],
        "bytes_needed": needed,
        "bytes_free": free,
        "inodes_needed": needed_inodes,
        "inodes_free": inodes,
        "fits": fits,
    }
    return data, lines
