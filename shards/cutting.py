"""Parts of a JPEG as smaller JPEGs, without decoding: by restart markers, or by its height alone.

An entropy-coded segment between two restart markers can be decoded without those before it. Where
the restart interval divides the row of MCUs (`imagenet-prep shard --jpeg restart` chooses one that
does), segments form a grid: those that a crop touches, with their markers counted anew, are a
legal JPEG of those pixels. Any sequential JPEG can be shortened: with a smaller height in its
frame header a decoder stops after the last row that is needed.

Nothing here decides whether an image is sound: whatever is not as expected gives None, and the
whole image is decoded instead. The pixels are those of the whole image (libjpeg's upsampling looks
at one chroma sample beyond, so 2 pixels more are taken on each side).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

_SOF0, _SOF1, _DHT, _DAC, _SOS, _DRI = 0xC0, 0xC1, 0xC4, 0xCC, 0xDA, 0xDD
_RST0, _EOI = 0xD0, 0xD9
_SIZE = struct.Struct(">HH")  # height and width, 5 bytes into a frame header
_MARGIN: Final = 2  # pixels
# Fancy upsampling needs chroma rows of more than 2 samples (libjpeg-turbo's jdsample.c); a last
# segment may be narrower than that.
_NARROWEST: Final = 8  # pixels
_END: Final = bytes((_EOI,))
# The marker bytes that end the segments of a cut: RST0 to RST7 over and over.
_NUMBERS: Final = (_RST0 + (np.arange(1 << 16) & 7)).astype(np.uint8)


class Box(NamedTuple):
    """Part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Frame(NamedTuple):
    """What the headers of a sequential JPEG with one scan say, and where."""

    header: int  # where the frame header begins
    scan: int  # where the entropy-coded data begins
    height: int
    width: int
    mcu_height: int  # pixels
    mcu_width: int
    interval: int  # MCUs between restart markers; 0 for none

    @property
    def mcus(self) -> int:
        """MCUs in a row."""
        return -(-self.width // self.mcu_width)

    @property
    def rows(self) -> int:
        """Rows of MCUs."""
        return -(-self.height // self.mcu_height)

    @property
    def margin_down(self) -> int:
        """Pixels above and below that decide about those in a box."""
        return _MARGIN if self.mcu_height > 8 else 0

    @property
    def margin_across(self) -> int:
        """Pixels to the left and right that decide about those in a box."""
        return _MARGIN if self.mcu_width > 8 else 0


class Cut(NamedTuple):
    """A JPEG that holds a part of another one."""

    data: bytearray
    height: int  # of this JPEG, in pixels
    width: int
    top: int  # of it in the whole image
    left: int


def read_frame(data: memoryview) -> Frame | None:
    """The headers of a JPEG; None unless it is sequential, 8 bits deep and has one scan.

    Progressive and arithmetic ones, and those whose headers are damaged, are for the decoder.
    """
    try:
        return _read_frame(data)
    except (IndexError, struct.error):
        return None


def _read_frame(data: memoryview) -> Frame | None:
    position, interval, header, components = 2, 0, 0, 0
    height = width = mcu_height = mcu_width = 0
    while data[position] == 0xFF:
        marker = data[position + 1]
        length = data[position + 2] << 8 | data[position + 3]
        if marker == _DRI:
            interval = data[position + 4] << 8 | data[position + 5]
        elif marker in (_SOF0, _SOF1) and not header and data[position + 4] == 8:
            header = position
            height, width = _SIZE.unpack_from(data, position + 5)
            components = data[position + 9]
            mcu_height, mcu_width = _mcu(data, position + 11, components)
        elif marker == _SOS:
            sound = height and width and mcu_height and mcu_width
            if not sound or data[position + 4] != components:
                return None
            scan = position + 2 + length
            return Frame(header, scan, height, width, mcu_height, mcu_width, interval)
        elif 0xC0 <= marker <= 0xCF and marker not in (_DHT, _DAC):
            return None
        position += 2 + length
    return None


def _mcu(data: memoryview, factors: int, components: int) -> tuple[int, int]:
    """Pixels of an MCU (down, across), 0 for none; of a single component it is one block."""
    if components != 3:
        return (8, 8) if components == 1 else (0, 0)
    sampling = data[factors], data[factors + 3], data[factors + 6]
    return 8 * max(each & 15 for each in sampling), 8 * max(each >> 4 for each in sampling)


def shortened(data: memoryview, frame: Frame, box: Box) -> int:
    """The height, in pixels, that is enough to decode for a box.

    The whole height where the data does not end with its end mark: a decoder that stops early
    does not notice that something is missing.
    """
    if data[-2] != 0xFF or data[-1] != _EOI:
        return frame.height
    bottom = box.top + box.height + frame.margin_down
    return min(-(-bottom // frame.mcu_height) * frame.mcu_height, frame.height)


def set_height(data: memoryview, frame: Frame, height: int) -> None:
    """Write a height into the frame header."""
    _SIZE.pack_into(data, frame.header + 5, height, frame.width)


class Cutter:
    """Cuts JPEGs with a restart grid; one for each thread, since its memory is used again."""

    def __init__(self) -> None:
        self._bytes = np.empty((2, 0), np.bool_)

    def cut(self, data: memoryview, frame: Frame, box: Box) -> Cut | None:
        """The segments that a box touches as a JPEG.

        None where they are all, or where the grid is not sound: another number of markers than
        the headers tell of, or other ones than RST0 to RST7 in turn.
        """
        mcus, rows, interval = frame.mcus, frame.rows, frame.interval
        if not interval or mcus % interval:
            return None
        across, segment = mcus // interval, interval * frame.mcu_width
        down, side = frame.margin_down, frame.margin_across
        first = max(box.top - down, 0) // frame.mcu_height
        last = min(-(-(box.top + box.height + down) // frame.mcu_height), rows)
        left = max(box.left - side, 0) // segment
        right = min(-(-(box.left + box.width + side) // segment), across)
        if left and min(right * segment, frame.width) - left * segment < _NARROWEST:
            left -= 1
        if (last - first) * (right - left) == rows * across:
            return None
        ends = self._segment_ends(data, frame, rows * across)
        if ends is None:
            return None
        starts = np.empty_like(ends)
        starts[0], starts[1:] = frame.scan, ends[:-1]
        taken = ends.reshape(rows, across)[first:last, left:right]
        begin = starts.reshape(rows, across)[first:last, left]
        result = _joined(data, frame, begin, taken)
        height = min(last * frame.mcu_height, frame.height) - first * frame.mcu_height
        width = min(right * segment, frame.width) - left * segment
        _SIZE.pack_into(result, frame.header + 5, height, width)
        return Cut(result, height, width, first * frame.mcu_height, left * segment)

    def _segment_ends(
        self, data: memoryview, frame: Frame, count: int
    ) -> npt.NDArray[np.int64] | None:
        """Where each segment ends, its marker counted. int64, shape (count,)."""
        coded = np.frombuffer(data, np.uint8)[frame.scan :]
        if len(coded) < 2:
            return None
        if len(coded) > self._bytes.shape[1]:
            self._bytes = np.empty((2, len(coded) + len(coded) // 4), np.bool_)
        # In entropy-coded data only a marker is 0xFF with 0xD0 or more behind it.
        behind = coded[1:]
        found, high = self._bytes[:, : len(behind)]
        np.equal(coded[:-1], 0xFF, found)
        np.greater_equal(behind, _RST0, high)
        np.logical_and(found, high, found)
        ends: npt.NDArray[np.int64] = found.nonzero()[0]
        if len(ends) != count or count > len(_NUMBERS):
            return None
        if behind[ends].tobytes() != _NUMBERS[: count - 1].tobytes() + _END:
            return None
        ends += frame.scan + 2
        return ends


def _joined(
    data: memoryview, frame: Frame, begin: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> bytearray:
    """Headers and rows of segments, the markers between them counted from 0.

    `ends` has a row for each row of the cut; the segments of one lie behind each other.
    """
    last = ends[:, -1]
    rows = map(slice, begin.tolist(), last.tolist())
    result = bytearray().join([data[: frame.scan], *map(data.__getitem__, rows)])
    # A segment's marker is its last byte, as far behind its place as its row has moved.
    moved = (last - begin).cumsum()
    moved += frame.scan - 1
    moved -= last
    places = (ends + moved[:, None]).ravel()
    np.frombuffer(result, np.uint8)[places] = _NUMBERS[: len(places)]
    result[-1] = _EOI
    return result
