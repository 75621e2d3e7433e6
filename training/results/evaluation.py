"""Evaluating what was saved: one model, or two on the same pictures, exactly.

The pictures are made once, by the loader, and every model is asked about the same bytes; so what
differs between two is what they compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from shards.dataset import Dataset
from shards.errors import UsageError
from shards.progress import Progress, Silent
from shards.transform import EvalTransform
from training.batches import DeviceBatch
from training.device import AmpRequest, Device, DeviceRequest, Precision
from training.distributed import (
    World,
    check_agreement,
    from_main,
    joined,
    place_from_environment,
    software,
)
from training.engines import Engine, EngineName, EngineRequest, engine_for
from training.evaluate import (
    Answers,
    Evaluation,
    Scores,
    Spent,
    check_labels,
    gathered,
    pass_over,
)
from training.results.saved import Saved, View, device_for, is_onnx, open_engine, open_saved


@dataclass(frozen=True, kw_only=True)
class How:
    """How models are evaluated; None is as each was trained.

    `batch_size` counts the samples of one process.
    """

    threads: int
    device: DeviceRequest = "auto"
    batch_size: int | None = None
    amp: AmpRequest | None = None
    view: View = field(default_factory=View)
    ema: bool | None = None
    model: str | None = None  # the network of weights that do not tell it


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one model came to."""

    saved: Saved
    engine: EngineName
    precision: Precision
    evaluation: Evaluation
    answers: Answers | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The evaluation of one model or two, and what it was made with; equal on every process."""

    models: tuple[Result, ...]
    differences: npt.NDArray[np.float32] | None  # of two models' logits, the largest a sample
    folder: Path
    split: str
    keys: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    transform: EvalTransform
    device: Device
    spent: Spent  # of this process
    world: World


@dataclass(frozen=True)
class _Contender:
    """A model that answers, and what its answers come to."""

    saved: Saved
    engine: Engine
    scores: Scores


def evaluate_saved(
    models: Sequence[tuple[Path, EngineRequest]],
    split: Path,
    how: How,
    *,
    keep_answers: bool = False,
    progress: Progress,
) -> Results:
    """Evaluate one saved model, or two on the same pictures, on a split's folder (DIR/val).

    All processes do it together. Raises ToolError for models or shards that cannot be used, or
    that do not fit together.
    """
    device = _device_for(models, how.device)
    with joined(device) as world, Dataset.open(split) as dataset:
        check_agreement({**software(), "val split": dataset.digest}, world)
        check_labels(dataset)
        _check_processes(models, world)
        saved = [_opened(path, how, dataset, world) for path, _ in models]
        transform = _common_transform(saved)
        keep = keep_answers or len(models) > 1
        with _contenders(models, saved, dataset, device, how, keep=keep) as contenders:
            differences: list[tuple[npt.NDArray[np.int64], Tensor]] = []
            spent = pass_over(
                dataset,
                transform,
                lambda batch: _ask(contenders, batch, differences),
                global_batch=_batch_size(saved[0], how) * world.size,
                threads=how.threads,
                device=device,
                world=world,
                progress=progress if world.is_main else Silent(),
            )
            return Results(
                models=tuple(_result(each, world, keep=keep) for each in contenders),
                differences=_combined(differences, len(dataset), world) if saved[1:] else None,
                transform=transform,
                device=device,
                spent=spent,
                world=world,
                **_described(dataset),
            )


def _described(dataset: Dataset) -> dict[str, Any]:
    """The fields of `Results` that are the dataset's."""
    return {
        "folder": dataset.folder,
        "split": dataset.split,
        "keys": tuple(key.decode() for key in dataset.keys.tolist()),
        "labels": dataset.labels,
        "classes": dataset.classes,
        "class_names": dataset.class_names,
    }


def _opened(path: Path, how: How, dataset: Dataset, world: World) -> Saved:
    """A model as rank 0 reads it, whose classes are the dataset's."""
    saved = from_main(lambda: open_saved(path, view=how.view, ema=how.ema, model=how.model), world)
    saved.check(dataset)
    return saved


def _result(contender: _Contender, world: World, *, keep: bool) -> Result:
    return Result(
        saved=contender.saved,
        engine=contender.engine.name,
        precision=contender.engine.precision,
        evaluation=contender.scores.evaluation(world),
        answers=contender.scores.answers(world) if keep else None,
    )


def _device_for(models: Sequence[tuple[Path, EngineRequest]], requested: DeviceRequest) -> Device:
    """Where pictures are brought: to torch's device, where a model is torch's."""
    rank = place_from_environment()[2]
    devices = [device_for(path, requested, engine, rank) for path, engine in models]
    return next((each for each in devices if each.kind != "cpu"), devices[0])


def _check_processes(models: Sequence[tuple[Path, EngineRequest]], world: World) -> None:
    for path, engine in models:
        name = engine_for(engine, onnx=is_onnx(path))
        if name != "torch" and world.size > 1:
            raise UsageError(
                f"{name} answers in one process, and {path} was given to {world.size}; leave "
                "--nproc and --cards out"
            )


def _common_transform(saved: Sequence[Saved]) -> EvalTransform:
    """How the pictures of all models are made. Raises UsageError where they want different ones."""
    first = saved[0].transform
    for other in saved[1:]:
        if other.transform != first:
            raise UsageError(
                f"{saved[0].path} takes {_said(first)} and {other.path} {_said(other.transform)}; "
                "make them equal with --image-size, --resize and --interpolation"
            )
    return first


def _said(transform: EvalTransform) -> str:
    return f"{transform.image_size} px of {transform.resize} px ({transform.interpolation})"


def _batch_size(saved: Saved, how: How) -> int:
    return saved.batch_size if how.batch_size is None else how.batch_size


@contextlib.contextmanager
def _contenders(
    models: Sequence[tuple[Path, EngineRequest]],
    saved: Sequence[Saved],
    dataset: Dataset,
    device: Device,
    how: How,
    *,
    keep: bool,
) -> Iterator[list[_Contender]]:
    with contextlib.ExitStack() as stack:
        found = []
        for each, (path, requested) in zip(saved, models, strict=True):
            engine = open_engine(
                each,
                engine_for(requested, onnx=is_onnx(path)),
                device,
                amp=how.amp,
                threads=how.threads,
                batch_size=_batch_size(saved[0], how),
            )
            stack.callback(engine.close)
            _check_outputs(each, engine, dataset)
            found.append(_Contender(each, engine, Scores(len(dataset), engine.classes, keep=keep)))
        yield found


def _check_outputs(saved: Saved, engine: Engine, dataset: Dataset) -> None:
    """Refuse an engine whose answers, of which its file said nothing, are not of these classes."""
    if engine.classes != len(dataset.classes):
        raise UsageError(
            f"{saved.path} gives {engine.classes} logits and {dataset.folder} has "
            f"{len(dataset.classes)} classes; give shards of its classes"
        )


def _ask(
    contenders: Sequence[_Contender],
    batch: DeviceBatch,
    differences: list[tuple[npt.NDArray[np.int64], Tensor]],
) -> None:
    """Let all answer about a batch."""
    answers = []
    for each in contenders:
        images = batch.images.to(each.engine.device.torch_device)
        answers.append(each.engine.logits(images).to(batch.labels.device))
        each.scores.add(answers[-1], batch)
    if len(answers) > 1:
        largest = (answers[0] - answers[1]).abs().amax(1, keepdim=True)
        differences.append((batch.host.samples, largest))


def _combined(
    differences: list[tuple[npt.NDArray[np.int64], Tensor]], samples: int, world: World
) -> npt.NDArray[np.float32]:
    return gathered(differences, (samples, 1), world)[:, 0]
