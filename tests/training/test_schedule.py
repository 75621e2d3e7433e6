"""Learning rates against formulas written down again from their sources, and torch's schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from training.recipes import find_recipe
from training.schedule import Schedule, lr_at, lr_corners

# (peak, warm-up epochs, epochs) of the vendor's commands: one card, four, eight, eight for 90.
RUNS = [(0.256, 2, 50), (1.024, 8, 50), (2.048, 16, 50), (2.048, 16, 90)]
STEPS = 7


def seed(peak: float, warmup: int, epochs: int) -> Schedule:
    return Schedule(kind="cosine-by-epoch", peak=peak, warmup=warmup, epochs=epochs)


def curve(schedule: Schedule, steps: int = STEPS) -> list[float]:
    """The rates of all steps of a run."""
    return [
        lr_at(schedule, epoch, step, steps)
        for epoch in range(schedule.epochs)
        for step in range(steps)
    ]


def torchs(
    peak: float, epochs: int, make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
) -> list[float]:
    """The rates of a scheduler of torch, an epoch each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler, rates = make(optimizer), []
    for _ in range(epochs):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


# --- the vendor's and NVIDIA's ---


def vendor_lr(base: float, warmup: int, epochs: int, epoch: int) -> float:
    """lr_cosine_policy of the vendor's lr_policy.py, written down again."""
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    e, es = epoch - warmup, epochs - warmup
    return 0 + (0.5 * (1 + math.cos(math.pi * e / es)) * (base - 0))


@pytest.mark.parametrize(("peak", "warmup", "epochs"), RUNS)
def test_the_curve_is_the_vendors(peak: float, warmup: int, epochs: int) -> None:
    for epoch in range(epochs):
        expected = vendor_lr(peak, warmup, epochs, epoch)
        for step in (0, STEPS - 1):  # constant within an epoch
            found = lr_at(seed(peak, warmup, epochs), epoch, step, STEPS)
            assert found == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("peak", "warmup", "epochs"), RUNS)
def test_after_warm_up_it_is_torchs_cosine(peak: float, warmup: int, epochs: int) -> None:
    after = epochs - warmup
    expected = torchs(peak, after, lambda each: lr_scheduler.CosineAnnealingLR(each, after))
    found = curve(seed(peak, warmup, epochs), 1)[warmup:]
    assert found == pytest.approx(expected, abs=2e-15)


def test_warm_up_starts_at_a_share_of_the_peak() -> None:
    """And so is not torchvision's, which begins at a hundredth."""
    assert curve(seed(0.256, 2, 50), 1)[:3] == [0.128, 0.256, 0.256]


@pytest.mark.parametrize(
    ("global_batch", "warmup"), [(64, 0), (255, 0), (256, 2), (1024, 8), (2048, 16)]
)
def test_the_seeds_warm_up_grows_with_the_global_batch(global_batch: int, warmup: int) -> None:
    assert find_recipe("seed").warmup(global_batch) == warmup
    assert find_recipe("nvidia-90").warmup(global_batch) == 8


@pytest.mark.parametrize(
    ("recipe", "global_batch", "lr"),
    [
        ("seed", 256, 0.256),
        ("seed", 1024, 1.024),
        ("seed", 64, 0.064),
        ("nvidia-90", 2048, 2.048),
        ("nvidia-90", 256, 0.256),
        ("torchvision-v1", 256, 0.1),
        ("a3", 2048, 0.008),
        ("a3", 512, 0.004),  # by the square root
        ("fast", 1024, 0.425),
        ("mlperf", 3264, 10.5),
    ],
)
def test_a_recipes_rate_grows_with_the_global_batch(
    recipe: str, global_batch: int, lr: float
) -> None:
    assert find_recipe(recipe).peak_lr(global_batch) == pytest.approx(lr)


# --- the others ---


def test_steps_are_torchs() -> None:
    schedule = find_recipe("torchvision-v1").curve(peak=0.1, global_batch=256, epochs=90)
    expected = torchs(0.1, 90, lambda each: lr_scheduler.StepLR(each, 30, 0.1))
    assert curve(schedule, 1) == pytest.approx(expected, rel=1e-14)


def test_a_cosine_by_step_is_torchs_after_a_linear_warm_up() -> None:
    warmup, epochs = 5, 100
    schedule = find_recipe("a3").curve(peak=0.008, global_batch=2048, epochs=epochs)
    found = curve(schedule)
    rising = [0.008 * (step + 1) / (warmup * STEPS) for step in range(warmup * STEPS)]
    assert found[: len(rising)] == pytest.approx(rising, rel=1e-12)
    after = (epochs - warmup) * STEPS
    falling = torchs(
        0.008, after, lambda each: lr_scheduler.CosineAnnealingLR(each, after, eta_min=1e-6)
    )
    assert found[len(rising) :] == pytest.approx(falling, rel=1e-9)


def test_the_triangle_is_ffcvs() -> None:
    """get_cyclic_lr for each end of an epoch, in between a straight line over its iterations."""
    epochs, peak = 32, 1.7
    ends = np.interp(np.arange(epochs + 1), [0, 2, epochs], [1e-4 * peak, peak, 0])
    expected = np.concatenate(
        [
            np.interp(np.arange(STEPS), [0, STEPS], [ends[epoch], ends[epoch + 1]])
            for epoch in range(epochs)
        ]
    )
    schedule = find_recipe("fast").curve(peak=peak, global_batch=4096, epochs=epochs)
    assert curve(schedule) == pytest.approx(expected.tolist(), rel=1e-12)


def test_the_polynomial_is_mlperfs() -> None:
    schedule = find_recipe("mlperf").curve(peak=10.5, global_batch=3264, epochs=37)
    found, warm, total = curve(schedule), 2 * STEPS, 37 * STEPS
    assert found[:warm] == pytest.approx([10.5 * (step + 1) / warm for step in range(warm)])
    for step in range(warm, total):
        left = 1 - (step - warm) / (total - warm)
        assert found[step] == pytest.approx(1e-4 + (10.5 - 1e-4) * left * left)


# --- what all have in common ---


@pytest.mark.parametrize("kind", ["cosine-by-epoch", "cosine", "step", "poly", "triangular"])
@pytest.mark.parametrize("warmup", [0, 1, 2, 8])
@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_any_run_has_rates_up_to_its_peak_and_corners_on_its_curve(
    kind: Any, warmup: int, epochs: int
) -> None:
    schedule = Schedule(kind=kind, peak=1.0, warmup=warmup, epochs=epochs, step_epochs=2)
    assert all(0 < rate <= 1 for rate in curve(schedule))
    corners = lr_corners(schedule, STEPS)
    assert corners[0][0] == 0
    assert corners[-1][0] == epochs - 1
    assert corners == sorted(set(corners))
    for epoch, lr in corners:
        assert lr == lr_at(schedule, epoch, 0, STEPS)


def test_the_corners_of_steps_are_where_it_drops() -> None:
    schedule = find_recipe("torchvision-v1").curve(peak=0.1, global_batch=256, epochs=90)
    assert [epoch for epoch, _ in lr_corners(schedule, 1)] == [0, 30, 60, 89]
