"""The page: one file with its figures, style and script in it, which asks nothing of a network.

A policy in its head forbids it to: only this file's own script may run (by its digest), and
pictures come from the page alone, so a name that got through unescaped would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import get_args

from shards.progress import duration
from training.report import comparison, markup
from training.report.curves import By, Figure
from training.report.drawing import BOX, COLOURS, svg
from training.report.history import Point, Run, number, result
from training.report.predictions import ClassResult, Mistake, Predictions

_WORST_CLASSES = 20

Pictures = Mapping[str, str]  # data URLs by key


def page(
    runs: Sequence[Run],
    figures: Sequence[Figure],
    predictions: Sequence[tuple[Predictions, Pictures | None]],
) -> str:
    """The whole of it as HTML."""
    drawn, plots = _figures(figures)
    data = {
        "box": BOX,
        "colours": COLOURS,
        "runs": [run.name for run in runs],
        "plots": plots,
    }
    body = [
        "<header>\n<h1>Training report</h1>\n",
        markup.note(_subtitle(runs)),
        "</header>\n",
        _results(runs),
        _curves(runs, drawn),
        *(_predicted(found, pictures) for found, pictures in predictions),
        markup.section("Configuration", comparison.configuration(runs)),
        markup.section("Environment and data", comparison.environment(runs)),
        markup.section("What followed from them", comparison.derived(runs)),
        _evaluations(runs),
    ]
    return _document(", ".join(run.name for run in runs), "".join(body), markup.embedded(data))


def _document(title: str, body: str, data: str) -> str:
    style, script = _resource("page.css"), _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup.escaped(title)}: training report</title>\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        '<div id="tip" hidden></div>\n'
        f'<script type="application/json" id="report">{data}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _resource(name: str) -> str:
    return importlib.resources.files("training.report").joinpath(name).read_text("utf-8")


def _subtitle(runs: Sequence[Run]) -> str:
    models = sorted({str(run.part("config", "model")) for run in runs if run.part("config")})
    many = f"{len(runs)} runs" if len(runs) > 1 else f"{runs[0].name}: a run"
    return f"{many} of {' and '.join(models)}." if models else f"{many}."


# --- results ----------------------------------------------------------------------------------

_RESULT_COLUMNS = (
    ("Run", "name"),
    ("Model", ""),
    ("Recipe", ""),
    ("Epochs", "number"),
    ("Best top-1", "number"),
    ("Its top-5", "number"),
    ("Last top-1", "number"),
    ("Images/s", "number"),
    ("Waiting", "number"),
    ("Time", "number"),
    ("State", ""),
)


def _results(runs: Sequence[Run]) -> str:
    rows = [markup.row(_RESULT_COLUMNS, _result(place, run)) for place, run in enumerate(runs)]
    return markup.section(
        "Results",
        markup.table(_RESULT_COLUMNS, rows),
        markup.note(
            "Accuracies are of every validation image. Images/s and waiting for data are means "
            "over the training steps; the time is of running, evaluation in it."
        ),
    )


def _result(place: int, run: Run) -> list[str]:
    best, last = run.best, run.evals[-1] if run.evals else None
    recipe, epochs = run.part("config", "recipe"), number(run.part("config") or {}, "epochs")
    done = last.epoch if last else run.steps[-1].epoch if run.steps else 0.0
    speed, waiting = _mean(run, "images_per_second"), _mean(run, "wait_share")
    return [
        markup.swatch(place) + markup.escaped(run.name),
        markup.escaped(run.part("config", "model") or ""),
        markup.escaped(recipe.get("name", "") if isinstance(recipe, Mapping) else recipe or ""),
        f"{done:.4g}" + (f" <small>of {epochs:g}</small>" if epochs else ""),
        _percent(best, "top1") + (f" <small>epoch {best.epoch:g}</small>" if best else ""),
        _percent(best, "top5"),
        _percent(last, "top1"),
        "" if speed is None else f"{speed:,.0f}",
        "" if waiting is None else f"{100 * waiting:.1f} %",
        duration(3600 * run.hours),
        markup.escaped(run.state)
        + (f" <small>{run.starts} starts</small>" if run.starts > 1 else ""),
    ]


def _percent(point: Point | None, key: str) -> str:
    value = None if point is None else result(point.line, key)
    return "" if value is None else f"{value:.2f} %"


def _mean(run: Run, key: str) -> float | None:
    """The mean over the training time."""
    total = seconds = 0.0
    for point in run.steps:
        value, speed = number(point.line, key), number(point.line, "images_per_second")
        if value is not None and speed:
            took = (number(point.line, "steps") or 1.0) / speed
            total, seconds = total + value * took, seconds + took
    return total / seconds if seconds else None


def _evaluations(runs: Sequence[Run]) -> str:
    head = (("Epoch", "number"), ("Top-1", "number"), ("Top-5", "number"), ("Loss", "number"))
    parts = []
    for run in runs:
        rows = []
        for point in run.evals:
            loss = result(point.line, "loss")
            cells = [
                f"{point.epoch:g}",
                _percent(point, "top1"),
                _percent(point, "top5"),
                "" if loss is None else f"{loss:.4f}",
            ]
            rows.append(markup.row(head, cells))
        parts.append(
            markup.folded(f"{run.name}: {len(rows)} evaluations", markup.table(head, rows))
        )
    return markup.section("Evaluations", *parts)


# --- figures ----------------------------------------------------------------------------------


def _figures(figures: Sequence[Figure]) -> tuple[list[str], list[dict[str, object]]]:
    """The figures as HTML, and what the script reads their values from."""
    drawn, plots = [], []
    for place, figure in enumerate(figures):
        axes, sheets = {}, ""
        for by in get_args(By):
            sheet, x, y = svg(figure, by)
            axes[by] = {"x": x, "y": y}
            sheets += f'<div class="by-{by}" data-by="{by}">{sheet}</div>\n'
        plot = figure.plot
        unit = f" <small>{markup.escaped(plot.unit)}</small>" if plot.unit else ""
        drawn.append(
            f'<figure data-plot="{place}">\n<figcaption><h3>{markup.escaped(plot.title)}{unit}</h3>'
            f"<small>{markup.escaped(figure.about)}</small></figcaption>\n{sheets}</figure>\n"
        )
        plots.append(_plot_data(figure, axes))
    return drawn, plots


def _plot_data(figure: Figure, axes: object) -> dict[str, object]:
    return {
        "unit": figure.plot.unit,
        "time": figure.time_unit,
        "several": len({series.curve.name for series in figure.series}) > 1,
        "logarithmic": figure.is_log,
        "axes": axes,
        "series": [
            {
                "run": series.run,
                "name": series.curve.name,
                "values": _short(series.values),
                **{by: _short(series.places(by)) for by in get_args(By)},
            }
            for series in figure.series
        ],
    }


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _curves(runs: Sequence[Run], drawn: Sequence[str]) -> str:
    if not drawn:
        return markup.section("Curves", markup.note("Nothing has been logged yet."))
    chips = "".join(
        f'<label><input type="checkbox" checked data-toggle="{place}">{markup.swatch(place)}'
        f"{markup.escaped(run.name)}</label>\n"
        for place, run in enumerate(runs)
    )
    legend = f'<div class="legend">\n{chips}</div>' if len(runs) > 1 else ""
    return markup.section(
        "Curves",
        '<input class="choice" type="radio" name="by" id="by-epoch" checked>\n'
        '<input class="choice" type="radio" name="by" id="by-time">\n'
        '<div class="bar"><div class="axis"><label for="by-epoch">by epoch</label>'
        f'<label for="by-time">by time</label></div>\n{legend}</div>\n'
        f'<div class="figures">\n{"".join(drawn)}</div>\n',
    )


# --- predictions ------------------------------------------------------------------------------


def _predicted(found: Predictions, pictures: Pictures | None) -> str:
    many = len(found.per_class)
    parts = [
        markup.note(
            f"{found.path.name}: {found.model} on {found.samples:,} images of {found.split}, "
            f"top-1 {found.top1:.2f} %, {many:,} classes."
        ),
        "<h3>Classes it knows least</h3>\n",
        _classes(found.per_class[:_WORST_CLASSES]),
    ]
    if many > _WORST_CLASSES:
        parts.append(markup.folded(f"all {many:,} classes", _classes(found.per_class)))
    if found.pairs:
        parts += ["<h3>Most confused</h3>\n", _pairs(found)]
    if found.mistakes:
        parts += ["<h3>Worst mistakes</h3>\n", _sheet(found.mistakes, pictures)]
    return markup.section("Predictions", *parts)


def _classes(classes: Sequence[ClassResult]) -> str:
    head = (
        ("Class", "name"),
        ("Top-1", "number"),
        ("", "share"),
        ("Correct", "number"),
        ("Images", "number"),
        ("Mostly taken for", "value"),
    )
    return markup.table(
        head,
        (
            markup.row(
                head,
                [
                    markup.escaped(each.name),
                    f"{each.accuracy:.1f} %",
                    markup.share(each.accuracy),
                    f"{each.correct:,}",
                    f"{each.samples:,}",
                    f"{markup.escaped(each.taken_for)} <small>{each.taken_for_count:,}</small>"
                    if each.taken_for_count
                    else "",
                ],
            )
            for each in classes
        ),
    )


def _pairs(found: Predictions) -> str:
    head = (("Is", "name"), ("Taken for", "name"), ("Images", "number"), ("Of its class", "number"))
    return markup.table(
        head,
        (
            markup.row(
                head,
                [
                    markup.escaped(pair.name),
                    markup.escaped(pair.taken_for),
                    f"{pair.count:,}",
                    f"{100 * pair.count / pair.samples:.1f} %",
                ],
            )
            for pair in found.pairs
        ),
    )


def _sheet(mistakes: Sequence[Mistake], pictures: Pictures | None) -> str:
    """Tiles of pictures, the surest wrong answer first."""
    tiles = "".join(_tile(mistake, pictures) for mistake in mistakes)
    return f'<div class="sheet">\n{tiles}</div>\n'


def _tile(mistake: Mistake, pictures: Pictures | None) -> str:
    picture = ""
    if pictures is not None:
        url = pictures.get(mistake.key)
        picture = (
            f'<img src="{url}" alt="">' if url else '<div class="blank">cannot be decoded</div>'
        )
    own = "below the five" if mistake.probability is None else f"{100 * mistake.probability:.1f} %"
    return (
        f'<div class="tile">{picture}<p><b>{markup.escaped(mistake.name)}</b> '
        f"<small>its class, {own}</small></p>"
        f"<p>{markup.escaped(mistake.taken_for)} "
        f"<small>the answer, {100 * mistake.taken_for_probability:.1f} %</small>"
        f"<small>{markup.escaped(mistake.key)}</small></p></div>\n"
    )
