"""The loop over steps and epochs of one run.

Nothing in a step waits for the device; the host reads the loss at log lines and before
saving, so that no checkpoint ever follows a loss or holds a weight that was not finite.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import Literal

from torch import Tensor

from shards.errors import ToolError
from training.batches import DeviceBatch, on_device
from training.checkpoint import Best, load_checkpoint
from training.distributed import from_main
from training.evaluate import Evaluation, evaluate
from training.meter import Meter
from training.order_digest import digest_text
from training.profiling import profiled
from training.reporting import Reporter
from training.saving import Saver
from training.session import Session
from training.state import TrainState
from training.step import Stepper
from training.train_set import TrainLoader, eval_transform, order_of_epoch
from training.verdict import Agreement, Verdict

Outcome = Literal["finished", "max-steps", "patience", "signal", "max-time"]

_SKIPS_AT_MOST = 50  # steps in a row: an fp16 scaler finds its scale within 20
_ROLLBACKS_AT_MOST = 3  # to one checkpoint
_STOPS: dict[Verdict, Outcome] = {
    Verdict.STOP_BY_SIGNAL: "signal",
    Verdict.STOP_BY_TIME: "max-time",
}


class _NotFiniteError(Exception):
    """A loss or a weight is not a number, on all processes alike."""


class _StopError(Exception):
    """All processes are to stop, at a moment that is saved."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome: Outcome = outcome


class Loop:
    """A run under way, from where its state is to its end."""

    def __init__(
        self,
        session: Session,
        *,
        loader: TrainLoader,
        state: TrainState,
        reporter: Reporter,
        saver: Saver,
        agreement: Agreement,
    ) -> None:
        self.state = state
        self.reporter = reporter
        self.saver = saver
        self.evaluation: Evaluation | None = None  # the latest of this process
        self._session = session
        self._loader = loader
        self._agreement = agreement
        self._stepper = Stepper(session, state)
        self._meter = Meter(session.world, loader)
        self._lr = 0.0  # of the last step
        self._grad_norm: Tensor | None = None  # of the last step, where it was measured
        self._interval = (0, 0)  # first step and last + 1 of the latest log interval
        self._rollbacks = 0  # since the last checkpoint

    def run(self) -> Outcome:
        """Train to the end of the last epoch, or until something ends it early, saved."""
        session = self._session
        folder = session.config.profile if session.world.is_main else None
        with profiled(folder, session.device, session.progress.note) as recorded:
            self._recorded = recorded
            while self.state.epoch < session.config.epochs:
                try:
                    stop = self._train_epoch()
                    if stop is None:
                        self._finish_epoch()
                        stop = self._stop_after_epoch()
                except _StopError as stopped:
                    return stopped.outcome
                except _NotFiniteError as found:
                    self._go_back(found)
                    continue
                if stop is not None:
                    return stop
        return "finished"

    # --- steps ---

    def _train_epoch(self) -> Outcome | None:
        """Train what is left of the epoch. Why it ended early, saved, if it did."""
        session, state, config = self._session, self.state, self._session.config
        state.model.train()
        session.progress.start(
            f"epoch {state.epoch + 1}/{config.epochs}",
            self._loader.steps * config.global_batch
            if config.recipe.drop_last
            else session.train_samples,
            "images",
        )
        session.progress.advance(state.step * config.global_batch)
        self._meter.restart()
        batches = on_device(self._loader.epoch(state.epoch, state.step), session.device)
        with contextlib.closing(batches):
            for batch in batches:
                self._train_step(batch)
                if state.step == self._loader.steps:
                    break
                stop = self._after_step()
                if stop is not None:
                    return stop
        stop = _STOPS.get(self._agreement.now())
        if stop is not None:
            self._save()
        return stop

    def _train_step(self, batch: DeviceBatch) -> None:
        state, size = self.state, batch.host.global_size
        if state.is_left_out():
            self._meter.add(None, size)
            self._grad_norm = None
        else:
            self._lr = state.set_lr()
            measure = self._is_logged(state.step + 1)
            self._meter.add(self._stepper.step(batch, measure=measure), size)
            self._grad_norm = self._stepper.grad_norm
        state.consumed(batch)
        self._session.progress.advance(size)
        self.reporter.stepped()
        self.saver.look()
        self._recorded()

    def _is_logged(self, step: int) -> bool:
        """Whether a log line comes after so many steps of the epoch, whatever happens."""
        return step % self._session.config.log_every == 0 or step == self._loader.steps

    def _after_step(self) -> Outcome | None:
        """Stop, save or report, as the moment wants it, before the epoch's last step."""
        config, step = self._session.config, self.state.step
        if self._out_of_steps():
            self._save()
            return "max-steps"
        verdict = self._agreement.after_step()
        if verdict in _STOPS:
            self._save()
            return _STOPS[verdict]
        if verdict is Verdict.SAVE or (config.save_steps and step % config.save_steps == 0):
            self._save()
        elif step % config.log_every == 0 or self.reporter.is_forecast_due():
            self._report()
        return None

    def _out_of_steps(self) -> bool:
        limit = self._session.config.max_steps
        return limit is not None and self.state.steps_done >= limit

    def _report(self) -> None:
        """Read the meter, look at the loss, and log the interval."""
        if self._meter.steps == 0:
            return
        last = self.state.step
        interval = self._meter.read()
        self._interval = (last - interval.steps, last)
        if interval.trained and not math.isfinite(interval.loss):
            raise _NotFiniteError(f"the loss is not finite ({interval.loss})")
        if self._stepper.skipped_in_a_row >= _SKIPS_AT_MOST:
            raise ToolError(
                f"the last {self._stepper.skipped_in_a_row} steps were skipped, because their "
                "gradients were not finite; start anew with a smaller --lr, or with --amp off"
            )
        self.reporter.steps(interval, lr=self._lr, grad_norm=self._grad_norm)
        self.reporter.forecast(self._loader.steps)

    # --- epochs ---

    def _finish_epoch(self) -> None:
        """Prove the order, save, evaluate, log, and save at the start of the next epoch.

        An evaluation may be long, and a damaged picture may end it: what was trained before it is
        written beside it.
        """
        state = self.state
        used, order = self._check_order()
        trained = state.place
        self._save()
        started = time.perf_counter()
        self.evaluation = self._evaluate(average=False)
        averaged = None if state.average is None else self._evaluate(average=True)
        seconds = max(time.perf_counter() - started, 1e-9)
        improved = self._note_best(averaged or self.evaluation)
        state.next_epoch()
        self.reporter.emit("epoch", {"samples": state.samples, "consumed": used, "order": order})
        self.reporter.evaluation(self.evaluation, averaged, seconds=seconds, improved=improved)
        self._save(instead_of=trained)

    def _note_best(self, found: Evaluation) -> bool:
        """Whether this epoch's result is the best so far; of averaged weights where there are."""
        state = self.state
        if state.best is not None and found.top1_count <= state.best.top1_count:
            return False
        state.best = Best(
            epoch=state.epoch + 1,
            top1_count=found.top1_count,
            top5_count=found.top5_count,
            samples=found.samples,
            loss=found.loss,
            weights="model" if state.average is None else "ema",
        )
        return True

    def _check_order(self) -> tuple[int, str]:
        """(samples consumed in this epoch, their digest); raises where it is not the plan's."""
        session, config, epoch = self._session, self._session.config, self.state.epoch
        used = min(self._loader.steps * config.global_batch, session.train_samples)
        order = self.state.order()
        expected = order_of_epoch(session.train_set, seed=config.seed, epoch=epoch, used=used)
        if order != expected:
            raise ToolError(
                f"epoch {epoch + 1} did not consume the samples it should have (order "
                f"{digest_text(order)}, expected {digest_text(expected)}); report this"
            )
        return used, digest_text(order)

    def _evaluate(self, *, average: bool) -> Evaluation:
        session, state, config = self._session, self.state, self._session.config
        assert state.average is not None or not average
        self._agreement.ask_soon()
        return evaluate(
            state.average.network if average and state.average else state.network,
            session.val_set,
            eval_transform(config),
            global_batch=config.global_batch,
            threads=config.threads,
            device=session.device,
            precision=session.precision,
            world=session.world,
            progress=session.progress,
            after_batch=self._stop_if_asked,
        )

    def _stop_if_asked(self) -> None:
        """Leave an evaluation where all are to stop."""
        stop = _STOPS.get(self._agreement.after_step())
        if stop is not None:
            raise _StopError(stop)

    def _stop_after_epoch(self) -> Outcome | None:
        """Why no further epoch follows, if so. This moment is saved already."""
        config, state = self._session.config, self.state
        if state.epoch >= config.epochs:
            return "finished"
        if self._out_of_steps():
            return "max-steps"
        if out_of_patience(state.epoch, state.best, config.patience):
            return "patience"
        return _STOPS.get(self._agreement.now())

    # --- saving and going back ---

    def _save(self, *, instead_of: tuple[int, int] | None = None) -> None:
        """Begin to write a checkpoint of this moment, in the place of another one if so."""
        state = self.state
        self._report()
        self._check_weights()
        if instead_of is None:  # else the best may be this moment, which is in no file yet
            state.best = self.saver.best()
        order = state.order_text()
        self.saver.save(lambda: state.checkpoint(order), instead_of=instead_of)
        self._agreement.saved()
        self._rollbacks = 0
        self._meter.restart()

    def _check_weights(self) -> None:
        if not self.state.weights_are_finite():
            raise _NotFiniteError("the weights are not finite")

    def _go_back(self, found: _NotFiniteError) -> None:
        """Stand at the last checkpoint again, the steps since the last good line left out."""
        state, config = self.state, self._session.config
        where = f"{found} at or before step {state.step} of epoch {state.epoch + 1}"
        path = self.saver.latest()
        if path is None:
            raise ToolError(
                f"{where}, before anything was saved; start anew with a smaller --lr, or with "
                "--amp off"
            ) from found
        if config.on_nonfinite != "rollback" or self._rollbacks >= _ROLLBACKS_AT_MOST:
            gone_back = f" after going back {self._rollbacks} times" if self._rollbacks else ""
            raise ToolError(
                f"{where}{gone_back}, and training stopped; {path.name} is from before: start "
                "anew with a smaller --lr or --amp off, or give --on-nonfinite rollback"
            ) from found
        window = (state.epoch, *self._interval)
        left_out = [*state.left_out, window]
        self._rollbacks += 1
        state.restore(from_main(lambda: load_checkpoint(path), self._session.world))
        state.left_out = left_out
        self.reporter.rewound(state.place, {"why": str(found), "left_out": list(window)})
        self._session.progress.note(
            f"{where}: going back to {path.name}; steps {window[1] + 1} to {window[2]} of epoch "
            f"{window[0] + 1} will be left out"
        )


def out_of_patience(epoch: int, best: Best | None, patience: int | None) -> bool:
    """Whether `patience` epochs are over since the best one, when `epoch` epochs are."""
    return patience is not None and best is not None and epoch - best.epoch >= patience
