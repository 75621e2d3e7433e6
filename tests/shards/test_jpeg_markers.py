"""Marker segments of real files are found where they stand, and damage is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shards.errors import DamagedData
from shards.jpeg_markers import SOS, mcu_width, restart_interval, segments


def test_the_segments_of_a_sequential_file(picture: Callable[[str], bytes]) -> None:
    data = picture("colour.jpg")
    found = list(segments(data))
    assert found[0].start == 2
    assert [each.end for each in found[:-1]] == [each.start for each in found[1:]]
    assert found[-1].marker == SOS
    assert [hex(each.marker) for each in found if each.is_frame] == ["0xc0"]
    assert data[found[0].start : found[0].start + 2] == b"\xff\xe0"
    assert [each.marker for each in found if each.is_metadata] == [0xE0]


def test_the_scans_of_a_progressive_file_are_all_found(picture: Callable[[str], bytes]) -> None:
    data = memoryview(picture("progressive.jpg"))
    found = list(segments(data))
    assert [hex(each.marker) for each in found if each.is_frame] == ["0xc2"]
    assert sum(each.marker == SOS for each in found) == 10  # libjpeg's script for colour


def test_fill_bytes_and_what_follows_the_end_are_passed_over(
    picture: Callable[[str], bytes],
) -> None:
    data = picture("colour.jpg")
    plain = list(segments(data))
    filled = list(segments(data[:2] + b"\xff\xff" + data[2:] + b"\xff\xe1trailing"))
    assert [(each.marker, each.start - 2, each.end - 2) for each in filled] == plain


@pytest.mark.parametrize("name", ["colour.jpg", "progressive.jpg"])
def test_a_file_without_its_end_is_refused(name: str, picture: Callable[[str], bytes]) -> None:
    data = picture(name)
    for length in range(len(data) - 1):
        with pytest.raises(DamagedData, match=r"truncated|damaged at byte|not begin as a JPEG"):
            list(segments(data[:length]))


@pytest.mark.parametrize("marker", [0x00, 0x01, 0xD0, 0xD8])
def test_a_marker_that_cannot_stand_between_segments_is_refused(
    marker: int, picture: Callable[[str], bytes]
) -> None:
    data = picture("colour.jpg")
    with pytest.raises(DamagedData, match="damaged at byte 2"):
        list(segments(data[:2] + bytes((0xFF, marker)) + data[2:]))


def test_the_width_of_an_mcu(picture: Callable[[str], bytes]) -> None:
    for name, width in (("colour.jpg", 16), ("grey.jpg", 8), ("cmyk.jpg", 8)):
        data = picture(name)
        frame = next(each for each in segments(data) if each.is_frame)
        assert mcu_width(data, frame) == width, name


def test_impossible_sampling_factors_are_refused(picture: Callable[[str], bytes]) -> None:
    data = bytearray(picture("colour.jpg"))
    frame = next(each for each in segments(bytes(data)) if each.is_frame)
    data[frame.start + 11] = 0x52
    with pytest.raises(DamagedData, match=r"sampling factors are \[5, 1, 1\]"):
        mcu_width(bytes(data), frame)
    with pytest.raises(DamagedData, match="cut off"):
        mcu_width(bytes(data[: frame.end - 1]), frame)


def test_a_file_without_restart_markers_has_no_interval(picture: Callable[[str], bytes]) -> None:
    data = picture("colour.jpg")
    assert restart_interval(data, segments(data)) == 0
    cut = data[:2] + b"\xff\xdd\x00\x04\x01\x02" + data[2:]
    assert restart_interval(cut, segments(cut)) == 0x102
