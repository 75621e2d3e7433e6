"""Decoding: the fast way and the reference agree, and damage is an error of ours."""

from __future__ import annotations

import io
import os
import random
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from shards.decode import decode_reference, decode_rgb
from shards.errors import DamagedData
from shards.image import read_info


@pytest.mark.parametrize(
    "name", ["colour.jpg", "grey.jpg", "cmyk.jpg", "progressive.jpg", "picture.png"]
)
def test_pixels_are_those_of_pillow(name: str, picture: Callable[[str], bytes]) -> None:
    data = picture(name)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(image.convert("RGB")).astype(int)
    found = decode_rgb(data, read_info(data))
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


def test_cmyk_has_its_true_colours(picture: Callable[[str], bytes]) -> None:
    data = picture("cmyk.jpg")  # red on the left, blue on the right, inverted as Adobe does
    pixels = decode_rgb(data, read_info(data)).astype(int)
    assert np.abs(pixels[:, :14] - [255, 0, 0]).max() < 8
    assert np.abs(pixels[:, 18:] - [0, 0, 255]).max() < 8


def test_grey_becomes_three_equal_channels(picture: Callable[[str], bytes]) -> None:
    data = picture("grey.jpg")
    pixels = decode_rgb(data, read_info(data))
    assert pixels.shape == (29, 37, 3)
    assert np.ptp(pixels, axis=2).max() == 0
    assert np.ptp(pixels[..., 0]) > 100


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_every_kind_of_png_is_decoded(mode: str) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 10)).convert(mode).save(file, "PNG")
    data = file.getvalue()
    pixels = decode_rgb(data, read_info(data))
    assert pixels.shape == (10, 20, 3)
    assert pixels[0].mean() < pixels[-1].mean()


def test_pixels_can_be_handed_to_torch_without_a_warning(picture: Callable[[str], bytes]) -> None:
    for name in ("colour.jpg", "cmyk.jpg", "picture.png"):
        data = picture(name)
        assert decode_rgb(data, read_info(data)).flags.writeable, name


def test_another_size_than_the_index_says_is_refused(picture: Callable[[str], bytes]) -> None:
    data = picture("colour.jpg")
    info = read_info(data)._replace(width=38)
    with pytest.raises(DamagedData, match="37 x 29 pixels, the index says 38 x 29"):
        decode_rgb(data, info)


@pytest.mark.parametrize("name", ["colour.jpg", "grey.jpg", "cmyk.jpg", "picture.png"])
def test_a_cut_image_is_refused(name: str, picture: Callable[[str], bytes]) -> None:
    data = picture(name)
    with pytest.raises(DamagedData, match="cannot be decoded"):
        decode_rgb(data[: len(data) * 3 // 4], read_info(data))


def test_what_is_no_image_is_refused(picture: Callable[[str], bytes]) -> None:
    info = read_info(picture("colour.jpg"))
    for data in (b"", b"<html>", bytes(500)):
        with pytest.raises(DamagedData):
            decode_rgb(data, info)


@pytest.mark.parametrize("name", ["colour.jpg", "cmyk.jpg", "progressive.jpg", "picture.png"])
def test_random_damage_gives_pixels_or_our_error(
    name: str, picture: Callable[[str], bytes]
) -> None:
    data = picture(name)
    info = read_info(data)
    generator = random.Random(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # as the command line does
        for _ in range(600):
            damaged = bytearray(data)
            for _ in range(generator.randint(1, 3)):
                damaged[generator.randrange(len(data))] = generator.randrange(256)
            try:
                assert decode_rgb(damaged, info).shape == (info.height, info.width, 3)
            except DamagedData:
                refused += 1
    assert 0 < refused < 600


CLAIMS_GIGABYTES = """
import sys
from shards.decode import decode_rgb
from shards.errors import DamagedData
from shards.image import read_info
data = sys.stdin.buffer.read()
info = read_info(data)
at = data.index(b"\\xff\\xc0") + 5
huge = data[:at] + b"\\xff\\xdc\\xff\\xdc" + data[at + 4 :]
try:
    decode_rgb(huge, info)
except DamagedData as error:
    print(error)
"""


def test_a_size_that_was_altered_later_allocates_nothing(picture: Callable[[str], bytes]) -> None:
    """A shard damaged on disk may claim 65,500 x 65,500 pixels: 12.9 GB."""
    limit = 2 << 30

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", CLAIMS_GIGABYTES],
        input=picture("colour.jpg"),
        capture_output=True,
        preexec_fn=bounded,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.stderr == b""
    assert done.stdout.strip()


def test_the_reference_decoder_bounds_its_pixels(picture: Callable[[str], bytes]) -> None:
    data = picture("colour.jpg")
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(DamagedData):
        decode_reference(data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :])
