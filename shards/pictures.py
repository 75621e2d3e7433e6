"""Any picture file becomes RGB pixels, whatever wrote it.

JPEG and PNG are decoded as the loader decodes them, so a picture gets the answer that it would
get in an evaluation. What else Pillow reads is decoded by Pillow: the first frame of what moves,
palettes and CMYK as colours, transparency left out, grey of 16 bits scaled to 8.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from shards.decode import decode_rgb
from shards.errors import DamagedData
from shards.image import LARGEST_PIXELS, read_info

LARGEST_FILE: Final = 1 << 30  # bytes; ImageNet's largest picture has 15 MB
# PostScript is a program, and Pillow would start Ghostscript to run it.
_PROGRAMS: Final = frozenset(("EPS",))
_OURS: Final = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n")
_DEEP_GREY: Final = b"\x10\x00"  # bit depth 16, colour type grey, of a PNG's header
_ORIENTATION: Final = 0x0112  # EXIF's tag
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Pillow can be built without them; such files are named as unreadable then, not passed over.
_NOT_IN_EVERY_PILLOW: Final = frozenset({".avif", ".webp"})


def endings() -> frozenset[str]:
    """What names of pictures end in, in small letters, with the dot."""
    known = Image.registered_extensions().items()
    return _NOT_IN_EVERY_PILLOW.union(ending for ending, name in known if name in _formats())


def read_picture(data: bytes, *, exif: bool = False) -> npt.NDArray[np.uint8]:
    """The pixels of an encoded picture: uint8 RGB of shape (height, width, 3).

    With `exif` it is turned as its EXIF orientation says. Raises DamagedData, with the reason
    alone, for what is no picture, is damaged, or claims more than `LARGEST_PIXELS`.
    """
    if data.startswith(_OURS) and not (data[:1] == b"\x89" and data[24:26] == _DEEP_GREY):
        pixels = decode_rgb(data, read_info(data))
        return _upright(pixels, data) if exif else pixels
    return _with_pillow(data, exif=exif)


def _formats() -> list[str]:
    """What Pillow reads by itself."""
    Image.init()
    return [name for name in Image.OPEN if name not in _PROGRAMS]


def _with_pillow(data: bytes, *, exif: bool) -> npt.NDArray[np.uint8]:
    if not data:
        raise DamagedData("it is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return _rgb(image, exif=exif)
    except DamagedData:
        raise
    except UnidentifiedImageError:  # its message has a memory address
        raise DamagedData("it is no picture that Pillow knows") from None
    except Exception as error:  # noqa: BLE001 - its plugins raise anything for damaged files
        raise DamagedData(f"it cannot be decoded ({error or type(error).__name__})") from None


def _rgb(image: Image.Image, *, exif: bool) -> npt.NDArray[np.uint8]:
    """The pixels of an opened picture, its first frame."""
    if not 0 < image.width * image.height <= LARGEST_PIXELS:
        raise DamagedData(
            f"its header claims {image.width} x {image.height} pixels "
            f"(at least 1, at most {LARGEST_PIXELS})"
        )
    image.load()  # which turns a TIFF by itself, and then it says so no more
    image = ImageOps.exif_transpose(image) if exif else image
    if image.mode[0] in "IF":  # 16 or 32 bits a pixel, which Pillow would clip, not scale
        values = np.nan_to_num(np.asarray(image, np.float64))
        white = max(65535.0 if image.mode[0] == "I" else 1.0, float(values.max()))
        grey = (values * (255.0 / white)).clip(0, 255).round().astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":  # by way of RGBA, or a palette with transparency is warned of
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _upright(pixels: npt.NDArray[np.uint8], data: bytes) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF says nothing; the pixels are sound
        return pixels
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))
