"""Options that several commands of imagenet-prep have."""

from __future__ import annotations

import click

from shards.console import PATH

workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that work side by side.  [default: by the cores]",
)

labels_option = click.option(
    "--labels",
    type=PATH,
    help="Labels of the validation images: a devkit archive, Kaggle's LOC_val_solution.csv, lines "
    "of `IMAGE-NAME WNID`, or one wnid a line in order of image number.  [default: Kaggle's file "
    "or a devkit beside the images, else the built-in list for the official ones]",
)


def threads_or_cores(workers: int | None) -> int:
    from shards.cores import available_cores

    return workers or available_cores()
