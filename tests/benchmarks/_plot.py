"""The figures of a benchmark as bars, one comparison beneath the other, in a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _bench import Bench, figure
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _NAMES, _VALUES = 1000, 380, 110  # pixels: the picture, its names, its figures
_ROW, _TITLE, _MARGIN, _TEXT = 22, 40, 12, 14
_OURS, _PEERS, _INK = (22, 108, 179), (170, 178, 186), (30, 30, 30)


def draw(benches: Sequence[Bench], path: Path) -> None:
    """A group of bars for each comparison, as long as the medians; ours stand out."""
    drawn = [(bench, bench.medians()) for bench in benches if bench.runs]
    height = 2 * _MARGIN + sum(_TITLE + _ROW * len(medians) for _, medians in drawn)
    picture = Image.new("RGB", (_WIDTH, height), "white")
    pen, font = ImageDraw.Draw(picture), _font()
    top = _MARGIN
    for bench, medians in drawn:
        pen.text((_MARGIN, top + _TITLE - _ROW), f"{bench.title}, {bench.unit}", _INK, font)
        top += _TITLE
        longest = max(medians.values())
        for name, value in medians.items():
            length = (_WIDTH - _NAMES - _VALUES) * value / longest if longest else 0
            colour = _OURS if name.startswith("ours") else _PEERS
            pen.text((2 * _MARGIN, top), name, _INK, font)
            pen.rectangle((_NAMES, top + 2, _NAMES + length, top + _ROW - 4), colour)
            pen.text((_NAMES + length + 6, top), figure(value), _INK, font)
            top += _ROW
    picture.save(path)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own typeface; those before 10.1 have it in one size."""
    try:
        return ImageFont.load_default(_TEXT)
    except TypeError:
        return ImageFont.load_default()
