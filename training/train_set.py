"""What a run trains on: a split with an index, or shards without one, which is inexact.

A stream does not know its classes or its end, so both are told: the classes are those of the
validation split, and an epoch is a number of steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from shards.dataset import Dataset
from shards.errors import UsageError
from shards.image_augment import ColorJitter, PictureAugment, RandAugment, RandomErasing
from shards.loader import Loader
from shards.stream import StreamLoader
from shards.transform import EvalTransform, TrainTransform
from training.config import TrainConfig, config_values
from training.distributed import World
from training.order_digest import digest_of, expected_digest
from training.recipes import Recipe
from training.synthetic import SYNTHETIC, SyntheticLoader


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Shards without an index."""

    urls: str
    steps: int  # an epoch
    label_field: str | None
    classes: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """What tells these shards from others: where they are said to be."""
        return hashlib.sha256(f"{self.urls}\n{self.label_field}".encode()).hexdigest()


TrainSet: TypeAlias = Dataset | Streamed
TrainLoader: TypeAlias = Loader | StreamLoader | SyntheticLoader


def samples_of_epoch(train_set: TrainSet, global_batch: int) -> int:
    """Samples that an epoch has before any are dropped."""
    if isinstance(train_set, Streamed):
        return train_set.steps * global_batch
    return len(train_set)


def order_of_epoch(train_set: TrainSet, *, seed: int, epoch: int, used: int) -> int:
    """The digest that an epoch's order must have; samples of a stream have no number but -1."""
    if isinstance(train_set, Streamed):
        return digest_of(np.arange(used), np.full(used, -1))
    return expected_digest(seed=seed, epoch=epoch, samples=len(train_set), used=used)


def train_transform(recipe: Recipe) -> TrainTransform:
    """What becomes of a picture that is trained on, at the recipe's largest size."""
    return TrainTransform(
        image_size=recipe.image_size,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        flip=recipe.flip,
        interpolation=recipe.interpolation,
        dct_scaling=recipe.dct_scaling,
        augment=_augmentation(recipe),
    )


def _augmentation(recipe: Recipe) -> tuple[PictureAugment, ...]:
    """Changes of single pictures, in the order of timm's and torchvision's transforms."""
    changes: list[PictureAugment] = []
    if recipe.rand_augment:
        changes.append(RandAugment.timm(magnitude=recipe.rand_augment))
    if recipe.color_jitter:
        most = recipe.color_jitter
        changes.append(ColorJitter(brightness=most, contrast=most, saturation=most))
    if recipe.erasing:
        changes.append(RandomErasing(probability=recipe.erasing))
    return tuple(changes)


def eval_transform(
    config: TrainConfig | Mapping[str, Any], *, image_size: int | None = None
) -> EvalTransform:
    """What becomes of a picture that is evaluated, by a configuration or a checkpoint's.

    `image_size` is another crop than the recipe's; the short side keeps its ratio to it.
    """
    values = config_values(config) if isinstance(config, TrainConfig) else config
    recipe: Any = values["recipe"]
    size = image_size or recipe["eval_size"]
    return EvalTransform(
        image_size=size,
        resize=round(size * recipe["eval_resize"]),
        interpolation=recipe["interpolation"],
    )


def make_loader(
    train_set: TrainSet, config: TrainConfig, world: World, *, pin_memory: bool
) -> TrainLoader:
    """The loader of this process. Raises UsageError where a stream cannot be cut so."""
    recipe = config.recipe
    transform = train_transform(recipe)
    if isinstance(train_set, Dataset):
        return Loader(
            train_set,
            transform,
            global_batch=config.global_batch,
            rank=world.rank,
            world=world.size,
            seed=config.seed,
            shuffle="full",
            drop_last=recipe.drop_last,
            threads=config.threads,
            pin_memory=pin_memory,
            image_size=lambda epoch, _step: config.image_size_at(epoch),
        )
    if train_set.urls == SYNTHETIC:
        return SyntheticLoader(
            image_size=recipe.image_size,
            global_batch=config.global_batch,
            steps=train_set.steps,
            classes=len(train_set.classes),
            rank=world.rank,
            world=world.size,
            pin_memory=pin_memory,
        )
    if recipe.start_size not in (0, recipe.image_size):
        raise UsageError(
            f"recipe {recipe.name} begins with {recipe.start_size} pixels and ends with "
            f"{recipe.image_size}, which shards without an index cannot give; make an index "
            "(`imagenet-prep index`), or set start_size = 0 in a file of --config"
        )
    if config.global_batch % world.size:
        raise UsageError(
            f"from shards without an index {world.size} processes take equal parts of a global "
            f"batch, and {config.global_batch} has none; give another number of processes or "
            "--batch-size, or make an index (`imagenet-prep index`)"
        )
    return StreamLoader(
        train_set.urls,
        transform,
        batch_size=config.global_batch // world.size,
        steps=train_set.steps,
        rank=world.rank,
        world=world.size,
        seed=config.seed,
        threads=config.threads,
        label_field=train_set.label_field,
        classes=len(train_set.classes),
        pin_memory=pin_memory,
    )
