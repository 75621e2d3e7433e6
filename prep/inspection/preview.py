"""A contact sheet: some classes in rows, some images of each, drawn by a seed.

First the sheet is planned (which images, where they and their labels stand), then it is drawn.
The same seed, images, Pillow and typefaces give the same pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

from prep.archives import Form, archive_bytes
from prep.inspection.contents import Contents, Inspected
from prep.inspection.headers import UNREADABLE
from prep.inspection.typeface import Colour, Typeface, find_typeface
from shards.decode import decode_rgb
from shards.durable import atomic_file
from shards.errors import DamagedData
from shards.image import read_info
from shards.order import Stream, permutation
from shards.progress import Progress, quantity
from shards.reader import Reader
from shards.sample import UNLABELLED

ROWS: Final = 8  # classes of a split
COLUMNS: Final = 8  # images of a class
GRID: Final = (9, 4)  # columns and rows of images that do not stand in rows of their class
_WORTH_A_ROW: Final = 3  # images: where no class has more, rows would be mostly empty

# All lengths are in pixels.
TILE: Final = 152  # the side of an image
_GAP: Final = 10
_MARGIN: Final = 56
_LABELS: Final = 248  # the column of labels at the left of the images
_LEADING: Final = 3  # between lines of a label
_ROUNDING: Final = 10  # radius of a tile's corners
_RIM: Final = 0.15  # how much darker a tile's edge is, so that white pictures have one
_INSIDE: Final = _LABELS + COLUMNS * TILE + (COLUMNS - 1) * _GAP  # the width of what is drawn
_GRID_GAP: Final = (_INSIDE - GRID[0] * TILE) // (GRID[0] - 1)

_PAPER: Colour = (250, 250, 248)
_INK: Colour = (28, 30, 34)
_FAINT: Colour = (118, 122, 130)
_BLANK: Colour = (228, 229, 231)  # the tile of an image that cannot be decoded


class Style(NamedTuple):
    """How a line of text looks."""

    size: int
    colour: Colour


_TITLE: Final = Style(36, _INK)
_TEXT: Final = Style(19, _FAINT)
_NAME: Final = Style(21, _INK)
_SMALL: Final = Style(16, _FAINT)


@dataclass(frozen=True, kw_only=True)
class Label:
    """A line of text: its top left corner, and how many pixels it may take."""

    text: str
    left: int
    top: int
    width: int
    style: Style


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The square of sample `number` of a split, by its top left corner."""

    inspected: Inspected
    number: int
    left: int
    top: int


@dataclass(kw_only=True)
class Sheet:
    """What stands where. It grows downwards while it is planned."""

    typeface: Typeface
    width: int = _INSIDE + 2 * _MARGIN
    height: int = _MARGIN
    labels: list[Label] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)

    def write(self, text: str, place: tuple[int, int], width: int, style: Style) -> int:
        """Put a line of text at a place, cut to `width`; its height."""
        face = self.typeface(style.size)
        left, top = place
        text = face.fit(text, width)
        self.labels.append(Label(text=text, left=left, top=top, width=width, style=style))
        return face.height


class _Row(NamedTuple):
    """Sample numbers side by side: of one class, or of any where `label` is UNLABELLED."""

    label: int
    numbers: list[int]


def write_preview(
    path: Path, inspected: Sequence[Inspected], *, seed: int, progress: Progress
) -> None:
    """Write a contact sheet of what was inspected: a PNG, whole or not at all.

    An image that cannot be decoded leaves an empty tile and is named in a note.
    """
    image = _draw(plan_sheet(inspected, seed), progress)
    with atomic_file(path) as file:
        image.save(file, "PNG")


def plan_sheet(inspected: Sequence[Inspected], seed: int) -> Sheet:
    """Decide which images a contact sheet shows and where everything stands."""
    chosen = [(each, _choose(each, seed)) for each in inspected]
    sheet = Sheet(typeface=find_typeface("".join(_texts(chosen))))
    for each, rows in chosen:
        _plan_heading(sheet, each.contents)
        for row in rows:
            if row.label == UNLABELLED:
                _plan_row(sheet, each, row)
            else:
                _plan_class(sheet, each, row)
        sheet.height += _MARGIN - _GAP
    _plan_line(sheet, f"Drawn with seed {seed}", _SMALL, _MARGIN)
    return sheet


# --- which images -----------------------------------------------------------------------------


def _choose(inspected: Inspected, seed: int) -> list[_Row]:
    """Rows by the seed, in the order of classes; no image whose header is damaged."""
    readable = inspected.headers.format != UNREADABLE
    labels = inspected.samples.labels
    present = np.unique(labels[readable & (labels != UNLABELLED)])
    rows = []
    for label in _draw_some(present, seed, 0, ROWS):
        of_class = np.flatnonzero(readable & (labels == label))
        rows.append(_Row(label, _draw_some(of_class, seed, label + 1, COLUMNS)))
    if any(len(row.numbers) > _WORTH_A_ROW for row in rows):
        return rows
    columns, count = GRID[0], GRID[0] * GRID[1]
    numbers = _draw_some(np.flatnonzero(readable), seed, 0, count)
    starts = range(0, len(numbers), columns)
    return [_Row(UNLABELLED, numbers[start : start + columns]) for start in starts]


def _draw_some(numbers: npt.NDArray[Any], seed: int, purpose: int, count: int) -> list[int]:
    """`count` of the numbers (all, if there are no more), ascending."""
    order = permutation(seed, Stream.PLAN, purpose, len(numbers))
    drawn: list[int] = np.sort(numbers[order[:count]]).tolist()
    return drawn


# --- where everything stands ------------------------------------------------------------------


def _texts(chosen: Sequence[tuple[Inspected, list[_Row]]]) -> Iterator[str]:
    """The text of a sheet that the data decide: no other may need a special typeface."""
    for each, rows in chosen:
        yield _title(each.contents)
        for row in rows:
            yield from (_caption(each, number) for number in row.numbers)


def _title(contents: Contents) -> str:
    path = contents.path.absolute()
    return f"{path.parent.name}/{path.name}" if path.is_dir() else path.name


def _caption(inspected: Inspected, number: int) -> str:
    """What an image is: its class, else its name without the ending."""
    sample = inspected.samples[number]
    if sample.label == UNLABELLED:
        return sample.name.rsplit(".", 1)[0]
    return inspected.classes[sample.label].name


def _plan_heading(sheet: Sheet, contents: Contents) -> None:
    facts = [
        *([] if contents.split is None else [contents.split]),
        contents.form,
        f"{contents.images:,} images",
        f"{len(contents.classes):,} classes" if contents.classes else "labels unknown",
        _bytes(contents.bytes),
    ]
    if contents.width is not None and contents.height is not None:
        facts.append(f"{contents.width.median:.0f} x {contents.height.median:.0f} pixels (median)")
    _plan_line(sheet, _title(contents), _TITLE, 6)
    _plan_line(sheet, "  ·  ".join(facts), _TEXT, 28)


def _plan_line(sheet: Sheet, text: str, style: Style, below: int) -> None:
    """A line that may take the whole width, and the room below it."""
    sheet.height += sheet.write(text, (_MARGIN, sheet.height), _INSIDE, style) + below


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**9 else quantity(count, "bytes")


def _plan_class(sheet: Sheet, inspected: Inspected, row: _Row) -> None:
    """Images of a class; at the middle of their left its name, its id, how many it has."""
    counted = inspected.contents.classes[row.label]
    width = _LABELS - 2 * _GAP
    lines = [(each, _NAME) for each in sheet.typeface(_NAME.size).wrap(counted.name, width, 2)]
    if counted.id != counted.name:
        lines.append((counted.id, _SMALL))
    lines.append((f"{counted.images:,} image{'s' * (counted.images != 1)}", _SMALL))
    heights = [sheet.typeface(style.size).height + _LEADING for _, style in lines]
    top = sheet.height + (TILE - sum(heights)) // 2
    for text, style in lines:
        top += sheet.write(text, (_MARGIN, top), width, style) + _LEADING
    _plan_tiles(sheet, inspected, row.numbers, _MARGIN + _LABELS, _GAP)
    sheet.height += TILE + _GAP


def _plan_row(sheet: Sheet, inspected: Inspected, row: _Row) -> None:
    """Images of any classes with their captions beneath."""
    _plan_tiles(sheet, inspected, row.numbers, _MARGIN, _GRID_GAP)
    face, end = sheet.typeface(_SMALL.size), 0
    for tile in sheet.tiles[-len(row.numbers) :]:
        top = sheet.height + TILE + _LEADING
        for line in face.wrap(_caption(inspected, tile.number), TILE, 2):
            top += sheet.write(line, (tile.left, top), TILE, _SMALL)
        end = max(end, top)
    sheet.height = end + _GRID_GAP - _LEADING


def _plan_tiles(
    sheet: Sheet, inspected: Inspected, numbers: list[int], left: int, gap: int
) -> None:
    for number in numbers:
        sheet.tiles.append(Tile(inspected=inspected, number=number, left=left, top=sheet.height))
        left += TILE + gap


# --- drawing ----------------------------------------------------------------------------------


def _draw(sheet: Sheet, progress: Progress) -> Image.Image:
    canvas = Image.new("RGB", (sheet.width, sheet.height), _PAPER)
    inside, edge = _rounded_square(0), _rounded_square(1)
    rim = ImageChops.subtract(inside, edge).point([round(_RIM * each) for each in range(256)])
    progress.start("drawing the preview", len(sheet.tiles), "images")
    for _, tiles in itertools.groupby(sheet.tiles, key=lambda tile: id(tile.inspected)):
        for tile, picture in _pictures(list(tiles), progress):
            canvas.paste(picture, (tile.left, tile.top), inside)
            canvas.paste(_INK, (tile.left, tile.top), rim)
            progress.advance(1)
    for label in sheet.labels:
        face = sheet.typeface(label.style.size)
        face.draw(canvas, (label.left, label.top), label.text, label.style.colour)
    return canvas


def _pictures(tiles: list[Tile], progress: Progress) -> Iterator[tuple[Tile, Image.Image]]:
    """The images of tiles of one split; an empty one for each that cannot be had."""
    samples = tiles[0].inspected.samples
    with _opened(tiles[0].inspected) as read:
        for tile in sorted(tiles, key=lambda tile: int(samples.offsets[tile.number])):
            try:
                data = read(tile.number)
                yield tile, _square(Image.fromarray(decode_rgb(data, read_info(data))))
            except (DamagedData, OSError) as error:
                sample = samples[tile.number]
                progress.note(f"{sample.path}: {sample.name} is not shown: {error}")
                yield tile, Image.new("RGB", (TILE, TILE), _BLANK)


@contextmanager
def _opened(inspected: Inspected) -> Iterator[Callable[[int], bytes | bytearray]]:
    """What reads a sample by its number; from a compressed archive by ascending offset alone."""
    samples = inspected.samples

    def read(number: int) -> bytearray:
        sample = samples[number]
        data = bytearray(sample.size)
        place = int(samples.place[number])
        reader.read_into(memoryview(data), place, sample.name, sample.offset)
        return data

    if inspected.form == Form.COMPRESSED.value:
        with archive_bytes(samples.places[0]) as packed:
            yield lambda number: packed.read_at(samples[number].offset, samples[number].size)
        return
    with Reader(samples.layout, samples.places) as reader:
        yield read


def _square(image: Image.Image) -> Image.Image:
    """The middle of an image, as large as a tile."""
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
