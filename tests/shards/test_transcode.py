"""--jpeg reencode: smaller pictures that look like what they were, and which encoder is which."""

from __future__ import annotations

import concurrent.futures
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import simplejpeg
from PIL import Image, features

from shards.decode import decode_rgb
from shards.errors import DamagedData, ToolError, UsageError
from shards.image import Format, ImageInfo, read_info
from shards.jpeg_markers import segments
from shards.transcode import Encoder, make_encoder


def reencoder(**options: Any) -> Encoder:
    encoder = make_encoder("reencode", **options)
    assert encoder is not None
    return encoder


def encoded(encoder: Encoder, data: bytes) -> bytes | None:
    return encoder.encode(memoryview(data), read_info(data))


def smooth(width: int, height: int) -> Image.Image:
    """A picture that any good reduction keeps."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)]
    return Image.fromarray((np.stack(waves, axis=2) * 100 + 128).astype(np.uint8))


def saved(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **({"quality": 97} if form == "JPEG" else {}) | options)
    return file.getvalue()


def markers_of(data: bytes) -> list[int]:
    return [each.marker for each in segments(data)]


# --- which encoder ----------------------------------------------------------------------------


def test_keep_needs_no_encoder() -> None:
    assert make_encoder("keep") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either --max-side or --short-side"),
        ({"max_side": 500, "short_side": 256}, "needs either --max-side or --short-side"),
        ({"max_side": 0}, "at least 1 pixel, not 0"),
        ({"short_side": -3}, "at least 1 pixel, not -3"),
        ({"max_side": 500, "quality": 0}, "--quality is 1 to 100, not 0"),
        ({"max_side": 500, "quality": 101}, "--quality is 1 to 100, not 101"),
    ],
)
def test_senseless_requests_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_encoder("reencode", **options)


@pytest.mark.parametrize("jpeg", ["keep", "restart"])
@pytest.mark.parametrize("options", [{"max_side": 9}, {"short_side": 9}, {"restart": True}])
def test_options_of_reencode_are_refused_elsewhere(jpeg: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"only --jpeg reencode .* not --jpeg {jpeg}"):
        make_encoder(jpeg, **options)


def test_all_that_decides_the_bytes_is_described() -> None:
    assert reencoder(short_side=256, quality=85, restart=True).describe() == {
        "mode": "reencode",
        "max_side": None,
        "short_side": 256,
        "quality": 85,
        "segment_width": 64,
        "decoder": f"simplejpeg {simplejpeg.__version__}",
        "encoder": f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}",
    }
    assert reencoder(max_side=9).describe()["segment_width"] is None


def test_an_old_pillow_is_refused_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave the markers out without a word."""
    monkeypatch.setattr(PIL, "__version__", "9.5.0.post1")
    with pytest.raises(ToolError, match=r"Pillow 9.5.0.post1 writes no restart .* install 10.2"):
        reencoder(max_side=500, restart=True)
    assert "Pillow 9.5.0.post1" in str(reencoder(max_side=500).describe())


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({"short_side": 256}, (500, 375), (341, 256)),
        ({"short_side": 256}, (375, 500), (256, 341)),
        ({"max_side": 256}, (500, 375), (256, 192)),
        ({"max_side": 256}, (333, 500), (170, 256)),
        ({"max_side": 499}, (500, 375), (499, 374)),
        ({"short_side": 100}, (101, 100), (101, 100)),  # nothing to reduce
        ({"max_side": 1000}, (500, 375), (500, 375)),  # never enlarged
        ({"max_side": 10}, (900, 9), (10, 1)),  # no side vanishes
        ({"short_side": 1}, (50, 50), (1, 1)),
        ({"short_side": 2}, (7, 5), (3, 2)),  # 2.8
        ({"max_side": 4}, (8, 5), (4, 3)),  # 2.5 is rounded up
    ],
)
def test_sides_are_reduced_in_proportion(
    options: dict[str, int], before: tuple[int, int], after: tuple[int, int]
) -> None:
    original = saved(smooth(*before))
    result = encoded(reencoder(quality=80, **options), original)
    assert result is not None
    assert read_info(result) == ImageInfo(Format.JPEG, *after, 3)


def test_a_reduced_picture_looks_like_the_original() -> None:
    original = smooth(600, 450)
    result = encoded(reencoder(short_side=225), saved(original))
    assert result is not None
    expected = np.asarray(original.resize((300, 225), Image.Resampling.BOX)).astype(int)
    found = decode_rgb(result, read_info(result)).astype(int)
    assert np.abs(found - expected).mean() < 2


def test_reduction_is_antialiased() -> None:
    """Stripes finer than the result's pixels become grey, not other stripes."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    result = encoded(reencoder(max_side=100), saved(Image.fromarray(stripes)))
    assert result is not None
    inner = decode_rgb(result, read_info(result)).astype(int)[8:-8, 8:-8]
    assert np.abs(inner - 128).max() < 24


def test_quality_decides_the_size() -> None:
    original = saved(Image.effect_noise((300, 300), 60).convert("RGB"))
    sizes = [
        len(encoded(reencoder(max_side=200, quality=quality), original) or b"")
        for quality in (1, 30, 60, 90, 100)
    ]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1] / 10


# --- what is stored ---------------------------------------------------------------------------


def test_the_original_is_kept_where_nothing_is_gained() -> None:
    original = saved(smooth(300, 200), quality=30, optimize=True)
    assert encoded(reencoder(max_side=300, quality=90), original) is None
    smaller = encoded(reencoder(max_side=300, quality=20), original)
    assert smaller is not None
    assert len(smaller) < len(original)
    assert encoded(reencoder(max_side=299, quality=90), original) is not None


def test_no_metadata_is_stored_and_no_orientation_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    original = saved(smooth(300, 200), exif=exif, icc_profile=b"profile", comment=b"said")
    result = encoded(reencoder(max_side=150), original)
    assert result is not None
    with Image.open(io.BytesIO(result)) as image:
        assert image.size == (150, 100)
        assert not image.getexif()
        assert "icc_profile" not in image.info
        assert "comment" not in image.info


def test_colour_is_4_2_0_sequential_with_optimised_tables() -> None:
    original = saved(smooth(300, 200), subsampling="4:4:4")
    result = encoded(reencoder(max_side=150), original)
    assert result is not None
    frame = next(each for each in segments(result) if each.is_frame)
    assert frame.marker == 0xC0
    assert [result[frame.start + 11 + 3 * each] for each in range(3)] == [0x22, 0x11, 0x11]
    usual = decode_rgb(result, read_info(result))
    assert len(result) < len(saved(Image.fromarray(usual), quality=90, subsampling="4:2:0"))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_grey_pngs_become_grey_jpegs(mode: str) -> None:
    grey = Image.linear_gradient("L")
    image = (
        Image.fromarray(np.asarray(grey).astype(np.uint16))
        if mode == "I;16"
        else grey.convert(mode)
    )
    data = saved(image, "PNG")
    result = encoded(reencoder(max_side=100), data)
    assert result is not None
    assert read_info(result) == ImageInfo(Format.JPEG, 100, 100, 1)
    found = decode_rgb(result, read_info(result)).astype(int)
    assert np.ptp(found, axis=2).max() == 0
    assert found[:20].mean() < 60
    assert found[-20:].mean() > 190


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_coloured_pngs_become_coloured_jpegs(mode: str) -> None:
    data = saved(smooth(256, 200).convert(mode), "PNG")
    result = encoded(reencoder(max_side=128), data)
    assert result is not None
    assert read_info(result) == ImageInfo(Format.JPEG, 128, 100, 3)


def test_every_odd_picture_becomes_an_ordinary_one(picture: Callable[[str], bytes]) -> None:
    for name, components in (
        ("colour.jpg", 3),
        ("grey.jpg", 1),
        ("cmyk.jpg", 3),
        ("progressive.jpg", 3),
        ("picture.png", 3),
    ):
        data = picture(name)
        before = read_info(data)
        side = max(before.width, before.height) // 2
        result = encoded(reencoder(max_side=side), data)
        assert result is not None, name
        after = read_info(result)
        assert (after.format, after.components) == (Format.JPEG, components), name
        assert max(after.width, after.height) == side, name


def test_cmyk_has_its_true_colours(picture: Callable[[str], bytes]) -> None:
    result = encoded(reencoder(max_side=16), picture("cmyk.jpg"))  # red beside blue
    assert result is not None
    pixels = decode_rgb(result, read_info(result)).astype(int)
    assert np.abs(pixels[:, :4] - [255, 0, 0]).max() < 40
    assert np.abs(pixels[:, -4:] - [0, 0, 255]).max() < 40


@pytest.mark.parametrize("name", ["colour.jpg", "cmyk.jpg", "picture.png"])
def test_what_cannot_be_decoded_is_an_error_of_ours(
    name: str, picture: Callable[[str], bytes]
) -> None:
    data = picture(name)
    with pytest.raises(DamagedData, match="it cannot be decoded"):
        encoded(reencoder(max_side=16), data[: len(data) * 3 // 4])


# --- the grid, and all together ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "mode", "interval", "count"),
    [
        ((341, 256), "RGB", 2, 11 * 16),  # 22 MCUs a row
        ((256, 192), "RGB", 4, 4 * 12),
        ((256, 192), "L", 8, 4 * 24),
        ((97, 41), "RGB", 7, 3),
        ((12, 9), "RGB", 1, 1),
    ],
)
def test_a_grid_where_it_is_asked_for(
    size: tuple[int, int], mode: str, interval: int, count: int
) -> None:
    image = smooth(size[0] * 3, size[1] * 3).convert(mode)
    plain = encoded(reencoder(max_side=max(size)), saved(image))
    result = encoded(reencoder(max_side=max(size), restart=True), saved(image))
    assert plain is not None
    assert result is not None
    assert 0xDD not in markers_of(plain)
    assert b"\xff\xdd\x00\x04" + interval.to_bytes(2, "big") in result
    scan = next(each for each in segments(result) if each.marker == 0xDA)
    assert len(re.findall(rb"\xff[\xd0-\xd7]", result[scan.end :])) == count - 1
    assert np.array_equal(
        decode_rgb(plain, read_info(plain)), decode_rgb(result, read_info(result))
    )


def test_noise_at_the_highest_quality_fits_the_encoders_buffers() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), np.uint8)
    original = saved(Image.fromarray(noise), "PNG")
    for restart in (False, True):
        result = encoded(reencoder(max_side=1399, quality=100, restart=restart), original)
        assert result is not None
        assert read_info(result)[:3] == (Format.JPEG, 1399, 899)
        assert decode_rgb(result, read_info(result)).std() > 40


def test_the_result_is_a_function_of_the_image() -> None:
    originals = [saved(smooth(300 + number % 5, 200)) for number in range(40)]
    encoder = reencoder(short_side=64, restart=True)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda each: encoded(encoder, each), originals))
    assert len(set(results)) == 5


def test_real_pictures_shrink(real_data: Path) -> None:
    with tarfile.open(real_data / "imagenet-sample-250.tar") as archive:
        originals = [archive.extractfile(each).read() for each in archive if each.isfile()][::5]
    encoder, reduced = reencoder(short_side=128, restart=True), 0
    for original in originals:
        before = read_info(original)
        result = encoded(encoder, original)
        if min(before.width, before.height) <= 128:
            continue
        assert result is not None
        after = read_info(result)
        assert min(after.width, after.height) == 128
        assert after.components == before.components
        assert abs(after.width / after.height - before.width / before.height) < 0.02
        assert len(result) < len(original)
        reduced += 1
    assert reduced > 40
