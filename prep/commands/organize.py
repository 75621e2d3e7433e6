"""`imagenet-prep organize-val`: flat validation images into class folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import labels_option
from shards.console import PATH, command, counted, emit, first_ten, say, showing_progress, speed

if TYPE_CHECKING:
    from prep.organizing.organize import Organized


@command("organize-val")
@click.argument("folder", metavar="DIR", type=PATH)
@labels_option
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and change nothing.")
def organize_val(folder: Path, labels: Path | None, dry_run: bool, as_json: bool) -> None:
    """Put the flat validation images in DIR into class folders, in place.

    For archives extracted by hand: what valprep.sh does, in a second, and from wherever that
    ended. DIR holds ILSVRC2012_val_*.JPEG, Hugging Face's names too, or is what holds that
    folder, such as Kaggle's tree. Images are renamed, never copied, replaced or deleted. What
    is no validation image is named and left alone, and so is what lies in a wrong folder: move
    that back into DIR and run the same command again.

    \b
    Labels are those of --labels, else of
      LOC_val_solution.csv in DIR or up to four folders above,
      a devkit archive in DIR or beside it,
      the built-in list, where the names and sizes of all 50,000 images are the official ones.

    Exits with 1 when an image has no label, lies in a wrong folder or is there twice with
    different bytes; strays are no failure. --json has folder, labels, dry_run, moved, in_place,
    classes, doubles, strays, problems (path and reason each), ok and seconds.
    """
    from prep.organizing.organize import organize_validation

    with showing_progress() as progress:
        done = organize_validation(folder, labels=labels, dry_run=dry_run, progress=progress)
    for line in first_ten("problem", done.problems):
        say(line)
    emit(as_json, {**vars(done), "ok": not done.problems}, _organized_lines(done))
    if done.problems:
        sys.exit(1)


def _organized_lines(done: Organized) -> list[str]:
    images, where = counted(done.moved, "image"), f"in {counted(done.classes, 'class folder')}"
    if not done.moved:
        head = f"nothing to move, {counted(done.in_place, 'image')} {where}"
    elif done.dry_run:
        head = f"{images} would be moved, {done.in_place:,} in place already, {where}"
    else:
        rate = speed(done.moved, done.seconds)
        head = f"{images} moved, {done.in_place:,} in place already, {where} ({rate})"
    lines = [f"{done.folder}: {head}", f"labels: {done.labels or 'not needed'}"]
    lines += first_ten("twice", done.doubles) + first_ten("stray", done.strays)
    traps = sum(each.disturbs for each in done.strays)
    if traps:
        lines.append(
            f"{traps:,} of the strays would be taken for data by readers of class folders, such "
            "as torchvision's ImageFolder: move them away"
        )
    return lines
