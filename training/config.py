"""What a training run was asked to do, resolved and checked once, before anything is opened.

This file needs no torch, so the command line can refuse a wrong option before it starts
processes that take seconds to come up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from shards.errors import UsageError
from shards.order import steps_per_epoch
from training.device import AmpRequest, DeviceRequest
from training.recipes import Recipe, find_recipe, recipe_values
from training.schedule import Schedule, lr_corners
from training.settings import changed

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
OnNonfinite = Literal["abort", "skip", "rollback"]
Stem = Literal["imagenet", "small"]  # how a network begins, training/model.py
SEED = 1234  # the vendor's launcher
# The networks halve a picture five times, or three with the small stem, down to one position.
SMALLEST_IMAGE: Mapping[Stem, int] = {"imagenet": 32, "small": 8}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Made by `resolve`, never by hand."""

    shards: Path  # holds train/ and val/; with a stream val/ is what matters
    stream: str | None  # shards without an index to train on: a pattern, a command, "-"
    steps_per_epoch: int | None  # of a stream
    label_field: str | None  # of a stream: the label's name in each sample's .json
    out: Path  # the run's folder: checkpoints, log
    model: str
    stem: Stem
    init_weights: Path | None  # a file of weights to start from instead of random ones
    recipe: Recipe  # with all that was asked for in the place of its values
    epochs: int
    batch_size: int  # samples a process, as asked for; of --global-batch the largest share
    global_batch: int  # samples a step over all processes; a resumed run keeps it
    global_batch_given: bool  # whether it was asked for, instead of batch_size
    lr: float  # peak, for the global batch; never rescaled
    lr_from_recipe: bool
    image_size: int  # training crop at the end of the run, pixels a side
    amp: AmpRequest
    seed: int
    device: DeviceRequest
    threads: int  # that decode, in each process
    max_steps: int | None  # optimiser steps of the whole run after which it stops, saved
    log_every: int  # steps
    save_steps: int | None  # also save every so many steps, not only after each epoch
    keep: int  # checkpoints that stay, beside the best
    resume: Literal["auto", "never"] | Path
    accumulate: int  # parts in which a process computes its share of a global batch
    compile: bool
    deterministic: bool
    on_nonfinite: OnNonfinite  # what to do about a loss that is not a number
    patience: int | None  # epochs without a better top-1 after which it ends
    max_minutes: float | None  # of this call, after which it stops, saved
    save_minutes: float | None  # also save whenever so many are over
    profile: Path | None  # folder for a trace of a few steps
    tensorboard: bool

    @property
    def schedule(self) -> Schedule:
        """The learning rate."""
        return self.recipe.curve(peak=self.lr, global_batch=self.global_batch, epochs=self.epochs)

    @property
    def ema(self) -> float | None:
        """Decay a step of the averaged weights; None where there are none."""
        return self.recipe.ema_decay or None

    def image_size_at(self, epoch: int) -> int:
        """Training crop of an epoch, pixels a side."""
        return self.recipe.size_at(epoch, self.epochs)


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
    stem: Stem = "imagenet",
    init_weights: Path | None = None,
    recipe: str = "seed",
    settings: Mapping[str, object] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    global_batch: int | None = None,
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
    accumulate: int = 1,
    compile: bool = False,  # noqa: A002 - as the option is called
    deterministic: bool = False,
    on_nonfinite: OnNonfinite = "abort",
    patience: int | None = None,
    max_minutes: float | None = None,
    save_minutes: float | None = None,
    profile: Path | None = None,
    tensorboard: bool = False,
) -> TrainConfig:
    """Fill in what was not given from the recipe and check it all.

    `world` is the number of processes over all machines; `settings` are values of the recipe to
    be set otherwise, by name (training/settings.py). Raises UsageError, one sentence for the first
    value that cannot be.
    """
    values = _recipe(find_recipe(recipe), image_size, settings or {}, stem)
    per_process, batch = _batches(values, batch_size, global_batch, world)
    config = TrainConfig(
        shards=shards,
        stream=stream,
        steps_per_epoch=steps_per_epoch,
        label_field=label_field,
        out=out,
        model=model,
        stem=stem,
        init_weights=init_weights,
        recipe=values,
        epochs=values.epochs if epochs is None else epochs,
        batch_size=per_process,
        global_batch=batch,
        global_batch_given=global_batch is not None,
        lr=values.peak_lr(batch) if lr is None else lr,
        lr_from_recipe=lr is None,
        image_size=values.image_size,
        amp=amp,
        seed=seed,
        device=device,
        threads=threads,
        max_steps=max_steps,
        log_every=log_every,
        save_steps=save_steps,
        keep=keep,
        resume=resume,
        accumulate=accumulate,
        compile=compile,
        deterministic=deterministic,
        on_nonfinite=on_nonfinite,
        patience=patience,
        max_minutes=max_minutes,
        save_minutes=save_minutes,
        profile=profile,
        tensorboard=tensorboard,
    )
    _check(config)
    return config


def _recipe(
    recipe: Recipe, image_size: int | None, settings: Mapping[str, object], stem: Stem
) -> Recipe:
    """The recipe with pictures of another size, if asked for, and settings, which go before it."""
    if stem not in SMALLEST_IMAGE:
        raise UsageError(f"--stem {stem}: choose one of {', '.join(SMALLEST_IMAGE)}")
    smallest = SMALLEST_IMAGE[stem]
    if image_size is not None:
        if image_size < smallest:
            raise UsageError(f"--image-size {image_size}: it must be at least {smallest}")
        recipe = recipe.resized(image_size, smallest)
    made = changed(recipe, settings)
    for name, size in (("start_size", made.start_size or smallest), ("eval_size", made.eval_size)):
        if size < smallest:
            raise UsageError(f"{name} is {size}; it must be at least {smallest}")
    if made.start_size > made.image_size:
        raise UsageError(
            f"start_size is {made.start_size}; it must be at most --image-size {made.image_size}"
        )
    return made


def _batches(
    recipe: Recipe, batch_size: int | None, global_batch: int | None, world: int
) -> tuple[int, int]:
    """(samples a process, samples a step over all processes)."""
    if global_batch is None:
        own = recipe.batch_size if batch_size is None else batch_size
        return own, own * world
    if batch_size is not None:
        raise UsageError(
            f"--batch-size {batch_size} (a process) and --global-batch {global_batch} (all "
            "processes) say the same thing twice; give one of them"
        )
    if global_batch < 1:
        raise UsageError(f"--global-batch {global_batch}: it must be at least 1")
    return -(-global_batch // world), global_batch


def minutes_of(text: str) -> float:
    """What --max-time says: minutes, or HH:MM:SS as Slurm writes it. Raises UsageError."""
    try:
        if ":" not in text:
            return float(text)
        hours, minutes, seconds = (int(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(f"--max-time {text}: give minutes, or HH:MM:SS") from None
    return 60 * hours + minutes + seconds / 60


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
    config: TrainConfig,
    *,
    samples: int,
    val_samples: int,
    classes: int,
    world: int,
    train_shards: int | None,
    val_shards: int | None,
) -> dict[str, object]:
    """The numbers that follow from configuration and data, shown before the first step.

    The counts of shards are None where there are none: class folders, made-up pictures. Raises
    UsageError where the training set cannot fill one global batch, or a process would get too
    little of it.
    """
    steps = steps_per_epoch(samples, config.global_batch, drop_last=config.recipe.drop_last)
    if steps == 0:
        raise UsageError(
            f"{config.shards / 'train'} has {samples} samples, fewer than one global batch of "
            f"{config.global_batch}; give a smaller --batch-size or --global-batch"
        )
    used = steps * config.global_batch if config.recipe.drop_last else samples
    _check_shares(config, world)
    least, most = config.global_batch // world, -(-config.global_batch // world)
    recipe = config.recipe
    return {
        "model": config.model if config.stem == "imagenet" else f"{config.model}, small stem",
        "recipe": _difference(config),
        "seed": config.seed,
        "world": world,
        "batch_per_process": least if least == most else [least, most],
        "accumulate": config.accumulate,
        "global_batch": config.global_batch,
        "shards": str(config.shards) if config.stream is None else config.stream,
        "classes": classes,
        "train_samples": samples,
        "train_shards": train_shards,
        "val_samples": val_samples,
        "val_shards": val_shards,
        "steps_per_epoch": steps,
        "dropped_per_epoch": samples - used,
        "epochs": config.epochs,
        "total_steps": steps * config.epochs,
        "optimizer": _optimizer(recipe),
        "loss": _loss(recipe),
        "peak_lr": _peak(config),
        "schedule": recipe.schedule,
        "warmup_epochs": min(config.schedule.warmup, config.epochs),
        "lr_corners": [[epoch, lr] for epoch, lr in lr_corners(config.schedule, steps)],
        "image_size": _sizes(config),
        "eval_size": recipe.eval_size,
        "eval_short_side": recipe.eval_short_side,
        "out": str(config.out),
    }


def _check_shares(config: TrainConfig, world: int) -> None:
    """Raises UsageError where a process would get too little of a global batch."""
    least = config.global_batch // world
    smallest = min(config.image_size_at(0), config.image_size)
    if least < 1 + (smallest == SMALLEST_IMAGE[config.stem]):
        raise UsageError(
            f"{world} processes get {least} of a global batch of {config.global_batch} pictures of "
            f"{smallest} pixels, too few for batch normalisation; use fewer processes or "
            "a larger --batch-size or --global-batch"
        )
    if least // config.accumulate < 1 + (smallest == SMALLEST_IMAGE[config.stem]):
        raise UsageError(
            f"--accumulate {config.accumulate} cuts a process's {least} samples of a global batch "
            "into parts that are too small for batch normalisation; give a smaller one"
        )


def warmup_note(config: TrainConfig) -> str | None:
    """What to say of a warm-up that is not over before the run is; None where it is."""
    schedule = config.schedule
    if schedule.warmup < config.epochs:
        return None
    last = schedule.peak * config.epochs / schedule.warmup  # warm-up is linear
    return (
        f"the warm-up takes {schedule.warmup} epochs and the run has {config.epochs}: the learning "
        f"rate rises to {last:.4g} of a peak of {schedule.peak:.4g} and never falls; give more "
        "--epochs, or fewer --warmup-epochs"
    )


def _difference(config: TrainConfig) -> str:
    """The recipe's name, and in what the run is not as the recipe of that name has it."""
    recipe = config.recipe
    own = recipe_values(find_recipe(recipe.name))
    run = recipe_values(recipe) | {"epochs": config.epochs, "batch_size": config.batch_size}
    own["lr"], run["lr"] = f"{recipe.peak_lr(config.global_batch):g}", f"{config.lr:g}"
    other = [f"{name} {run[name]} instead of {own[name]}" for name in own if run[name] != own[name]]
    return f"{recipe.name}, with {', '.join(other)}" if other else recipe.name


def _optimizer(recipe: Recipe) -> str:
    nesterov = ", nesterov" if recipe.nesterov else ""
    return (
        f"{recipe.optimizer}, momentum {recipe.momentum:g}{nesterov}, "
        f"weight decay {recipe.weight_decay:g}"
    )


def _loss(recipe: Recipe) -> str:
    threshold = f", targets above {recipe.bce_threshold:g}" if recipe.bce_threshold else ""
    smoothing = f", label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else ""
    return f"{recipe.loss}{threshold}{smoothing}"


def _peak(config: TrainConfig) -> str:
    """The peak learning rate, and whose it is."""
    of_recipe = config.recipe.peak_lr(config.global_batch)
    if config.lr_from_recipe:
        return f"{config.lr:g}, the recipe's for this global batch"
    return f"{config.lr:g}, as asked for (the recipe's for this global batch is {of_recipe:g})"


def _sizes(config: TrainConfig) -> int | str:
    """The training crop; where it grows, each size and the epoch (from 0) it begins with."""
    sizes = [config.image_size_at(epoch) for epoch in range(config.epochs)]
    if len(set(sizes)) == 1:
        return sizes[0]
    begins = [
        epoch for epoch in range(len(sizes)) if epoch == 0 or sizes[epoch] != sizes[epoch - 1]
    ]
    return ", ".join(f"{sizes[epoch]} from epoch {epoch}" for epoch in begins)


def _check(config: TrainConfig) -> None:
    choices = {
        "--model": (config.model, MODELS),
        "--amp": (config.amp, get_args(AmpRequest)),
        "--device": (config.device, get_args(DeviceRequest)),
        "--on-nonfinite": (config.on_nonfinite, get_args(OnNonfinite)),
    }
    for option, (choice, known) in choices.items():
        if choice not in known:
            raise UsageError(f"{option} {choice}: choose one of {', '.join(known)}")
    counts = {
        "--epochs": config.epochs,
        "--batch-size": config.batch_size,
        "--workers": config.threads,
        "--log-every": config.log_every,
        "--keep": config.keep,
        "--max-steps": config.max_steps,
        "--save-steps": config.save_steps,
        "--accumulate": config.accumulate,
        "--patience": config.patience,
        "--steps-per-epoch": config.steps_per_epoch,
    }
    for option, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{option} {count}: it must be at least 1")
    for option, minutes in (
        ("--max-time", config.max_minutes),
        ("--save-minutes", config.save_minutes),
    ):
        if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
            raise UsageError(f"{option} {minutes}: it must be above 0 minutes")
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise UsageError(f"--lr {config.lr}: it must be a positive number")
    if not 0 <= config.seed < 2**63:
        raise UsageError(f"--seed {config.seed}: it must be from 0 to 2**63 - 1")
