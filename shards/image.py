"""What an encoded image is, from its header alone: format, width, height, components.

The name says nothing (one of ImageNet's .JPEG files is a PNG), so formats are told by their
first bytes. No pixel is decoded: about 5 us an image.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from shards.errors import DamagedData

# A header may claim 65,535 x 65,535. ImageNet's largest picture decodes to 211,025,920 bytes
# (NVIDIA/DALI#5440), 70 million pixels: twice that bounds memory without refusing a real one.
LARGEST_PIXELS = 1 << 27


class Format(enum.IntEnum):
    """Encodings of an image, as the index stores them."""

    JPEG = 1  # sequential Huffman (baseline, extended): can be cut at restart markers
    JPEG_OTHER = 2  # progressive and rarer processes: decoded whole
    PNG = 3

    @property
    def extension(self) -> str:
        """The member's ending in a shard, without the dot."""
        return "png" if self is Format.PNG else "jpg"


class ImageInfo(NamedTuple):
    """An image's encoding and size; `components` is 1 (grey), 3 (colour) or 4 (CMYK, RGBA)."""

    format: Format
    width: int
    height: int
    components: int


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COMPONENTS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette decodes to RGB


def read_info(data: bytes | bytearray | memoryview) -> ImageInfo:
    """Format and size of the encoded image `data`.

    Raises DamagedData, with the reason alone, for what is no JPEG or PNG, is cut off before
    its size, or claims no pixels or more than `LARGEST_PIXELS`; the caller names the file.
    """
    view = memoryview(data)
    if bytes(view[:2]) == b"\xff\xd8":
        info = _read_jpeg(view)
    elif bytes(view[:8]) == _PNG_SIGNATURE:
        info = _read_png(view)
    else:
        raise DamagedData(_unknown(view))
    if not 0 < info.width * info.height <= LARGEST_PIXELS:
        raise DamagedData(
            f"its header claims {info.width} x {info.height} pixels "
            f"(at least 1, at most {LARGEST_PIXELS})"
        )
    return info


def _unknown(view: memoryview) -> str:
    if not len(view):
        return "it is empty"
    return f"it is neither a JPEG nor a PNG (it begins with {bytes(view[:8])!r})"


def _read_jpeg(view: memoryview) -> ImageInfo:
    """Walk the marker segments of ITU T.81 B.1 up to the frame header."""
    position, end = 2, len(view)
    while position + 4 <= end:
        if view[position] != 0xFF:
            raise DamagedData(f"its JPEG markers are damaged at byte {position}")
        marker = view[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _read_frame(view, position, marker)
        if marker in (0xD9, 0xDA):
            raise DamagedData("its JPEG data has no frame header")
        position += 2 + int.from_bytes(view[position + 2 : position + 4], "big")
    raise DamagedData("it ends before its JPEG frame header: it is truncated")


def _read_frame(view: memoryview, position: int, marker: int) -> ImageInfo:
    if position + 10 > len(view):
        raise DamagedData("it ends inside its JPEG frame header: it is truncated")
    height = int.from_bytes(view[position + 5 : position + 7], "big")
    width = int.from_bytes(view[position + 7 : position + 9], "big")
    kind = Format.JPEG if marker in (0xC0, 0xC1) else Format.JPEG_OTHER
    return ImageInfo(kind, width, height, view[position + 9])


def _read_png(view: memoryview) -> ImageInfo:
    if len(view) < 33 or bytes(view[12:16]) != b"IHDR":
        raise DamagedData("it ends before its PNG header: it is truncated")
    width = int.from_bytes(view[16:20], "big")
    height = int.from_bytes(view[20:24], "big")
    return ImageInfo(Format.PNG, width, height, _PNG_COMPONENTS.get(view[25], 3))
