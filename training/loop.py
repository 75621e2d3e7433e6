"""The loop over steps and epochs of one run, and its state.

The state is what a checkpoint holds. Nothing in a step waits for the device; the host reads
the loss at log lines and before saving, so that no checkpoint ever follows a loss that was
not finite.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError
from shards.loader import Loader
from shards.progress import Progress
from shards.stream import StreamLoader
from shards.transform import EvalTransform
from training.batches import DeviceBatch, Normalizer, on_device
from training.checkpoint import Best, Checkpoint, Position, current_versions
from training.config import TrainConfig, config_values
from training.device import Device, Precision
from training.distributed import World, from_main, sum_integers
from training.evaluate import Evaluation, evaluate, load_weights
from training.log import RunLog
from training.meter import Meter
from training.model import build_model, plain_weights
from training.optim import load_momentum, make_sgd, momentum_state, set_lr
from training.order_digest import MASK, digest_of, digest_text
from training.run_folder import RunFolder
from training.schedule import lr_at
from training.train_set import TrainSet, order_of_epoch, samples_of_epoch

Record = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a run has around it, fixed while it runs."""

    config: TrainConfig
    device: Device
    precision: Precision
    world: World
    train_set: TrainSet
    val_set: Dataset
    folder: RunFolder
    progress: Progress  # silent on all ranks but 0
    on_record: Callable[[Record], None]

    @property
    def data(self) -> dict[str, Any]:
        """What tells this data from other data; part of every checkpoint."""
        return {
            "train": self.train_set.digest,
            "val": self.val_set.digest,
            "train_samples": self.train_samples,
            "val_samples": len(self.val_set),
        }

    @property
    def train_samples(self) -> int:
        """Samples of an epoch."""
        return samples_of_epoch(self.train_set, self.config.global_batch)


def share_of_loss(
    logits: Tensor, labels: Tensor, *, label_smoothing: float, global_size: int, world: int
) -> tuple[Tensor, Tensor]:
    """(loss to call backward on, mean loss over these samples).

    DistributedDataParallel averages gradients over processes as if their shares were equal;
    the first value weighs this process's mean by its true share, so the averaged gradient is
    that of the mean loss over the global batch however it is cut.
    """
    loss = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return loss * (len(labels) * world / global_size), loss


class Loop:
    """A run under way: network, optimiser, position, best result."""

    def __init__(
        self,
        session: Session,
        loader: Loader | StreamLoader,
        log: RunLog | None,
        start: Checkpoint | None,
    ) -> None:
        """Begin at the beginning, or where the checkpoint `start` stands. `log` is rank 0's."""
        self.session = session
        self.epoch, self.step, self.samples = 0, 0, 0
        self.best: Best | None = None
        self.evaluation: Evaluation | None = None  # the latest of this process
        self.saved: Path | None = None  # the latest checkpoint of this process
        self._order_shared = 0  # digest of the epoch so far, over all processes
        self._order_own = 0  # this process's part since the two were last added up
        self._loader = loader
        self._log = log
        self._build(start)
        if start is not None:
            self._take_position(start)
        self._meter = Meter(session.world, loader)

    def _build(self, start: Checkpoint | None) -> None:
        session, config = self.session, self.session.config
        device = session.device
        device.manual_seed(config.seed)
        network = build_model(
            config.model,
            len(session.train_set.classes),
            init=config.recipe.init,
            seed=config.seed,
        )
        if start is not None:
            load_weights(network, start)
        self._network = network.to(device.torch_device).to(memory_format=torch.channels_last)
        self._model: torch.nn.Module = self._network
        if session.world.size > 1:
            self._model = DistributedDataParallel(self._network, **device.ddp_arguments())
        self._normalize = Normalizer(device.torch_device)
        self._optimizer = make_sgd(self._network, config.recipe, fused=device.fused_sgd)
        self._scaler = device.grad_scaler(session.precision, config.recipe.loss_scale)
        if start is not None:
            load_momentum(self._optimizer, self._network, start.optimizer)
            if self._scaler.is_enabled() and start.scaler:
                self._scaler.load_state_dict(start.scaler)
            torch.set_rng_state(start.rng["torch"])

    def _take_position(self, start: Checkpoint) -> None:
        position = start.position
        self.epoch, self.step, self.samples = position.epoch, position.step, position.samples
        self._order_shared = int(position.order, 16)
        self.best = start.best
        if self.step > self._loader.steps:
            raise DamagedData(
                f"the checkpoint stands at step {self.step} of an epoch of {self._loader.steps}"
            )

    def run(self) -> Literal["finished", "max-steps"]:
        """Train to the end of the last epoch, or until --max-steps."""
        while self.epoch < self.session.config.epochs:
            if self._train_epoch():
                self._finish_epoch()
            if self._out_of_steps():
                return "max-steps"
        return "finished"

    def emit(self, kind: str, values: Mapping[str, object]) -> None:
        """Write a line of the log at the present position, and show it."""
        if self._log is None:
            return
        record = self._log.write(kind, {"epoch": self.epoch, "step": self.step, **values})
        self.session.on_record(record)

    def _out_of_steps(self) -> bool:
        limit = self.session.config.max_steps
        return limit is not None and self.epoch * self._loader.steps + self.step >= limit

    def _train_epoch(self) -> bool:
        """Train what is left of the epoch. False where --max-steps ended it early, saved."""
        session, config = self.session, self.session.config
        set_lr(self._optimizer, self._lr())
        self._model.train()
        session.progress.start(
            f"epoch {self.epoch + 1}/{config.epochs}",
            self._loader.steps * config.global_batch
            if config.recipe.drop_last
            else session.train_samples,
            "images",
        )
        session.progress.advance(self.step * config.global_batch)
        self._meter.restart()
        batches = on_device(self._loader.epoch(self.epoch, self.step), session.device)
        with contextlib.closing(batches):
            for batch in batches:
                self._train_step(batch)
                if self.step == self._loader.steps:
                    break
                if self._out_of_steps():
                    self._save()
                    return False
                if config.save_steps and self.step % config.save_steps == 0:
                    self._save()
                elif self.step % config.log_every == 0:
                    self._report()
        return True

    def _train_step(self, batch: DeviceBatch) -> None:
        session = self.session
        with session.device.autocast(session.precision):
            scaled, loss = share_of_loss(
                self._model(self._normalize(batch.images)),
                batch.labels,
                label_smoothing=session.config.recipe.label_smoothing,
                global_size=batch.host.global_size,
                world=session.world.size,
            )
        self._scaler.scale(scaled).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._meter.add(loss, len(batch.labels), batch.host.global_size)
        self._order_own += digest_of(batch.host.positions, batch.host.samples)
        self.step += 1
        self.samples += batch.host.global_size
        session.progress.advance(batch.host.global_size)

    def _report(self) -> None:
        """Read the meter, refuse a loss that is not finite, and log the interval."""
        if self._meter.steps == 0:
            return
        interval = self._meter.read()
        if not math.isfinite(interval.loss):
            raise ToolError(
                f"the loss is not finite ({interval.loss}) at or before step {self.step} of epoch "
                f"{self.epoch + 1}, and training stopped; the checkpoints are from before: start "
                "anew with a smaller --lr, or with --amp off"
            )
        self.emit(
            "step",
            {
                "samples": self.samples,
                "steps": interval.steps,
                "loss": interval.loss,
                "lr": self._lr(),
                "images_per_second": interval.images_per_second,
                "wait_share": interval.wait_share,
                "loss_scale": self._scaler.get_scale() if self._scaler.is_enabled() else None,
                "peak_memory": self.session.device.peak_memory(),
            },
        )

    def _lr(self) -> float:
        config = self.session.config
        return lr_at(self.epoch, peak=config.lr, warmup=config.warmup, epochs=config.epochs)

    def _finish_epoch(self) -> None:
        """Prove the order, evaluate, log, and save at the start of the next epoch."""
        self._report()
        used, order = self._check_order()
        self.evaluation = self._evaluate()
        improved = self.best is None or self.evaluation.top1_count > self.best.top1_count
        if improved:
            self.best = Best(
                epoch=self.epoch + 1,
                top1_count=self.evaluation.top1_count,
                top5_count=self.evaluation.top5_count,
                samples=self.evaluation.samples,
                loss=self.evaluation.loss,
            )
        self.epoch, self.step, self._order_shared = self.epoch + 1, 0, 0
        self.emit("epoch", {"samples": self.samples, "consumed": used, "order": order})
        self.emit(
            "eval",
            {
                "samples": self.evaluation.samples,
                "top1": self.evaluation.top1,
                "top5": self.evaluation.top5,
                "top1_count": self.evaluation.top1_count,
                "top5_count": self.evaluation.top5_count,
                "loss": self.evaluation.loss,
                "best": improved,
            },
        )
        self._save()

    def _check_order(self) -> tuple[int, str]:
        """(samples consumed in this epoch, their digest); raises where it is not the plan's."""
        session, config = self.session, self.session.config
        used = min(self._loader.steps * config.global_batch, session.train_samples)
        order = self._order()
        expected = order_of_epoch(session.train_set, seed=config.seed, epoch=self.epoch, used=used)
        if order != expected:
            raise ToolError(
                f"epoch {self.epoch + 1} did not consume the samples it should have (order "
                f"{digest_text(order)}, expected {digest_text(expected)}); report this"
            )
        return used, digest_text(order)

    def _order(self) -> int:
        """The digest of the epoch so far, over all processes."""
        (own,) = sum_integers([self._order_own], self.session.world)
        self._order_shared = (self._order_shared + own) & MASK
        self._order_own = 0
        return self._order_shared

    def _evaluate(self) -> Evaluation:
        session, config = self.session, self.session.config
        return evaluate(
            self._network,
            session.val_set,
            EvalTransform(
                image_size=config.image_size,
                resize=config.recipe.eval_short_side(config.image_size),
            ),
            global_batch=config.global_batch,
            threads=config.threads,
            device=session.device,
            precision=session.precision,
            world=session.world,
            progress=session.progress,
        )

    def _save(self) -> None:
        """Write a checkpoint of this moment; all processes learn whether it worked."""
        self._report()
        if self._log is not None:
            self._log.sync()
        order = digest_text(self._order())
        keep = self.session.config.keep
        self.saved = from_main(
            lambda: self.session.folder.save(self._checkpoint(order), keep=keep),
            self.session.world,
        )
        self._meter.restart()

    def _checkpoint(self, order: str) -> Checkpoint:
        session = self.session
        return Checkpoint(
            model=plain_weights(self._network.state_dict()),
            optimizer=momentum_state(self._optimizer, self._network),
            scaler=dict(self._scaler.state_dict()),
            rng={"torch": torch.get_rng_state()},
            position=Position(epoch=self.epoch, step=self.step, samples=self.samples, order=order),
            best=self.best,
            config=config_values(session.config),
            data=session.data,
            classes=list(session.train_set.classes),
            class_names=list(session.train_set.class_names),
            versions=current_versions(),
        )
