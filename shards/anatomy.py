"""What every byte of a shard is, by its index: only the images themselves are not known from it.

A shard is a function of its rows, so nothing in it has to be parsed to be checked: what stands
between two images (padding, label, tar headers) is made again and compared as a whole. Of shards
that others made the images alone are known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from shards.errors import DamagedData
from shards.image import Format, read_info
from shards.index import SHARDS_LAYOUT, Index
from shards.plan import stored_sizes
from shards.sample import UNLABELLED
from shards.tar import BLOCK, header, padding, trailer

_ZEROS = bytes(BLOCK)
_INFO = ("format", "width", "height", "components")
_ENDINGS: Final = {int(kind): kind.extension.encode() for kind in Format}
_PARTS: Final = (
    "the padding after its image",
    "the tar header of its label",
    "its label",
    "the tar header of its image",
)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something in a shard that is not as it was written. `sample` is a key, if it is one's."""

    file: str
    sample: str | None
    offset: int  # of the first byte that differs, or of an image
    what: str

    def __str__(self) -> str:
        place = f"byte {self.offset}: {self.what}"
        return place if self.sample is None else f"sample {self.sample} at {place}"


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One shard of an index. Image i lies in [starts[i], ends[i]); frame i stands before it.

    The last frame, with the number len(self), ends the archive. `framed` is False where frames
    are not known.
    """

    name: str
    framed: bool
    keys: list[bytes]
    labels: list[int]
    starts: list[int]
    ends: list[int]
    size: int  # of the shard
    xxh3: list[int]
    infos: list[tuple[int, int, int, int]]  # as in ImageInfo

    @classmethod
    def of(cls, index: Index, shard: int, size: int) -> Anatomy:
        """The shard of that number and size; the index must agree with itself (agreement.py)."""
        first, last = np.searchsorted(index["shard"], [shard, shard + 1])
        rows = np.arange(first, last)
        framed = index.header.get("layout") == SHARDS_LAYOUT
        if not framed:
            rows = rows[np.argsort(index["offset"][rows], kind="stable")]
        columns = {name: index[name][rows] for name in ("key", "label", "xxh3", *_INFO)}
        starts = index["offset"][rows].astype(np.int64)
        return cls(
            name=index.header["files"][shard],
            framed=framed,
            keys=columns["key"].tolist(),
            labels=columns["label"].tolist(),
            starts=starts.tolist(),
            ends=(starts + index["size"][rows]).tolist(),
            size=size,
            xxh3=columns["xxh3"].tolist(),
            infos=list(zip(*(columns[name].tolist() for name in _INFO), strict=True)),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def frame_start(self, number: int) -> int:
        """Where a frame begins; it ends where its image does, or the shard."""
        return self.ends[number - 1] if number else 0

    def frame(self, number: int) -> bytes:
        """The bytes of a frame."""
        return b"".join(self._parts(number))

    def _parts(self, number: int) -> tuple[bytes, bytes, bytes, bytes]:
        """The parts of a frame as `_PARTS` names them, empty where there is none."""
        before = max(number - 1, 0)
        after, header_of_label, label = b"", b"", b""
        if number:
            after = _ZEROS[: padding(self.ends[before] - self.starts[before])]
            if self.labels[before] != UNLABELLED:
                header_of_label = self._headings[1][before * BLOCK : number * BLOCK]
                label = (b"%d" % self.labels[before]).ljust(BLOCK, b"\0")
        if number < len(self):
            last = self._headings[0][number * BLOCK : (number + 1) * BLOCK]
        else:
            members = len(after) + len(header_of_label) + len(label)
            last = bytes(self.size - self.frame_start(number) - members)
        return after, header_of_label, label, last

    @cached_property
    def _headings(self) -> tuple[bytes, bytes]:
        """The header blocks of all images, and those of all labels."""
        sizes = [end - start for start, end in zip(self.starts, self.ends, strict=True)]
        images = [
            b"%b.%b" % (key, _ENDINGS[info[0]])
            for key, info in zip(self.keys, self.infos, strict=True)
        ]
        texts = [len(str(label)) for label in self.labels]
        return _headers(images, sizes), _headers([b"%b.cls" % key for key in self.keys], texts)

    def frame_damage(self, number: int, found: bytes) -> Damage:
        """Which part of a frame differs first, where `found` stands in its place."""
        place = 0
        for what, part in zip(_PARTS, self._parts(number), strict=True):
            differs = _first_difference(found[place : place + len(part)], part)
            if differs is not None:
                return self._part_damage(number, what, place + differs)
            place += len(part)
        raise AssertionError(f"frame {number} of {self.name} is whole")

    def _part_damage(self, number: int, what: str, place: int) -> Damage:
        sample = number if what is _PARTS[-1] else number - 1
        is_end = sample == len(self)
        return Damage(
            file=self.name,
            sample=None if is_end else self.keys[sample].decode(),
            offset=self.frame_start(number) + place,
            what=f"{'the end of the archive' if is_end else what} is altered",
        )

    def image_damage(self, number: int, found: memoryview) -> Damage | None:
        """What is wrong with the bytes of an image: by their XXH3, and by their header."""
        if xxhash.xxh3_64_intdigest(found) != self.xxh3[number]:
            what = f"its image ({len(found)} bytes) is altered"
        else:
            with contextlib.suppress(DamagedData):
                if read_info(found) == self.infos[number]:
                    return None
            what = "its image has another header than the index says"
        sample = self.keys[number].decode()
        return Damage(file=self.name, sample=sample, offset=self.starts[number], what=what)

    def end_damage(self, end: int) -> Damage:
        """What is lost of a shard that ends too early."""
        number = next((i for i, last in enumerate(self.ends) if last > end), len(self))
        if number == len(self):
            what = f"the archive ends here, not at {self.size}: its end is lost"
            return Damage(file=self.name, sample=None, offset=end, what=what)
        lost = len(self) - number
        what = f"the archive ends here, not at {self.size}: {lost} images from this on are lost"
        return Damage(file=self.name, sample=self.keys[number].decode(), offset=end, what=what)


def shard_sizes(index: Index) -> list[int]:
    """Bytes of each shard of an index of our own, as its rows have it."""
    spans = stored_sizes(index["size"].astype(np.int64), index["label"])
    members = np.bincount(index["shard"], spans, len(index.header["files"])).astype(np.int64)
    return [each + len(trailer(each)) for each in members.tolist()]


def _headers(names: Sequence[bytes], sizes: Sequence[int]) -> bytes:
    """`tar.header` of many members: 0.9 us each instead of 4.7."""
    blocks = np.tile(np.frombuffer(header("-", 0), np.uint8), (len(names), 1))
    if not len(names):
        return b""
    blocks[:, :100] = np.array(names, "S100").view(np.uint8).reshape(-1, 100)
    blocks[:, 124:135] = _octal(np.array(sizes, np.int64), 11)
    blocks[:, 148:156] = ord(" ")
    blocks[:, 148:154] = _octal(blocks.sum(axis=1, dtype=np.int64), 6)
    blocks[:, 154] = 0
    return blocks.tobytes()


def _octal(numbers: npt.NDArray[np.int64], digits: int) -> npt.NDArray[np.int64]:
    return (numbers[:, None] >> (3 * np.arange(digits - 1, -1, -1))) % 8 + ord("0")


def _first_difference(found: bytes, expected: bytes) -> int | None:
    if found == expected:
        return None
    pairs = zip(found, expected, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(found))
