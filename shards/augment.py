"""Which part of an image training sees: torchvision's RandomResizedCrop as a pure function.

Every sample's crop and flip follow from (seed, epoch, sample) through `shards.order.draws`, so
they do not depend on ranks, threads, prefetching or where a run was resumed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shards.order import draws

_ATTEMPTS = 10  # as torchvision.transforms.RandomResizedCrop.get_params
_DRAWS_PER_ATTEMPT = 4  # area, aspect, top, left
FLIP_DRAW = _ATTEMPTS * _DRAWS_PER_ATTEMPT
# From here on the draws are those of shards/image_augment.py, one augmentation after the other.
FIRST_PICTURE_DRAW = 64


def random_resized_crops(
    seed: int,
    epoch: int,
    samples: npt.NDArray[np.int64],
    widths: npt.NDArray[np.integer],
    heights: npt.NDArray[np.integer],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> npt.NDArray[np.int64]:
    """Crop boxes (top, left, height, width) in pixels; int64, shape (len(samples), 4).

    Ten attempts to place an area of `scale` times the image with an aspect (width / height)
    log-uniform in `ratio`; failing all, the largest central box whose aspect is in `ratio`.
    """
    uniform = draws(seed, epoch, samples, 0, _DRAWS_PER_ATTEMPT)
    boxes, placed = _attempts(uniform, widths, heights, scale, ratio)
    # One image in four: its other attempts are worked out at once, without a loop.
    rest = np.flatnonzero(~placed)
    if len(rest):
        widths, heights = widths[rest], heights[rest]
        others = (_ATTEMPTS - 1) * _DRAWS_PER_ATTEMPT
        uniform = draws(seed, epoch, samples[rest], _DRAWS_PER_ATTEMPT, others)
        retried, placed = _attempts(uniform, widths, heights, scale, ratio)
        central = _central_boxes(widths, heights, ratio)
        boxes[rest] = np.where(placed[:, None], retried, central)
    return boxes


def _attempts(
    uniform: npt.NDArray[np.float64],
    widths: npt.NDArray[np.integer],
    heights: npt.NDArray[np.integer],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The first box of each image that fits it, and whether there is one.

    `uniform`, shape (n, 4 x attempts), holds the draws of one attempt after the other.
    """
    area_draw, aspect_draw, top_draw, left_draw = (
        np.ascontiguousarray(uniform[:, draw::_DRAWS_PER_ATTEMPT])
        for draw in range(_DRAWS_PER_ATTEMPT)
    )
    width, height = widths[:, None], heights[:, None]
    area = width.astype(np.float64) * height * _between(scale, area_draw)
    aspect = np.exp(_between((np.log(ratio[0]), np.log(ratio[1])), aspect_draw))
    crop_width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    crop_height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
    top = (top_draw * (height - crop_height + 1)).astype(np.int64)
    left = (left_draw * (width - crop_width + 1)).astype(np.int64)
    first = (np.arange(len(fits)), fits.argmax(axis=1))
    boxes = np.stack([each[first] for each in (top, left, crop_height, crop_width)], axis=1)
    return boxes, fits[first]


def flips(
    seed: int, epoch: int, samples: npt.NDArray[np.int64], probability: float
) -> npt.NDArray[np.bool_]:
    """Whether each sample is mirrored left to right this epoch; shape (len(samples),)."""
    return draws(seed, epoch, samples, FLIP_DRAW, 1)[:, 0] < probability


def _between(
    bounds: tuple[float, float], uniform: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def _central_boxes(
    widths: npt.NDArray[np.integer], heights: npt.NDArray[np.integer], ratio: tuple[float, float]
) -> npt.NDArray[np.int64]:
    width, height = widths.astype(np.int64), heights.astype(np.int64)
    aspect = width / height
    crop_width = np.where(aspect > ratio[1], np.rint(height * ratio[1]).astype(np.int64), width)
    crop_height = np.where(aspect < ratio[0], np.rint(width / ratio[0]).astype(np.int64), height)
    crop_width, crop_height = np.maximum(crop_width, 1), np.maximum(crop_height, 1)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return np.stack([top, left, crop_height, crop_width], axis=1)
