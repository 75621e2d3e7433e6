"""Augmentation of pictures: torchvision's and timm's, as functions of uniform numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from torchvision import transforms
from torchvision.transforms import functional as reference

from shards.adjust import Pixels
from shards.augment import FIRST_PICTURE_DRAW
from shards.errors import UsageError
from shards.image_augment import (
    MEAN_COLOUR,
    ColorJitter,
    PictureAugment,
    RandAugment,
    RandomErasing,
)
from shards.order import draws, mix64

BRIGHTNESS, INVERT = 6, 2  # places in the spaces "torchvision", "increasing"
BLENDS_WITH_GREY_OR_SMOOTH = (7, 8, 9)  # places in "torchvision"


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    made = np.random.default_rng(0).integers(0, 256, (64, 90, 3)).astype(np.uint8)
    made.flags.writeable = False
    return made


def numbers(augment: PictureAugment, count: int) -> np.ndarray:
    return draws(0, 0, np.arange(count), FIRST_PICTURE_DRAW, augment.draws)


def one(which: int, of: int, *, negative: bool = False, strength: float = 0.5) -> np.ndarray:
    """The numbers that make RandAugment apply operation `which` of so many."""
    return np.array([(which + 0.5) / of, 0.0, 0.25 if negative else 0.75, strength, 0.0])


# --- RandAugment ------------------------------------------------------------------------------


def torchvision_seeds() -> dict[tuple[int, bool], int]:
    """Seeds of torch that make its RandAugment take each operation, with and without the sign."""
    seeds: dict[tuple[int, bool], int] = {}
    for seed in range(1000):
        torch.manual_seed(seed)
        operation, negative = int(torch.randint(14, (1,))), bool(torch.randint(2, (1,)))
        seeds.setdefault((operation, negative), seed)
    assert len(seeds) == 28
    return seeds


@pytest.mark.parametrize("magnitude", [0, 1, 6, 9, 13, 22, 30])
def test_rand_augment_is_torchvision_s(pixels: Pixels, magnitude: int) -> None:
    ours = RandAugment(num_ops=1, magnitude=magnitude)
    theirs = transforms.RandAugment(num_ops=1, magnitude=magnitude)
    for (operation, negative), seed in torchvision_seeds().items():
        torch.manual_seed(seed)
        expected = np.asarray(theirs(Image.fromarray(pixels)))
        found = ours(pixels, one(operation, 14, negative=negative))
        assert np.array_equal(found, expected), (operation, negative)


def test_the_defaults_are_torchvision_s() -> None:
    ours, theirs = RandAugment(), transforms.RandAugment()
    assert (ours.num_ops, ours.magnitude) == (theirs.num_ops, theirs.magnitude)
    assert (theirs.num_magnitude_bins, theirs.interpolation.value) == (31, ours.interpolation)


def test_pictures_are_pinned() -> None:
    # Tables and nearest neighbours alone: pillow-simd's grey and its filters may be its own.
    made = (mix64(np.arange(40 * 50 * 3, dtype=np.uint64)) >> np.uint64(56)).astype(np.uint8)
    digest = hashlib.sha256()
    for augment in (RandAugment(magnitude_std=2.0), RandAugment(num_ops=3, magnitude=20)):
        for row in numbers(augment, 200):
            row[::5] = np.where(
                np.isin(row[::5] * 14 // 1, BLENDS_WITH_GREY_OR_SMOOTH), 0, row[::5]
            )
            digest.update(augment(made.reshape(40, 50, 3), row).tobytes())
    assert digest.hexdigest()[:16] == "bdb720431aa0240d"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of timm's imports
@pytest.mark.parametrize("magnitude", [0, 3, 6, 9])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_the_increasing_space_is_timm_s(pixels: Pixels, magnitude: int, resample: Any) -> None:
    timm = pytest.importorskip("timm.data.auto_augment", reason="needs the extra `recipes`")
    hints = {"img_mean": MEAN_COLOUR, "interpolation": Image.Resampling[resample.upper()]}
    # What timm draws from is the global state.
    theirs = timm.rand_augment_transform(f"rand-m{magnitude}-n1-p1.0-inc1", hints)
    ours = dataclasses.replace(
        RandAugment.timm(magnitude=magnitude, magnitude_std=0.0),
        num_ops=1,
        probability=1.0,
        interpolation=resample,
    )
    seen = set()
    for seed in range(200):
        np.random.seed(seed)  # noqa: NPY002
        operation = int(np.random.choice(15))  # noqa: NPY002
        random.seed(seed)
        negative = random.random() > 0.5
        seen.add((operation, negative))
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        expected = np.asarray(theirs(Image.fromarray(pixels)))
        found = ours(pixels, one(operation, 15, negative=negative))
        assert np.array_equal(found, expected), (operation, negative)
    assert len(seen) == 30


def test_operations_and_signs_are_drawn_evenly() -> None:
    augment = RandAugment(num_ops=1, magnitude=17)
    picture = np.random.default_rng(0).integers(20, 200, (24, 24, 3)).astype(np.uint8)
    known = {
        augment(picture, one(which, 14, negative=negative)).tobytes(): which
        for which in range(14)
        for negative in (False, True)
    }
    assert len(known) == 14 + 9  # nine operations go both ways
    results = [augment(picture, row).tobytes() for row in numbers(augment, 7000)]
    assert chisquare(np.bincount([known[result] for result in results])).pvalue > 1e-3
    ways = np.unique([result for result in results if known[result] == 5], return_counts=True)[1]
    assert len(ways) == 2
    assert chisquare(ways).pvalue > 1e-3


def test_operations_follow_each_other(pixels: Pixels) -> None:
    augment = RandAugment(num_ops=2, magnitude=9)
    first, second = one(10, 14), one(BRIGHTNESS, 14)
    single = RandAugment(num_ops=1, magnitude=9)
    expected = single(single(pixels, first), second)
    assert np.array_equal(augment(pixels, np.concatenate([first, second])), expected)
    assert not np.array_equal(augment(pixels, np.concatenate([second, first])), expected)


def test_an_operation_is_applied_as_often_as_asked_for() -> None:
    augment = RandAugment(num_ops=1, magnitude=5, space="increasing", probability=0.3)
    applied = 0
    for row in numbers(augment, 5000):
        row[0] = (INVERT + 0.5) / 15
        applied += augment(np.zeros((1, 1, 3), np.uint8), row)[0, 0, 0] == 255
    assert abs(applied / 5000 - 0.3) < 4 * (0.3 * 0.7 / 5000) ** 0.5


def test_strengths_are_normal_around_the_magnitude_and_cut_off() -> None:
    def magnitudes(magnitude: float, deviation: float) -> np.ndarray:
        augment = RandAugment(num_ops=1, magnitude=magnitude, magnitude_std=deviation)
        found = []
        for row in numbers(augment, 4000):
            row[0], row[2] = (BRIGHTNESS + 0.5) / 14, 0.9
            value = float(augment(np.full((1, 1, 3), 120, np.uint8), row)[0, 0, 0])
            # A factor of 1 + 0.9 m / 30, cut off to whole grey levels: half a level on average.
            found.append(((value + 0.5) / 120 - 1) / 0.9 * 30)
        return np.array(found)

    middle = magnitudes(15, 3)
    assert abs(middle.mean() - 15) < 4 * 3 / 4000**0.5
    assert abs(middle.std() - 3) < 0.15
    low = magnitudes(0, 3)
    assert low.min() > -0.01
    assert 0.45 < (low < 0.5).mean() < 0.6  # half the draws are below 0, and become 0


@pytest.mark.parametrize("strength", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_are_fine(pixels: Pixels, strength: float) -> None:
    for augment in (RandAugment(magnitude_std=0.5), RandAugment.timm(magnitude=6)):
        for which in (0.0, 0.5, 1 - 2.0**-53):
            row = np.full(augment.draws, strength)
            row[::5] = which
            assert augment(pixels, row).shape == pixels.shape


def test_random_interpolation_is_either() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    drawn = RandAugment(num_ops=1, interpolation="random")
    for number, name in ((0.49, "bilinear"), (0.5, "bicubic")):
        row = one(5, 14)
        row[4] = number
        fixed = RandAugment(num_ops=1, interpolation=name)
        assert np.array_equal(drawn(pixels, row), fixed(pixels, row))


# --- ColorJitter ------------------------------------------------------------------------------


def test_colours_are_jittered_as_torchvision_does(pixels: Pixels) -> None:
    augment = ColorJitter(brightness=0.4, contrast=0.4, saturation=1.3, hue=0.1)
    changes = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]
    # The ranges that torchvision makes of the same numbers.
    theirs = transforms.ColorJitter(0.4, 0.4, 1.3, 0.1)
    ranges = [theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue]
    orders = list(itertools.permutations(range(4)))
    for row in numbers(augment, 60):
        image = Image.fromarray(pixels)
        for which in orders[int(row[0] * 24)]:
            least, most = ranges[which]
            image = changes[which](image, least + (most - least) * row[1 + which])
        assert np.array_equal(augment(pixels, row), np.asarray(image))


def test_what_is_not_jittered_stays(pixels: Pixels) -> None:
    for row in numbers(ColorJitter(), 10):
        assert np.array_equal(ColorJitter()(pixels, row), pixels)
    row = np.array([0.0, 0.1, 0.9, 0.9, 0.9])
    expected = reference.adjust_brightness(Image.fromarray(pixels), 0.6 + 0.8 * 0.1)
    assert np.array_equal(ColorJitter(brightness=0.4)(pixels, row), np.asarray(expected))


# --- RandomErasing ----------------------------------------------------------------------------


def box_of(erased: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
    assert erased.sum() == len(rows) * len(columns)
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (160, 160), (96, 300)])
def test_erased_boxes_are_distributed_as_torchvision_s(height: int, width: int) -> None:
    augment = RandomErasing(probability=1.0, colour=(1, 1, 1))
    blank = [np.zeros((height, width, 3), np.uint8) for _ in range(1500)]
    painted = [augment(each, row) for each, row in zip(blank, numbers(augment, 1500), strict=True)]
    ours = np.array([box_of(each[:, :, 0]) for each in painted])
    torch.manual_seed(0)
    tensor = torch.zeros(3, height, width)
    parameters = transforms.RandomErasing()
    theirs = np.array(
        [
            transforms.RandomErasing.get_params(
                tensor, parameters.scale, parameters.ratio, value=[0.0]
            )[:4]
            for _ in range(1500)
        ]
    )
    features: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda box: box[:, 2] * box[:, 3],
        lambda box: np.log(box[:, 2] / box[:, 3]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ]
    for feature in features:
        assert ks_2samp(feature(ours), feature(theirs)).pvalue > 1e-3


def test_where_no_box_fits_nothing_is_erased() -> None:
    augment = RandomErasing(probability=1.0, scale=(1.0, 1.0))
    for row in numbers(augment, 50):
        assert not augment(np.zeros((50, 50, 3), np.uint8), row).any()


def test_erasing_paints_into_the_picture_with_its_colour() -> None:
    augment = RandomErasing(probability=1.0)
    pixels = np.zeros((40, 40, 3), np.uint8)
    assert augment(pixels, numbers(augment, 1)[0]) is pixels
    assert {tuple(each) for each in pixels.reshape(-1, 3).tolist()} == {(0, 0, 0), MEAN_COLOUR}


def test_a_picture_that_may_not_be_written_is_copied(pixels: Pixels) -> None:
    augment = RandomErasing(probability=1.0)
    row = numbers(augment, 1)[0]
    assert np.array_equal(augment(pixels, row), augment(pixels.copy(), row))
    assert not np.array_equal(augment(pixels, row), pixels)


def test_erasing_happens_as_often_as_asked_for() -> None:
    augment = RandomErasing(probability=0.25)
    rows = numbers(augment, 4000)
    share = np.mean([augment(np.zeros((8, 8, 3), np.uint8), row).any() for row in rows])
    # On 8 x 8 pixels some boxes are empty; there are as many of them as with certainty.
    certain = RandomErasing(probability=1.0)
    whole = np.mean([certain(np.zeros((8, 8, 3), np.uint8), row).any() for row in rows])
    assert abs(share / whole - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_erased_boxes_are_pinned() -> None:
    augment = RandomErasing(probability=1.0, colour=(1, 1, 1))
    found = [
        box_of(augment(np.zeros((224, 224, 3), np.uint8), row)[:, :, 0])
        for row in numbers(augment, 3)
    ]
    assert found == [(157, 57, 39, 68), (20, 9, 94, 50), (151, 56, 39, 73)]


# --- all of them ------------------------------------------------------------------------------

ALL: list[PictureAugment] = [
    RandAugment(),
    RandAugment(num_ops=3, magnitude=20, magnitude_std=4, interpolation="random"),
    RandAugment.timm(magnitude=6),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    RandomErasing(),
]


@pytest.mark.parametrize("augment", ALL, ids=str)
def test_pictures_depend_on_neither_order_nor_threads(augment: PictureAugment) -> None:
    made = np.random.default_rng(1).integers(0, 256, (48, 32, 32, 3)).astype(np.uint8)
    rows = numbers(augment, 48)
    alone = [augment(made[number].copy(), rows[number]) for number in range(48)]
    shuffled = np.random.default_rng(2).permutation(48).tolist()
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(
            lambda number: augment(
                made[number].copy(),
                draws(0, 0, np.array([number]), FIRST_PICTURE_DRAW, augment.draws)[0],
            ),
            shuffled,
        )
        for number, pixels in zip(shuffled, found, strict=True):
            assert np.array_equal(pixels, alone[number])


@pytest.mark.parametrize("augment", ALL, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (224, 224)])
def test_pictures_of_any_size_keep_it(augment: PictureAugment, shape: tuple[int, int]) -> None:
    made = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for row in numbers(augment, 30):
        found = augment(made.copy(), row)
        assert (found.shape, found.dtype) == (made.shape, np.uint8)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (RandAugment, {"num_ops": 0}, "RandAugment.num_ops must be at least 1, not 0"),
        (RandAugment, {"magnitude": 31}, "RandAugment.magnitude must be between 0 and 30, not 31"),
        (RandAugment, {"magnitude": 11, "space": "increasing"}, "between 0 and 10, not 11"),
        (RandAugment, {"magnitude": float("nan")}, "RandAugment.magnitude"),
        (RandAugment, {"magnitude_std": -0.5}, "RandAugment.magnitude_std"),
        (RandAugment, {"space": "timm"}, "RandAugment.space must be one of torchvision, incr"),
        (RandAugment, {"probability": 1.5}, "RandAugment.probability"),
        (RandAugment, {"interpolation": "lanczos"}, "RandAugment.interpolation must be one of"),
        (RandAugment, {"fill": (0, 0, 256)}, "RandAugment.fill must be three whole numbers"),
        (ColorJitter, {"brightness": -0.1}, "ColorJitter.brightness"),
        (ColorJitter, {"contrast": float("inf")}, "ColorJitter.contrast"),
        (ColorJitter, {"saturation": float("nan")}, "ColorJitter.saturation"),
        (ColorJitter, {"hue": 0.6}, "ColorJitter.hue must be between 0 and 0.5, not 0.6"),
        (RandomErasing, {"probability": -1}, "RandomErasing.probability"),
        (RandomErasing, {"scale": (0.5, 0.1)}, "RandomErasing.scale must be two rising numbers"),
        (RandomErasing, {"ratio": (0, 1)}, "RandomErasing.ratio"),
        (RandomErasing, {"colour": (0, 0)}, "RandomErasing.colour"),
    ],
)
def test_a_wrong_field_is_named(kind: type, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        kind(**options)
    assert named in str(caught.value)


@pytest.mark.parametrize("augment", ALL, ids=str)
def test_augmentations_cannot_be_changed(augment: Any) -> None:
    field = dataclasses.fields(augment)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(augment, field, 0)
