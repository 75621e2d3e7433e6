"""`imagenet-prep sample-data`: small archives shaped like the real ones."""

from __future__ import annotations

import time
from pathlib import Path

import click

from shards.console import PATH, command, emit, showing_progress, speed, table_lines


@command("sample-data")
@click.option("--out", type=PATH, required=True, help="Folder for the archives.")
@click.option("--classes", type=click.IntRange(1, 1000), help="How many.  [default: 10]")
@click.option(
    "--train-per-class",
    type=click.IntRange(min=1),
    help="Training images of each class.  [default: 100]",
)
@click.option(
    "--val-per-class",
    type=click.IntRange(min=1),
    help="Validation images of each class.  [default: 20]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the pictures."
)
@click.option(
    "--quirks",
    is_flag=True,
    help="Among the training images have sound ones that trip naive tools, as the real data has: "
    "a PNG named .JPEG, CMYK, grey, broken EXIF, EXIF orientation, progressive, 1 x 1 and 3000 x 8 "
    "pixels. They are listed.",
)
@click.option(
    "--full-scale",
    is_flag=True,
    help="ILSVRC2012's own structure and counts instead: 1000 classes, 1,281,167 and 50,000 "
    "images, the true validation labels. The pictures are tiny: 1.4 GB, written in some 12 s.",
)
def sample_data(
    out: Path,
    classes: int | None,
    train_per_class: int | None,
    val_per_class: int | None,
    seed: int,
    quirks: bool,
    full_scale: bool,
    as_json: bool,
) -> None:
    """Write archives shaped and named like ILSVRC2012's.

    Train, validation and devkit, with drawn pictures that a network can learn to tell apart:
    enough to try every other command on. The same options give the same bytes. Whole archives
    of an earlier run are kept; files that are not sample-data's are never touched.

    \b
      imagenet-prep sample-data --out demo
      imagenet-prep sample-data --out odd --classes 4 --train-per-class 10 --quirks
      imagenet-prep sample-data --out full --full-scale

    --json has out, classes, images, train_images, val_images, quirks (kinds by image name),
    bytes, written (how many of the three archives were made now) and seconds.
    """
    from prep.sample.data import write_sample_data

    started = time.perf_counter()
    with showing_progress() as progress:
        made = write_sample_data(
            out,
            classes=classes,
            train_per_class=train_per_class,
            val_per_class=val_per_class,
            seed=seed,
            quirks=quirks,
            full_scale=full_scale,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    images = made.train_images + made.val_images
    rate = speed(images, seconds) if made.written else "were whole already"
    odd = {name: quirk.value for name, quirk in made.quirks.items()}
    emit(
        as_json,
        {
            "out": out,
            "classes": made.classes,
            "images": images,
            "train_images": made.train_images,
            "val_images": made.val_images,
            "quirks": odd,
            "bytes": made.bytes,
            "written": made.written,
            "seconds": seconds,
        },
        [f"{out}: {images} images in {made.classes} classes ({rate})"]
        + (table_lines(("image", "quirk"), odd.items()) if odd else []),
    )
