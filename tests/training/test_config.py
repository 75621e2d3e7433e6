from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UsageError
from training.config import (
    TrainConfig,
    config_values,
    derived,
    resolve,
    warmup_note,
    with_global_batch,
)


def config(**options: Any) -> TrainConfig:
    given: dict[str, Any] = {"shards": Path("S"), "out": Path("R"), "world": 4, "threads": 2}
    return resolve(**(given | options))


def plan_of(made: TrainConfig, *, world: int, samples: int = 99) -> dict[str, Any]:
    return derived(
        made,
        samples=samples,
        val_samples=9,
        classes=3,
        world=world,
        train_shards=2,
        val_shards=1,
    )


def test_what_is_not_given_comes_from_the_recipe() -> None:
    made = config()
    assert (made.model, made.recipe.name, made.epochs, made.image_size) == (
        "resnet50",
        "seed",
        50,
        224,
    )
    assert (made.batch_size, made.global_batch, made.lr, made.schedule.warmup) == (
        64,
        256,
        0.256,
        2,
    )


def test_a_given_rate_is_the_peak_whatever_the_batch() -> None:
    assert config(lr=0.1, batch_size=512).lr == 0.1
    assert with_global_batch(config(lr=0.1), 1024).lr == 0.1
    assert with_global_batch(config(), 1024).lr == 1.024


@pytest.mark.parametrize(("world", "share"), [(1, 256), (3, 86), (4, 64)])
def test_a_global_batch_is_the_same_on_any_number_of_processes(world: int, share: int) -> None:
    made = config(world=world, global_batch=256)
    assert (made.batch_size, made.global_batch, made.lr) == (share, 256, 0.256)
    plan = plan_of(made, world=world, samples=999)
    assert plan["batch_per_process"] == (share if world != 3 else [85, 86])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "vgg16"}, "--model vgg16"),
        ({"recipe": "best"}, "--recipe best"),
        ({"amp": "fp8"}, "--amp fp8"),
        ({"device": "tpu"}, "--device tpu"),
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"global_batch": 0}, "--global-batch 0"),
        ({"global_batch": 8, "batch_size": 4}, "give one of them"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"image_size": 16}, "--image-size 16"),
        ({"seed": -1}, "--seed -1"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"save_steps": 0}, "--save-steps 0"),
        ({"keep": 0}, "--keep 0"),
        ({"threads": 0}, "--workers 0"),
        ({"accumulate": 0}, "--accumulate 0"),
        ({"patience": 0}, "--patience 0"),
        ({"max_minutes": 0.0}, "--max-time 0"),
        ({"save_minutes": float("nan")}, "--save-minutes nan"),
        ({"on_nonfinite": "hope"}, "--on-nonfinite hope"),
    ],
)
def test_a_value_that_cannot_be_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        config(**options)


def test_the_values_are_primitives_that_json_keeps() -> None:
    values = config_values(config())
    assert json.loads(json.dumps(values)) == values
    assert values["recipe"]["momentum"] == 0.875
    assert values["recipe"]["weight_decay"] == 2**-15


def test_the_plan_of_the_vendors_two_machines() -> None:
    plan = plan_of(config(world=32), samples=1_281_167, world=32)
    assert plan["global_batch"] == 2048
    assert plan["batch_per_process"] == 64
    assert plan["steps_per_epoch"] == 625
    assert plan["dropped_per_epoch"] == 1_281_167 - 625 * 2048
    assert plan["warmup_epochs"] == 16
    assert plan["lr_corners"][0] == [0, 0.128]


def test_the_plan_shows_shares_that_differ() -> None:
    plan = plan_of(config(batch_size=10, world=4), world=3)
    assert plan["batch_per_process"] == [13, 14]


@pytest.mark.parametrize(
    ("image_size", "batch", "world", "fits"),
    [(64, 3, 3, True), (64, 2, 3, False), (32, 6, 3, True), (32, 5, 3, False)],
)
def test_every_process_needs_a_share_that_can_be_normalised(
    image_size: int, batch: int, world: int, *, fits: bool
) -> None:
    made = config(image_size=image_size, batch_size=batch, world=1)
    with contextlib.nullcontext() if fits else pytest.raises(UsageError, match="too few"):
        plan_of(made, world=world)


def test_parts_of_a_share_are_large_enough_too() -> None:
    made = config(image_size=32, batch_size=8, accumulate=4, world=1)
    assert plan_of(made, world=1)["accumulate"] == 4
    with pytest.raises(UsageError, match="--accumulate 4 cuts a process's 4 samples"):
        plan_of(made, world=2)


def test_a_training_set_smaller_than_a_global_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="255 samples, fewer than one global batch of 256"):
        plan_of(config(), samples=255, world=4)


def test_the_plan_says_what_the_method_is_and_whose_the_rate_is() -> None:
    plan = plan_of(config(world=1, batch_size=32, stem="small", seed=9), world=1)
    assert (plan["model"], plan["seed"], plan["train_shards"]) == ("resnet50, small stem", 9, 2)
    assert plan["optimizer"] == "sgd, momentum 0.875, weight decay 3.05176e-05"
    assert plan["loss"] == "cross-entropy, label smoothing 0.1"
    assert plan["peak_lr"] == "0.032, the recipe's for this global batch"
    assert plan["recipe"] == "seed, with batch_size 32 instead of 64"
    given = plan_of(config(world=1, epochs=3, lr=5, recipe="a3", batch_size=32), world=1)
    assert given["recipe"] == (
        "a3, with epochs 3 instead of 100, batch_size 32 instead of 256, lr 5 instead of 0.001"
    )
    assert given["peak_lr"].startswith("5, as asked for (the recipe's")
    assert given["loss"] == "bce, targets above 0.2"


def test_a_warm_up_that_is_not_over_before_the_run_is_told() -> None:
    assert warmup_note(config(recipe="nvidia-90", epochs=9)) is None
    assert warmup_note(config(epochs=1, world=1)) is None
    said = warmup_note(config(recipe="nvidia-90", epochs=4, world=8))
    assert said is not None
    assert "takes 8 epochs and the run has 4" in said
    assert "rises to 1.024 of a peak of 2.048" in said
    assert warmup_note(config(world=32, epochs=16)) is not None  # seed: 2 for each 256
