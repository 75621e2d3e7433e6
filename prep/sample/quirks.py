"""Pictures as the real training set has a few of them, each sound, each a trap for naive tools.

Most kinds are known from ILSVRC2012 itself (`prep.ilsvrc` has the names and the sources).
"""

from __future__ import annotations

import enum
import io
from typing import Final

from PIL import Image

from prep.sample.pictures import JPEG_QUALITY, encode

WIDE: Final = (3000, 8)  # pixels

_ORIENTATION: Final = 0x0112  # EXIF 2.3, table 4
_TURNED: Final = 6  # to be shown turned by 90 degrees clockwise
# A TIFF header and a directory of one entry (Orientation: 1) that ends before the four bytes of
# the next directory's place. Pillow warns: "Expecting to read 4 bytes but only got 0", as it does
# for the real n04152593_17460.JPEG.
_BROKEN_EXIF: Final = (
    b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x01\0\0\0"
)


class Quirk(enum.Enum):
    """What is odd about an image."""

    PNG = "png"  # under a name that ends in .JPEG, with an alpha channel
    CMYK = "cmyk"  # Adobe's inverted, with its APP14 marker
    BROKEN_EXIF = "broken-exif"  # decoders warn, the pixels are sound
    GREY = "grey"  # one component
    ORIENTATION = "orientation"  # EXIF asks for it to be turned; the labels' publishers did not
    PROGRESSIVE = "progressive"
    ONE_PIXEL = "one-pixel"  # 1 x 1
    WIDE = "wide"  # 3000 x 8


def odd_picture(quirk: Quirk, image: Image.Image) -> bytes:
    """Encode a picture so that it has the quirk."""
    image = image.convert("RGB")
    if quirk is Quirk.PNG:
        return _png(image)
    options: dict[str, object] = {"quality": JPEG_QUALITY}
    if quirk is Quirk.CMYK:
        image = image.convert("CMYK")
    elif quirk is Quirk.BROKEN_EXIF:
        options["exif"] = _BROKEN_EXIF
    elif quirk is Quirk.GREY:
        image = image.convert("L")
    elif quirk is Quirk.ORIENTATION:
        options["exif"] = _oriented()
    elif quirk is Quirk.PROGRESSIVE:
        options["progressive"] = True
    else:
        image = image.resize(WIDE if quirk is Quirk.WIDE else (1, 1), Image.Resampling.BOX)
    return encode(image, **options)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.convert("RGBA").save(file, "PNG")
    return file.getvalue()


def _oriented() -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURNED
    return exif.tobytes()
