"""Making a report: logs and predictions in, a page and a sheet of figures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.durable import atomic_write_bytes, check_writable
from shards.errors import UsageError
from training.report.curves import figures_of
from training.report.drawing import png as drawn_png
from training.report.history import Run, read_runs
from training.report.page import page
from training.report.predictions import read_predictions
from training.report.thumbnails import thumbnails


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written."""

    out: Path
    bytes: int
    png: Path | None
    runs: tuple[Run, ...]
    figures: tuple[str, ...]  # their titles
    pictures: int  # of mistakes, in the page


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    png: Path | None = None,
    predictions: Sequence[Path] = (),
    shards: Path | None = None,
    mistakes: int = 24,
) -> Report:
    """Write a page about these runs to `out`, and its figures to `png`.

    `predictions` are files of `resnet eval --save-predictions`; with `shards` the pictures of
    the `mistakes` worst mistakes of each are in the page. Raises ToolError and UsageError for
    what cannot be read or does not belong together; nothing is written then.
    """
    if shards is not None and not predictions:
        raise UsageError(
            "--shards gives the pictures of wrong answers, and there are none without "
            "--predictions FILE (from `resnet eval --save-predictions FILE`)"
        )
    found = read_runs(runs)
    read = [*(run.log for run in found), *predictions]
    if shards is not None:
        read.append(shards / "val")
    check_writable(out, besides=read)
    if png is not None:
        check_writable(png, besides=[out, *read])
    answers = [read_predictions(path, mistakes=mistakes) for path in predictions]
    pictures = [None if shards is None else thumbnails(each, shards) for each in answers]
    figures = figures_of(found)
    content = page(found, figures, list(zip(answers, pictures, strict=True))).encode()
    sheet = None if png is None else drawn_png(figures, found)
    atomic_write_bytes(out, content)
    if png is not None and sheet is not None:
        atomic_write_bytes(png, sheet)
    return Report(
        out=out,
        bytes=len(content),
        png=png,
        runs=tuple(found),
        figures=tuple(figure.plot.title for figure in figures),
        pictures=sum(len(each) for each in pictures if each is not None),
    )
