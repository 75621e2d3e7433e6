"""--jpeg restart: the same pixels and metadata with markers on the grid, or the original."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import os
import random
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import jpegs
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from jpegs import SUBSAMPLINGS, made
from PIL import Image

from shards.decode import decode_reference, decode_rgb
from shards.errors import DamagedData, ToolError
from shards.image import Format, read_info
from shards.jpeg_markers import segments
from shards.restart import Restart, find_jpegtran, segment_mcus
from shards.transcode import make_encoder

MCU_WIDTH = {"444": 8, "422": 16, "420": 16, "440": 8, "411": 32, "Gray": 8}


@pytest.fixture(scope="module")
def jpegtran() -> str:
    """The tool itself."""
    return jpegs.find_jpegtran()


@pytest.fixture(scope="module")
def restart(jpegtran: str) -> Restart:
    assert jpegtran
    return find_jpegtran()


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell script first on PATH as jpegtran; %TOOL% in it is the true one."""
    true = shutil.which("jpegtran") or "missing"

    def write(text: str) -> Path:
        path = tmp_path / "jpegtran"
        path.write_text(text.replace("%TOOL%", true))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return path

    return write


def encoded(restart: Restart, data: bytes) -> bytes | None:
    return restart.encode(memoryview(data), read_info(data))


def pixels_of(data: bytes) -> npt.NDArray[np.uint8]:
    return decode_rgb(data, read_info(data))


def metadata_of(data: bytes) -> list[bytes]:
    return [data[each.start : each.end] for each in segments(data) if each.is_metadata]


def assert_cut_on_the_grid(data: bytes, original: bytes) -> None:
    """Pixels, metadata, and every restart marker where a cutter expects it."""
    assert read_info(data) == read_info(original)._replace(format=Format.JPEG)
    assert np.array_equal(pixels_of(data), pixels_of(original))
    assert np.array_equal(decode_reference(data), decode_reference(original))
    assert metadata_of(data) == metadata_of(original)
    found = list(segments(data))
    frame = next(each for each in found if each.is_frame)
    info, factors = (
        read_info(data),
        [data[frame.start + 11 + 3 * c] for c in range(data[frame.start + 9])],
    )
    across = 8 if len(factors) == 1 else 8 * max(each >> 4 for each in factors)
    down = 8 if len(factors) == 1 else 8 * max(each & 15 for each in factors)
    columns, rows = -(-info.width // across), -(-info.height // down)
    (interval,) = (
        int.from_bytes(data[each.start + 4 : each.end], "big")
        for each in found
        if each.marker == 0xDD
    )
    assert columns % interval == 0
    assert interval == segment_mcus(columns, across)
    (scan,) = (each for each in found if each.marker == 0xDA)
    markers = re.findall(rb"\xff([\xd0-\xd7])", data[scan.end :])
    count = columns * rows // interval - 1
    assert [each[0] for each in markers] == [0xD0 + number % 8 for number in range(count)]
    assert data.endswith(b"\xff\xd9")


# --- the grid ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mcus", "width", "expected"),
    [
        (32, 16, 4),  # 500 pixels of 4:2:0: 64 pixels exactly
        (63, 8, 9),  # 500 pixels of 4:4:4: 72 rather than 56
        (24, 16, 4),
        (25, 16, 5),
        (38, 16, 2),
        (42, 8, 7),
        (50, 8, 10),  # 80 rather than 40
        (31, 16, 1),  # primes: 16 pixels are nearer than 496
        (47, 8, 47),  # but 376 are nearer than 8
        (113, 8, 1),
        (7, 8, 7),
        (1, 8, 1),
        (16, 32, 2),
        (8192, 8, 8),  # the widest JPEG there is
    ],
)
def test_segments_divide_the_row_and_are_about_64_pixels_wide(
    mcus: int, width: int, expected: int
) -> None:
    assert segment_mcus(mcus, width) == expected


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (7, 5), (64, 48), (65, 17), (500, 37), (496, 24), (368, 31), (2000, 9), (9, 700)],
)
def test_any_size_and_subsampling_gets_a_grid(
    width: int, height: int, subsampling: str, restart: Restart
) -> None:
    original = made(width, height, subsampling)
    result = encoded(restart, original)
    assert result is not None
    assert_cut_on_the_grid(result, original)
    mcus = -(-width // MCU_WIDTH[subsampling])
    interval = segment_mcus(mcus, MCU_WIDTH[subsampling])
    assert b"\xff\xdd\x00\x04" + interval.to_bytes(2, "big") in result


def test_the_widest_picture_gets_a_grid(restart: Restart) -> None:
    original = made(65_500, 8, "444", 30)
    result = encoded(restart, original)
    assert result is not None
    assert_cut_on_the_grid(result, original)


def test_real_pictures_get_a_grid(restart: Restart, real_data: Path) -> None:
    with tarfile.open(real_data / "imagenet-sample-250.tar") as archive:
        originals = [archive.extractfile(each).read() for each in archive if each.isfile()]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda each: encoded(restart, each), originals))
    assert len(results) == 250
    for original, result in zip(originals, results, strict=True):
        assert result is not None
        assert_cut_on_the_grid(result, original)
    grown = sum(map(len, results)) / sum(map(len, originals))
    assert 1 < grown < 1.02


def test_the_result_is_a_function_of_the_image(restart: Restart) -> None:
    originals = [made(100 + number % 5, 80) for number in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda each: encoded(restart, each), originals))
    assert len(set(results)) == 5
    assert encoded(restart, results[0]) == results[0]
    writable = memoryview(bytearray(originals[0]))
    assert restart.encode(writable, read_info(writable)) == results[0]


def test_a_python_without_files_in_memory_gives_the_same(
    restart: Restart, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = made(100, 80)
    usual = encoded(restart, original)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert encoded(restart, original) == usual


# --- metadata and rarer files -----------------------------------------------------------------


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2, "big") + payload


EXIF = segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
ICC = segment(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(range(256)) * 3)
COMMENT = segment(0xFE, b"a comment \xff\xd0 with a marker in it")


def test_metadata_stays_to_the_byte_and_in_order(restart: Restart) -> None:
    original = made(200, 100)
    jfif_end = next(each.end for each in segments(original) if each.marker == 0xE0)
    jfif, rest = original[2:jfif_end], original[jfif_end:]
    # A JFIF header of another version with a thumbnail of its own, and an extension after it.
    thumbnail = segment(0xE0, b"JFIF\0\x01\x02\x01\0\x48\0\x48\x01\x01" + b"\1\2\3")
    extension = segment(0xE0, b"JFXX\0\x13\x01\x01\1\2\3")
    photoshop = segment(0xED, b"Photoshop 3.0\0" + bytes(100))
    for parts in (
        [jfif, EXIF, ICC, COMMENT],
        [EXIF],  # no JFIF, as many cameras write
        [EXIF, jfif, COMMENT, COMMENT],
        [thumbnail, extension, photoshop],
        [],
        [COMMENT, b"\xff\xff" + EXIF],  # fill bytes before a marker are not kept
    ):
        data = original[:2] + b"".join(parts) + rest
        result = encoded(restart, data)
        assert result is not None
        assert metadata_of(result) == [part.lstrip(b"\xff").join([b"\xff", b""]) for part in parts]
        assert_cut_on_the_grid(result, data)


def test_orientation_and_profile_are_read_back_by_pillow(restart: Restart) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(made(90, 60)))
    image.save(file, "JPEG", exif=exif, icc_profile=b"profile" * 20_000, comment=b"said")
    result = encoded(restart, file.getvalue())
    assert result is not None
    with Image.open(io.BytesIO(result)) as found:
        assert found.getexif()[0x0112] == 6
        assert found.info["icc_profile"] == b"profile" * 20_000  # in three segments
        assert found.info["comment"] == b"said"


def test_adobe_rgb_without_a_colour_transform(restart: Restart) -> None:
    """Three components that are RGB themselves: the Adobe segment says so and must stay."""
    file = io.BytesIO()
    Image.open(io.BytesIO(made(90, 60))).save(file, "JPEG", keep_rgb=True, quality=90)
    data = file.getvalue()
    assert b"Adobe" in data
    result = encoded(restart, data)
    assert result is not None
    assert_cut_on_the_grid(result, data)


def test_progressive_becomes_sequential(restart: Restart, picture: Callable[[str], bytes]) -> None:
    data = picture("progressive.jpg")
    scans = [each for each in segments(data) if each.marker == 0xDA]
    at = next(each.start for each in segments(data) if each.start > scans[2].end)
    commented = data[:at] + COMMENT + data[at:]  # metadata may stand between scans too
    for original in (data, commented):
        assert read_info(original).format is Format.JPEG_OTHER
        result = encoded(restart, original)
        assert result is not None
        assert_cut_on_the_grid(result, original)


@pytest.mark.parametrize("options", [["-scans", "SCRIPT"], ["-arithmetic"], ["-restart", "3B"]])
def test_other_processes_are_transcoded_or_kept(
    options: list[str], restart: Restart, jpegtran: str, tmp_path: Path
) -> None:
    """One scan for each component; arithmetic coding; a restart interval off the grid."""
    (tmp_path / "script").write_text("0; 1; 2;")
    options = [each.replace("SCRIPT", str(tmp_path / "script")) for each in options]
    plain = made(200, 100)
    data = subprocess.run([jpegtran, *options], input=plain, capture_output=True, check=True).stdout
    result = encoded(restart, data)
    if options != ["-arithmetic"]:  # which not every build of libjpeg-turbo reads
        assert result is not None
    if result is not None:
        assert_cut_on_the_grid(result, data)
        assert np.array_equal(pixels_of(result), pixels_of(plain))


def test_small_pictures_of_every_kind(restart: Restart, picture: Callable[[str], bytes]) -> None:
    for name in ("colour.jpg", "grey.jpg", "progressive.jpg"):
        result = encoded(restart, picture(name))
        assert result is not None, name
        assert_cut_on_the_grid(result, picture(name))
    for name in ("cmyk.jpg", "picture.png"):
        assert encoded(restart, picture(name)) is None, name


def test_grey_with_sampling_factors_of_its_own(restart: Restart) -> None:
    """Factors of a lone component mean nothing: its MCU is one block."""
    data = bytearray(made(200, 100, "Gray"))
    frame = next(each for each in segments(bytes(data)) if each.is_frame)
    data[frame.start + 11] = 0x22
    result = encoded(restart, bytes(data))
    assert result is not None
    assert_cut_on_the_grid(result, bytes(data))
    assert b"\xff\xdd\x00\x04\x00\x05" in result  # 25 MCUs a row: 40 pixels rather than 200


# --- damage -----------------------------------------------------------------------------------


def test_a_cut_file_is_kept(restart: Restart) -> None:
    data = made(120, 90)
    for length in range(len(data) // 3, len(data), len(data) // 40):
        with contextlib.suppress(DamagedData):  # cut before its frame header
            assert encoded(restart, data[:length]) is None


@pytest.mark.parametrize("name", ["colour.jpg", "grey.jpg", "progressive.jpg"])
def test_flipped_bits_never_change_pixels(
    name: str, restart: Restart, picture: Callable[[str], bytes]
) -> None:
    data = picture(name)
    generator = random.Random(1)
    taken = kept = 0
    for _ in range(250):
        damaged = bytearray(data)
        damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            result = encoded(restart, bytes(damaged))
        except DamagedData:  # from read_info: for the caller
            continue
        if result is None:
            kept += 1
            continue
        taken += 1
        assert np.array_equal(
            simplejpeg.decode_jpeg(result, "RGB"), simplejpeg.decode_jpeg(bytes(damaged), "RGB")
        )
        assert metadata_of(result) == metadata_of(bytes(damaged))
    assert taken > 20
    assert kept > 20


def test_a_file_of_countless_segments_is_kept(restart: Restart) -> None:
    data = made(120, 90)
    assert encoded(restart, data[:2] + COMMENT * 400 + data[2:]) is not None
    assert encoded(restart, data[:2] + COMMENT * 600 + data[2:]) is None


def test_what_follows_the_image_is_left_out(restart: Restart) -> None:
    data = made(120, 90)
    result = encoded(restart, data)
    assert encoded(restart, data + b"trailing bytes" * 100) == result
    assert encoded(restart, data + data) == result


# --- the tool ---------------------------------------------------------------------------------


def test_the_version_stands_in_the_description(restart: Restart, jpegtran: str) -> None:
    said = subprocess.run([jpegtran, "-version"], capture_output=True, text=True, check=True)
    version = (said.stdout + said.stderr).split()[2]
    assert restart.describe() == {
        "mode": "restart",
        "segment_width": 64,
        "encoder": f"libjpeg-turbo {version} jpegtran",
    }


def test_a_missing_tool_is_refused_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"not on PATH; install it .apt-get install libjpeg-turbo"):
        make_encoder("restart")


TRUE_VERSION = '[ "$1" = -version ] && exec %TOOL% "$@"\n'


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\nexit 0", "is not libjpeg-turbo's jpegtran .it says nothing"),
        ("#!/bin/sh\necho mozjpeg version 4.1.1", "jpegtran .mozjpeg version 4.1.1.; put"),
        ("#!/nowhere\n", "does not tell its version: .*No such file"),
        (f"#!/bin/sh\n{TRUE_VERSION}exit 1", "ended with exit code 1 .it said nothing"),
        (f"#!/bin/sh\n{TRUE_VERSION}echo broken >&2; exit 2", "exit code 2 .broken.; install"),
        (f"#!/bin/sh\n{TRUE_VERSION}exit 127", "failed with exit code 127"),
        (f"#!/bin/sh\n{TRUE_VERSION}kill -9 $$", "failed with exit code -9 .*signal 9"),
        (f"#!/bin/sh\n{TRUE_VERSION}exit 0", "it does not begin as a JPEG"),
        (f"#!/bin/sh\n{TRUE_VERSION}head -c 9999 /dev/zero", "it does not begin as a JPEG"),
        (f"#!/bin/sh\n{TRUE_VERSION}printf '\\377\\330\\377\\332'", "damaged at byte 2"),
        (f"#!/bin/sh\n{TRUE_VERSION}cat", "did not get restart markers every 4 MCUs"),
        (f'#!/bin/sh\n{TRUE_VERSION}%TOOL% "$@" | head -c 500', "damaged|it cannot be decoded"),
        (f'#!/bin/sh\n{TRUE_VERSION}exec %TOOL% -progressive "$@"', "not come out as a sequential"),
        (f'#!/bin/sh\n{TRUE_VERSION}exec %TOOL% -rotate 90 "$@"', "not come out .* of its size"),
        (f'#!/bin/sh\n{TRUE_VERSION}exec %TOOL% -flip horizontal "$@"', "pixels came out differen"),
    ],
)
def test_a_tool_that_does_not_work_is_refused_before_any_image(
    script: str, message: str, tool: Callable[[str], Path], jpegtran: str
) -> None:
    assert jpegtran
    tool(script)
    with pytest.raises(ToolError, match=message):
        make_encoder("restart")


def test_what_a_tool_gets_wrong_later_is_never_stored(tool: Callable[[str], Path]) -> None:
    restart = Restart(jpegtran=tool('#!/bin/sh\nexec %TOOL% -flip vertical "$@"'), version="3")
    assert encoded(restart, made(100, 80)) is None


@pytest.mark.usefixtures("deadline")
def test_a_tool_that_hangs_is_killed_with_all_it_started(
    tool: Callable[[str], Path], tmp_path: Path
) -> None:
    script = tool(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/pid\nwait")
    with pytest.raises(ToolError, match=r"did not finish an image within 2.5 s"):
        encoded(Restart(jpegtran=script, version="3", timeout=2.5), made(100, 80))
    status = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    with contextlib.suppress(OSError):  # it is gone
        while status.read_text().split()[2] != "Z":
            pass


def test_a_fault_of_the_machine_is_not_taken_for_one_of_the_image(
    tool: Callable[[str], Path], tmp_path: Path
) -> None:
    """Else what is stored would depend on how much memory was free."""
    script = tool('#!/bin/sh\nulimit -v 30000\nexec %TOOL% "$@"')
    small = Restart(jpegtran=script, version="3")
    assert encoded(small, made(100, 80)) is not None
    with pytest.raises(ToolError, match=r"exit code 1 .*Insufficient memory.*fewer --workers"):
        encoded(small, made(3000, 2000, "444"))
    gone = Restart(jpegtran=tmp_path / "gone", version="3")
    with pytest.raises(ToolError, match=r"gone could not be run: .*No such file"):
        encoded(gone, made(100, 80))


def test_ctrl_c_in_the_terminal_does_not_reach_the_tool(
    restart: Restart, tool: Callable[[str], Path], tmp_path: Path
) -> None:
    """It goes to the whole foreground group; a tool that died of it would be an error of ours."""
    noted = f"read -r _ _ _ _ group _ < /proc/$$/stat; echo $group > {tmp_path}/group"
    script = tool(f'#!/bin/sh\n{noted}\nexec %TOOL% "$@"')
    result = encoded(Restart(jpegtran=script, version="3"), made(100, 80))
    assert result == encoded(restart, made(100, 80))
    assert int((tmp_path / "group").read_text()) != os.getpgrp()
