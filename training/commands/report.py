"""`resnet report`: runs as a page."""

from __future__ import annotations

from pathlib import Path

import click

from shards.console import PATH, command, counted, emit
from training.commands.processes import with_index


@command("report")
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="The page to write, FILE.html.")
@click.option("--png", type=PATH, metavar="FILE.png", help="Draw the curves there as well.")
@click.option(
    "--predictions",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="What `resnet eval --save-predictions FILE` wrote: accuracy by class, the most confused "
    "pairs, the worst mistakes. May be given several times.",
)
@click.option("--shards", type=PATH, help="Take the pictures of the worst mistakes from there.")
@click.option(
    "--mistakes", type=click.IntRange(0, 500), default=24, show_default=True, help="So many."
)
def report(
    runs: tuple[Path, ...],
    out: Path,
    png: Path | None,
    predictions: tuple[Path, ...],
    shards: Path | None,
    mistakes: int,
    as_json: bool,
) -> None:
    """Draw the history of one or several runs on one page.

    \b
      resnet report runs/r50 --out r50.html
      resnet report runs/r50 runs/r50-ema --out both.html --png both.png
      resnet eval runs/r50/best.pt --shards /data/shards --save-predictions best.jsonl
      resnet report runs/r50 --predictions best.jsonl --shards /data/shards --out r50.html

    Loss, accuracy, learning rate, speed, waiting for data and memory by epoch and by time; the
    configurations with what differs in front. RUN is a run's folder, also while it is under way.
    The page needs no network and no other file. Needs the extra `report`.
    """
    from training.report.report import write_report

    if shards is not None:
        shards = with_index(shards, ("val",))
    written = write_report(
        runs, out, png=png, predictions=predictions, shards=shards, mistakes=mistakes
    )
    names = [run.name for run in written.runs]
    parts = [counted(len(names), "run"), counted(len(written.figures), "figure")]
    parts += [counted(written.pictures, "picture")] if written.pictures else []
    lines = [f"{out}: {', '.join(parts)}, {written.bytes / 1e6:.1f} MB"]
    lines += [] if png is None else [f"{png}: the curves"]
    emit(as_json, {**vars(written), "runs": names}, lines)
