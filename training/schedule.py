"""The learning rate as a pure function of epoch and step: nothing to save, nothing to restore.

"cosine-by-epoch" and "step" are constant within an epoch, the others change with every step.
Warm-up is linear and never starts at 0: its first piece (an epoch, or a step) has one piece's
share of the peak, its last one the peak. "triangular" alone begins at 1/10,000 of the peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["cosine-by-epoch", "cosine", "step", "poly", "triangular"]
_BY_EPOCH = ("cosine-by-epoch", "step")
_TRIANGLE_FOOT = 1e-4  # ffcv-imagenet's get_cyclic_lr starts at this share of the peak


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A learning-rate curve.

    Attributes:
        kind: its form after warm-up: "cosine-by-epoch" and "cosine" fall to `end` along half a
            cosine; "step" is multiplied by `gamma` every `step_epochs` epochs, counted from the
            run's beginning; "poly" falls to `end` as (1 - t)**power; "triangular" is a straight
            line up to the peak at epoch `warmup` and one down to 0.
        peak: the rate after warm-up.
        warmup: epochs of linear warm-up.
        epochs: of the run.
    """

    kind: ScheduleKind
    peak: float
    warmup: int
    epochs: int
    end: float = 0.0
    step_epochs: int = 30
    gamma: float = 0.1
    power: float = 2.0

    @property
    def by_epoch(self) -> bool:
        """Whether the rate is constant within an epoch."""
        return self.kind in _BY_EPOCH


def lr_at(schedule: Schedule, epoch: int, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps` in `epoch`, all counted from 0.

    Sources: NVIDIA DeepLearningExamples' lr_cosine_policy, which the vendor's trainer uses
    ("cosine-by-epoch"); torch's StepLR ("step"); MLPerf's pow2 ("poly"); ffcv-imagenet's
    get_cyclic_lr ("triangular").
    """
    piece = 1.0 if schedule.by_epoch else 1 / steps  # epochs that one rate lasts
    at = epoch if schedule.by_epoch else epoch + step / steps
    if schedule.kind == "triangular":
        return _triangle(schedule, at)
    if epoch < schedule.warmup:
        return schedule.peak * (at + piece) / schedule.warmup
    if schedule.kind == "step":
        return float(schedule.peak * schedule.gamma ** (epoch // schedule.step_epochs))
    done = (at - schedule.warmup) / (schedule.epochs - schedule.warmup)
    if schedule.kind == "poly":
        share = (1 - done) ** schedule.power
    else:
        share = 0.5 * (1 + math.cos(math.pi * done))
    return float(schedule.end + (schedule.peak - schedule.end) * share)


def _triangle(schedule: Schedule, at: float) -> float:
    """The rate `at` so many epochs: up to the peak, down to 0."""
    if at < schedule.warmup:
        foot = _TRIANGLE_FOOT * schedule.peak
        return foot + (schedule.peak - foot) * at / schedule.warmup
    return schedule.peak * (schedule.epochs - at) / (schedule.epochs - schedule.warmup)


def lr_corners(schedule: Schedule, steps: int) -> list[tuple[int, float]]:
    """(epoch, its first step's learning rate) where the curve starts, turns, is half-way, ends."""
    warmup, epochs = schedule.warmup, schedule.epochs
    if schedule.kind == "step":
        turns = set(range(schedule.step_epochs, epochs, schedule.step_epochs))
    else:
        turns = {warmup + (epochs - warmup) // 2}
    # Constant within an epoch, the peak is reached in the last epoch of warm-up; else after it.
    top = max(warmup - 1, 0) if schedule.by_epoch else warmup
    points = sorted({0, top, epochs - 1, *turns})
    return [(epoch, lr_at(schedule, epoch, 0, steps)) for epoch in points if epoch < epochs]
