"""A contact sheet of predictions: each picture, its best classes, whether they are right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.durable import atomic_file
from shards.errors import DamagedData
from shards.page import (
    FAINT,
    GAP,
    INK,
    INSIDE,
    LEADING,
    MARGIN,
    SMALL,
    TEXT,
    TILE,
    TITLE,
    Bar,
    Canvas,
    Page,
    Style,
)
from shards.progress import Progress
from shards.typeface import Colour, find_typeface
from training.results.predict import Prediction

LARGEST: Final = 400  # pictures; a sheet of more would be 80,000 pixels high
COLUMNS: Final = 4
_BETWEEN: Final = 34  # cards, in both directions; pixels, as all lengths
_CARD: Final = (INSIDE - (COLUMNS - 1) * _BETWEEN) // COLUMNS
_BESIDE: Final = _CARD - TILE - 2 * GAP  # the column of answers at a picture's right
_BAR: Final = 4  # the height of a probability's bar
_TOP: Final = 5

_RIGHT: Final[Colour] = (42, 157, 85)
_NEARLY: Final[Colour] = (226, 163, 26)  # among the answers, not the first
_WRONG: Final[Colour] = (206, 62, 52)
_PALE: Final[Colour] = (200, 205, 214)
_ANSWER: Final = Style(15, INK)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A prediction and the class that its user knows it to be, if any."""

    prediction: Prediction
    known: int | None

    @property
    def colour(self) -> Colour | None:
        """Right, nearly, wrong; None where nobody knows."""
        if self.known is None or self.prediction.problem is not None:
            return None
        classes = [index for index, _ in self.prediction.top[:_TOP]]
        if classes[0] == self.known:
            return _RIGHT
        return _NEARLY if self.known in classes else _WRONG


def write_sheet(
    path: Path,
    shown: Sequence[Shown],
    name_of: Callable[[int], str],
    title: str,
    *,
    pixels: Callable[[Path], npt.NDArray[np.uint8]],
    progress: Progress,
) -> None:
    """Draw predictions as a PNG, whole or not at all; of many the first ones.

    `name_of` names a class by its index, `pixels` reads a picture again.
    """
    if len(shown) > LARGEST:
        progress.note(f"{path} shows the first {LARGEST} of {len(shown)} pictures")
        shown = shown[:LARGEST]
    page, places = plan_sheet(shown, name_of, title)
    progress.start("drawing the sheet", len(shown), "images")
    canvas = Canvas(page)
    for each, place in zip(shown, places, strict=True):
        canvas.put(_picture(each.prediction, pixels), place, each.colour)
        progress.advance(1)
    image = canvas.finish()
    with atomic_file(path) as file:
        image.save(file, "PNG")


def _picture(
    prediction: Prediction, pixels: Callable[[Path], npt.NDArray[np.uint8]]
) -> Image.Image | None:
    """What was asked about; None where it could not be read, or cannot any more."""
    if prediction.problem is not None:
        return None
    try:
        return Image.fromarray(pixels(prediction.path))
    except (DamagedData, OSError):
        return None


def plan_sheet(
    shown: Sequence[Shown], name_of: Callable[[int], str], title: str
) -> tuple[Page, list[tuple[int, int]]]:
    """The page, and where the tile of each picture goes."""
    texts = [title, *(each.prediction.path.name for each in shown), *_named(shown, name_of)]
    page = Page(typeface=find_typeface("".join(texts)))
    page.write_line(title, TITLE, 6)
    page.write_line(_counted(shown), TEXT, 28)
    places: list[tuple[int, int]] = []
    for start in range(0, len(shown), COLUMNS):
        top, end = page.height, page.height
        for column, each in enumerate(shown[start : start + COLUMNS]):
            left = MARGIN + column * (_CARD + _BETWEEN)
            places.append((left, top))
            end = max(end, _plan_card(page, each, name_of, left, top))
        page.height = end + _BETWEEN
    page.height += MARGIN - _BETWEEN
    return page, places


def _named(shown: Sequence[Shown], name_of: Callable[[int], str]) -> list[str]:
    tops = itertools.chain.from_iterable(each.prediction.top for each in shown)
    return [name_of(index) for index, _ in tops]


def _counted(shown: Sequence[Shown]) -> str:
    failed = sum(each.prediction.problem is not None for each in shown)
    colours = [each.colour for each in shown if each.colour is not None]
    facts = [f"{len(shown):,} picture{'s' * (len(shown) != 1)}"]
    if colours:
        facts.append(f"{colours.count(_RIGHT):,} of {len(colours):,} right")
        nearly = colours.count(_NEARLY)
        facts.append(f"{nearly:,} more among the first {_TOP}")
    if failed:
        facts.append(f"{failed:,} without an answer")
    return "  ·  ".join(facts)


def _plan_card(page: Page, each: Shown, name_of: Callable[[int], str], left: int, top: int) -> int:
    """A picture's name beneath its tile and its answers beside it; where the card ends."""
    _plan_answers(page, each, name_of, left + TILE + 2 * GAP, top)
    below = top + TILE + LEADING
    below += page.write(each.prediction.path.name, (left, below), _CARD, SMALL)
    if each.known is not None and each.colour is not None:
        style = Style(SMALL.size, each.colour)
        below += page.write(f"is {name_of(each.known)}", (left, below), _CARD, style)
    return below


def _plan_answers(
    page: Page, each: Shown, name_of: Callable[[int], str], left: int, top: int
) -> None:
    if each.prediction.problem is not None:
        for line in page.typeface(_ANSWER.size).wrap(each.prediction.problem, _BESIDE, 6):
            top += page.write(line, (left, top), _BESIDE, Style(_ANSWER.size, _WRONG)) + LEADING
        return
    for index, chance in each.prediction.top[:_TOP]:
        percent = f"{100 * chance:.0f} %"
        number = page.typeface(_ANSWER.size).width(percent)
        style = Style(_ANSWER.size, each.colour or INK) if index == each.known else _ANSWER
        faint = Style(_ANSWER.size, FAINT)
        page.write(percent, (left + _BESIDE - number, top), number, faint)
        top += page.write(name_of(index), (left, top), _BESIDE - number - GAP, style) + 1
        full = Bar(left=left, top=top, width=_BESIDE, height=_BAR, colour=_PALE)
        page.bars.append(full)
        width = round(_BESIDE * chance)
        page.bars.append(Bar(left=left, top=top, width=width, height=_BAR, colour=style.colour))
        top += _BAR + 2 * LEADING
