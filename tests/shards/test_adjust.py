"""Single changes of pixels: torchvision's on Pillow pictures, to the last bit."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from shards import adjust
from shards.adjust import Pixels, Warp

Change = Callable[[Pixels, float], Pixels]
Reference = Callable[[Image.Image, float], Image.Image]

RESAMPLING = [
    (Image.Resampling.NEAREST, InterpolationMode.NEAREST),
    (Image.Resampling.BILINEAR, InterpolationMode.BILINEAR),
    (Image.Resampling.BICUBIC, InterpolationMode.BICUBIC),
]
FACTORS = [0.0, 0.1, 0.37, 0.73, 1.0, 1.27, 1.9, 3.3]


@pytest.fixture(scope="module")
def pictures(picture: Callable[[str], bytes]) -> list[Pixels]:
    """A photograph, noise, few values, one colour, one pixel; none is square or may be written."""
    random = np.random.default_rng(0)
    photograph = Image.open(io.BytesIO(picture("colour.jpg"))).convert("RGB")
    made = [
        np.array(photograph),
        random.integers(0, 256, (96, 130, 3)),
        random.integers(100, 140, (75, 64, 3)),
        random.choice([3, 250], (40, 31, 3)),
        np.full((30, 20, 3), (7, 200, 255)),
        np.array([[[1, 2, 3]]]),
    ]
    pictures = [each.astype(np.uint8) for each in made]
    for each in pictures:
        each.flags.writeable = False
    return pictures


def assert_equal(pictures: list[Pixels], change: Change, expected: Reference, by: float) -> None:
    for pixels in pictures:
        theirs = np.asarray(expected(Image.fromarray(pixels), by))
        ours = change(pixels, by)
        assert ours.dtype == np.uint8
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (adjust.brightness, reference.adjust_brightness),
        (adjust.contrast, reference.adjust_contrast),
        (adjust.saturation, reference.adjust_saturation),
        (adjust.sharpness, reference.adjust_sharpness),
    ],
)
def test_blends_are_torchvision_s(
    pictures: list[Pixels], change: Change, expected: Reference, factor: float
) -> None:
    assert_equal(pictures, change, expected, factor)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (adjust.brightness, reference.adjust_brightness),
        (adjust.contrast, reference.adjust_contrast),
    ],
)
def test_every_value_is_blended_as_torchvision_s(change: Change, expected: Reference) -> None:
    values = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    for factor in np.random.default_rng(0).uniform(0, 3, 500).tolist():
        assert_equal([values], change, expected, factor)


@pytest.mark.parametrize("turn", [-0.5, -0.31, -0.001, 0.0, 0.1, 0.25, 0.5])
def test_hues_are_torchvision_s(pictures: list[Pixels], turn: float) -> None:
    assert_equal(pictures, adjust.hue, reference.adjust_hue, turn)


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterized_pictures_are_torchvision_s(pictures: list[Pixels], bits: int) -> None:
    assert_equal(pictures, adjust.posterize, reference.posterize, bits)


def test_posterized_to_no_bits_a_picture_is_black(pictures: list[Pixels]) -> None:
    assert not adjust.posterize(pictures[0], 0).any()


@pytest.mark.parametrize("threshold", [0.0, 1.0, 76.5, 127.99, 128.0, 254.5, 255.0, 256.0])
def test_solarized_pictures_are_torchvision_s(pictures: list[Pixels], threshold: float) -> None:
    assert_equal(pictures, adjust.solarize, reference.solarize, threshold)


@pytest.mark.parametrize("added", [0, 1, 66, 110, 127])
def test_solarize_add_brightens_the_dark_half(pictures: list[Pixels], added: int) -> None:
    for pixels in pictures:
        expected = [[[v + added if v < 128 else v for v in p] for p in r] for r in pixels.tolist()]
        assert adjust.solarize_add(pixels, added).tolist() == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (adjust.invert, reference.invert),
        (adjust.autocontrast, reference.autocontrast),
        (adjust.equalize, reference.equalize),
    ],
)
def test_tables_of_the_whole_picture_are_torchvision_s(
    pictures: list[Pixels], change: Callable[[Pixels], Pixels], expected: Callable[..., Image.Image]
) -> None:
    random = np.random.default_rng(1)
    # Few pixels of few values: where rounding, and values at the end, matter.
    small = [
        random.integers(0, high, (random.integers(1, 60), random.integers(1, 60), 3), np.uint8)
        for high in (2, 3, 5, 40, 256)
        for _ in range(40)
    ]
    for pixels in [*pictures, *small]:
        theirs = np.asarray(expected(Image.fromarray(pixels)))
        assert np.array_equal(change(pixels), theirs)


@pytest.mark.parametrize(("resample", "mode"), RESAMPLING)
@pytest.mark.parametrize("slope", [-0.3, -0.0531, 0.0, 0.01, 0.19, 0.3])
def test_shears_are_torchvision_s(
    pictures: list[Pixels], slope: float, resample: Image.Resampling, mode: InterpolationMode
) -> None:
    warp = Warp(resample=resample, fill=(124, 116, 104))
    options = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "center": [0, 0]}
    angle = math.degrees(math.atan(slope))

    def along(*shear: float) -> Reference:
        return lambda image, _: reference.affine(
            image, shear=list(shear), interpolation=mode, fill=[124, 116, 104], **options
        )

    by_x, by_y = along(angle, 0.0), along(0.0, angle)
    assert_equal(pictures, lambda pixels, by: adjust.shear_x(pixels, by, warp), by_x, slope)
    assert_equal(pictures, lambda pixels, by: adjust.shear_y(pixels, by, warp), by_y, slope)


@pytest.mark.parametrize(("resample", "mode"), RESAMPLING)
@pytest.mark.parametrize(("right", "down"), [(0, 0), (5, 0), (-17, 0), (0, 9), (0, -40), (3, -2)])
def test_shifts_are_torchvision_s(
    pictures: list[Pixels],
    right: int,
    down: int,
    resample: Image.Resampling,
    mode: InterpolationMode,
) -> None:
    warp = Warp(resample=resample)
    shift = {"angle": 0.0, "translate": [right, down], "scale": 1.0, "shear": [0.0, 0.0]}
    assert_equal(
        pictures,
        lambda pixels, _: adjust.translate(pixels, right, down, warp),
        lambda image, _: reference.affine(image, interpolation=mode, **shift),
        0,
    )


@pytest.mark.parametrize(("resample", "mode"), RESAMPLING)
@pytest.mark.parametrize("degrees", [-30.0, -12.3, 0.0, 1.0, 17.0, 30.0])
def test_rotations_are_torchvision_s(
    pictures: list[Pixels], degrees: float, resample: Image.Resampling, mode: InterpolationMode
) -> None:
    warp = Warp(resample=resample, fill=(1, 2, 3))
    assert_equal(
        pictures,
        lambda pixels, by: adjust.rotate(pixels, by, warp),
        lambda image, by: reference.rotate(image, by, mode, fill=[1, 2, 3]),
        degrees,
    )
