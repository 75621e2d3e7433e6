"""Small pictures of samples, as a page can hold them in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.dataset import Dataset
from shards.decode import decode_rgb
from shards.errors import DamagedData, UsageError
from training.report.predictions import Predictions

_SIDE = 176  # pixels, of the square that is shown
_QUALITY = 82


def thumbnails(predictions: Predictions, shards: Path) -> dict[str, str]:
    """Data URLs of the mistakes' pictures, by key; damaged pictures have none.

    Raises UsageError where the shards are not those that were evaluated.
    """
    with Dataset.open(shards / predictions.split) as dataset:
        if dataset.classes != predictions.classes:
            raise UsageError(
                f"{predictions.path} tells of {len(predictions.classes)} classes, not of the "
                f"{len(dataset.classes)} of {dataset.folder}; give the shards that were evaluated"
            )
        numbers = _numbers(dataset, predictions)
        found = {
            mistake.key: _thumbnail(dataset, number)
            for mistake, number in zip(predictions.mistakes, numbers, strict=True)
        }
    return {key: url for key, url in found.items() if url is not None}


def _numbers(dataset: Dataset, predictions: Predictions) -> Sequence[int]:
    keys = [mistake.key for mistake in predictions.mistakes]
    wanted = np.array([key.encode() for key in keys], np.bytes_)
    places = np.searchsorted(dataset.keys, wanted)
    for key, place, encoded in zip(keys, places, wanted, strict=True):
        if place == len(dataset) or dataset.keys[place] != encoded:
            raise UsageError(
                f"{predictions.path} names the image {key!r}, and {dataset.folder} has none of "
                "that key; give the shards that were evaluated"
            )
    return [int(place) for place in places]


def _thumbnail(dataset: Dataset, number: int) -> str | None:
    """The middle of a picture as a small JPEG."""
    try:
        pixels = decode_rgb(*dataset.read(number))
    except DamagedData:
        return None
    image = Image.fromarray(pixels)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    small = image.resize(
        (_SIDE, _SIDE), Image.Resampling.LANCZOS, (left, top, left + side, top + side)
    )
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
