"""What one device trains, and what keeps it from training more.

`bench_model` is without a loader: made-up batches that stay on the device, by batch size, precision
and memory format; the most that can be reached. `bench_train` is the trainer as it runs, on
made-up batches and on pictures, beside the loader alone.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import torch

from shards.bench import loading_rate
from shards.dataset import Dataset
from shards.errors import UsageError
from shards.progress import Progress, Silent
from training.batches import Normalizer
from training.config import MODELS, TrainConfig, resolve
from training.device import AmpRequest, Device, DeviceRequest, Precision, choose
from training.distributed import World
from training.model import build_model
from training.objective import Objective
from training.optim import make_optimizer, set_lr
from training.recipes import find_recipe
from training.session import Record
from training.synthetic import SYNTHETIC
from training.train_set import make_loader
from training.trainer import train

_CLASSES: Final = 1000
_WARM_STEPS: Final = 3  # libraries choose their algorithms in the first ones
_AHEAD: Final = 2  # steps that the host may be ahead of the device
_LINES: Final = 6  # of the log, of which the first counts for nothing
_LEARNING_RATE: Final = 1e-3  # small, so that made-up labels do no harm


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a step is computed."""

    batch_size: int
    precision: Precision
    channels_last: bool


@dataclass(frozen=True, kw_only=True)
class ModelPoint:
    """Training steps of one kind."""

    kind: Kind
    images_per_second: float | None  # None where memory does not hold such a batch
    peak_memory: int | None  # most bytes on the device; None where nobody counts


@dataclass(frozen=True, kw_only=True)
class ModelBench:
    """What one device trains without a loader."""

    model: str
    image_size: int
    device: str
    device_name: str
    points: tuple[ModelPoint, ...]

    @property
    def best(self) -> ModelPoint | None:
        """The point with the most images a second; None where no batch fits into memory."""
        fitting = [point for point in self.points if point.images_per_second is not None]
        return max(fitting, key=lambda point: point.images_per_second or 0.0, default=None)


def bench_model(
    model: str,
    *,
    batch_sizes: Sequence[int],
    image_size: int,
    amp: AmpRequest | None,
    device: DeviceRequest,
    seconds: float,
    progress: Progress,
) -> ModelBench:
    """Measure every batch size in every memory format, `seconds` each.

    Without `amp` in every precision that the device computes in.
    """
    if model not in MODELS:
        raise UsageError(f"--model {model}: choose one of {', '.join(MODELS)}")
    chosen = choose(device)
    chosen.activate()
    kinds = [
        Kind(batch_size=size, precision=precision, channels_last=channels_last)
        for precision in (precisions(chosen) if amp is None else [chosen.precision(amp)])
        for channels_last in (True, False)
        for size in batch_sizes
    ]
    points: list[ModelPoint] = []
    progress.start("measuring", len(kinds), "points")
    for kind in kinds:
        chosen.reset_peak_memory()
        rate = _rate(chosen, model, image_size, kind, seconds)
        points.append(
            ModelPoint(kind=kind, images_per_second=rate, peak_memory=chosen.peak_memory())
        )
        progress.advance(1)
    return ModelBench(
        model=model,
        image_size=image_size,
        device=str(chosen.torch_device),
        device_name=chosen.name,
        points=tuple(points),
    )


def precisions(device: Device) -> list[Precision]:
    """What a device can compute in."""
    found: list[Precision] = []
    for amp in get_args(AmpRequest):
        with contextlib.suppress(UsageError):
            precision = device.precision(amp)
            found += [precision] if precision not in found else []
    return found


def _rate(device: Device, model: str, image_size: int, kind: Kind, seconds: float) -> float | None:
    """Images a second, or None where memory is too small."""
    try:
        return kind.batch_size * timed(_steps(device, model, image_size, kind), device, seconds)
    except torch.OutOfMemoryError:
        return None
    except ValueError as error:  # batch norm's, of a single value a channel
        raise UsageError(
            f"--batch-sizes {kind.batch_size} at --image-size {image_size}: the network's last "
            "layers have one value a channel, which cannot be normalised; give more of either"
        ) from error


def timed(steps: Iterator[None], device: Device, seconds: float) -> float:
    """Steps a second of those that follow the first ones; waits for the device at both ends."""
    for _ in range(_WARM_STEPS):
        next(steps)
    device.synchronize()
    ahead: deque[Callable[[], None]] = deque()
    count, started = 0, time.perf_counter()
    while not count or time.perf_counter() - started < seconds:
        next(steps)
        count += 1
        ahead.append(device.copied())
        if len(ahead) > _AHEAD:
            ahead.popleft()()
    device.synchronize()
    return count / (time.perf_counter() - started)


def _steps(device: Device, model: str, image_size: int, kind: Kind) -> Iterator[None]:
    layout = torch.channels_last if kind.channels_last else torch.contiguous_format
    network = build_model(model, _CLASSES).to(device.torch_device).to(memory_format=layout)
    recipe = find_recipe("seed")
    optimizer = make_optimizer(network.train(), recipe, device)
    set_lr(optimizer, _LEARNING_RATE)
    scaler = device.grad_scaler(kind.precision, recipe.loss_scale)
    normalize, objective = Normalizer(device.torch_device), Objective(recipe, _CLASSES)
    shape = (kind.batch_size, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(device.torch_device)
    images = images.contiguous(memory_format=layout)
    labels = (torch.arange(kind.batch_size) % _CLASSES).to(device.torch_device)
    while True:
        with device.autocast(kind.precision):
            loss = objective(network(normalize(images)), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        yield


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """The trainer's parts and the whole, in images a second of one process.

    Attributes:
        synthetic: training on one made-up batch: the device and all that the trainer does.
        loader: loading alone.
        whole: training from shards.
        wait_share: of the whole's time that it waited for the loader.
        cores: that loaded; they are the host's for the device, too.
    """

    model: str
    image_size: int
    batch_size: int
    device: str
    device_name: str
    precision: Precision
    processes_per_card: int
    cores: int
    synthetic: float
    loader: float
    whole: float
    wait_share: float

    @property
    def bound(self) -> Literal["device", "loader"]:
        """What limits the whole."""
        return "loader" if self.loader < self.synthetic else "device"

    @property
    def cores_a_card(self) -> int:
        """Cores like these that load as much as a card's devices train."""
        return math.ceil(self.processes_per_card * self.synthetic * self.cores / self.loader)


def bench_train(
    shards: Path,
    *,
    model: str,
    recipe: str,
    batch_size: int | None,
    image_size: int | None,
    amp: AmpRequest,
    device: DeviceRequest,
    threads: int,
    steps: int,
    progress: Progress,
) -> TrainBench:
    """Train `steps` steps twice, and load alone for as long as the second time took."""
    chosen = choose(device)
    progress.start("measuring", 3, "parts")
    with tempfile.TemporaryDirectory(prefix="imagenet-resnet-") as folder:
        config = partial(
            resolve,
            shards=shards,
            world=1,
            threads=threads,
            model=model,
            recipe=recipe,
            batch_size=batch_size,
            image_size=image_size,
            amp=amp,
            device=device,
            max_steps=steps,
            log_every=max(1, steps // _LINES),
            resume="never",
        )
        made_up = config(
            stream=SYNTHETIC, steps_per_epoch=steps + 1, out=Path(folder) / "synthetic"
        )
        synthetic = _trained(made_up)
        progress.advance(1)
        given = config(out=Path(folder) / "whole")
        whole = _trained(given)
        progress.advance(1)
        alone = _loaded(given, steps * given.global_batch / whole.images_per_second)
        progress.advance(1)
    return TrainBench(
        model=model,
        image_size=given.image_size,
        batch_size=given.batch_size,
        device=str(chosen.torch_device),
        device_name=chosen.name,
        precision=chosen.precision(amp),
        processes_per_card=chosen.processes_per_card,
        cores=threads,
        synthetic=synthetic.images_per_second,
        loader=alone,
        whole=whole.images_per_second,
        wait_share=whole.wait_share,
    )


class _Trained(NamedTuple):
    images_per_second: float
    wait_share: float


def _trained(config: TrainConfig) -> _Trained:
    """What the log says of all steps but those of its first line."""
    lines: list[Record] = []
    train(config, progress=Silent(), on_record=lines.append)
    steps: list[Any] = [line for line in lines if line["kind"] == "step"][1:]
    seconds = sum(line["steps"] * line["step_seconds"] for line in steps)
    waited = sum(line["steps"] * line["step_seconds"] * line["wait_share"] for line in steps)
    images = sum(line["steps"] for line in steps) * config.global_batch
    return _Trained(images / seconds, waited / seconds)


def _loaded(config: TrainConfig, seconds: float) -> float:
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with (
        Dataset.open(config.shards / "train") as dataset,
        contextlib.closing(make_loader(dataset, config, alone, pin_memory=False)) as loader,
    ):
        return loading_rate(loader, seconds)
