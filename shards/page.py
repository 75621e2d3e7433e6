"""What stands where on a drawn page, and drawing it: tiles of pictures, lines of text, bars.

First a page is planned, then it is drawn. The same plan, Pillow and typefaces give the same
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from PIL import Image, ImageChops, ImageDraw

from shards.typeface import Colour, Typeface

# All lengths are in pixels.
TILE: Final = 152  # the side of a picture
GAP: Final = 10
MARGIN: Final = 56
INSIDE: Final = 1534  # the width of what is drawn between the margins
LEADING: Final = 3  # between lines of a label
_ROUNDING: Final = 10  # radius of a tile's corners
_RIM: Final = 0.15  # how much darker a tile's edge is, so that white pictures have one
_FRAME: Final = 6  # the width of a tile's coloured frame

PAPER: Final[Colour] = (250, 250, 248)
INK: Final[Colour] = (28, 30, 34)
FAINT: Final[Colour] = (118, 122, 130)
BLANK: Final[Colour] = (228, 229, 231)  # the tile of a picture that cannot be decoded


class Style(NamedTuple):
    """How a line of text looks."""

    size: int
    colour: Colour


TITLE: Final = Style(36, INK)
TEXT: Final = Style(19, FAINT)
NAME: Final = Style(21, INK)
SMALL: Final = Style(16, FAINT)


@dataclass(frozen=True, kw_only=True)
class Label:
    """A line of text: its top left corner, and how many pixels it may take."""

    text: str
    left: int
    top: int
    width: int
    style: Style


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A filled rectangle by its top left corner."""

    left: int
    top: int
    width: int
    height: int
    colour: Colour


@dataclass(kw_only=True)
class Page:
    """What stands where. It grows downwards while it is planned."""

    typeface: Typeface
    width: int = INSIDE + 2 * MARGIN
    height: int = MARGIN
    labels: list[Label] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def write(self, text: str, place: tuple[int, int], width: int, style: Style) -> int:
        """Put a line of text at a place, cut to `width`; its height."""
        face = self.typeface(style.size)
        left, top = place
        text = face.fit(text, width)
        self.labels.append(Label(text=text, left=left, top=top, width=width, style=style))
        return face.height

    def write_line(self, text: str, style: Style, below: int) -> None:
        """A line that may take the whole width, and the room below it."""
        self.height += self.write(text, (MARGIN, self.height), INSIDE, style) + below


class Canvas:
    """A page being drawn."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._image = Image.new("RGB", (page.width, page.height), PAPER)
        self._inside, edge = _rounded_square(0), _rounded_square(1)
        darker = [round(_RIM * each) for each in range(256)]
        self._rim = ImageChops.subtract(self._inside, edge).point(darker)
        self._frame = ImageChops.subtract(self._inside, _rounded_square(_FRAME))

    def put(
        self, picture: Image.Image | None, place: tuple[int, int], frame: Colour | None = None
    ) -> None:
        """A tile with its top left corner at a place: the middle of a picture, or none."""
        tile = Image.new("RGB", (TILE, TILE), BLANK) if picture is None else _square(picture)
        self._image.paste(tile, place, self._inside)
        if frame is None:
            self._image.paste(INK, place, self._rim)
        else:
            self._image.paste(frame, place, self._frame)

    def finish(self) -> Image.Image:
        """The whole page, with what is written on it."""
        for bar in self._page.bars:
            box = (bar.left, bar.top, bar.left + bar.width, bar.top + bar.height)
            self._image.paste(bar.colour, box)
        for label in self._page.labels:
            face = self._page.typeface(label.style.size)
            face.draw(self._image, (label.left, label.top), label.text, label.style.colour)
        return self._image


def _square(image: Image.Image) -> Image.Image:
    """The middle of a picture, as large as a tile."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((TILE, TILE), Image.Resampling.LANCZOS, box)


def _rounded_square(inset: int) -> Image.Image:
    """A tile without an edge of `inset` pixels, drawn large so that its corners are smooth."""
    large = Image.new("L", (4 * TILE, 4 * TILE), 0)
    low, high = 4 * inset, 4 * (TILE - inset) - 1
    radius = 4 * (_ROUNDING - inset)
    ImageDraw.Draw(large).rounded_rectangle((low, low, high, high), radius, 255)
    return large.resize((TILE, TILE), Image.Resampling.BOX)
