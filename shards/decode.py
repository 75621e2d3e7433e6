"""Encoded images become RGB pixels.

libjpeg-turbo (through simplejpeg, which brings it in its wheel and releases the interpreter
lock) takes grey and colour JPEGs; Pillow takes the rest: CMYK with Adobe's inversion, PNG, and
damaged files that are still readable. EXIF orientation is not applied, as in the published
results on ImageNet.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from shards.errors import DamagedData
from shards.image import Format, ImageInfo, read_info


def decode_rgb(data: bytes | bytearray, info: ImageInfo) -> npt.NDArray[np.uint8]:
    """Decode to uint8 RGB of shape (height, width, 3); grey becomes three equal channels.

    `info` is what the index says. Raises DamagedData, with the reason alone, where the data
    cannot be decoded or has another size than that; the caller names the sample. What a header
    claims is compared first, so a damaged one allocates nothing.
    """
    found = read_info(data)
    _check_size(found.width, found.height, info)
    pixels = _decode_fast(data, found)
    if pixels is None:
        pixels = decode_reference(data)
        _check_size(pixels.shape[1], pixels.shape[0], info)
    return pixels


def _check_size(width: int, height: int, info: ImageInfo) -> None:
    if (width, height) != (info.width, info.height):
        raise DamagedData(
            f"it has {width} x {height} pixels, the index says {info.width} x {info.height}"
        )


def _decode_fast(data: bytes | bytearray, info: ImageInfo) -> npt.NDArray[np.uint8] | None:
    if info.format is Format.PNG or info.components not in (1, 3):
        return None
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # damaged, or not what the index says: the reference path decides
        return None
    return pixels


def decode_reference(data: bytes | bytearray) -> npt.NDArray[np.uint8]:
    """Decode with Pillow or pillow-simd: uint8 RGB of shape (height, width, 3)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedData(f"it cannot be decoded ({error})") from None
