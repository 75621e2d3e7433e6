from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import UsageError
from training.config import TrainConfig, config_values, derived, resolve, with_global_batch


def config(**options: Any) -> TrainConfig:
    given: dict[str, Any] = {"shards": Path("S"), "out": Path("R"), "world": 4, "threads": 2}
    return resolve(**(given | options))


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


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "vgg16"}, "--model vgg16"),
        ({"recipe": "best"}, "--recipe best"),
        ({"amp": "fp8"}, "--amp fp8"),
        ({"device": "tpu"}, "--device tpu"),
        ({"epochs": 0}, "--epochs 0"),
        ({"batch_size": -1}, "--batch-size -1"),
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
    plan = derived(config(world=32), samples=1_281_167, val_samples=50_000, classes=1000, world=32)
    assert plan["global_batch"] == 2048
    assert plan["batch_per_process"] == 64
    assert plan["steps_per_epoch"] == 625
    assert plan["dropped_per_epoch"] == 1_281_167 - 625 * 2048
    assert plan["warmup_epochs"] == 16
    assert plan["lr_corners"][0] == [0, 0.128]


def test_the_plan_shows_shares_that_differ() -> None:
    plan = derived(config(batch_size=10, world=4), samples=99, val_samples=9, classes=3, world=3)
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
        derived(made, samples=99, val_samples=9, classes=3, world=world)


def test_parts_of_a_share_are_large_enough_too() -> None:
    made = config(image_size=32, batch_size=8, accumulate=4, world=1)
    assert derived(made, samples=99, val_samples=9, classes=3, world=1)["accumulate"] == 4
    with pytest.raises(UsageError, match="--accumulate 4 cuts a process's 4 samples"):
        derived(made, samples=99, val_samples=9, classes=3, world=2)


def test_a_training_set_smaller_than_a_global_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="255 samples, fewer than one global batch of 256"):
        derived(config(), samples=255, val_samples=1, classes=1, world=4)
