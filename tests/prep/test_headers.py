"""Headers are read wherever images lie, as far in as it takes, and a damaged one ends nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prep.inspection.headers import UNREADABLE, Headers, header_at, read_headers
from shards.image import Format, ImageInfo, read_info
from shards.progress import Silent
from shards.sample import FoundImage, Layout, Samples


def in_tar(path: Path, images: list[bytes]) -> Samples:
    """The images one after the other in a file; names and keys keep their order."""
    path.write_bytes(b"".join(images))
    found, offset = [], 0
    for number, data in enumerate(images):
        found.append(FoundImage(f"{number:04d}.jpg", 0, 0, offset, len(data)))
        offset += len(data)
    return Samples.collect(Layout.TAR, [path], found)


def in_folder(folder: Path, images: list[bytes]) -> Samples:
    folder.mkdir()
    found = []
    for number, data in enumerate(images):
        name = f"{number:04d}.jpg"
        (folder / name).write_bytes(data)
        found.append(FoundImage(name, 0, 0, 0, len(data)))
    return Samples.collect(Layout.FOLDER, [folder], found)


def with_segments(data: bytes, size: int) -> bytes:
    """The JPEG with at least `size` bytes of application data before its frame header."""
    segment = b"\xff\xe1" + (60_002).to_bytes(2, "big") + data[2:40] * 1579
    segment = segment[:60_004]
    return data[:2] + segment * (-(-size // len(segment))) + data[2:]


def sized(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize("layout", [in_tar, in_folder])
def test_every_image_has_its_own_header(
    layout: Callable[[Path, list[bytes]], Samples],
    picture: Callable[[str], bytes],
    tmp_path: Path,
) -> None:
    """More images than are announced at a time, so that several groups are read."""
    images = [sized(picture("colour.jpg"), 20 + number, 900 - number) for number in range(600)]
    images[300], images[400] = picture("picture.png"), picture("cmyk.jpg")
    headers = Headers.collect(read_headers(layout(tmp_path / "images", images), Silent()))
    expected = [read_info(data) for data in images]
    assert headers.format.tolist() == [each.format for each in expected]
    assert headers.width.tolist() == [each.width for each in expected]
    assert headers.height.tolist() == [each.height for each in expected]
    assert headers.components.tolist() == [each.components for each in expected]
    assert headers.unreadable == ()


@pytest.mark.parametrize("size", [0, 5_000, 70_000, 1_100_000, 2_000_000])
def test_a_header_behind_much_else_is_found(
    size: int, picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    data = with_segments(picture("grey.jpg"), size)
    samples = in_folder(tmp_path / "images", [data])
    assert list(read_headers(samples, Silent())) == [(Format.JPEG, 37, 29, 1)]


def test_a_header_is_not_looked_for_without_end(picture: Callable[[str], bytes]) -> None:
    data = with_segments(picture("grey.jpg"), 17 << 20)
    asked: list[int] = []

    def read_at(position: int, count: int) -> bytes:
        asked.append(count)
        return data[position : position + count]

    found = header_at(read_at, 0, len(data))
    assert isinstance(found, str)
    assert found.startswith("it has no sound header in its first 16777216 bytes")
    assert sum(asked) == 16 << 20


def test_a_compressed_archive_can_be_read_front_to_back(picture: Callable[[str], bytes]) -> None:
    """No byte is asked for twice."""
    data, end = with_segments(picture("grey.jpg"), 70_000), 0

    def read_at(position: int, count: int) -> bytes:
        nonlocal end
        assert position == end
        end += count
        return data[position : position + count]

    assert header_at(read_at, 0, len(data)) == (Format.JPEG, 37, 29, 1)


def test_every_damaged_image_is_listed_with_its_reason(
    picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    good = picture("colour.jpg")
    endless = good[:2] + b"\xff\xe1\xff\xff" + good[2:]  # EXIF that claims more than there is
    images = [good, b"", b"<!DOCTYPE html>", good[:30], sized(good, 65_535, 65_535), endless, good]
    samples = in_folder(tmp_path / "images", images)
    headers = Headers.collect(read_headers(samples, Silent()))
    assert dict(headers.unreadable).keys() == {1, 2, 3, 4, 5}
    for number, reason in zip(
        range(1, 6), ("empty", "neither a JPEG nor", "truncated", "claims", "trunc"), strict=True
    ):
        assert reason in dict(headers.unreadable)[number]
    assert np.flatnonzero(headers.format == UNREADABLE).tolist() == [1, 2, 3, 4, 5]
    assert headers.width.tolist() == [37, 0, 0, 0, 0, 0, 37]


def test_what_has_changed_since_it_was_listed_is_named(
    picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    samples = in_folder(tmp_path / "images", [picture("colour.jpg")] * 4)
    (tmp_path / "images" / "0001.jpg").unlink()
    (tmp_path / "images" / "0002.jpg").unlink()
    (tmp_path / "images" / "0002.jpg").mkdir()
    (tmp_path / "images" / "0003.jpg").write_bytes(b"\xff\xd8\xff")
    headers = Headers.collect(read_headers(samples, Silent()))
    assert headers.unreadable == (
        (1, "it cannot be read (No such file or directory)"),
        (2, "it cannot be read (Is a directory)"),
        (3, "it ends before its JPEG frame header: it is truncated"),
    )


def test_a_tar_that_was_cut_off_has_unreadable_images(
    picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    samples = in_tar(tmp_path / "a.tar", [picture("colour.jpg")] * 3)
    os.truncate(tmp_path / "a.tar", int(samples.offsets[2]) + 1)
    headers = Headers.collect(read_headers(samples, Silent()))
    assert [number for number, _ in headers.unreadable] == [2]


def test_no_file_stays_open(picture: Callable[[str], bytes], tmp_path: Path) -> None:
    samples = in_folder(tmp_path / "images", [picture("colour.jpg")] * 10)
    place = Path("/proc/self/fd")
    before = sorted(place.iterdir())
    assert len(list(read_headers(samples, Silent()))) == 10
    abandoned = read_headers(samples, Silent())
    next(iter(abandoned))
    assert len(list(place.iterdir())) > len(before)
    abandoned.close()
    assert sorted(place.iterdir()) == before


def test_columns_of_nothing_are_empty() -> None:
    headers = Headers.collect([])
    assert (len(headers.width), len(headers.format), headers.unreadable) == (0, 0, ())
    one = Headers.collect([ImageInfo(Format.PNG, 3, 2, 4)])
    assert (one.format[0], one.width[0], one.height[0], one.components[0]) == (Format.PNG, 3, 2, 4)
