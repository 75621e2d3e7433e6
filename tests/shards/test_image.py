"""What an image's header says, and which headers are not believed."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
from PIL import Image

from shards.errors import DamagedData
from shards.image import LARGEST_PIXELS, Format, read_info


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("colour.jpg", (Format.JPEG, 37, 29, 3)),
        ("grey.jpg", (Format.JPEG, 37, 29, 1)),
        ("cmyk.jpg", (Format.JPEG, 32, 16, 4)),
        ("progressive.jpg", (Format.JPEG_OTHER, 37, 29, 3)),
        ("picture.png", (Format.PNG, 37, 29, 3)),
    ],
)
def test_format_and_size_are_read(
    name: str, expected: tuple[Format, int, int, int], picture: Callable[[str], bytes]
) -> None:
    assert read_info(picture(name)) == expected


def test_a_long_exif_block_and_fill_bytes_are_passed_over(picture: Callable[[str], bytes]) -> None:
    data = picture("colour.jpg")
    thumbnail = data[2:40]  # marker segments inside a segment must not be taken for real ones
    block = b"\xff\xe1" + (60_002).to_bytes(2, "big") + (thumbnail * 2000)[:60_000]
    assert read_info(data[:2] + block + b"\xff\xff" + data[2:]) == read_info(data)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "1"])
def test_every_kind_of_png_is_known(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (5, 3)).save(file, "PNG")
    components = {"L": 1, "1": 1, "P": 3, "RGB": 3, "LA": 2, "RGBA": 4}[mode]
    assert read_info(file.getvalue()) == (Format.PNG, 5, 3, components)


def resized(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG with another size in its frame header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "neither a JPEG nor a PNG"),
        (b"GIF89a" + bytes(50), "neither a JPEG nor a PNG"),
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xe0\xff\xff" + bytes(50), "truncated"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08", "truncated"),
        (b"\xff\xd8\x00\x00\x00\x00", "markers are damaged"),
        (b"\xff\xd8\xff\xd9\x00\x00", "no frame header"),
        (b"\xff\xd8" + b"\xff" * 1000, "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "truncated"),
    ],
)
def test_what_has_no_sound_header_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DamagedData, match=reason):
        read_info(data)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (65_535, 65_535), (LARGEST_PIXELS >> 15, 32_769)])
def test_absurd_sizes_are_refused(size: tuple[int, int], picture: Callable[[str], bytes]) -> None:
    with pytest.raises(DamagedData, match=f"claims {size[0]} x {size[1]} pixels"):
        read_info(resized(picture("colour.jpg"), *size))


def test_the_largest_size_is_taken(picture: Callable[[str], bytes]) -> None:
    data = resized(picture("colour.jpg"), LARGEST_PIXELS >> 15, 32_768)
    assert read_info(data).width == LARGEST_PIXELS >> 15


@pytest.mark.parametrize("name", ["colour.jpg", "progressive.jpg", "picture.png"])
def test_every_cut_is_either_known_or_refused(name: str, picture: Callable[[str], bytes]) -> None:
    data = picture(name)
    whole = read_info(data)
    known = 0
    for size in range(len(data)):
        try:
            assert read_info(data[:size]) == whole
            known += 1
        except DamagedData:
            assert not known, "a longer piece is refused where a shorter one was not"
    assert known


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("name", ["colour.jpg", "progressive.jpg", "picture.png"])
def test_random_damage_raises_nothing_else(name: str, picture: Callable[[str], bytes]) -> None:
    data = picture(name)
    generator = random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(min(len(data), 200))] = generator.randrange(256)
        try:
            info = read_info(damaged)
        except DamagedData:
            refused += 1
        else:
            assert 0 < info.width * info.height <= LARGEST_PIXELS
    assert refused
