"""One change of a picture's pixels each: what the augmentations of shards/image_augment.py do.

Results are those of torchvision.transforms.functional on Pillow pictures, which are Pillow's
own (of pillow-simd 12.1, one grey value in 1,400 differs by one from Pillow's). Pillow holds the
interpreter while it looks values up in a table (80 us for 224 x 224 pixels) and while it blends
two pictures (130 us); that is done with NumPy here, which does not.

Pictures are uint8 arrays of shape (height, width, 3), RGB. What is given is never changed; what
comes back may be read-only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]

_VALUES = np.arange(256)


@dataclass(frozen=True, kw_only=True)
class Warp:
    """How moved pictures are sampled, and the colour of what lies outside them."""

    resample: Image.Resampling = Image.Resampling.NEAREST
    fill: tuple[int, int, int] = (0, 0, 0)


def shear_x(pixels: Pixels, slope: float, warp: Warp) -> Pixels:
    """Shift each row by `slope` times its number, to the left where positive."""
    return _affine(pixels, (1.0, slope, 0.0, 0.0, 1.0, 0.0), warp)


def shear_y(pixels: Pixels, slope: float, warp: Warp) -> Pixels:
    """Shift each column by `slope` times its number, upwards where positive."""
    return _affine(pixels, (1.0, 0.0, 0.0, slope, 1.0, 0.0), warp)


def translate(pixels: Pixels, right: float, down: float, warp: Warp) -> Pixels:
    """Move the picture by so many pixels."""
    return _affine(pixels, (1.0, 0.0, -right, 0.0, 1.0, -down), warp)


def rotate(pixels: Pixels, degrees: float, warp: Warp) -> Pixels:
    """Turn the picture about its middle, against the clock."""
    turned = Image.fromarray(pixels).rotate(degrees, warp.resample, fillcolor=warp.fill)
    return np.asarray(turned)


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """Away from black: 0 is black, 1 the picture."""
    return _look_up(pixels, _blended(np.int64(0), _VALUES, factor))


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """Away from the mean grey: 0 is all grey, 1 the picture."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    return _look_up(pixels, _blended(np.int64(grey.mean() + 0.5), _VALUES, factor))


def saturation(pixels: Pixels, factor: float) -> Pixels:
    """Away from the grey picture: 0 is grey, 1 the picture."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    return _blended(grey, pixels, factor)


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """Away from the smoothed picture: 0 is smooth, 1 the picture, 2 sharpened."""
    smooth = np.asarray(Image.fromarray(pixels).filter(ImageFilter.SMOOTH))
    return _blended(smooth, pixels, factor)


def hue(pixels: Pixels, turn: float) -> Pixels:
    """Turn all hues by a share of the colour circle, -0.5 to 0.5, in steps of 1/255."""
    bands = list(Image.fromarray(pixels).convert("HSV").split())
    turned = np.asarray(bands[0]) + np.uint8(int(turn * 255) % 256)
    bands[0] = Image.fromarray(turned)
    return np.asarray(Image.merge("HSV", bands).convert("RGB"))


def invert(pixels: Pixels) -> Pixels:
    """255 minus every value."""
    return ~pixels


def posterize(pixels: Pixels, bits: int) -> Pixels:
    """Keep the highest `bits` bits, 0 to 8, of every value."""
    return pixels & np.uint8(256 - (1 << (8 - bits)))


def solarize(pixels: Pixels, threshold: float) -> Pixels:
    """Invert every value that is not below the threshold."""
    # A comparison and an exclusive or with 255 or 0: 14 us, where np.where takes up to 600.
    return pixels ^ np.negative((pixels >= math.ceil(threshold)).view(np.uint8))


def solarize_add(pixels: Pixels, added: int) -> Pixels:
    """Add 0 to 127 to every value below 128."""
    return _look_up(pixels, np.where(_VALUES < 128, _VALUES + added, _VALUES))


def autocontrast(pixels: Pixels) -> Pixels:
    """Stretch each channel so that its least value becomes 0 and its largest 255."""
    tables = np.empty((3, 256), np.int64)
    for table, counts in zip(tables, _histograms(pixels), strict=True):
        least, largest = np.flatnonzero(counts)[[0, -1]].tolist()
        scale = 255.0 / (largest - least) if largest > least else 1.0
        offset = -least * scale if largest > least else 0.0
        table[:] = (_VALUES * scale + offset).astype(np.int64)
    return _look_up_by_channel(pixels, tables)


def equalize(pixels: Pixels) -> Pixels:
    """Spread each channel's values so that all are about equally frequent."""
    tables = np.empty((3, 256), np.int64)
    for table, counts in zip(tables, _histograms(pixels), strict=True):
        last = counts[np.flatnonzero(counts)[-1]]
        step = (counts.sum() - last) // 255
        table[:] = (step // 2 + np.cumsum(counts) - counts) // step if step else _VALUES
    return _look_up_by_channel(pixels, tables)


def _affine(
    pixels: Pixels, matrix: tuple[float, float, float, float, float, float], warp: Warp
) -> Pixels:
    height, width = pixels.shape[:2]
    moved = Image.fromarray(pixels).transform(
        (width, height), Image.Transform.AFFINE, matrix, warp.resample, fillcolor=warp.fill
    )
    return np.asarray(moved)


def _blended(
    start: npt.NDArray[np.integer] | np.int64, values: npt.NDArray[np.integer], factor: float
) -> npt.NDArray[np.uint8]:
    """start + factor * (values - start), as Pillow's Image.blend: in single precision, cut off."""
    begin = start.astype(np.float32)
    blended = values.astype(np.float32)
    blended -= begin
    blended *= np.float32(factor)
    blended += begin
    return blended.clip(0, 255, out=blended).astype(np.uint8)


def _histograms(pixels: Pixels) -> npt.NDArray[np.int64]:
    return np.array(Image.fromarray(pixels).histogram(), np.int64).reshape(3, 256)


def _look_up(pixels: Pixels, table: npt.NDArray[np.integer]) -> Pixels:
    return np.take(table.clip(0, 255).astype(np.uint8), pixels, mode="clip")


def _look_up_by_channel(pixels: Pixels, tables: npt.NDArray[np.integer]) -> Pixels:
    height, width = pixels.shape[:2]
    begins = np.tile(np.array([0, 256, 512], np.uint16), width)
    places = pixels.reshape(height, width * 3) + begins
    return _look_up(places, tables.reshape(-1)).reshape(pixels.shape)
