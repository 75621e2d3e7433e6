"""Encoded images become RGB pixels, whole or the part that a crop needs.

libjpeg-turbo (through simplejpeg, which brings it in its wheel and releases the interpreter
lock) takes grey and colour JPEGs; Pillow takes the rest: CMYK with Adobe's inversion, PNG, and
damaged files that are still readable. EXIF orientation is not applied, as in the published
results on ImageNet.
"""

from __future__ import annotations

import enum
import io
import re
from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from shards.cutting import Box, Cutter, Frame, read_frame, set_height, shortened
from shards.errors import DamagedData
from shards.image import LARGEST_PIXELS, Format, ImageInfo, read_info

# What libjpeg says when it goes from the last row that was wanted to the end of the image.
_SHORTENED: Final = re.compile(r"\d+ extraneous bytes before marker 0xd[0-79]$")


class Way(enum.IntEnum):
    """How an image was decoded."""

    CUT = 0  # only the segments between restart markers that the crop touches
    SHORTENED = 1  # down to the last row that the crop needs
    WHOLE = 2
    PILLOW = 3  # whole, by the reference path


class Decoder:
    """Decodes images into memory that it uses again; one for each thread.

    With `reference` Pillow decodes all of them.
    """

    def __init__(self, *, reference: bool = False) -> None:
        self._reference = reference
        self._cutter = Cutter()
        self._pixels = np.empty(0, np.uint8)
        self._canvas = np.empty(0, np.uint8)
        self.way = Way.WHOLE  # of the image that was decoded last

    def decode(
        self, data: memoryview, info: ImageInfo, box: Box | None = None, shrink: int = 1
    ) -> npt.NDArray[np.uint8]:
        """The pixels of a box, or of the whole image: uint8 RGB of shape (height, width, 3).

        They are valid until the next call, and equal to those of the whole image decoded; grey
        becomes three equal channels. With `shrink` (2, 4 or 8) a box is decoded at that part of
        its size, so it has about 1 / shrink of its pixels. `data` must be writable and is
        as before at the end. `info` is what the index says.

        Raises DamagedData, with the reason alone, where the data cannot be decoded or has
        another size than that; the caller names the sample. What a header claims is compared
        first, so a damaged one allocates nothing.
        """
        if box is None:
            return self._decode_whole(data, info)
        pixels = None
        if not self._reference and info.format is Format.JPEG and info.components in (1, 3):
            frame = read_frame(data)
            if frame is not None and _is_as_said(frame, info):
                pixels = self._decode_part(data, frame, box, shrink)
        return _inside(self._decode_whole(data, info), box) if pixels is None else pixels

    def decode_around(self, data: memoryview, info: ImageInfo, box: Box) -> npt.NDArray[np.uint8]:
        """The whole image as of `decode`, but only the pixels of a box are sure to be its own."""
        size = info.height * info.width * 3
        pixels = self.decode(data, info, box)
        if len(self._canvas) < size:
            self._canvas = np.empty(size + size // 4, np.uint8)
        whole = self._canvas[:size].reshape(info.height, info.width, 3)
        whole[box.top : box.top + box.height, box.left : box.left + box.width] = pixels
        return whole

    def _decode_part(
        self, data: memoryview, frame: Frame, box: Box, shrink: int
    ) -> npt.NDArray[np.uint8] | None:
        """The box by the shortest way; None where the decoder is not content with the data."""
        cut = self._cutter.cut(data, frame, box)
        if cut is not None:
            pixels = self._run(memoryview(cut.data), cut.height, cut.width, shrink)
            self.way = Way.CUT
            moved = box._replace(top=box.top - cut.top, left=box.left - cut.left)
            return None if pixels is None else _inside(pixels, moved, shrink)
        height = shortened(data, frame, box)
        if height == frame.height:
            self.way = Way.WHOLE
            pixels = self._run(data, height, frame.width, shrink)
        else:
            self.way = Way.SHORTENED
            set_height(data, frame, height)
            try:
                pixels = self._run(data, height, frame.width, shrink, expect_more=True)
            finally:
                set_height(data, frame, frame.height)
        return None if pixels is None else _inside(pixels, box, shrink)

    def _run(
        self, data: memoryview, height: int, width: int, shrink: int, *, expect_more: bool = False
    ) -> npt.NDArray[np.uint8] | None:
        height, width = -(-height // shrink), -(-width // shrink)
        needed = height * width * 3
        if len(self._pixels) < needed:
            self._pixels = np.empty(needed + needed // 4, np.uint8)
        try:
            simplejpeg.decode_jpeg(
                data,
                "RGB",
                min_height=height,
                min_width=width,
                min_factor=shrink,
                buffer=self._pixels,
            )
        except ValueError as error:
            if not (expect_more and _SHORTENED.search(str(error))):
                return None
        return self._pixels[:needed].reshape(height, width, 3)

    def _decode_whole(self, data: memoryview, info: ImageInfo) -> npt.NDArray[np.uint8]:
        """Whatever the fast way does not take, or is not content with."""
        found = read_info(data)
        _check_size(found.width, found.height, info)
        if not self._reference and found.format is not Format.PNG and found.components in (1, 3):
            self.way = Way.WHOLE
            pixels = self._run(data, found.height, found.width, 1)
            if pixels is not None:
                return pixels
        self.way = Way.PILLOW
        with_pillow = decode_reference(data)
        _check_size(with_pillow.shape[1], with_pillow.shape[0], info)
        return with_pillow


def _inside(pixels: npt.NDArray[np.uint8], box: Box, shrink: int = 1) -> npt.NDArray[np.uint8]:
    """The view of a box."""
    top, left = box.top // shrink, box.left // shrink
    bottom, right = -(-(box.top + box.height) // shrink), -(-(box.left + box.width) // shrink)
    return pixels[top:bottom, left:right]


def decode_rgb(data: bytes | bytearray | memoryview, info: ImageInfo) -> npt.NDArray[np.uint8]:
    """Decode the whole image into memory of its own: uint8 RGB of shape (height, width, 3).

    Raises DamagedData as `Decoder.decode`.
    """
    return Decoder().decode(memoryview(bytearray(data)), info)


def _is_as_said(frame: Frame, info: ImageInfo) -> bool:
    size = (frame.width, frame.height)
    return size == (info.width, info.height) and frame.width * frame.height <= LARGEST_PIXELS


def _check_size(width: int, height: int, info: ImageInfo) -> None:
    if (width, height) != (info.width, info.height):
        raise DamagedData(
            f"it has {width} x {height} pixels, the index says {info.width} x {info.height}"
        )


def decode_reference(data: bytes | bytearray | memoryview) -> npt.NDArray[np.uint8]:
    """Decode with Pillow or pillow-simd: uint8 RGB of shape (height, width, 3)."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:  # its message has a memory address
        raise DamagedData("it cannot be decoded (Pillow does not know what it is)") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedData(f"it cannot be decoded ({error})") from None
