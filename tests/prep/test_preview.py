"""A contact sheet shows what is there, tidily, and the same again for the same seed."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prep.inspection.contents import Inspected
from prep.inspection.inspect import inspect
from prep.inspection.preview import COLUMNS, GRID, ROWS, TILE, Sheet, plan_sheet, write_preview
from shards.progress import Silent

Box = tuple[int, int, int, int]


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def look(*paths: Path) -> list[Inspected]:
    return list(inspect(paths, labels=None, progress=Silent()))


def drawn(
    inspected: list[Inspected], path: Path, seed: int = 0, progress: Silent | None = None
) -> Image.Image:
    write_preview(path, inspected, seed=seed, progress=progress or Silent())
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def box_of(sheet: Sheet, label: Any) -> Box:
    face = sheet.typeface(label.style.size)
    right = label.left + face.width(label.text)
    return label.left, label.top, right, label.top + face.height


def tile_boxes(sheet: Sheet) -> list[Box]:
    return [(each.left, each.top, each.left + TILE, each.top + TILE) for each in sheet.tiles]


def overlap(one: Box, other: Box) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart


# --- the plan ---------------------------------------------------------------------------------


@pytest.fixture
def many(write_folders: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path) -> Path:
    """Twelve classes with names of all lengths, up to 14 images each."""
    names = [
        "n01440764",
        "n02093428",  # American Staffordshire terrier
        "n01773157",  # black and gold garden spider
        "x",
        "a-class-" * 12,
        *(f"class{number}" for number in range(7)),
    ]
    return write_folders(
        tmp_path / ("many-and-a-name-that-goes-on-and-on-" * 5),
        {
            name: {f"{n}.jpg": jpeg(n) for n in range(number + 3)}
            for number, name in enumerate(names)
        },
    )


@pytest.fixture(params=["classes", "no labels", "one image a class", "several"])
def shown(
    request: pytest.FixtureRequest,
    many: Path,
    archives: Any,
    write_folders: Callable[..., Path],
    jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> list[Inspected]:
    alone = Path(shutil.copy(archives.val, tmp_path))
    single = write_folders(
        tmp_path / "single", {f"c{n}" * (n + 1): {"a.jpg": jpeg(n)} for n in range(50)}
    )
    paths = {
        "classes": [many],
        "no labels": [alone],
        "one image a class": [single],
        "several": [many, alone, archives.train, single],
    }
    return look(*paths[request.param])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_overlaps_and_nothing_leaves_the_sheet(shown: list[Inspected], seed: int) -> None:
    sheet = plan_sheet(shown, seed)
    boxes = [*tile_boxes(sheet), *(box_of(sheet, label) for label in sheet.labels)]
    for left, top, right, bottom in boxes:
        assert 0 < left < right < sheet.width
        assert 0 < top < bottom < sheet.height
    for one, other in itertools.combinations(boxes, 2):
        assert not overlap(one, other), (one, other)
    for label in sheet.labels:
        assert sheet.typeface(label.style.size).width(label.text) <= label.width


def test_the_sheet_says_what_it_shows(archives: Any) -> None:
    texts = [label.text for label in plan_sheet(look(archives.train), 3).labels]
    assert texts[0] == archives.train.name
    assert texts[1].startswith("train  ·  tar of class tars  ·  51 images  ·  3 classes  ·  0.")
    assert texts[-1] == "Drawn with seed 3"
    (found,) = look(archives.train)
    for each in found.contents.classes:
        assert each.name in texts
        assert each.id in texts
    assert texts.count("17 images") == 3


def test_rows_are_classes_in_their_order(many: Path) -> None:
    (found,) = look(many)
    sheet = plan_sheet([found], 0)
    rows = [list(row) for _, row in itertools.groupby(sheet.tiles, key=lambda tile: tile.top)]
    assert len(rows) == ROWS
    labels = [{int(found.samples.labels[tile.number]) for tile in row} for row in rows]
    assert all(len(each) == 1 for each in labels)
    assert sorted(map(min, labels)) == list(map(min, labels))
    for row, label in zip(rows, labels, strict=True):
        assert len(row) == min(COLUMNS, found.contents.classes[min(label)].images)
        assert len({tile.number for tile in row}) == len(row)


def test_all_of_a_few_classes_are_shown(archives: Any) -> None:
    (found,) = look(archives.train)
    sheet = plan_sheet([found], 5)
    assert {int(found.samples.labels[tile.number]) for tile in sheet.tiles} == {0, 1, 2}
    assert len(sheet.tiles) == 3 * COLUMNS


def test_images_without_labels_stand_in_a_grid_with_their_names(
    write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    names = [f"ILSVRC2012_test_{number:08d}.JPEG" for number in range(1, 101)]
    (found,) = look(write_tar(tmp_path / "t.tar", {name: jpeg(1) for name in names}))
    sheet = plan_sheet([found], 0)
    assert len({tile.number for tile in sheet.tiles}) == GRID[0] * GRID[1]
    ends = {found.samples[tile.number].name[-10:-5] for tile in sheet.tiles}
    assert ends <= {label.text[-5:] for label in sheet.labels}
    assert "labels unknown" in sheet.labels[1].text


def test_a_seed_chooses(many: Path) -> None:
    found = look(many)
    chosen = {
        seed: [tile.number for tile in plan_sheet(found, seed).tiles] for seed in (0, 0, 1, 2**63)
    }
    again = [tile.number for tile in plan_sheet(look(many), 0).tiles]
    assert chosen[0] == again
    assert len({tuple(each) for each in chosen.values()}) == 3


def test_images_with_damaged_headers_are_not_chosen(
    write_folders: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    images = {f"{n}.jpg": jpeg(n) if n % 3 else b"damaged" for n in range(15)}
    (found,) = look(write_folders(tmp_path / "val", {"cat": images, "dog": {"a.jpg": b""}}))
    shown = {found.samples[tile.number].name for tile in plan_sheet([found], 0).tiles}
    assert shown
    assert shown <= {name for name, data in images.items() if data != b"damaged"}


# --- the picture ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_file(archives: Any, tmp_path: Path) -> None:
    found = look(archives.train.parent)
    image = drawn(found, tmp_path / "a.png")
    drawn(look(archives.train.parent), tmp_path / "b.png")
    drawn(found, tmp_path / "c.png", seed=1)
    one, same, other = ((tmp_path / f"{each}.png").read_bytes() for each in "abc")
    assert one == same != other
    sheet = plan_sheet(found, 0)
    assert image.size == (sheet.width, sheet.height)


def test_the_same_pictures_are_shown_wherever_they_lie(
    archives: Any, shards: Path, tmp_path: Path
) -> None:
    """Only the heading differs. Compressed archives are read front to back for it."""
    import gzip

    packed = tmp_path / "train.tar.gz"
    packed.write_bytes(gzip.compress(archives.train.read_bytes()))
    bodies = []
    for number, path in enumerate((archives.train, shards / "train", packed)):
        found = look(path)
        image = drawn(found, tmp_path / f"{number}.png")
        top = plan_sheet(found, 0).tiles[0].top
        bodies.append(np.asarray(image)[top:])
    assert np.array_equal(bodies[0], bodies[1])
    assert np.array_equal(bodies[0], bodies[2])


def test_a_tile_shows_the_middle_of_its_image(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    """Red, green and blue from the left to the right of a wide picture: green is in the middle."""
    stripes = np.zeros((40, 120, 3), np.uint8)
    for channel in range(3):
        stripes[:, 40 * channel : 40 * channel + 40, channel] = 255
    encoded = {}
    for name, pixels in (("wide", stripes), ("tall", stripes.transpose(1, 0, 2))):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
        encoded[f"{name}.png"] = file.getvalue()
    found = look(write_folders(tmp_path / "val", {"stripes": encoded}))
    image, tiles = drawn(found, tmp_path / "p.png"), plan_sheet(found, 0).tiles
    assert len(tiles) == 2
    for tile in tiles:
        inside = (tile.left + 12, tile.top + 12, tile.left + TILE - 12, tile.top + TILE - 12)
        assert image.crop(inside).getcolors() == [((TILE - 24) ** 2, (0, 255, 0))]


@pytest.mark.parametrize(
    "name", ["grey.jpg", "cmyk.jpg", "progressive.jpg", "picture.png", "colour.jpg"]
)
def test_every_kind_of_image_is_drawn(
    name: str,
    picture: Callable[[str], bytes],
    write_folders: Callable[..., Path],
    tmp_path: Path,
) -> None:
    notes = Notes()
    found = look(write_folders(tmp_path / "val", {"odd": {f"a{Path(name).suffix}": picture(name)}}))
    image, (tile,) = drawn(found, tmp_path / "p.png", progress=notes), plan_sheet(found, 0).tiles
    inside = image.crop((tile.left, tile.top, tile.left + TILE, tile.top + TILE))
    assert len(inside.getcolors(TILE * TILE)) > 50
    assert notes.notes == []


@pytest.mark.parametrize("size", [(1, 1), (3000, 3), (2, 2000)])
def test_extreme_sizes_are_drawn(
    size: tuple[int, int], write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 40, 40)).save(file, "JPEG")
    found = look(write_folders(tmp_path / "val", {"odd": {"a.jpg": file.getvalue()}}))
    image, (tile,) = drawn(found, tmp_path / "p.png"), plan_sheet(found, 0).tiles
    red, green, _ = image.getpixel((tile.left + TILE // 2, tile.top + TILE // 2))
    assert red > 180
    assert green < 60


def test_an_image_that_cannot_be_decoded_leaves_an_empty_tile(
    write_folders: Callable[..., Path], picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    data = picture("colour.jpg")
    images = {"a.jpg": data, "b.jpg": data[: len(data) // 2], "c.jpg": data}
    notes = Notes()
    found = look(write_folders(tmp_path / "val", {"cat": images}))
    image = drawn(found, tmp_path / "p.png", progress=notes)
    (note,) = notes.notes
    assert note.startswith(f"{tmp_path / 'val' / 'cat' / 'b.jpg'}: ")
    assert "is not shown" in note
    blanks = [
        len(image.crop((left + 12, top + 12, right - 12, bottom - 12)).getcolors(TILE**2)) == 1
        for left, top, right, bottom in tile_boxes(plan_sheet(found, 0))
    ]
    assert blanks == [False, True, False]


def test_an_image_that_is_gone_leaves_an_empty_tile(
    write_folders: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    found = look(write_folders(tmp_path / "val", {"cat": {f"{n}.jpg": jpeg(n) for n in range(5)}}))
    (tmp_path / "val" / "cat" / "2.jpg").unlink()
    notes = Notes()
    drawn(found, tmp_path / "p.png", progress=notes)
    assert len(notes.notes) == 1
    assert "2.jpg" in notes.notes[0]


def test_a_sheet_without_any_image_has_its_heading(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    found = look(write_folders(tmp_path / "val", {"cat": {"a.jpg": b""}}))
    assert plan_sheet(found, 0).tiles == []
    assert drawn(found, tmp_path / "p.png").size[1] > 100


# --- the file ---------------------------------------------------------------------------------


def test_a_file_that_is_there_is_replaced_and_nothing_is_left_beside_it(
    archives: Any, tmp_path: Path
) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    drawn(look(archives.val), sheet)
    before = sheet.read_bytes()
    drawn(look(archives.val), sheet, seed=7)
    assert sheet.read_bytes() != before
    assert list(sheet.parent.iterdir()) == [sheet]


def test_the_command_draws_it(
    run: Callable[..., subprocess.CompletedProcess[str]], archives: Any, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    done = run("imagenet-prep", "inspect", archives.val, "--preview", sheet, "--seed", 4)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == f"{sheet}: a contact sheet"
    drawn(look(archives.val), tmp_path / "expected.png", seed=4)
    assert sheet.read_bytes() == (tmp_path / "expected.png").read_bytes()
    done = run("imagenet-prep", "inspect", archives.val, "--preview", sheet, "--json")
    assert json.loads(done.stdout)["preview"] == str(sheet)


def test_the_command_refuses_a_preview_of_another_name_before_it_reads_anything(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("sheet.jpg", "sheet", "folder.png"):
        done = run("imagenet-prep", "inspect", tmp_path / "none", "--preview", tmp_path / name)
        assert done.returncode == 2
        assert "give the name of a file that ends in .png" in done.stderr


def test_the_command_fails_in_a_sentence_where_the_preview_cannot_be_written(
    run: Callable[..., subprocess.CompletedProcess[str]], archives: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    sheet = tmp_path / "file" / "sheet.png"
    done = run("imagenet-prep", "inspect", archives.val, "--preview", sheet)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'file'}")
    assert len(done.stderr.splitlines()) == 1
