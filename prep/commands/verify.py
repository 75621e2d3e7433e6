"""`imagenet-prep verify`: is everything whole?"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import labels_option, threads_or_cores, workers_option
from shards.console import (
    PATH,
    command,
    counted,
    emit,
    in_megabytes,
    say,
    showing_progress,
    table_lines,
)

if TYPE_CHECKING:
    from prep.verification.verify import Verified


@command("verify")
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option(
    "--md5",
    metavar="FILE|SUM",
    help="MD5 sums of archives that are not ILSVRC2012's: a file as md5sum or BSD's md5 writes it, "
    "or for one archive the 32 digits.",
)
@click.option("--decode", is_flag=True, help="Decode every image to its last pixel.")
@click.option(
    "--deep",
    is_flag=True,
    help="Shards: also hold every image against its digest in the index (XXH3), whatever the "
    "SHA-256 of its shard says.",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Shards: make what is missing or damaged again, byte for byte as it was.",
)
@click.option(
    "--source",
    "sources",
    type=PATH,
    multiple=True,
    help="What the shards were made of (archives or folders, as for `shard`), for --repair; may be "
    "given several times.",
)
@labels_option
@workers_option
def verify(
    paths: tuple[Path, ...],
    md5: str | None,
    decode: bool,
    deep: bool,
    repair: bool,
    sources: tuple[Path, ...],
    labels: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Check that archives, folders of images and shards are whole.

    PATHS are archives, class folders, shards, or folders that hold any of them.

    \b
    Archives  size, then MD5 against the published sum, or that of --md5; without
              one every header of the tar and of the tars in it is checked
    Folders   number of images of each class, names against folders and labels,
              and of every image its header and its end; every byte is read
    Shards    size and SHA-256 of every file, every tar header, label and padding
              against the index, the index against itself and the manifest, the
              sums; shard, sample and byte are named where something differs

    \b
      imagenet-prep verify /data/archives
      imagenet-prep verify /data/images --decode
      imagenet-prep verify mine.tar --md5 MD5SUMS
      imagenet-prep verify /data/shards --repair --source /data/archives

    --repair rewrites exactly the files that are missing or damaged, and only where the result is
    proven to be what was there: by a digest that was written down, or sample by sample. Shards
    need --source (and the --labels that they were made with); manifest, sums, files for other
    readers, and as a rule the index, follow from the rest. Killed, the same command goes on.

    What is missing, damaged or altered is named and the command exits with 1; nothing that is
    found ends the check. ILSVRC2012's own oddities are listed and no damage. --json has archives,
    folders, splits (of shards: findings, damaged files, damage by sample and offset, repaired,
    notes), missing (listed in --md5 and not there), ok and seconds.
    """
    from prep.verification.md5sums import NO_SUMS, read_sums
    from prep.verification.shards import ShardChecks
    from prep.verification.verify import verify as run
    from shards.errors import UsageError

    if sources and not repair:
        raise UsageError("--source is what --repair makes shards from; give both")
    started = time.perf_counter()
    with showing_progress() as progress:
        found = run(
            paths,
            sums=NO_SUMS if md5 is None else read_sums(md5),
            labels=labels,
            decode=decode,
            shards=ShardChecks(deep=deep, repair=repair, sources=sources),
            workers=threads_or_cores(workers),
            progress=progress,
        )
    seconds = time.perf_counter() - started
    for line in found.findings:
        say(f"damaged: {line}")
    for line in found.notes:
        say(f"note: {line}")
    for split in found.splits:
        for name in split.repaired:
            say(f"repaired: {split.folder / name}")
    emit(
        as_json,
        {
            "archives": [vars(each) for each in found.archives],
            "folders": [vars(each) for each in found.folders],
            "splits": [vars(each) for each in found.splits],
            "missing": found.missing,
            "ok": not found.findings,
            "seconds": seconds,
        },
        _verified_lines(found, seconds),
    )
    if found.findings:
        sys.exit(1)


def _verified_lines(found: Verified, seconds: float) -> list[str]:
    """A table for each kind of data, what is odd in it, and the rate."""
    archives = [
        (each.path, each.kind or "-", in_megabytes(each.bytes),
         "-" if each.images is None else f"{each.images:,}", each.md5 or "-",
         _result(each.findings, each.checked_by))
        for each in found.archives
    ]  # fmt: skip
    folders = [
        (each.path, each.split or "-", in_megabytes(each.bytes), each.classes, each.images,
         _result(each.findings, each.compared, part=each.part))
        for each in found.folders
    ]  # fmt: skip
    shards = [
        (each.folder, each.split, in_megabytes(each.bytes), each.files, each.samples,
         _result(each.findings, "the manifest"))
        for each in found.splits
    ]  # fmt: skip
    lines = []
    for columns, rows in (
        (("archive", "kind", "MB", "images", "MD5", "result"), archives),
        (("folder", "split", "MB", "classes", "images", "result"), folders),
        (("shards", "split", "MB", "files", "samples", "result"), shards),
    ):
        lines += table_lines(columns, rows) if rows else []
    for odd in found.oddities:
        known = "known of ILSVRC2012" if odd.known else "odd"
        count = counted(len(odd.images), "image")
        lines.append(f"{known}: {odd.what}: {count}, {odd.images[0]} first")
    rate = f"{seconds:.1f} s, {found.bytes / 1e6 / seconds:,.0f} MB/s"
    return [*lines, f"{in_megabytes(found.bytes)} MB in {rate}"]


def _result(findings: Sequence[str], checked_by: str | None, *, part: bool = False) -> str:
    if findings:
        return counted(len(findings), "finding")
    if checked_by is None:
        return "sound"
    return f"sound, a part of {checked_by}" if part else f"whole, by {checked_by}"
