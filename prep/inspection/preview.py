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
from PIL import Image

from prep.archives import Form, archive_bytes
from prep.inspection.contents import Contents, Inspected
from prep.inspection.headers import UNREADABLE
from shards.decode import decode_rgb
from shards.durable import atomic_file
from shards.errors import DamagedData
from shards.image import read_info
from shards.order import Stream, permutation
from shards.page import GAP, INSIDE, LEADING, MARGIN, NAME, SMALL, TEXT, TILE, TITLE, Canvas, Page
from shards.progress import Progress, quantity
from shards.reader import Reader
from shards.sample import UNLABELLED
from shards.typeface import find_typeface

ROWS: Final = 8  # classes of a split
COLUMNS: Final = 8  # images of a class
GRID: Final = (9, 4)  # columns and rows of images that do not stand in rows of their class
_WORTH_A_ROW: Final = 3  # images: where no class has more, rows would be mostly empty

# Pixels.
_LABELS: Final = 248  # the column of labels at the left of the images
_GRID_GAP: Final = (INSIDE - GRID[0] * TILE) // (GRID[0] - 1)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The square of sample `number` of a split, by its top left corner."""

    inspected: Inspected
    number: int
    left: int
    top: int


@dataclass(kw_only=True)
class Sheet(Page):
    """A page with images of what was inspected."""

    tiles: list[Tile] = field(default_factory=list)


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
        sheet.height += MARGIN - GAP
    sheet.write_line(f"Drawn with seed {seed}", SMALL, MARGIN)
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
    sheet.write_line(_title(contents), TITLE, 6)
    sheet.write_line("  ·  ".join(facts), TEXT, 28)


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**9 else quantity(count, "bytes")


def _plan_class(sheet: Sheet, inspected: Inspected, row: _Row) -> None:
    """Images of a class; at the middle of their left its name, its id, how many it has."""
    counted = inspected.contents.classes[row.label]
    width = _LABELS - 2 * GAP
    lines = [(each, NAME) for each in sheet.typeface(NAME.size).wrap(counted.name, width, 2)]
    if counted.id != counted.name:
        lines.append((counted.id, SMALL))
    lines.append((f"{counted.images:,} image{'s' * (counted.images != 1)}", SMALL))
    heights = [sheet.typeface(style.size).height + LEADING for _, style in lines]
    top = sheet.height + (TILE - sum(heights)) // 2
    for text, style in lines:
        top += sheet.write(text, (MARGIN, top), width, style) + LEADING
    _plan_tiles(sheet, inspected, row.numbers, MARGIN + _LABELS, GAP)
    sheet.height += TILE + GAP


def _plan_row(sheet: Sheet, inspected: Inspected, row: _Row) -> None:
    """Images of any classes with their captions beneath."""
    _plan_tiles(sheet, inspected, row.numbers, MARGIN, _GRID_GAP)
    face, end = sheet.typeface(SMALL.size), 0
    for tile in sheet.tiles[-len(row.numbers) :]:
        top = sheet.height + TILE + LEADING
        for line in face.wrap(_caption(inspected, tile.number), TILE, 2):
            top += sheet.write(line, (tile.left, top), TILE, SMALL)
        end = max(end, top)
    sheet.height = end + _GRID_GAP - LEADING


def _plan_tiles(
    sheet: Sheet, inspected: Inspected, numbers: list[int], left: int, gap: int
) -> None:
    for number in numbers:
        sheet.tiles.append(Tile(inspected=inspected, number=number, left=left, top=sheet.height))
        left += TILE + gap


# --- drawing ----------------------------------------------------------------------------------


def _draw(sheet: Sheet, progress: Progress) -> Image.Image:
    canvas = Canvas(sheet)
    progress.start("drawing the preview", len(sheet.tiles), "images")
    for _, tiles in itertools.groupby(sheet.tiles, key=lambda tile: id(tile.inspected)):
        for tile, picture in _pictures(list(tiles), progress):
            canvas.put(picture, (tile.left, tile.top))
            progress.advance(1)
    return canvas.finish()


def _pictures(tiles: list[Tile], progress: Progress) -> Iterator[tuple[Tile, Image.Image | None]]:
    """The images of tiles of one split; None for each that cannot be had."""
    samples = tiles[0].inspected.samples
    with _opened(tiles[0].inspected) as read:
        for tile in sorted(tiles, key=lambda tile: int(samples.offsets[tile.number])):
            try:
                data = read(tile.number)
                yield tile, Image.fromarray(decode_rgb(data, read_info(data)))
            except (DamagedData, OSError) as error:
                sample = samples[tile.number]
                progress.note(f"{sample.path}: {sample.name} is not shown: {error}")
                yield tile, None


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
