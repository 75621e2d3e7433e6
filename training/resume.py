"""Going on from a checkpoint: what must agree, and what may differ.

A resumed run must give what the undisturbed one would have given, so everything that shapes
the result is compared and a difference is refused in one sentence that names the option. The
number of processes, the device, the precision's default, the threads and what is logged or
saved may differ. The global batch is the checkpoint's: with other numbers of processes each
takes another share of the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from training.checkpoint import Checkpoint
from training.config import TrainConfig, config_values, with_global_batch
from training.recipes import recipe_values
from training.settings import SETTINGS

_ANEW = "or start anew with another --out"
_OPTIONS = {
    "model": "--model",
    "stem": "--stem",
    "epochs": "--epochs",
    "lr": "--lr",
    "image_size": "--image-size",
    "seed": "--seed",
    "amp": "--amp",
    "steps_per_epoch": "--steps-per-epoch",
}


def reconcile(
    config: TrainConfig,
    path: Path,
    checkpoint: Checkpoint,
    data: Mapping[str, Any],
    classes: Sequence[str],
) -> TrainConfig:
    """The configuration with which to go on from `checkpoint`, at the checkpoint's global batch.

    `data` is what Checkpoint.data would hold for the shards at hand. Raises UsageError where
    the run would become another one.
    """
    _check_data(config, path, checkpoint, data, classes)
    saved = checkpoint.config
    config = _with_saved_batch(config, path, saved)
    current = config_values(config)
    if saved["recipe"]["name"] != config.recipe.name:
        raise UsageError(
            f"{path} was trained by recipe {saved['recipe']['name']} and this command says "
            f"{config.recipe.name}; give --recipe {saved['recipe']['name']}, {_ANEW}"
        )
    for field, option in _OPTIONS.items():
        if saved.get(field) != current[field]:
            raise UsageError(
                f"{path} was trained with {option} {saved.get(field)} and this command says "
                f"{current[field]}; give {option} {saved[field]}, {_ANEW}"
            )
    _check_recipe(config, path, saved["recipe"])
    return config


def _check_recipe(config: TrainConfig, path: Path, saved: Mapping[str, Any]) -> None:
    """Texts about a recipe, its sources and remarks, may have been reworded since."""
    current = recipe_values(config.recipe)
    other = [
        f"{name} {saved.get(name)} instead of {current.get(name)}"
        for name in SETTINGS
        if saved.get(name) != current.get(name)
    ]
    if other:
        raise UsageError(
            f"{path} was trained by recipe {saved['name']} with other values than it has here "
            f"({', '.join(other)}); give those, or --config with the run's config.toml, {_ANEW}"
        )


def _check_data(
    config: TrainConfig,
    path: Path,
    checkpoint: Checkpoint,
    data: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    if checkpoint.classes != list(classes):
        raise UsageError(
            f"{path} was trained on {len(checkpoint.classes)} classes, not on the "
            f"{len(classes)} of {config.shards}; give the shards it was trained on, {_ANEW}"
        )
    for split in ("train", "val"):
        if checkpoint.data[split] != data[split]:
            place = config.shards / split
            if split == "train" and config.stream is not None:
                raise UsageError(
                    f"{path} was trained with other shards than {config.stream}; give those "
                    f"(--shards, --label-field), {_ANEW}"
                )
            raise UsageError(
                f"{path} was trained with other {split} data ({_short(checkpoint.data[split])}) "
                f"than {place} holds ({_short(data[split])}); give those shards, "
                f"{_ANEW}"
            )


def _with_saved_batch(config: TrainConfig, path: Path, saved: Mapping[str, Any]) -> TrainConfig:
    """Take the saved global batch, unless --batch-size plainly asks for a different one.

    The same command on another number of processes (the same --batch-size), or a --batch-size
    or --global-batch that makes the same global batch, goes on.
    """
    same = config.global_batch == saved["global_batch"]
    if not same and (config.global_batch_given or config.batch_size != saved["batch_size"]):
        raise UsageError(
            f"{path} was trained with a global batch of {saved['global_batch']} and this command "
            f"asks for {config.global_batch}; give --batch-size {saved['batch_size']} as before "
            f"or --global-batch {saved['global_batch']} (a resumed run keeps it), {_ANEW}"
        )
    return with_global_batch(config, saved["global_batch"])


def _short(digest: object) -> str:
    return str(digest)[:12]
