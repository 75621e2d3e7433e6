"""What reading a tar or a class folder once gives: the rows of its images, and a digest of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import xxhash

from shards.columns import Column
from shards.errors import DamagedData
from shards.image import read_info
from shards.index import PLACE_COLUMNS
from shards.manifest import Skipped

if TYPE_CHECKING:
    from shards.writer import OnBad

Step: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one pass over a tar or a class folder found, in its order.

    `columns` are those of the index that lie in the place itself, `name` and `label` among them,
    and `number`. `ignored` are members that belong to no sample: how many, and the first of them.
    """

    bytes: int
    sha256: str
    columns: dict[str, Column]
    skipped: tuple[Skipped, ...] = ()
    ignored: tuple[int, str] = (0, "")

    def __len__(self) -> int:
        return len(self.columns["offset"])


class Place(NamedTuple):
    """An image that is known before it is read."""

    key: str
    name: str
    label: int
    offset: int
    size: int


class BadSample(DamagedData):
    """A sample that cannot be used: the reason, for the member that is named with it."""


class Rows:
    """Rows of the index, gathered in few bytes: an archive may have 1.28 million."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._labels = array("i")
        self._names: list[bytes] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, label: int, numbers: tuple[int, ...]) -> None:
        """Add a row; `numbers` in the order of `PLACE_COLUMNS`."""
        self._names.append(name.encode())
        self._labels.append(label)
        self._numbers.extend(numbers)

    def columns(self) -> dict[str, Column]:
        """The columns, each of its own type."""
        numbers = np.array(self._numbers, np.uint64).reshape(-1, len(PLACE_COLUMNS)).T
        columns: dict[str, Column] = {
            name: column.astype(dtype)
            for (name, dtype), column in zip(PLACE_COLUMNS.items(), numbers, strict=True)
        }
        columns["label"] = np.array(self._labels, np.int32)
        columns["name"] = np.array(self._names, np.bytes_)
        return columns


def look(data: bytes | bytearray | memoryview, offset: int) -> tuple[int, ...]:
    """What the index has of an image, from its offset on. Raises BadSample where it is none."""
    try:
        info = read_info(data)
    except DamagedData as error:
        raise BadSample(str(error)) from None
    shape = (info.width, info.height, info.components, info.format)
    return offset, len(data), xxhash.xxh3_64_intdigest(data), *shape


def skip(path: Path, key: str, name: str, error: BadSample, on_bad: OnBad) -> Skipped:
    """List a sample that cannot be used, or raise DamagedData where it is not to be left out."""
    if on_bad == "fail":
        raise DamagedData(f"{path}: {name}: {error}; pass --on-bad skip to leave it out") from None
    return Skipped(key, name, str(error))
