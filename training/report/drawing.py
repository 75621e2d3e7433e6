"""Figures of curves, drawn by matplotlib: SVG for the page, PNG for elsewhere.

The SVG's colours are variables of the page's style sheet, so one drawing serves light and dark;
it holds no text but figures, so nothing of a run's names has to be trusted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from training.extras import load_extra
from training.report.curves import By, Figure, Series
from training.report.history import Run

WIDTH, HEIGHT = 400, 224  # of a figure, in units of its SVG
BOX = (46, 10, 344, 184)  # of its axes: left, top, width, height
COLOURS = 6
_LEGEND_ROW = 22  # units
_COLUMNS = 3
_FEW_DECADES = 300.0  # up to this span an axis has room for 2 and 5 between powers of ten
_LEAST_PERCENT = 5.0  # that an axis of a share reaches

# A run's dashes: the first three runs have none, the next three short ones, ...
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of a drawing."""

    ink: str
    grid: str
    paper: str
    runs: tuple[str, ...]


# Told apart with any common colour blindness, after Okabe and Ito (jfly.uni-koeln.de/color).
LIGHT = Theme(
    ink="#4a5058",
    grid="#e3e6ea",
    paper="#ffffff",
    runs=("#0072b2", "#d55e00", "#009e73", "#aa4499", "#d99a00", "#6b7480"),
)
# Stand-ins that become variables of the style sheet.
_VARIABLES = Theme(
    ink="#010101",
    grid="#010102",
    paper="#010103",
    runs=tuple(f"#0101{number:02x}" for number in range(16, 16 + COLOURS)),
)


def dashes(run: int) -> Any:
    """The pattern of a run's line: with its colour it is that run's alone among the first 12."""
    return _DASHES[run // 3 % len(_DASHES)]


def svg(figure: Figure, by: By) -> tuple[str, list[float], list[float]]:
    """(the figure as an <svg> element, the limits of its x axis, those of its y axis)."""
    with _settings(salt=f"{figure.plot.title} by {by}"):
        sheet = _sheet(WIDTH, HEIGHT)
        left, top, width, height = BOX
        axes = sheet.add_axes(
            (left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT)
        )
        _draw(axes, figure, by, _VARIABLES)
        file = io.StringIO()
        sheet.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        limits = [[float(end) for end in pair] for pair in (axes.get_xlim(), axes.get_ylim())]
        return _cleaned(file.getvalue()), limits[0], limits[1]


def png(figures: Sequence[Figure], runs: Sequence[Run]) -> bytes:
    """All figures by epoch, and the accuracy by time, on one sheet with a legend."""
    panels: list[tuple[Figure, By]] = [(figure, "epoch") for figure in figures]
    panels += [(figure, "time") for figure in figures if figure.plot.title.startswith("Top-1")]
    rows = -(-len(panels) // _COLUMNS)
    names = [_shortened(run.name) for run in runs]
    legend = _LEGEND_ROW * -(-len(names) // _COLUMNS)
    height = rows * (HEIGHT + 24) + legend
    with _settings(salt="sheet"):
        sheet = _sheet(_COLUMNS * WIDTH, height, layout="constrained")
        sheet.set_facecolor(LIGHT.paper)
        sheet.get_layout_engine().set(rect=(0, 0, 1, 1 - legend / height), w_pad=0.1, h_pad=0.1)
        for place, (figure, by) in enumerate(panels, 1):
            axes = sheet.add_subplot(rows, _COLUMNS, place)
            unit = f", {figure.plot.unit}" if figure.plot.unit else ""
            axes.set_title(figure.plot.title + unit, loc="left", fontsize=11, color=LIGHT.ink)
            axes.set_title(figure.about, loc="right", fontsize=7.5, color=LIGHT.ink)
            _draw(axes, figure, by, LIGHT)
        _add_legend(sheet, names)
        file = io.BytesIO()
        sheet.savefig(file, format="png", dpi=144)
        return file.getvalue()


def _add_legend(sheet: Any, names: Sequence[str]) -> None:
    lines = load_extra("matplotlib.lines", needed_by="report", extra="report")
    handles = [
        lines.Line2D([], [], color=LIGHT.runs[run % COLOURS], linestyle=dashes(run), linewidth=2)
        for run in range(len(names))
    ]
    legend = sheet.legend(
        handles,
        ["run"] * len(names),
        loc="upper left",
        ncols=min(_COLUMNS, len(names)),
        frameon=False,
        handlelength=3,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
        text.set_color(LIGHT.ink)


def _shortened(name: str) -> str:
    printable = "".join(each if each.isprintable() else " " for each in name)
    return printable if len(printable) <= 48 else f"...{printable[-45:]}"


@contextmanager
def _settings(*, salt: str) -> Iterator[None]:
    """matplotlib's settings for one drawing: text stays text, names of parts are its own."""
    matplotlib = load_extra("matplotlib", needed_by="report", extra="report")
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 10, "text.usetex": False}
    ):
        yield


def _sheet(width: int, height: int, **options: Any) -> Any:
    """An empty figure of so many units; one is a point."""
    module = load_extra("matplotlib.figure", needed_by="report", extra="report")
    return module.Figure(figsize=(width / 72, height / 72), dpi=72, **options)


def _draw(axes: Any, figure: Figure, by: By, theme: Theme) -> None:
    strong = {series.run: series.curve for series in figure.series}  # the last of each run
    for series in figure.series:
        faint = strong[series.run] is not series.curve
        _draw_series(axes, series, by, theme, faint=faint, stepped=figure.plot.is_stepped)
    if figure.plot.title.startswith("Top-1"):
        _ring_the_best(axes, figure, by, theme)
    if figure.is_log:
        ticker = load_extra("matplotlib.ticker", needed_by="report", extra="report")
        axes.set_yscale("log")
        few = figure.span < _FEW_DECADES
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
    elif figure.plot.from_zero:
        most = 1.06 * max(value for series in figure.series for value in series.values)
        least = _LEAST_PERCENT if figure.plot.unit == "%" else 0.0  # a hundredth is no alarm
        axes.set_ylim(0, max(most, least) or 1.0)
    axes.set_xlim(left=0)
    axes.set_xlabel("epochs" if by == "epoch" else figure.time_unit, color=theme.ink, labelpad=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_figure)
        axis.set_minor_formatter(_no_figure)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.ink, length=0, pad=4)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.ink)
        spine.set_linewidth(0.8)


def _figure(value: float, _: object) -> str:
    return f"{value:,.6g}"


def _no_figure(*_: object) -> str:
    return ""


def _draw_series(
    axes: Any, series: Series, by: By, theme: Theme, *, faint: bool, stepped: bool
) -> None:
    few = len(series.values) <= 60
    axes.plot(
        series.places(by),
        series.values,
        color=theme.runs[series.run % COLOURS],
        linestyle=dashes(series.run),
        linewidth=1.1 if faint else 1.8,
        marker="o" if (few and series.curve.kind == "eval") or len(series.values) == 1 else None,
        markersize=3.6,
        solid_joinstyle="round",
        drawstyle="steps-pre" if stepped else "default",
        gid=f"run-{series.run}",
    )


def _ring_the_best(axes: Any, figure: Figure, by: By, theme: Theme) -> None:
    for series in {series.run: series for series in figure.series}.values():
        best = series.values.index(max(series.values))
        axes.plot(
            series.places(by)[best],
            series.values[best],
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=1.4,
            color=theme.runs[series.run % COLOURS],
            gid=f"run-{series.run}",
        )


def _cleaned(text: str) -> str:
    """The <svg> element alone: no prolog, no metadata, colours as variables, few names of parts."""
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="run-(\d+)"', r' class="run" data-run="\1"', text)
    # What else has a name is referred to (clipping, marks) or is not needed.
    text = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text, count=1)
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.DOTALL)  # the page's, for all
    text = re.sub(r" font-family: [^;]*;", "", text)
    names = {_VARIABLES.ink: "ink-2", _VARIABLES.grid: "grid", _VARIABLES.paper: "card"}
    names |= {colour: f"run-{number}" for number, colour in enumerate(_VARIABLES.runs)}
    for colour, name in names.items():
        text = text.replace(colour, f"var(--{name})")
    return text
