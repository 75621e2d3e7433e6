"""What a run tells of itself: lines of the log, which go to every listener. Rank 0 speaks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from torch import Tensor

from shards.progress import duration
from training.checkpoint import Best
from training.evaluate import Evaluation
from training.log import RunLog
from training.meter import Interval
from training.session import Session
from training.sinks import Sink, open_sinks
from training.state import TrainState

_FORECAST_STEPS = 20  # after so many of this call the run's duration is told


class Reporter:
    """Writes the lines of a run's log at its present position and shows them."""

    def __init__(self, session: Session, state: TrainState) -> None:
        self._session = session
        self._state = state
        self.log: RunLog | None = None  # of rank 0, once it is open
        self._sinks: list[Sink] = []
        self._behind = False  # whether it was said that the disk does not take the log
        self._timed_from: tuple[int, float] | None = None  # steps done, and when
        self._forecast_told = False

    def open(self) -> None:
        """Open the log where the run stands; on rank 0 alone. On others nothing is said."""
        session, state = self._session, self._state
        self.log = RunLog(session.folder.log, state.place)
        self._sinks = open_sinks(
            session.folder.path,
            tensorboard=session.config.tensorboard,
            steps_done=state.steps_done,
        )

    def close(self) -> None:
        """Make durable what was said."""
        for sink in self._sinks:
            sink.close()
        if self.log is not None:
            self.log.close()

    def emit(self, kind: str, values: Mapping[str, object]) -> None:
        """Write a line at the present position, and show it."""
        if self.log is None:
            return
        state = self._state
        record = self.log.write(kind, {"epoch": state.epoch, "step": state.step, **values})
        if self.log.failure is not None and not self._behind:
            self._session.progress.note(
                f"{self._session.folder.log} takes no more lines ({self.log.failure.strerror}); "
                "they wait until there is room, and training goes on"
            )
        self._behind = self.log.failure is not None
        for sink in self._sinks:
            sink.write(record, state.steps_done)
        self._session.on_record(record)

    def steps(self, interval: Interval, *, lr: float, grad_norm: Tensor | None) -> None:
        """The line of the steps since the one before. Reads numbers off the device."""
        session, state = self._session, self._state
        rate = interval.images_per_second
        self.emit(
            "step",
            {
                "samples": state.samples,
                "steps": interval.steps,
                "loss": interval.loss,
                "lr": lr,
                "grad_norm": None if grad_norm is None else float(grad_norm),
                "images_per_second": rate,
                "images_per_second_device": rate / session.world.size,
                "step_seconds": interval.seconds / interval.steps,
                "wait_share": interval.wait_share,
                "left_out": interval.samples - interval.trained,
                "loss_scale": state.scaler.get_scale() if state.scaler.is_enabled() else None,
                "peak_memory": session.device.peak_memory(),
            },
        )

    def evaluation(
        self,
        found: Evaluation,
        averaged: Evaluation | None,
        *,
        seconds: float,
        improved: bool,
    ) -> None:
        """The line of an epoch's evaluation, of the weights and of their average."""
        rate = found.samples * (1 if averaged is None else 2) / seconds
        self.emit(
            "eval",
            {
                "samples": found.samples,
                **_results(found),
                "ema": None if averaged is None else _results(averaged),
                "images_per_second": rate,
                "images_per_second_device": rate / self._session.world.size,
                "best": improved,
            },
        )

    def end(self, reason: str, seconds: float, why: str | None = None) -> None:
        """The last line; `why` says what was wrong where something was."""
        best = self._state.best
        self.emit(
            "end",
            {
                "reason": reason,
                "why": why,
                "seconds": seconds,
                "best": None if best is None else _of(best),
            },
        )

    def rewound(self, place: tuple[int, int], values: Mapping[str, object]) -> None:
        """Take back the lines beyond `place`, where the run stands again, and say why."""
        if self.log is not None:
            self.log.rewind(place)
        self.emit("rollback", values)

    def stepped(self) -> None:
        """A step is done: the first one, which has much to set up, counts in no forecast."""
        if self._timed_from is None:
            self._timed_from = self._state.steps_done, time.monotonic()

    def is_forecast_due(self) -> bool:
        """Whether enough steps are done to say how long the rest of the run will take."""
        return not self._forecast_told and self._steps_timed() + 1 >= _FORECAST_STEPS

    def _steps_timed(self) -> int:
        return 0 if self._timed_from is None else self._state.steps_done - self._timed_from[0]

    def forecast(self, steps_an_epoch: int) -> None:
        """Say once, after a line of steps, how long the rest of the run will take."""
        state, config = self._state, self._session.config
        total = steps_an_epoch * config.epochs
        left = min(total, config.max_steps or total) - state.steps_done
        if self._timed_from is None or not left or not self.is_forecast_due():
            return
        self._forecast_told = True
        seconds = (time.monotonic() - self._timed_from[1]) / self._steps_timed() * left
        self.emit("forecast", {"steps_left": left, "seconds_left": seconds})
        self._session.progress.note(
            f"{left:,} steps are left, which take about {duration(seconds)} at the speed of the "
            "first ones; evaluations come on top"
        )


def _results(found: Evaluation) -> dict[str, object]:
    return {
        "top1": found.top1,
        "top5": found.top5,
        "top1_count": found.top1_count,
        "top5_count": found.top5_count,
        "loss": found.loss,
    }


def _of(best: Best) -> dict[str, object]:
    return {**dataclasses.asdict(best), "top1": best.top1}
