"""Any picture becomes RGB, as the loader makes it where it can; the rest is a reason."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from shards.decode import decode_rgb
from shards.errors import DamagedData
from shards.image import read_info
from shards.pictures import endings, read_picture

WIDTH, HEIGHT = 40, 30


def drawn(mode: str = "RGB") -> Image.Image:
    """Four fields of colours that any palette has, so that turning it shows."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0))
    image.paste((0, 255, 0), (WIDTH // 2, 0, WIDTH, HEIGHT // 2))
    image.paste((0, 0, 255), (0, HEIGHT // 2, WIDTH // 2, HEIGHT))
    image.paste((255, 255, 255), (WIDTH // 2, HEIGHT // 2, WIDTH, HEIGHT))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def far(one: Any, other: Any) -> float:
    return float(np.abs(one.astype(float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize(
    "name", ["colour.jpg", "grey.jpg", "cmyk.jpg", "progressive.jpg", "picture.png"]
)
def test_jpeg_and_png_are_as_the_loader_has_them(
    name: str, picture: Callable[[str], bytes]
) -> None:
    data = picture(name)
    assert np.array_equal(read_picture(data), decode_rgb(data, read_info(data)))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PPM", "RGB"),
        ("TGA", "RGB"),
        ("TIFF", "RGB"),
        ("TIFF", "RGBA"),
        ("TIFF", "CMYK"),
        ("WEBP", "RGB"),
        ("ICO", "RGBA"),
    ],
)
def test_what_else_pillow_reads_has_its_colours(kind: str, mode: str) -> None:
    if kind == "WEBP" and kind not in Image.registered_extensions().values():
        pytest.skip("this Pillow has no WebP")
    options: dict[str, Any] = {"sizes": [(WIDTH, HEIGHT)]} if kind == "ICO" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    pixels = read_picture(encoded(drawn(mode), kind, **options))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8
    assert far(pixels, drawn()) < 3


def test_a_palette_with_transparency_and_the_first_frame_of_what_moves() -> None:
    data = encoded(drawn("P"), "GIF", transparency=0)
    assert read_picture(data).shape == (HEIGHT, WIDTH, 3)
    frames = [drawn("P"), Image.new("P", (WIDTH, HEIGHT), 0)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert far(read_picture(moving), drawn()) < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    pixels = read_picture(encoded(Image.fromarray(ramp.astype(np.uint16)), kind))
    assert far(pixels[:, :, 0], ramp / 257) < 1
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_floats_of_0_to_1_are_scaled_and_what_is_no_number_is_black() -> None:
    values = np.linspace(0, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)
    values[0, 0] = np.nan
    pixels = read_picture(encoded(Image.fromarray(values), "TIFF"))
    assert pixels[0, 0, 0] == 0
    assert pixels[-1, -1].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_turns_a_picture_only_where_it_is_asked_to(kind: str) -> None:
    for orientation in range(1, 9):
        tags = Image.Exif()
        tags[0x0112] = orientation
        data = encoded(drawn(), kind, exif=tags)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        turned = read_picture(data, exif=True)
        assert turned.shape == expected.shape
        assert far(turned, expected) < 3
        if kind != "TIFF":  # whose decoder turns it by itself
            assert read_picture(data).shape == (HEIGHT, WIDTH, 3)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body + b"\0\0\0\0IDAT" + bytes(8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"hello", "it is no picture that Pillow knows"),
        (bytes(1000), "it is no picture that Pillow knows"),
        (b"\xff\xd8\xff", "it ends before its JPEG frame header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "no picture that Pillow"),
        (png_header(60000, 60000), "its header claims 60000 x 60000 pixels"),
        (png_header(0, 5), "its header claims 0 x 5 pixels"),
        (png_header(5, 5), "it cannot be decoded"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20), "it"),
        (b"BM" + bytes(60), "it"),
        (b"P6\n99999 99999\n255\n", "could be decompression bomb"),
        (b"II*\0\x08\0\0\0" + b"\xff" * 40, "it"),
        (b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20), "it"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_and_damaged_pictures_are_a_reason(data: bytes, said: str) -> None:
    with pytest.raises(DamagedData) as refused:
        read_picture(data)
    assert said in str(refused.value)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of them
@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM", "TGA"])
def test_a_picture_cut_off_anywhere_is_a_picture_or_a_reason(kind: str) -> None:
    whole = encoded(drawn("P" if kind == "GIF" else "RGB"), kind)
    for kept in range(1, len(whole), max(1, len(whole) // 60)):
        with contextlib.suppress(DamagedData):
            assert read_picture(whole[:kept]).shape[2] == 3


def test_endings_are_those_of_pictures() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif"} <= endings()
    assert not {".eps", ".ps", ".txt"} & endings()
