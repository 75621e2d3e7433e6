from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UsageError
from training.checkpoint import Checkpoint, Position
from training.config import TrainConfig, config_values, resolve
from training.resume import reconcile

DATA = {"train": "t" * 64, "val": "v" * 64, "train_samples": 9, "val_samples": 3}
CLASSES = ["a", "b"]


def config(**options: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "shards": Path("S"),
        "out": Path("R"),
        "world": 4,
        "threads": 2,
        "model": "resnet18",
    }
    return resolve(**(given | options))


def saved_by(made: TrainConfig) -> Checkpoint:
    return Checkpoint(
        model={},
        optimizer={},
        scaler={},
        rng={},
        position=Position(epoch=1, step=0, samples=9, order="0" * 16),
        best=None,
        config=config_values(made),
        data=dict(DATA),
        classes=list(CLASSES),
        class_names=list(CLASSES),
        versions={},
    )


def go_on(now: TrainConfig, before: TrainConfig) -> TrainConfig:
    return reconcile(now, Path("c.pt"), saved_by(before), DATA, CLASSES)


def test_the_same_command_goes_on_as_it_was() -> None:
    assert go_on(config(), config()) == config()


def test_other_processes_threads_device_and_habits_go_on_with_the_same_global_batch() -> None:
    now = config(
        world=3, threads=7, device="cpu", save_steps=5, keep=9, log_every=1, max_steps=8,
        accumulate=2, compile=True, deterministic=True, on_nonfinite="skip", patience=3,
        max_minutes=60.0, save_minutes=5.0, profile=Path("P"), tensorboard=True,
    )  # fmt: skip
    went_on = go_on(now, config())
    assert (went_on.global_batch, went_on.lr, went_on.schedule.warmup) == (256, 0.256, 2)
    assert went_on.threads == 7


def test_a_batch_size_that_makes_the_same_global_batch_goes_on() -> None:
    assert go_on(config(world=2, batch_size=128), config()).global_batch == 256
    assert go_on(config(world=3, global_batch=256), config()).global_batch == 256


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "resnet50"}, "--model resnet18"),
        ({"epochs": 90}, "--epochs 50"),
        ({"lr": 0.1}, "--lr 0.256"),
        ({"image_size": 160}, "--image-size 224"),
        ({"seed": 1}, "--seed 1234"),
        ({"stem": "small"}, "--stem imagenet"),
        ({"settings": {"ema_decay": 0.9}}, "ema_decay 0.0 instead of 0.9"),
        ({"amp": "off"}, "--amp auto"),
        ({"batch_size": 32}, "--batch-size 64"),
        ({"global_batch": 64, "world": 1}, "--global-batch 256"),
    ],
)
def test_what_would_make_it_another_run_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        go_on(config(**options), config())


def test_another_recipe_is_refused() -> None:
    recipe = dataclasses.replace(config().recipe, momentum=0.9)
    with pytest.raises(
        UsageError, match=r"recipe seed with other values .*momentum 0.9 instead of"
    ):
        go_on(config(), dataclasses.replace(config(), recipe=recipe))


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_data_is_refused(split: str) -> None:
    data = DATA | {split: "f" * 64}
    with pytest.raises(UsageError, match=f"other {split} data"):
        reconcile(config(), Path("c.pt"), saved_by(config()), data, CLASSES)


def test_other_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="trained on 2 classes, not on the 3"):
        reconcile(config(), Path("c.pt"), saved_by(config()), DATA, ["a", "b", "c"])
