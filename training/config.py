"""What a training run was asked to do, resolved and checked once, before anything is opened.

This file needs no torch, so the command line can refuse a wrong option before it starts
processes that take seconds to come up.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from shards.errors import UsageError
from shards.order import steps_per_epoch
from training.device import AmpRequest, DeviceRequest
from training.recipes import Recipe, find_recipe, recipe_values
from training.schedule import lr_corners

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SEED = 1234  # the vendor's launcher
SMALLEST_IMAGE = 32  # the networks halve a picture five times


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Made by `resolve`, never by hand."""

    shards: Path  # holds train/ and val/; with a stream val/ is what matters
    stream: str | None  # shards without an index to train on: a pattern, a command, "-"
    steps_per_epoch: int | None  # of a stream
    label_field: str | None  # of a stream: the label's name in each sample's .json
    out: Path  # the run's folder: checkpoints, log
    model: str
    recipe: Recipe
    epochs: int
    batch_size: int  # samples a process, as asked for
    global_batch: int  # samples a step over all processes; a resumed run keeps it
    lr: float  # peak, for the global batch; never rescaled
    lr_from_recipe: bool
    image_size: int  # pixels a side
    amp: AmpRequest
    seed: int
    device: DeviceRequest
    threads: int  # that decode, in each process
    max_steps: int | None  # optimiser steps of the whole run after which it stops, saved
    log_every: int  # steps
    save_steps: int | None  # also save every so many steps, not only after each epoch
    keep: int  # checkpoints that stay, beside the best
    resume: Literal["auto", "never"] | Path

    @property
    def warmup(self) -> int:
        """Epochs of warm-up."""
        return self.recipe.warmup_epochs(self.global_batch)


def resolve(
    *,
    shards: Path,
    out: Path,
    world: int,
    threads: int,
    stream: str | None = None,
    steps_per_epoch: int | None = None,
    label_field: str | None = None,
    model: str = "resnet50",
    recipe: str = "seed",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    amp: AmpRequest = "auto",
    seed: int = SEED,
    device: DeviceRequest = "auto",
    max_steps: int | None = None,
    log_every: int = 20,
    save_steps: int | None = None,
    keep: int = 3,
    resume: Literal["auto", "never"] | Path = "auto",
) -> TrainConfig:
    """Fill in what was not given from the recipe and check it all.

    `world` is the number of processes over all machines. Raises UsageError, one sentence for
    the first value that cannot be.
    """
    values = find_recipe(recipe)
    per_process = values.batch_size if batch_size is None else batch_size
    config = TrainConfig(
        shards=shards,
        stream=stream,
        steps_per_epoch=steps_per_epoch,
        label_field=label_field,
        out=out,
        model=model,
        recipe=values,
        epochs=values.epochs if epochs is None else epochs,
        batch_size=per_process,
        global_batch=per_process * world,
        lr=values.peak_lr(per_process * world) if lr is None else lr,
        lr_from_recipe=lr is None,
        image_size=values.image_size if image_size is None else image_size,
        amp=amp,
        seed=seed,
        device=device,
        threads=threads,
        max_steps=max_steps,
        log_every=log_every,
        save_steps=save_steps,
        keep=keep,
        resume=resume,
    )
    _check(config)
    return config


def with_global_batch(config: TrainConfig, global_batch: int) -> TrainConfig:
    """The same run at another global batch; a learning rate that the recipe gave follows it."""
    lr = config.recipe.peak_lr(global_batch) if config.lr_from_recipe else config.lr
    return dataclasses.replace(config, global_batch=global_batch, lr=lr)


def config_values(config: TrainConfig) -> dict[str, object]:
    """The configuration as primitives, for the log and the checkpoint."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values[field.name] = str(value) if isinstance(value, Path) else value
    values["recipe"] = recipe_values(config.recipe)
    return values


def derived(
    config: TrainConfig, *, samples: int, val_samples: int, classes: int, world: int
) -> dict[str, object]:
    """The numbers that follow from configuration and data, shown before the first step.

    Raises UsageError where the training set cannot fill one global batch, or a process would
    get too little of it.
    """
    steps = steps_per_epoch(samples, config.global_batch, drop_last=config.recipe.drop_last)
    if steps == 0:
        raise UsageError(
            f"{config.shards / 'train'} has {samples} samples, fewer than one global batch of "
            f"{config.global_batch}; give a smaller --batch-size"
        )
    used = steps * config.global_batch if config.recipe.drop_last else samples
    least, most = config.global_batch // world, -(-config.global_batch // world)
    if least < 1 + (config.image_size == SMALLEST_IMAGE):
        raise UsageError(
            f"{world} processes get {least} of a global batch of {config.global_batch} pictures of "
            f"{config.image_size} pixels, too few for batch normalisation; use fewer processes or "
            "a larger --batch-size"
        )
    return {
        "world": world,
        "batch_per_process": least if least == most else [least, most],
        "global_batch": config.global_batch,
        "classes": classes,
        "train_samples": samples,
        "val_samples": val_samples,
        "steps_per_epoch": steps,
        "dropped_per_epoch": samples - used,
        "epochs": config.epochs,
        "total_steps": steps * config.epochs,
        "warmup_epochs": min(config.warmup, config.epochs),
        "lr_corners": [
            [epoch, lr]
            for epoch, lr in lr_corners(peak=config.lr, warmup=config.warmup, epochs=config.epochs)
        ],
        "image_size": config.image_size,
        "eval_short_side": config.recipe.eval_short_side(config.image_size),
        "out": str(config.out),
    }


def _check(config: TrainConfig) -> None:
    if config.model not in MODELS:
        raise UsageError(f"--model {config.model}: choose one of {', '.join(MODELS)}")
    if config.amp not in get_args(AmpRequest):
        raise UsageError(f"--amp {config.amp}: choose one of {', '.join(get_args(AmpRequest))}")
    if config.device not in get_args(DeviceRequest):
        raise UsageError(
            f"--device {config.device}: choose one of {', '.join(get_args(DeviceRequest))}"
        )
    counts = {
        "--epochs": config.epochs,
        "--batch-size": config.batch_size,
        "--workers": config.threads,
        "--log-every": config.log_every,
        "--keep": config.keep,
        "--max-steps": config.max_steps,
        "--save-steps": config.save_steps,
        "--steps-per-epoch": config.steps_per_epoch,
    }
    for option, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{option} {count}: it must be at least 1")
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise UsageError(f"--lr {config.lr}: it must be a positive number")
    if config.image_size < SMALLEST_IMAGE:
        raise UsageError(f"--image-size {config.image_size}: it must be at least {SMALLEST_IMAGE}")
    if not 0 <= config.seed < 2**63:
        raise UsageError(f"--seed {config.seed}: it must be from 0 to 2**63 - 1")
