"""Exact evaluation: every sample of a split is counted once, at any number of processes.

No padding, no dropping, no wrapper around the network (so uneven shares cannot hang), batch
norm's statistics made equal first, integer counts, and an assertion of the total. The loss is
the plain cross-entropy, without the label smoothing of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError, UsageError
from shards.loader import Loader
from shards.progress import Progress, Silent
from shards.transform import EvalTransform
from training.batches import Normalizer, on_device
from training.checkpoint import Checkpoint, load_checkpoint
from training.device import AmpRequest, Device, DeviceRequest, Precision, choose
from training.distributed import (
    World,
    broadcast_buffers,
    from_main,
    joined,
    place_from_environment,
    sum_integers,
)
from training.model import build_model, unwrap

_LOSS_UNIT = 2**32  # sums of losses travel as whole multiples of 1/2**32, to be added exactly


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found, equal on every process."""

    samples: int
    top1_count: int
    top5_count: int  # top-k with k = classes where there are fewer than 5
    loss: float  # mean cross-entropy; NaN where the network gave a non-finite one

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * self.top1_count / self.samples

    @property
    def top5(self) -> float:
        """Per cent."""
        return 100 * self.top5_count / self.samples


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    transform: EvalTransform,
    *,
    global_batch: int,
    threads: int,
    device: Device,
    precision: Precision,
    world: World,
    progress: Progress,
) -> Evaluation:
    """Evaluate `model` (wrapped or not) on the whole of `dataset`, together with all processes.

    The model is left in the mode it was in. Raises ToolError where the samples counted are
    not those of the dataset.
    """
    network = unwrap(model)
    was_training = network.training
    broadcast_buffers(network, world)
    network.eval()
    progress.start("evaluate", len(dataset), "images")
    try:
        with Loader(
            dataset,
            transform,
            global_batch=global_batch,
            rank=world.rank,
            world=world.size,
            shuffle="none",
            drop_last=False,
            threads=threads,
            pin_memory=device.pin_memory,
        ) as loader:
            counts = _count(network, loader, device, precision, progress)
    finally:
        network.train(was_training)
    return _combined(counts, len(dataset), world)


def _count(
    network: nn.Module, loader: Loader, device: Device, precision: Precision, progress: Progress
) -> Tensor:
    """float32 (batches, 4) on the CPU: samples, top-1 hits, top-5 hits, summed loss of each."""
    normalize = Normalizer(device.torch_device)
    rows: list[Tensor] = []
    with torch.no_grad():
        for batch in on_device(loader.epoch(0), device):
            if len(batch.labels):
                with device.autocast(precision):
                    logits = network(normalize(batch.images))
                rows.append(_row(logits.float(), batch.labels))
            progress.advance(batch.host.global_size)
    return torch.stack(rows).cpu() if rows else torch.zeros(0, 4)


def _row(logits: Tensor, labels: Tensor) -> Tensor:
    """(samples, top-1 hits, top-5 hits, summed loss) of a batch, left on its device.

    float32 is exact here: the counts of a batch are far below 2**24.
    """
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (best == labels[:, None]).float()
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    samples = torch.full_like(loss, len(labels))
    return torch.stack([samples, hits[:, 0].sum(), hits.sum(), loss])


def _combined(counts: Tensor, expected: int, world: World) -> Evaluation:
    samples, top1, top5, loss = counts.double().sum(0).tolist()
    finite = math.isfinite(loss)
    sums = sum_integers(
        [int(samples), int(top1), int(top5), round(loss * _LOSS_UNIT) if finite else 0, not finite],
        world,
    )
    if sums[0] != expected:
        raise ToolError(
            f"the evaluation counted {sums[0]} samples instead of {expected}; "
            "its result would be wrong and is not given; report this"
        )
    mean = math.nan if sums[4] else sums[3] / _LOSS_UNIT / expected
    return Evaluation(samples=expected, top1_count=sums[1], top5_count=sums[2], loss=mean)


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluation:
    """The evaluation of a saved model, and what it was made with."""

    evaluation: Evaluation
    checkpoint: Path
    model: str
    epoch: int  # epochs the model was trained
    image_size: int
    short_side: int
    device: str
    device_reason: str
    precision: Precision
    world: int
    is_main: bool  # whether this process is the one that reports


def evaluate_checkpoint(
    checkpoint: Path,
    split: Path,
    *,
    threads: int,
    device: DeviceRequest = "auto",
    batch_size: int | None = None,
    image_size: int | None = None,
    amp: AmpRequest | None = None,
    progress: Progress,
) -> CheckpointEvaluation:
    """Evaluate a saved model on the split's folder (DIR/val), over all processes.

    `batch_size` (a process), `image_size` and `amp` are the training run's unless given.
    Raises ToolError for a checkpoint or shards that cannot be used, or that do not fit together.
    """
    chosen = choose(device, place_from_environment()[2])
    with joined(chosen) as world, Dataset.open(split) as dataset:
        loaded = from_main(lambda: load_checkpoint(checkpoint), world)
        check_labels(dataset)
        check_classes(checkpoint, loaded, dataset)
        config = loaded.config
        size = config["image_size"] if image_size is None else image_size
        side = round(size * config["recipe"]["eval_resize"])
        precision = chosen.precision(config["amp"] if amp is None else amp)
        evaluation = evaluate(
            restored_model(loaded).to(chosen.torch_device).to(memory_format=torch.channels_last),
            dataset,
            EvalTransform(image_size=size, resize=side),
            global_batch=(batch_size or config["batch_size"]) * world.size,
            threads=threads,
            device=chosen,
            precision=precision,
            world=world,
            progress=progress if world.is_main else Silent(),
        )
        return CheckpointEvaluation(
            evaluation=evaluation,
            checkpoint=checkpoint,
            model=config["model"],
            epoch=loaded.position.epoch,
            image_size=size,
            short_side=side,
            device=str(chosen.torch_device),
            device_reason=chosen.reason,
            precision=precision,
            world=world.size,
            is_main=world.is_main,
        )


def restored_model(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint with its weights, on the CPU, in evaluation mode."""
    model = build_model(checkpoint.config["model"], len(checkpoint.classes))
    load_weights(model, checkpoint)
    return model.eval()


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the checkpoint's weights into an unwrapped network. Raises DamagedData if they differ."""
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise DamagedData(
            f"the checkpoint's weights do not fit its model {checkpoint.config['model']} "
            f"with {len(checkpoint.classes)} classes; use another checkpoint"
        ) from error


def check_labels(dataset: Dataset) -> None:
    """Refuse a dataset that has samples without a label."""
    unlabelled = int((dataset.labels < 0).sum())
    if unlabelled:
        raise UsageError(
            f"{dataset.folder} has {unlabelled} samples without a label; make the shards again "
            "with --labels"
        )


def check_classes(path: Path, checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Refuse a dataset whose class list is not the one that the model was trained on."""
    ours, theirs = list(checkpoint.classes), list(dataset.classes)
    if ours == theirs:
        return
    number = next(
        (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    raise UsageError(
        f"{path} was trained on {len(ours)} classes and {dataset.folder} has {len(theirs)}; "
        f"class {number} is {_at(ours, number)} there and {_at(theirs, number)} here; "
        "give shards made with the same class list"
    )


def _at(classes: list[str], number: int) -> str:
    return classes[number] if number < len(classes) else "none"
