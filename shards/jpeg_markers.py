"""The marker segments of a JPEG (ITU T.81, annex B): its metadata, its frame, its restart interval.

Nothing is decoded. Entropy-coded data is skipped by a search for the next marker, about 80 us
for 110 kB; whoever stops at the first scan does not pay for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from shards.errors import DamagedData

SOS = 0xDA
_SOI, _EOI, _DRI, _COM = 0xD8, 0xD9, 0xDD, 0xFE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC
_BARE = {0x00, 0x01, *range(0xD0, 0xD9)}  # have no length: none may stand between segments
# Ends entropy-coded data: neither a stuffed zero nor a fill byte nor a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)


class Segment(NamedTuple):
    """One marker segment: `data[start:end]`, from its 0xFF on."""

    marker: int  # the byte after the 0xFF: 0xE1 is APP1
    start: int
    end: int

    @property
    def is_metadata(self) -> bool:
        """Whether it is an application's (EXIF, ICC, JFIF, Adobe) or a comment."""
        return 0xE0 <= self.marker <= 0xEF or self.marker == _COM

    @property
    def is_frame(self) -> bool:
        """Whether it is the frame header, which has the size and the sampling factors."""
        return self.marker in _FRAMES


def segments(data: bytes | memoryview) -> Iterator[Segment]:
    """The segments between SOI and EOI, in order; raises DamagedData, with the reason alone.

    What follows the EOI is not looked at.
    """
    if bytes(data[:2]) != bytes((0xFF, _SOI)):
        raise DamagedData("it does not begin as a JPEG")
    position = 2
    while True:
        while bytes(data[position : position + 2]) == b"\xff\xff":  # fill byte
            position += 1
        head = bytes(data[position : position + 4])
        if head[:2] == bytes((0xFF, _EOI)):
            return
        if len(head) < 4 or head[0] != 0xFF or head[1] in _BARE:
            raise DamagedData(f"its JPEG markers are damaged at byte {position}")
        end = position + 2 + int.from_bytes(head[2:], "big")
        yield Segment(head[1], position, end)
        position = _next_marker(data, end) if head[1] == SOS else end


def _next_marker(data: bytes | memoryview, position: int) -> int:
    found = _MARKER.search(data, position)
    if found is None:
        raise DamagedData("its JPEG data does not end: it is truncated")
    return found.start()


def mcu_width(data: bytes | memoryview, frame: Segment) -> int:
    """Pixels across one MCU of an interleaved scan; with one component an MCU is one block."""
    count = data[frame.start + 9]
    if frame.end < frame.start + 10 + 3 * count or frame.end > len(data):
        raise DamagedData("its JPEG frame header is cut off")
    if count == 1:
        return 8
    factors = [data[frame.start + 11 + 3 * each] >> 4 for each in range(count)]
    if not all(1 <= factor <= 4 for factor in factors):
        raise DamagedData(f"its JPEG sampling factors are {factors}, not 1 to 4")
    return 8 * max(factors)


def restart_interval(data: bytes | memoryview, header: Iterable[Segment]) -> int:
    """MCUs between two restart markers, by the segments before a scan; 0 where there are none."""
    interval = 0
    for segment in header:
        if segment.marker == _DRI:
            interval = int.from_bytes(data[segment.start + 4 : segment.start + 6], "big")
    return interval
