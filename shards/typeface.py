"""Letters for pictures, from whatever this machine has: the same code draws with all of them.

Pillow 10.1 and newer bring a good typeface (Aileron) where they were built with FreeType. It has
basic Latin alone, so names in other scripts take one of the system. pillow-simd is often built
without FreeType: then Pillow's bitmap letters are enlarged by a whole factor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

Colour: TypeAlias = tuple[int, int, int]
Letters: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
Typeface: TypeAlias = Callable[[int], "Face"]

# Found by name where the system keeps its typefaces; the later ones have Chinese as well.
_OF_THE_SYSTEM: Final = (
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "DejaVuSans.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
)
_ELLIPSIS: Final = "..."
_UNASSIGNED: Final = "\uffff"  # what a typeface draws for it, it draws for all that it lacks
_BITMAP_HEIGHT: Final = 11  # pixels


@dataclass(frozen=True, kw_only=True)
class Face:
    """Letters of one size; a line of them is `height` pixels high.

    `scale` is 1 but for bitmap letters.
    """

    letters: Letters
    height: int
    scale: int

    def width(self, text: str) -> int:
        """Pixels that a line of text takes."""
        draw = ImageDraw.Draw(Image.new("L", (1, 1)))
        return self.scale * math.ceil(draw.textlength(self._drawable(text), self.letters))

    def fit(self, text: str, width: int) -> str:
        """The text, or as much of its two ends as `width` pixels hold, an ellipsis between them.

        Two thirds are left to the end: names of images differ there.
        """
        fitted, kept = text, len(text)
        while kept and self.width(fitted) > width:
            kept -= 1
            head, tail = text[: kept // 3], text[len(text) - kept + kept // 3 :]
            fitted = head.rstrip() + _ELLIPSIS + tail.lstrip()
        return fitted

    def wrap(self, text: str, width: int, lines: int) -> list[str]:
        """The text broken between words into at most so many lines, each fitted to `width`."""
        words, wrapped = text.split(), list[str]()
        while words and len(wrapped) < lines - 1:
            line = words.pop(0)
            while words and self.width(f"{line} {words[0]}") <= width:
                line = f"{line} {words.pop(0)}"
            wrapped.append(line)
        if words:
            wrapped.append(" ".join(words))
        return [self.fit(line, width) for line in wrapped]

    def draw(self, canvas: Image.Image, place: tuple[int, int], text: str, colour: Colour) -> None:
        """Draw a line of text whose top left corner is at `place`."""
        size = (self.width(text), self.height)
        if not size[0]:
            return
        mask = Image.new("L", (size[0] // self.scale, size[1] // self.scale), 0)
        ImageDraw.Draw(mask).text((0, 0), self._drawable(text), 255, self.letters)
        canvas.paste(colour, place, mask.resize(size, Image.Resampling.NEAREST))

    def _drawable(self, text: str) -> str:
        """One line; bitmap letters are Latin-1."""
        text = "".join(each if each.isprintable() else "?" for each in text)
        if isinstance(self.letters, ImageFont.FreeTypeFont):
            return text
        return text.encode("latin-1", "replace").decode("latin-1")


def find_typeface(text: str) -> Typeface:
    """A typeface of this machine that has every character of `text`, or as good as there is."""
    usable = []
    for name in (None, *_OF_THE_SYSTEM):
        typeface = functools.partial(_outlines, name)
        try:
            letters = typeface(20).letters
        except (ImportError, OSError, TypeError):  # no FreeType, not there, Pillow before 10.1
            continue
        usable.append(typeface)
        if _has(letters, text):
            return typeface
    return usable[0] if usable else _bitmaps


def _outlines(name: str | None, size: int) -> Face:
    """A face of the typeface of that file name; None is the one that Pillow brings."""
    if name is None:
        letters = ImageFont.load_default(size)
    else:
        letters = ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC)
    assert isinstance(letters, ImageFont.FreeTypeFont)
    return Face(letters=letters, height=sum(letters.getmetrics()), scale=1)


def _bitmaps(size: int) -> Face:
    letters = ImageFont.load_default()
    scale = math.ceil(size / _BITMAP_HEIGHT)
    return Face(letters=letters, height=scale * _BITMAP_HEIGHT, scale=scale)


def _has(letters: Letters, text: str) -> bool:
    """Whether no character of the text is drawn by the sign for what is lacking."""
    lacking = bytes(letters.getmask(_UNASSIGNED))
    return all(bytes(letters.getmask(each)) != lacking for each in set(text) - {" "})
