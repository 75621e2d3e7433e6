"""Exact evaluation: every sample of a split is counted once, at any number of processes.

No padding, no dropping, no wrapper around the network (so uneven shares cannot hang), batch
norm's statistics made equal first, integer counts, and an assertion of the total. The loss is
the plain cross-entropy, without the label smoothing of training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError, UsageError
from shards.loader import Loader
from shards.progress import Progress
from shards.transform import EvalTransform
from training.batches import DeviceBatch, on_device
from training.checkpoint import Checkpoint
from training.counts import Counts
from training.device import Device, Precision
from training.distributed import World, broadcast_buffers, sum_floats, sum_integers
from training.engines import TorchEngine
from training.model import build_model, unwrap

TOP = 5  # answers a sample that are kept; all, where there are fewer classes
_LOSS_UNIT = 2**32  # sums of losses travel as whole multiples of 1/2**32, to be added exactly

See: TypeAlias = Callable[[DeviceBatch], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation(Counts):
    """What an evaluation found, equal on every process."""

    loss: float  # mean cross-entropy; NaN where the network gave a non-finite one


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The best classes of every sample, by canonical number; equal on every process.

    Attributes:
        classes: int64, shape (samples, k): class indices, the best first; k is 5 or all classes.
        probabilities: float32, shape (samples, k): theirs, of the softmax over all classes.
    """

    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Where the time of one process went."""

    seconds: float  # from the first batch asked for to the last answer
    wait_seconds: float  # of these, until pictures that were asked for were there
    decode_seconds: float  # reading, decoding and resizing, summed over threads
    threads: int

    @property
    def device_seconds(self) -> float:
        """Copying and computing, and what the host did for it."""
        return self.seconds - self.wait_seconds


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
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate `model` (wrapped or not) on the whole of `dataset`, together with all processes.

    The model is left in the mode it was in. All processes call `after_batch` equally often; what
    it raises ends the evaluation. Raises ToolError where the samples counted are not those of
    the dataset.
    """
    network = unwrap(model)
    was_training = network.training
    broadcast_buffers(network, world)
    network.eval()
    engine = TorchEngine(network, device, precision, classes=len(dataset.classes))
    scores = Scores(len(dataset), engine.classes, keep=False)
    try:
        pass_over(
            dataset,
            transform,
            lambda batch: scores.add(engine.logits(batch.images), batch),
            global_batch=global_batch,
            threads=threads,
            device=device,
            world=world,
            progress=progress,
            after_batch=after_batch,
        )
    finally:
        network.train(was_training)
    return scores.evaluation(world)


def pass_over(
    dataset: Dataset,
    transform: EvalTransform,
    see: See,
    *,
    global_batch: int,
    threads: int,
    device: Device,
    world: World,
    progress: Progress,
    after_batch: Callable[[], None] = lambda: None,
) -> Spent:
    """Show `see` every sample of this process's share once, in batches on the device."""
    progress.start("evaluate", len(dataset), "images")
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
        started = time.perf_counter()
        for batch in on_device(loader.epoch(0), device):
            if len(batch.labels):
                see(batch)
            progress.advance(batch.host.global_size)
            after_batch()
        device.copied()()  # the queue is worked off
        stats = loader.stats()
        return Spent(
            seconds=time.perf_counter() - started,
            wait_seconds=stats.wait_seconds,
            decode_seconds=stats.read_seconds + stats.decode_seconds + stats.resize_seconds,
            threads=threads,
        )


class Scores:
    """What one engine's answers come to: counts, left on its device until the end.

    With `keep` the best classes of every sample are kept as well.
    """

    def __init__(self, samples: int, classes: int, *, keep: bool) -> None:
        self._samples = samples
        self._top = min(TOP, classes)
        self._keep = keep
        self._rows: list[Tensor] = []
        self._kept: list[tuple[npt.NDArray[np.int64], Tensor]] = []

    def add(self, logits: Tensor, batch: DeviceBatch) -> None:
        """Take the logits of a batch, float32 (n, classes) where its labels are."""
        best = logits.topk(self._top, dim=1).indices
        self._rows.append(_row(logits, best, batch.labels))
        if self._keep:
            chances = logits.softmax(1).gather(1, best)
            self._kept.append((batch.host.samples, torch.cat([best.float(), chances], 1)))

    def evaluation(self, world: World) -> Evaluation:
        """The counts of all processes. Raises ToolError where they are not of every sample."""
        rows = torch.stack(self._rows).cpu() if self._rows else torch.zeros(0, 4)
        samples, top1, top5, loss = rows.double().sum(0).tolist()
        finite = math.isfinite(loss)
        travelling = round(loss * _LOSS_UNIT) if finite else 0
        sums = sum_integers([int(samples), int(top1), int(top5), travelling, not finite], world)
        if sums[0] != self._samples:
            raise ToolError(
                f"the evaluation counted {sums[0]} samples instead of {self._samples}; "
                "its result would be wrong and is not given; report this"
            )
        mean = math.nan if sums[4] else sums[3] / _LOSS_UNIT / self._samples
        return Evaluation(samples=self._samples, top1_count=sums[1], top5_count=sums[2], loss=mean)

    def answers(self, world: World) -> Answers:
        """The best classes of every sample, of all processes."""
        table = gathered(self._kept, (self._samples, 2 * self._top), world)
        return Answers(
            classes=table[:, : self._top].astype(np.int64), probabilities=table[:, self._top :]
        )


def gathered(
    parts: list[tuple[npt.NDArray[np.int64], Tensor]], shape: tuple[int, int], world: World
) -> npt.NDArray[np.float32]:
    """Rows by sample number from all processes, each of which has those of its own samples.

    Where another process has a row this one has zeros, so a sum puts them together exactly.
    """
    table = torch.zeros(shape)
    for samples, rows in parts:
        table[torch.from_numpy(samples)] = rows.cpu()
    everywhere = sum_floats(table.to(world.device), world)
    whole: npt.NDArray[np.float32] = everywhere.cpu().numpy()
    return whole


def _row(logits: Tensor, best: Tensor, labels: Tensor) -> Tensor:
    """(samples, top-1 hits, top-5 hits, summed loss) of a batch, left on its device.

    float32 is exact here: the counts of a batch are far below 2**24.
    """
    hits = (best == labels[:, None]).float()
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    samples = torch.full_like(loss, len(labels))
    return torch.stack([samples, hits[:, 0].sum(), hits.sum(), loss])


def restored_model(checkpoint: Checkpoint, *, ema: bool = False) -> nn.Module:
    """The network of a checkpoint on the CPU, in evaluation mode; with its averaged weights."""
    config = checkpoint.config
    model = build_model(config["model"], len(checkpoint.classes), stem=config["stem"])
    load_weights(model, checkpoint, ema=ema)
    return model.eval()


def load_weights(model: nn.Module, checkpoint: Checkpoint, *, ema: bool = False) -> None:
    """Put the checkpoint's weights into an unwrapped network. Raises DamagedData if they differ."""
    try:
        model.load_state_dict(checkpoint.ema if ema else checkpoint.model)
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


def check_classes(path: Path, ours: Sequence[str], dataset: Dataset) -> None:
    """Refuse a dataset whose class list is not `ours`, the one that the model was trained on."""
    theirs = dataset.classes
    if list(ours) == list(theirs):
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


def _at(classes: Sequence[str], number: int) -> str:
    return classes[number] if number < len(classes) else "none"
