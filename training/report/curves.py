"""What is drawn of runs: which values, in which unit, as how many points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from training.report.history import Line, Run, number

_MOST_POINTS = 240  # of a curve; more would not be seen in a figure of 400 pixels

By: TypeAlias = Literal["epoch", "time"]
TimeUnit: TypeAlias = Literal["minutes", "hours"]
Weight: TypeAlias = Callable[[Line], float]


def _steps(line: Line) -> float:
    return number(line, "steps") or 1.0


def _seconds(line: Line) -> float:
    """Proportional to the time that the line's steps took."""
    return _steps(line) / max(number(line, "images_per_second") or 1.0, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value of the log's lines; `weight` is what it is averaged over."""

    kind: Literal["step", "eval"]
    key: str
    name: str
    weight: Weight = _steps
    averaged: bool = False  # of the averaged weights, which only some runs have

    def value(self, line: Line) -> float | None:
        """What a line says of it."""
        within = line.get("ema") if self.averaged else line
        return number(within, self.key) if isinstance(within, Mapping) else None


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure: curves on one pair of axes."""

    title: str
    unit: str  # of the values, as said after a figure
    about: str
    curves: tuple[Curve, ...]
    scale: float = 1.0  # from the log's unit to that of the figure
    from_zero: bool = False
    may_be_log: bool = False  # where the largest value is more than ten times the least
    if_averaged: str = ""  # said as well where a run has averaged weights
    is_stepped: bool = False  # whether a value holds until the one before it


PLOTS = (
    Plot(
        title="Loss",
        unit="",
        about="thin: training, as trained; with points: validation",
        curves=(
            Curve(kind="step", key="loss", name="training"),
            Curve(kind="eval", key="loss", name="validation"),
            Curve(kind="eval", key="loss", name="validation, averaged weights", averaged=True),
        ),
        may_be_log=True,
    ),
    Plot(
        title="Top-1 accuracy",
        unit="%",
        about="ring: the best",
        if_averaged="thin: trained, not averaged weights",
        curves=(
            Curve(kind="eval", key="top1", name="trained weights"),
            Curve(kind="eval", key="top1", name="averaged weights", averaged=True),
        ),
    ),
    Plot(
        title="Top-5 accuracy",
        unit="%",
        about="the right class is among the best five",
        if_averaged="thin: trained, not averaged weights",
        curves=(
            Curve(kind="eval", key="top5", name="trained weights"),
            Curve(kind="eval", key="top5", name="averaged weights", averaged=True),
        ),
    ),
    Plot(
        title="Learning rate",
        unit="",
        about="for the global batch",
        curves=(Curve(kind="step", key="lr", name="learning rate"),),
        from_zero=True,
        is_stepped=True,
    ),
    Plot(
        title="Speed",
        unit="images/s",
        about="training, over all processes",
        curves=(Curve(kind="step", key="images_per_second", name="speed", weight=_seconds),),
        from_zero=True,
    ),
    Plot(
        title="Waiting for data",
        unit="%",
        about="of the training time of one process",
        curves=(Curve(kind="step", key="wait_share", name="waiting", weight=_seconds),),
        scale=100.0,
        from_zero=True,
    ),
    Plot(
        title="Peak memory",
        unit="GB",
        about="of one device",
        curves=(Curve(kind="step", key="peak_memory", name="memory"),),
        scale=1e-9,
        from_zero=True,
    ),
    Plot(
        title="Gradient norm",
        unit="",
        about="of the last step before each line of the log",
        curves=(Curve(kind="step", key="grad_norm", name="norm"),),
        from_zero=True,
    ),
    Plot(
        title="Loss scale",
        unit="",
        about="of the fp16 gradient scaler",
        curves=(Curve(kind="step", key="loss_scale", name="scale"),),
        from_zero=True,
        may_be_log=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """The points of one curve of one run."""

    run: int  # its position among the runs
    curve: Curve
    epochs: tuple[float, ...]
    times: tuple[float, ...]  # in the figure's unit of time
    values: tuple[float, ...]

    def places(self, by: By) -> tuple[float, ...]:
        return self.epochs if by == "epoch" else self.times


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot with the runs in it."""

    plot: Plot
    series: tuple[Series, ...]
    time_unit: TimeUnit

    @property
    def about(self) -> str:
        """What is to be known of it."""
        averaged = any(each.curve.averaged for each in self.series)
        parts = [self.plot.about, self.plot.if_averaged if averaged else ""]
        return "; ".join([*filter(None, parts), *(["logarithmic"] if self.is_log else [])])

    @property
    def span(self) -> float:
        """The largest value as a multiple of the least; 0 where that is none."""
        values = [value for each in self.series for value in each.values]
        return max(values) / min(values) if min(values) > 0 else 0.0

    @property
    def is_log(self) -> bool:
        return self.plot.may_be_log and self.span > 10


def figures_of(runs: Sequence[Run]) -> list[Figure]:
    """Every plot for which at least one run has values."""
    found = []
    unit: TimeUnit = "minutes" if max(run.hours for run in runs) < 2 else "hours"
    an_hour = 60.0 if unit == "minutes" else 1.0
    for plot in PLOTS:
        each = [
            _series(place, run, curve, plot.scale, an_hour)
            for place, run in enumerate(runs)
            for curve in plot.curves
        ]
        series = tuple(one for one in each if one.values)
        if series:
            found.append(Figure(plot=plot, series=series, time_unit=unit))
    return found


def _series(place: int, run: Run, curve: Curve, scale: float, an_hour: float) -> Series:
    points = run.steps if curve.kind == "step" else run.evals
    known = [(point, curve.value(point.line)) for point in points]
    rows = [
        (point.epoch, point.hours * an_hour, value * scale, curve.weight(point.line))
        for point, value in known
        if value is not None
    ]
    if curve.kind == "step":
        rows = list(_thinned(rows))
    return Series(
        run=place,
        curve=curve,
        epochs=tuple(row[0] for row in rows),
        times=tuple(row[1] for row in rows),
        values=tuple(row[2] for row in rows),
    )


_Row: TypeAlias = tuple[float, float, float, float]  # epoch, time, value, weight


def _thinned(rows: Sequence[_Row]) -> Iterable[_Row]:
    """At most _MOST_POINTS rows: neighbours become their weighted mean, at the last one's place."""
    together = -(-len(rows) // _MOST_POINTS) or 1
    for first in range(0, len(rows), together):
        group = rows[first : first + together]
        weight = sum(row[3] for row in group)
        mean = sum(row[2] * row[3] for row in group) / weight
        yield group[-1][0], group[-1][1], mean, weight
