"""The state of a run: network, optimiser, averages and position. What a checkpoint holds."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from shards.errors import DamagedData
from training.averaging import Average
from training.batches import DeviceBatch
from training.checkpoint import Best, Checkpoint, Position, Window, current_versions
from training.config import config_values
from training.distributed import sum_integers
from training.evaluate import load_weights
from training.model import build_model, plain_weights
from training.optim import load_optimizer_state, make_optimizer, optimizer_state, set_lr
from training.order_digest import MASK, digest_of, digest_text
from training.schedule import lr_at
from training.session import Session
from training.weights import starting_network


class TrainState:
    """What a run changes while it goes on, on this process."""

    def __init__(self, session: Session, steps: int, start: Checkpoint | None) -> None:
        """At the beginning of a run with `steps` steps an epoch, or where `start` stands."""
        self._session = session
        self._steps = steps
        config, device = session.config, session.device
        device.manual_seed(config.seed)
        self.network = self._built(start)
        self.model: nn.Module = self.network  # what is called: maybe wrapped, maybe compiled
        self._parallel: DistributedDataParallel | None = None
        if session.world.size > 1:
            self._parallel = DistributedDataParallel(self.network, **device.ddp_arguments())
            self.model = self._parallel
        if config.compile:
            self.model = device.compiled(self.model, session.progress.note)
        self.optimizer = make_optimizer(self.network, config.recipe, device, session.progress.note)
        self.scaler = device.grad_scaler(session.precision, config.recipe.loss_scale)
        self.average = Average(self.network, config.ema) if config.ema else None
        self.epoch, self.step, self.samples = 0, 0, 0
        self.best: Best | None = None
        self.left_out: list[Window] = []  # by --on-nonfinite rollback
        self._order_shared = 0  # digest of the epoch so far, over all processes
        self._order_own = 0  # this process's part since the two were last added up
        self._lr_set: float | None = None
        if start is not None:
            self.restore(start)

    def _built(self, start: Checkpoint | None) -> nn.Module:
        session, config = self._session, self._session.config
        classes = len(session.train_set.classes)
        if start is None:
            network = starting_network(config, classes, session.progress.note)
        else:
            network = build_model(config.model, classes, stem=config.stem)
        return network.to(session.device.torch_device).to(memory_format=torch.channels_last)

    # --- in and out of checkpoints ---

    def restore(self, start: Checkpoint) -> None:
        """Stand where a checkpoint stands. Raises DamagedData where it does not fit."""
        if start.position.epoch and self._session.config.recipe.momentum and not start.optimizer:
            raise DamagedData("the checkpoint has lost the optimiser's state; use another one")
        load_weights(self.network, start)
        self.optimizer.state.clear()
        load_optimizer_state(self.optimizer, self.network, start.optimizer)
        if self.scaler.is_enabled() and start.scaler:
            self.scaler.load_state_dict(start.scaler)
        if self.average is not None:
            self._restore_average(self.average, start)
        torch.set_rng_state(start.rng["torch"])
        position = start.position
        self.epoch, self.step, self.samples = position.epoch, position.step, position.samples
        self._order_shared, self._order_own = int(position.order, 16), 0
        self.best, self.left_out = start.best, list(start.left_out)
        if self.step > self._steps:
            raise DamagedData(
                f"the checkpoint stands at step {self.step} of an epoch of {self._steps}"
            )

    @staticmethod
    def _restore_average(average: Average, start: Checkpoint) -> None:
        try:
            average.network.load_state_dict(start.ema)
        except RuntimeError as error:
            raise DamagedData(
                "the checkpoint's averaged weights (--ema) do not fit its model; use another one"
            ) from error

    def checkpoint(self, order: str) -> Checkpoint:
        """This moment, in tensors of its own. `order` is `order_text`, which all processes ask."""
        session = self._session
        return Checkpoint(
            model=plain_weights(self.network.state_dict()),
            optimizer=optimizer_state(self.optimizer, self.network),
            scaler=dict(self.scaler.state_dict()),
            ema={} if self.average is None else plain_weights(self.average.network.state_dict()),
            rng={"torch": torch.get_rng_state()},
            position=Position(epoch=self.epoch, step=self.step, samples=self.samples, order=order),
            best=self.best,
            left_out=list(self.left_out),
            config=config_values(session.config),
            data=session.data,
            classes=list(session.train_set.classes),
            class_names=list(session.train_set.class_names),
            versions=current_versions(),
        )

    def weights_are_finite(self) -> bool:
        """Whether every weight is a number; waits for the device. Equal on all processes."""
        weights: Sequence[torch.Tensor] = [each.detach() for each in self.network.parameters()]
        return bool(torch.isfinite(get_total_norm(weights)))

    # --- position ---

    @property
    def steps_done(self) -> int:
        """Optimiser steps since the run began."""
        return self.epoch * self._steps + self.step

    @property
    def place(self) -> tuple[int, int]:
        """(epochs that are over, steps of the next one)."""
        return self.epoch, self.step

    def is_left_out(self) -> bool:
        """Whether the step that comes next was left out after a loss that was not finite."""
        return any(
            epoch == self.epoch and first <= self.step < last
            for epoch, first, last in self.left_out
        )

    def consumed(self, batch: DeviceBatch) -> None:
        """Move on by a step, whose samples are these."""
        self._order_own += digest_of(batch.host.positions, batch.host.samples)
        self.step += 1
        self.samples += batch.host.global_size

    def next_epoch(self) -> None:
        """Stand at the beginning of the epoch that follows."""
        self.epoch, self.step, self._order_shared = self.epoch + 1, 0, 0

    def order(self) -> int:
        """The digest of the epoch so far, over all processes, who call it together."""
        (own,) = sum_integers([self._order_own], self._session.world)
        self._order_shared = (self._order_shared + own) & MASK
        self._order_own = 0
        return self._order_shared

    def order_text(self) -> str:
        """`order` as the log and checkpoints hold it."""
        return digest_text(self.order())

    # --- training ---

    @property
    def lr(self) -> float:
        """The learning rate of the step that comes next."""
        return lr_at(self._session.config.schedule, self.epoch, self.step, self._steps)

    def set_lr(self) -> float:
        """Use the learning rate of the step that comes next, and say it."""
        lr = self.lr
        if lr != self._lr_set:
            set_lr(self.optimizer, lr)
            self._lr_set = lr
        return lr

    def unsynchronized(self) -> AbstractContextManager[None]:
        """Where gradients stay on this process."""
        return contextlib.nullcontext() if self._parallel is None else self._parallel.no_sync()
