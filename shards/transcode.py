"""What `--jpeg restart` and `--jpeg reencode` store instead of an image's own bytes.

restart is lossless (shards/restart.py). reencode makes smaller pictures: reduced once,
antialiased, so that less is read and decoded in every epoch. These are other pixels than the
original's, and the plan says so. Both are functions of the image alone for one encoder, which
`describe` names with its version.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import PIL
import simplejpeg
from PIL import Image, features

from shards.decode import decode_rgb
from shards.errors import ToolError, UsageError
from shards.image import ImageInfo
from shards.restart import SEGMENT_WIDTH, find_jpegtran, segment_mcus

JpegMode = Literal["keep", "restart", "reencode"]


class Encoder(Protocol):
    """Turns the bytes of an image into those that are stored."""

    def describe(self) -> dict[str, object]:
        """What stands in the plan under `jpeg`: all that decides the bytes."""

    def encode(self, data: memoryview, info: ImageInfo) -> bytes | None:
        """What to store, or None where the image stays as it is.

        `info` is `read_info(data)`. Raises DamagedData, with the reason alone, for what has
        to be decoded and cannot be; the caller names the file. Raises ToolError where the
        machine or a tool fails, whatever the image. May be called from many threads.
        """


def make_encoder(
    jpeg: JpegMode,
    *,
    max_side: int | None = None,
    short_side: int | None = None,
    quality: int = 90,
    restart: bool = False,
) -> Encoder | None:
    """The encoder for `--jpeg`; None for keep. All but `jpeg` is for reencode alone.

    Raises ToolError where the tool that is needed is missing or does not work.
    """
    if jpeg == "reencode":
        return Reencode(max_side=max_side, short_side=short_side, quality=quality, restart=restart)
    if max_side is not None or short_side is not None or restart:
        raise UsageError(f"only --jpeg reencode makes smaller pictures, not --jpeg {jpeg}")
    return find_jpegtran() if jpeg == "restart" else None


def recall_encoder(described: str | Mapping[str, object]) -> Encoder | None:
    """The encoder whose description stands in a plan; None for keep.

    Raises ToolError where this machine has another, whose bytes would be others.
    """
    if described == "keep":
        return None
    if isinstance(described, str) or described.get("mode") not in ("restart", "reencode"):
        raise ToolError(f"this tool knows no encoder {described!r}; use the version that wrote it")
    if described["mode"] == "restart":
        encoder = make_encoder("restart")
    else:
        numbers = cast("Mapping[str, int | None]", described)
        encoder = make_encoder(
            "reencode",
            max_side=numbers["max_side"],
            short_side=numbers["short_side"],
            quality=cast("int", numbers["quality"]),
            restart=numbers["segment_width"] is not None,
        )
    here = {} if encoder is None else encoder.describe()
    if here != described:
        wanted = {name: value for name, value in described.items() if here.get(name) != value}
        found = {name: here.get(name) for name in wanted}
        raise ToolError(
            f"the shards were encoded with {_listed(wanted)}; here it is {_listed(found)}, which "
            "gives other bytes: install what they were encoded with, or write them again"
        )
    return encoder


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


@dataclass(frozen=True, kw_only=True)
class Reencode:
    """Smaller JPEGs of any image: 4:2:0 (grey stays grey), optimised Huffman tables.

    Exactly one of `max_side` and `short_side` is given: pixels that the longer or the shorter
    side has at most. Nothing is enlarged, and where the size would not change the original is
    kept unless it has more bytes. Pixels are those that training would see: orientation and
    colour profile are not applied, and no metadata is kept.

    Lanczos, because what training sees of a reduced picture is then nearest to what it would
    see of the original: central crops of 60 % at a short side of 256 and quality 90 differ by
    32.8 dB, with bicubic by 32.5, with bilinear by 31.4 (3.7 % and 12 % more bytes than those).
    """

    max_side: int | None
    short_side: int | None
    quality: int
    restart: bool

    def __post_init__(self) -> None:
        if (self.max_side is None) == (self.short_side is None):
            raise UsageError("--jpeg reencode needs either --max-side or --short-side")
        side = self.max_side if self.short_side is None else self.short_side
        if side is not None and side < 1:
            raise UsageError(f"a side has at least 1 pixel, not {side}")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality is 1 to 100, not {self.quality}")
        if self.restart and tuple(map(int, PIL.__version__.split(".")[:2])) < (10, 2):
            raise ToolError(
                f"Pillow {PIL.__version__} writes no restart markers; install 10.2 or newer"
            )

    def describe(self) -> dict[str, object]:
        """What decides the bytes: size, quality, and who decodes, reduces and encodes."""
        library = "libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg"
        version = features.version("libjpeg_turbo") or features.version("jpg")
        return {
            "mode": "reencode",
            "max_side": self.max_side,
            "short_side": self.short_side,
            "quality": self.quality,
            "segment_width": SEGMENT_WIDTH if self.restart else None,
            "decoder": f"simplejpeg {simplejpeg.__version__}",
            "encoder": f"Pillow {PIL.__version__}, {library} {version}",
        }

    def encode(self, data: memoryview, info: ImageInfo) -> bytes | None:
        """The reduced picture, or None where it would be no smaller than the original."""
        pixels = decode_rgb(bytes(data), info)
        is_grey = info.components < 3
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if is_grey else pixels)
        size = self._size(info.width, info.height)
        if size != image.size:
            result = self._save(image.resize(size, Image.Resampling.LANCZOS))
        else:
            result = self._save(image)
            if len(result) >= len(data):
                return None
        return result

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the result: the other side is rounded, half up, to at least 1."""
        if self.max_side is not None:
            side, limit = max(width, height), self.max_side
        else:
            side, limit = min(width, height), cast("int", self.short_side)
        if side <= limit:
            return width, height
        width, height = (
            max(1, (2 * each * limit + side) // (2 * side)) for each in (width, height)
        )
        return width, height

    def _save(self, image: Image.Image) -> bytes:
        options: dict[str, object] = {}
        if self.restart:
            width = 8 if image.mode == "L" else 16  # an MCU of grey, of 4:2:0
            options["restart_marker_blocks"] = segment_mcus(-(-image.width // width), width)
        file = io.BytesIO()
        image.save(
            file, "JPEG", quality=self.quality, subsampling="4:2:0", optimize=True, **options
        )
        return file.getvalue()
