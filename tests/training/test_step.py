"""A step: the same gradient however a global batch is cut, and no waiting for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from shards.loader import Batch
from shards.order import rank_slice
from shards.progress import Silent
from training.batches import DeviceBatch
from training.config import resolve
from training.device import choose
from training.distributed import World, joined
from training.objective import Objective
from training.recipes import find_recipe
from training.session import Session
from training.state import TrainState
from training.step import Stepper, backward, cut
from training.trainer import train

CLASSES = 7


@pytest.mark.parametrize(
    ("count", "largest", "sizes"),
    [(8, 8, [8]), (8, 2, [2, 2, 2, 2]), (10, 3, [2, 3, 2, 3]), (5, 4, [2, 3]), (1, 4, [1])],
)
def test_parts_are_equal_and_within_the_limit(count: int, largest: int, sizes: list[int]) -> None:
    parts = cut(count, largest)
    assert [last - first for first, last in parts] == sizes
    assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]


def small_network() -> nn.Sequential:
    torch.manual_seed(2)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, CLASSES)).eval()


def drawn(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((count, 3, 40, 40), generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def gradients(global_batch: int, largest: int) -> tuple[list[Tensor], float]:
    """Gradients of one global batch, cut as the loader cuts it, and this process's losses.

    Batch norm as in evaluation: in training it normalises each part by itself, whatever is
    averaged after. In float64, which leaves what the cutting does: in float32 the gradient of the
    convolution's bias, a sum of 46,000 numbers, differs by 1e-6 with their order alone.
    """
    images, labels = drawn(global_batch)
    objective = Objective(find_recipe("seed"), CLASSES)
    with joined(choose("cpu")) as world:
        network = small_network().double()
        model = DistributedDataParallel(network) if world.size > 1 else network
        first, last = rank_slice(global_batch, world.rank, world.size)
        losses = backward(
            lambda pictures, targets: objective(model(pictures), targets),
            images[first:last],
            labels[first:last],
            largest=largest,
            global_size=global_batch,
            world=world.size,
            scale=lambda loss: loss,
            unsynchronized=getattr(model, "no_sync", contextlib.nullcontext),
        )
        return [parameter.grad for parameter in network.parameters()], float(losses)


def same(ours: list[Tensor], whole: list[Tensor]) -> None:
    for mine, theirs in zip(ours, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_uneven_shares_and_parts_give_the_gradient_of_the_whole_batch(ranks: Any) -> None:
    """32 samples: 16 + 16 or 10 + 11 + 11 of them, each in one part, and in parts of at most 4."""
    whole, losses = gradients(32, 32)
    network, (images, labels) = small_network().double(), drawn(32)
    nn.CrossEntropyLoss(label_smoothing=0.1)(network(images), labels).backward()
    same(whole, [parameter.grad for parameter in network.parameters()])  # type: ignore[misc]
    in_parts, parts_losses = gradients(32, 5)
    same(in_parts, whole)
    assert parts_losses == pytest.approx(losses, rel=1e-5)
    for world, largest in ((2, 16), (2, 4), (3, 11), (3, 4)):
        together = ranks.run(gradients, 32, largest, world=world)
        for ours, _ in together:
            same(ours, whole)
        assert sum(each for _, each in together) == pytest.approx(losses, rel=1e-5)


# --- a stepper of its own ---------------------------------------------------------------------


class Nine:
    """What is asked of a set of samples, but for the samples."""

    digest = "d" * 64
    classes = class_names = tuple("abc")

    def __len__(self) -> int:
        return 9


def stepper(world: World, **options: Any) -> tuple[Stepper, TrainState]:
    given: dict[str, Any] = {
        "shards": "S", "out": "R", "world": world.size, "threads": 1, "model": "resnet18",
        "batch_size": 4, "image_size": 32, "device": "cpu", "settings": {"ema_decay": 0.9},
    }  # fmt: skip
    nothing: Any = None
    session = Session(
        config=resolve(**(given | options)),
        device=choose("cpu"),
        precision="fp32",
        world=world,
        train_set=Nine(),  # type: ignore[arg-type]
        val_set=Nine(),  # type: ignore[arg-type]
        folder=nothing,
        progress=Silent(),
        on_record=nothing,
    )
    state = TrainState(session, 10, None)
    state.model.train()
    state.set_lr()
    return Stepper(session, state), state


def batch(count: int, world: World, *, first: int = 0) -> DeviceBatch:
    """This process's part of a global batch of `count` pictures."""
    start, end = rank_slice(count, world.rank, world.size)
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    positions = np.arange(first + start, first + end)
    host = Batch(
        images=images[start:end], labels=labels[start:end], samples=positions,
        positions=positions, global_size=count, step=0,
    )  # fmt: skip
    return DeviceBatch(images=images[start:end], labels=labels[start:end], host=host)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def differ(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    return [name for name in first if not torch.equal(first[name], second[name])]


class Waits(TorchDispatchMode):
    """Counts the calls by which a host reads a number off a device, and those that take norms."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        self.norms += func is torch.ops.aten.linalg_vector_norm.default
        return func(*args, **(kwargs or {}))


def alone() -> World:
    return World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.mark.parametrize(("policy", "waits"), [("abort", 0), ("skip", 1)])
def test_a_step_reads_nothing_off_the_device(policy: str, waits: int) -> None:
    taken, state = stepper(alone(), on_nonfinite=policy, accumulate=2)
    with Waits() as found:
        losses = taken.step(batch(4, alone()), measure=True)
    assert found.count == waits
    assert losses is not None
    assert taken.grad_norm is not None
    assert float(taken.grad_norm) > 0
    assert state.average is not None
    assert differ(weights(state.average.network), weights(state.network))


class Watched(Silent):
    """Notes before each step's end what was read and measured since the one before."""

    def __init__(self, found: Waits) -> None:
        self._found = found
        self._training = False
        self.read: list[bool] = []
        self.measured: list[bool] = []

    def start(self, what: str, total: int, unit: str) -> None:
        super().start(what, total, unit)
        self._training = what.startswith("epoch")

    def advance(self, amount: int) -> None:
        if self._training and amount:
            self.read.append(self._found.count > 0)
            self.measured.append(self._found.norms > 0)
        self._found.count = self._found.norms = 0


def test_only_a_line_of_the_log_reads_off_the_device_and_measures(
    shards: Path, tmp_path: Path
) -> None:
    config = resolve(
        shards=shards, out=tmp_path, world=1, threads=1, model="resnet18", epochs=1, batch_size=4,
        image_size=32, device="cpu", log_every=5, accumulate=2, settings={"ema_decay": 0.9},
    )  # fmt: skip
    with Waits() as found:
        watched = Watched(found)
        train(config, progress=watched, on_record=lambda _record: None)
    steps = range(1, 13)
    assert watched.measured == [step in (5, 10, 12) for step in steps]
    assert watched.read == [step - 1 in (5, 10) for step in steps]  # after the step, as it is told


def test_processes_mix_by_draws_of_their_own() -> None:
    """What is drawn follows from where the slice of a process begins."""
    taken, _ = stepper(alone(), settings={"mixup": 0.2})
    objective, shares = taken._objective, []

    def seen(logits: Tensor, targets: Tensor) -> Tensor:
        shares.append(targets[1, 1].item())  # of sample 1, of class 1, mixed with one of class 0
        return objective(logits, targets)

    taken._objective = seen  # type: ignore[assignment]
    for first in (0, 4, 0):
        taken.step(batch(4, alone(), first=first), measure=False)
    assert shares[0] == shares[2] != shares[1]


def test_a_step_that_is_not_finite_changes_nothing_when_skipped() -> None:
    taken, state = stepper(alone(), on_nonfinite="skip")
    taken.step(batch(4, alone()), measure=False)
    before, average = weights(state.network), weights(state.average.network)  # type: ignore[union-attr]
    objective = taken._objective
    taken._objective = lambda logits, targets: objective(logits, targets) * torch.inf  # type: ignore[assignment]
    assert taken.step(batch(4, alone()), measure=False) is None
    assert taken.skipped_in_a_row == 1
    assert not differ(weights(state.network), before)
    assert not differ(weights(state.average.network), average)  # type: ignore[union-attr]
    taken._objective = objective
    assert taken.step(batch(4, alone()), measure=False) is not None
    assert taken.skipped_in_a_row == 0
    assert differ(weights(state.network), before)


def two_steps() -> tuple[list[str], float]:
    """A step of 4 pictures and one of the 1 that was left, of which rank 0 has none."""
    with joined(choose("cpu")) as world:
        taken, state = stepper(world, batch_size=4 // world.size, lr=0.001)
        losses = 0.0
        for each in (batch(4, world), batch(1, world, first=4)):
            got = taken.step(each, measure=True)
            assert got is not None
            losses = float(got)
        names = [n for n, each in state.network.named_parameters() if not each.isfinite().all()]
        return names, losses


def test_a_process_may_have_no_sample_of_a_short_batch(ranks: Any) -> None:
    first, second = ranks.run(two_steps, world=2)
    assert first == ([], 0.0)
    assert second[0] == []
    assert second[1] > 0


def test_everything_in_a_state_comes_back_from_its_checkpoint() -> None:
    taken, state = stepper(alone())
    taken.step(batch(4, alone()), measure=False)
    state.consumed(batch(4, alone()))
    state.left_out = [(0, 3, 5)]
    saved = state.checkpoint(state.order_text())
    kept = weights(state.network)
    taken.step(batch(4, alone()), measure=False)
    assert differ(saved.model, state.network.state_dict())  # its tensors are its own
    state.restore(saved)
    assert not differ(kept, weights(state.network))
    assert state.place == (0, 1)
    state.step = 4
    assert state.is_left_out()
    state.step = 5
    assert not state.is_left_out()
