"""Parts of JPEGs: the pixels of the whole image, whatever the grid, and no part of what is odd."""

from __future__ import annotations

import itertools
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from jpegs import SUBSAMPLINGS, jpegtran, made

from shards.cutting import Box, Cutter, Frame, read_frame
from shards.decode import Decoder, Way, decode_rgb
from shards.errors import DamagedData
from shards.image import read_info
from shards.restart import find_jpegtran

SIZES = [(1, 1), (7, 5), (16, 16), (17, 33), (64, 48), (129, 65), (192, 70), (211, 100), (252, 130)]
Pixels = npt.NDArray[np.uint8]


def boxes(width: int, height: int, count: int, seed: int = 0) -> Iterator[Box]:
    """The whole, every corner, and random ones of all sizes."""
    yield Box(0, 0, height, width)
    yield from {Box(0, 0, 1, 1), Box(height - 1, width - 1, 1, 1)}
    yield from {Box(0, width - 1, 1, 1), Box(height - 1, 0, 1, 1)}
    generator = random.Random(seed)
    for _ in range(count):
        tall, wide = generator.randint(1, height), generator.randint(1, width)
        yield Box(generator.randint(0, height - tall), generator.randint(0, width - wide),
                  tall, wide)  # fmt: skip


def decode(data: bytes, box: Box | None, decoder: Decoder | None = None) -> tuple[Pixels, Way]:
    decoder = decoder or Decoder()
    writable = memoryview(bytearray(data))
    pixels = decoder.decode(writable, read_info(data), box).copy()
    assert bytes(writable) == data
    return pixels, decoder.way


def ways_of(data: bytes, count: int) -> set[Way]:
    """Decode many boxes, compare each with the whole image; how they were decoded."""
    whole, info, decoder, ways = decode_rgb(data, read_info(data)), read_info(data), Decoder(), []
    for box in boxes(info.width, info.height, count):
        pixels, way = decode(data, box, decoder)
        top, left, height, width = box
        expected = whole[top : top + height, left : left + width]
        assert np.array_equal(pixels, expected), (info, box, way)
        ways.append(way)
    return set(ways)


# --- the pixels are those of the whole image --------------------------------------------------


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("size", SIZES)
def test_a_part_of_an_ordinary_jpeg(size: tuple[int, int], subsampling: str) -> None:
    ways = ways_of(made(*size, subsampling), 40)
    assert ways <= {Way.WHOLE, Way.SHORTENED}
    row = 16 if subsampling in {"420", "440"} else 8
    assert (Way.SHORTENED in ways) == (size[1] > row)


@pytest.mark.parametrize("interval", [1, 2, 3, 4])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_part_of_a_jpeg_with_restart_markers(subsampling: str, interval: int) -> None:
    """At whatever interval: where it does not divide the row, the image is shortened instead."""
    seen = set()
    for size in SIZES:
        data = jpegtran(made(*size, subsampling), "-restart", f"{interval}B")
        frame = read_frame(memoryview(data))
        assert frame is not None
        assert frame.interval == interval
        ways = ways_of(data, 30)
        if frame.mcus % interval:
            assert Way.CUT not in ways
        seen |= ways
    assert Way.CUT in seen


def test_a_narrow_last_segment_is_not_decoded_alone() -> None:
    """libjpeg upsamples chroma rows of one or two samples in another way."""
    for width in (65, 66, 67, 68, 69):
        data = jpegtran(made(width, 40, "420"), "-restart", "1B")
        assert Way.CUT in ways_of(data, 60)


def test_real_pictures(real_data: Path) -> None:
    restart, generator, ways = find_jpegtran(), random.Random(1), []
    with tarfile.open(real_data / "imagenet-sample-250.tar") as archive:
        for member in archive:
            if not (file := archive.extractfile(member)):
                continue
            data = file.read()
            info = read_info(data)
            for each in (data, restart.encode(memoryview(data), info)):
                if each is None:
                    continue
                whole, decoder = decode_rgb(each, info), Decoder()
                for box in boxes(info.width, info.height, 3, generator.randrange(1 << 30)):
                    pixels, way = decode(each, box, decoder)
                    top, left, height, width = box
                    assert np.array_equal(pixels, whole[top : top + height, left : left + width])
                    ways.append(way)
    assert ways.count(Way.CUT) > 1000
    assert ways.count(Way.SHORTENED) > 1000


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("markers", [False, True])
def test_decoding_at_a_part_of_the_size(shrink: int, markers: bool) -> None:
    data = made(256, 160, "420")
    data = jpegtran(data, "-restart", "4B") if markers else data
    box = Box(32, 64, 64, 128)
    decoder = Decoder()
    full = decoder.decode(memoryview(bytearray(data)), read_info(data), box).astype(float)
    means = full.reshape(64 // shrink, shrink, 128 // shrink, shrink, 3).mean((1, 3))
    small = decoder.decode(memoryview(bytearray(data)), read_info(data), box, shrink)
    assert small.shape == (64 // shrink, 128 // shrink, 3)
    assert np.abs(small - means).mean() < 10  # of noise; another place differs by 60


# --- what is not as it should be is decoded whole, or refused ---------------------------------


@pytest.fixture(scope="module")
def gridded() -> bytes:
    """256 x 160 pixels, 16 MCUs a row, a marker after every fourth."""
    return jpegtran(made(256, 160, "420"), "-restart", "4B")


def frame_of(data: bytes) -> Frame:
    frame = read_frame(memoryview(data))
    assert frame is not None
    return frame


def markers_of(data: bytes) -> list[int]:
    """Where the restart markers stand."""
    start = frame_of(data).scan
    places = itertools.pairwise(range(start, len(data)))
    return [at for at, after in places if data[at] == 0xFF and 0xD0 <= data[after] <= 0xD7]


def swapped(data: bytes) -> bytes:
    first, second = markers_of(data)[2:4]
    changed = bytearray(data)
    changed[first + 1], changed[second + 1] = changed[second + 1], changed[first + 1]
    return bytes(changed)


def one_missing(data: bytes) -> bytes:
    at = markers_of(data)[5]
    return data[:at] + data[at + 2 :]


def one_twice(data: bytes) -> bytes:
    at = markers_of(data)[5]
    return data[:at] + data[at : at + 2] + data[at:]


def with_interval(count: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = data.index(b"\xff\xdd\x00\x04") + 4
        return data[:at] + count.to_bytes(2, "big") + data[at + 2 :]

    return change


def no_end(data: bytes) -> bytes:
    return data[:-2]


def something_behind(data: bytes) -> bytes:
    return data + b"\xff\xd8\xff\xd9 and more"


@pytest.mark.parametrize(
    "change",
    [swapped, one_missing, one_twice, no_end, something_behind, *map(with_interval, (0, 1, 3, 8))],
)
def test_a_grid_that_is_not_sound_is_not_cut(
    change: Callable[[bytes], bytes], gridded: bytes
) -> None:
    data = change(gridded)
    assert data != gridded
    box = Box(40, 70, 50, 60)
    assert Cutter().cut(memoryview(gridded), frame_of(gridded), box) is not None
    assert Cutter().cut(memoryview(data), frame_of(data), box) is None
    try:
        whole = decode_rgb(data, read_info(data))
    except DamagedData:
        with pytest.raises(DamagedData):
            decode(data, box)
        return
    assert np.array_equal(decode(data, box)[0], whole[40:90, 70:130])


@pytest.mark.parametrize("name", ["progressive.jpg", "cmyk.jpg", "picture.png"])
def test_other_images_are_decoded_whole(name: str, picture: Callable[[str], bytes]) -> None:
    ways = ways_of(picture(name), 10)
    assert not ways & {Way.CUT, Way.SHORTENED}


def test_the_frame_of_what_is_cut_off_anywhere_is_none(gridded: bytes) -> None:
    scan = frame_of(gridded).scan
    assert [read_frame(memoryview(gridded[:size])) for size in range(2, 5)] == [None] * 3
    found = [read_frame(memoryview(gridded[:size])) for size in range(scan)]
    assert all(frame is None or frame == frame_of(gridded) for frame in found)


def test_a_picture_of_another_size_than_the_index_says_is_refused(gridded: bytes) -> None:
    for change in ({"width": 255}, {"height": 161}):
        info = read_info(gridded)._replace(**change)
        with pytest.raises(DamagedData, match="256 x 160 pixels, the index says"):
            Decoder().decode(memoryview(bytearray(gridded)), info, Box(0, 0, 16, 16))


def test_a_header_that_claims_billions_of_pixels_allocates_nothing(gridded: bytes) -> None:
    at = frame_of(gridded).header + 5
    data = gridded[:at] + b"\xff\xff\xff\xff" + gridded[at + 4 :]
    info = read_info(gridded)._replace(width=65535, height=65535)
    with pytest.raises(DamagedData, match="65535 x 65535"):
        Decoder().decode(memoryview(bytearray(data)), info, Box(0, 0, 65535, 65535))


# --- thousands of damaged ones ----------------------------------------------------------------


def mutated(data: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled, or headers given other numbers."""
    changed = bytearray(data)
    scan = frame_of(data).scan
    for _ in range(generator.choice([1, 1, 2, 5])):
        at = generator.randrange(2, len(changed))
        if generator.random() < 0.5:
            at = generator.randrange(2, min(scan, len(changed)))
        kind = generator.randrange(6)
        if kind == 0:
            changed[at] = generator.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 2:
            del changed[at : at + generator.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = changed[at : at + generator.randrange(1, 40)]
        elif kind == 4:
            changed[at : at + 2] = bytes((0xFF, generator.choice([*range(0xC0, 0xE2), 0xFE])))
        else:
            del changed[at:]
        if len(changed) < 4:
            break
    return bytes(changed)


@pytest.mark.parametrize("kind", ["grid", "420", "444", "Gray"])
def test_damaged_jpegs_are_decoded_or_refused(kind: str, gridded: bytes) -> None:
    """No crash, no hang, and never a pixel of the image that was decoded before."""
    data = gridded if kind == "grid" else made(120, 90, kind)
    info, generator = read_info(data), random.Random(kind)
    one, other = Decoder(), Decoder()
    bright, dark = (decoded_once(shade) for shade in (255, 0))
    seen = {"refused": 0, "decoded": 0}
    for _ in range(1500):
        bad = mutated(data, generator)
        height, width = generator.randint(1, info.height), generator.randint(1, info.width)
        box = Box(generator.randint(0, info.height - height),
                  generator.randint(0, info.width - width), height, width)  # fmt: skip
        one.decode(memoryview(bytearray(bright)), read_info(bright))
        other.decode(memoryview(bytearray(dark)), read_info(dark))
        results = []
        for decoder in (one, other):
            try:
                results.append(decoder.decode(memoryview(bytearray(bad)), info, box).copy())
            except DamagedData as error:
                results.append(str(error))
        if isinstance(results[0], str):
            assert results[0] == results[1]
            seen["refused"] += 1
        else:
            assert results[0].shape == (height, width, 3)
            assert np.array_equal(results[0], results[1])
            seen["decoded"] += 1
    assert min(seen.values()) > 100


def decoded_once(shade: int) -> bytes:
    """A picture of one colour, larger than those that are decoded after it."""
    pixels = np.full((320, 320, 3), shade, np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, 90, "RGB", "420"))
