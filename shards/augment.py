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
    boxes = _central_boxes(widths, heights, ratio)
    open_rows = np.arange(len(samples))
    for attempt in range(_ATTEMPTS):
        uniform = draws(
            seed, epoch, samples[open_rows], attempt * _DRAWS_PER_ATTEMPT, _DRAWS_PER_ATTEMPT
        )
        width, height = widths[open_rows], heights[open_rows]
        area = width.astype(np.float64) * height * _between(scale, uniform[:, 0])
        aspect = np.exp(_between((np.log(ratio[0]), np.log(ratio[1])), uniform[:, 1]))
        crop_width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        crop_height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (
            (crop_width > 0) & (crop_width <= width) & (crop_height > 0) & (crop_height <= height)
        )
        top = (uniform[:, 2] * (height - crop_height + 1)).astype(np.int64)
        left = (uniform[:, 3] * (width - crop_width + 1)).astype(np.int64)
        found = np.stack([top, left, crop_height, crop_width], axis=1)
        boxes[open_rows[fits]] = found[fits]
        open_rows = open_rows[~fits]
        if not len(open_rows):
            break
    return boxes


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
