"""Crops and flips: torchvision's RandomResizedCrop as a pure function of (seed, epoch, sample)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from shards.augment import flips, random_resized_crops

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
COUNT = 4000


def crops(
    width: int,
    height: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    count: int = COUNT,
    scale: tuple[float, float] = SCALE,
) -> np.ndarray:
    samples = np.arange(count)
    widths, heights = np.full(count, width, np.uint32), np.full(count, height, np.uint32)
    return random_resized_crops(seed, epoch, samples, widths, heights, scale=scale, ratio=RATIO)


def torchvision_crops(width: int, height: int) -> np.ndarray:
    torch.manual_seed(0)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    boxes = [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(COUNT)]
    return np.array(boxes)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (224, 224), (800, 160)])
def test_boxes_are_distributed_as_torchvision_s(width: int, height: int) -> None:
    ours, theirs = crops(width, height), torchvision_crops(width, height)
    features = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "aspect": lambda box: np.log(box[:, 3] / box[:, 2]),
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "middle": lambda box: box[:, 0] + box[:, 2] / 2 + box[:, 1] + box[:, 3] / 2,
    }
    for name, feature in features.items():
        # Kolmogorov and Smirnov: chance alone gives less than this once in 1,000 tries.
        assert ks_2samp(feature(ours), feature(theirs)).pvalue > 1e-3, name


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3, 2), (4000, 7)])
def test_boxes_lie_inside_the_image(width: int, height: int) -> None:
    top, left, box_height, box_width = crops(width, height).T
    assert top.min() >= 0
    assert left.min() >= 0
    assert box_height.min() >= 1
    assert box_width.min() >= 1
    assert (top + box_height).max() <= height
    assert (left + box_width).max() <= width


@pytest.mark.parametrize(("width", "height"), [(2000, 20), (20, 2000)])
def test_where_nothing_fits_the_box_is_torchvision_s_central_one(width: int, height: int) -> None:
    full = crops(width, height, scale=(1.0, 1.0), count=5)
    torch.manual_seed(0)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    expected = RandomResizedCrop.get_params(image, [1.0, 1.0], list(RATIO))
    assert full.tolist() == [list(expected)] * 5


def test_boxes_are_pinned() -> None:
    assert crops(500, 375, count=3).tolist() == [
        [7, 11, 336, 341],
        [66, 174, 289, 297],
        [7, 173, 339, 266],
    ]
    assert flips(0, 0, np.arange(12), 0.5).tolist() == [
        True,
        False,
        False,
        True,
        True,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_sample_s_box_does_not_depend_on_its_company() -> None:
    sizes = np.random.default_rng(0).integers(20, 900, (300, 2)).astype(np.uint32)
    samples = np.arange(300)
    widths, heights = sizes.T
    together = random_resized_crops(1, 2, samples, widths, heights, scale=SCALE, ratio=RATIO)
    for sample in (0, 7, 123, 299):
        one = slice(sample, sample + 1)
        alone = random_resized_crops(
            1, 2, samples[one], widths[one], heights[one], scale=SCALE, ratio=RATIO
        )
        assert alone[0].tolist() == together[sample].tolist()


def test_epochs_and_seeds_give_different_boxes() -> None:
    base = crops(500, 375)
    for other in (crops(500, 375, seed=1), crops(500, 375, epoch=1)):
        assert (base == other).all(axis=1).mean() < 0.01


def test_flips_come_up_as_often_as_asked_for() -> None:
    samples = np.arange(10_000)
    for probability in (0.0, 0.25, 0.5, 1.0):
        share = flips(0, 0, samples, probability).mean()
        assert abs(share - probability) < 4 * math.sqrt(0.25 / len(samples))


def test_a_flip_says_nothing_of_the_box() -> None:
    mirrored = flips(0, 0, np.arange(COUNT), 0.5)
    boxes = crops(500, 375)
    assert ks_2samp(boxes[mirrored, 1], boxes[~mirrored, 1]).pvalue > 1e-3
