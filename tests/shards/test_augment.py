"""Crops and flips: torchvision's RandomResizedCrop as a pure function of (seed, epoch, sample)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from shards.augment import flips, random_resized_crops

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
TOO_LARGE = (4.0, 4.0)  # a scale at which no attempt fits
COUNT = 10_000


def crops(
    width: int,
    height: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    count: int = COUNT,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> np.ndarray:
    samples = np.arange(count)
    widths, heights = np.full(count, width, np.uint32), np.full(count, height, np.uint32)
    return random_resized_crops(seed, epoch, samples, widths, heights, scale=scale, ratio=ratio)


def torchvision_crops(
    width: int,
    height: int,
    *,
    count: int = COUNT,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> np.ndarray:
    torch.manual_seed(0)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    boxes = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]
    return np.array(boxes)


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "area": lambda box: box[:, 2] * box[:, 3],
    "aspect": lambda box: np.log(box[:, 3] / box[:, 2]),
    "top": lambda box: box[:, 0],
    "left": lambda box: box[:, 1],
    "bottom": lambda box: box[:, 0] + box[:, 2],
    "right": lambda box: box[:, 1] + box[:, 3],
    "middle": lambda box: box[:, 0] + box[:, 2] / 2 + box[:, 1] + box[:, 3] / 2,
    "diagonal": lambda box: box[:, 0] - box[:, 1] + box[:, 2] / 2 - box[:, 3] / 2,
}
# Photographs, squares, pictures so long that attempts often fail (of 800 x 160 1 in 4 ends at the
# central box) or always do, and so small that boxes are a handful of pixels.
SHAPES = [
    (500, 375), (375, 500), (224, 224), (800, 160), (150, 700), (900, 300), (2000, 20), (12, 9)
]  # fmt: skip


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_boxes_are_distributed_as_torchvision_s(width: int, height: int) -> None:
    assert_same_distribution(crops(width, height), torchvision_crops(width, height))


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.35, 1.0), RATIO), ((0.08, 0.25), (0.5, 2.0)), ((0.9, 1.0), (1.0, 1.0))]
)
def test_so_are_boxes_of_other_ranges(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    ours = crops(480, 330, scale=scale, ratio=ratio)
    assert_same_distribution(ours, torchvision_crops(480, 330, scale=scale, ratio=ratio))


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    for name, feature in FEATURES.items():
        # Kolmogorov and Smirnov: chance alone gives less than this once in 10,000 tries.
        assert ks_2samp(feature(ours), feature(theirs)).pvalue > 1e-4, name


@pytest.mark.parametrize(("width", "height"), [(800, 160), (150, 700), (500, 110)])
def test_all_ten_attempts_fail_as_often_as_torchvision_s(width: int, height: int) -> None:
    central = torchvision_crops(width, height, scale=TOO_LARGE, count=1)[0]
    # No attempt gives exactly this box but by chance, whose share is the same in both.
    ours, theirs = (
        int((boxes == central).all(axis=1).sum())
        for boxes in (crops(width, height), torchvision_crops(width, height))
    )
    deviation = math.sqrt(ours + theirs)
    assert min(ours, theirs) > 100
    assert abs(ours - theirs) < 4 * deviation


def test_where_nothing_fits_the_box_is_torchvision_s_central_one() -> None:
    sizes = np.random.default_rng(0).integers(1, 700, (1500, 2))
    odd = [(1, 1), (1, 500), (500, 1), (2000, 20), (20, 2000), (4, 3), (3, 4), (400, 300), (2, 3)]
    for width, height in [*odd, *sizes.tolist()]:
        for ratio in (RATIO, (0.9, 1.7)):
            (found,) = crops(width, height, scale=TOO_LARGE, ratio=ratio, count=1)
            expected = torchvision_crops(width, height, scale=TOO_LARGE, ratio=ratio, count=1)
            assert found.tolist() == expected[0].tolist(), (width, height)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3, 2), (4000, 7)])
def test_boxes_lie_inside_the_image(width: int, height: int) -> None:
    top, left, box_height, box_width = crops(width, height).T
    assert top.min() >= 0
    assert left.min() >= 0
    assert box_height.min() >= 1
    assert box_width.min() >= 1
    assert (top + box_height).max() <= height
    assert (left + box_width).max() <= width


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


def test_many_boxes_are_pinned() -> None:
    # Every attempt and the central box: of 20,000 images of all shapes.
    random = np.arange(20_000, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    widths, heights = 1 + random % np.uint64(900), 1 + random // np.uint64(900) % np.uint64(900)
    boxes = random_resized_crops(
        5, 9, np.arange(20_000), widths.astype(int), heights.astype(int), scale=SCALE, ratio=RATIO
    )
    digest = hashlib.sha256(boxes.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "07444341be396fb9"


def test_no_samples_have_no_boxes() -> None:
    assert crops(500, 375, count=0).shape == (0, 4)


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
