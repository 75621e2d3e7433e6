"""One optimiser step: a global batch forward and back, in as many parts as memory needs.

However a global batch is cut, over processes and over the parts of each, the gradient is that of
its mean loss: every part's mean is weighed by its true share. Nothing here waits for the
device, but for --on-nonfinite skip, which has to know before it updates anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from training.batches import DeviceBatch, Normalizer
from training.mixing import Mixer
from training.objective import Objective
from training.session import Session
from training.state import TrainState


def cut(count: int, largest: int) -> list[tuple[int, int]]:
    """(first, last + 1) of equal parts of `count` samples with at most `largest` each."""
    parts = -(-count // largest)
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def backward(
    mean_loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    *,
    largest: int,
    global_size: int,
    world: int,
    scale: Callable[[Tensor], Tensor],
    unsynchronized: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Add the gradient of this process's share of a global batch; the sum of its losses.

    DistributedDataParallel averages gradients over processes as if their shares were equal;
    weighing each part by its samples x world / global size makes that average the gradient of
    the mean loss over the global batch. Gradients travel with the last part only. `scale` is
    the gradient scaler's.
    """
    parts = cut(len(targets), largest)
    losses = torch.zeros((), device=images.device)
    for first, last in parts:
        alone = last < len(targets)
        with unsynchronized() if alone else contextlib.nullcontext():
            loss = mean_loss(images[first:last], targets[first:last])
            scale(loss * ((last - first) * world / global_size)).backward()
        losses += loss.detach().float() * (last - first)
    return losses


class Stepper:
    """Takes a run's state one step further."""

    def __init__(self, session: Session, state: TrainState) -> None:
        self._session = session
        self._state = state
        config = session.config
        classes = len(session.train_set.classes)
        self._normalize = Normalizer(session.device.torch_device)
        self._mix = Mixer(config.recipe, classes, config.seed)
        self._objective = Objective(config.recipe, classes)
        share = -(-config.global_batch // session.world.size)
        self._largest = -(-share // config.accumulate)
        self._skips = config.on_nonfinite == "skip"
        self.skipped_in_a_row = 0  # steps whose gradient was not finite, by --on-nonfinite skip
        self.grad_norm: Tensor | None = None  # of the last step, where it was measured

    def step(self, batch: DeviceBatch, *, measure: bool) -> Tensor | None:
        """Train on a batch. The sum of this process's losses, or None for a step left out.

        With `measure` the gradient's norm is taken, on the device.
        """
        state = self._state
        statistics = [each.clone() for each in state.network.buffers()] if self._skips else []
        losses = self._backward(batch)
        self.grad_norm = norm = self._norm() if measure or self._skips else None
        left_out = self._skips and norm is not None and not bool(torch.isfinite(norm))
        if left_out:
            for buffer, before in zip(state.network.buffers(), statistics, strict=True):
                buffer.copy_(before)
        if not left_out or state.scaler.is_enabled():  # the scaler leaves such a step out itself
            state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if left_out else 0
        if state.average is not None and not left_out:
            state.average.update(state.steps_done + 1)
        return None if left_out else losses

    def _backward(self, batch: DeviceBatch) -> Tensor:
        state, host = self._state, batch.host
        if not len(batch.labels):
            return self._take_part(batch)
        images, targets = self._mix(
            self._normalize(batch.images),
            batch.labels,
            epoch=state.epoch,
            step=state.step,
            first=int(host.positions[0]),
        )
        short = host.global_size < self._session.config.global_batch
        return backward(
            partial(self._mean_loss, short=short),
            images,
            targets,
            largest=self._largest,
            global_size=host.global_size,
            world=self._session.world.size,
            scale=state.scaler.scale,
            unsynchronized=state.unsynchronized,
        )

    def _mean_loss(self, images: Tensor, targets: Tensor, *, short: bool) -> Tensor:
        """The objective's mean over these pictures.

        One picture left over at an epoch's end is normalised by the running statistics: deep
        down, where it may be a single pixel, it has none of its own.
        """
        lonely = short and len(targets) == 1
        with (
            _statistics_fixed(self._state.network) if lonely else contextlib.nullcontext(),
            self._session.device.autocast(self._session.precision),
        ):
            return self._objective(self._state.model(images), targets)

    def _take_part(self, batch: DeviceBatch) -> Tensor:
        """The collectives of a step of which this process has no sample: a gradient of zero."""
        blank = self._normalize(batch.images.new_zeros(1, *batch.images.shape[1:]))
        loss = self._mean_loss(blank, batch.labels.new_zeros(1), short=True)
        self._state.scaler.scale(loss * 0.0).backward()
        return torch.zeros((), device=blank.device)

    def _norm(self) -> Tensor:
        """The norm of the gradient that the optimiser sees, left on the device."""
        state = self._state
        if state.scaler.is_enabled():
            state.scaler.unscale_(state.optimizer)
        grads = [each.grad for each in state.network.parameters() if each.grad is not None]
        return get_total_norm(grads)


@contextlib.contextmanager
def _statistics_fixed(network: nn.Module) -> Iterator[None]:
    network.eval()
    try:
        yield
    finally:
        network.train()
