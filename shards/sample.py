"""A sample is a place: which file holds an image, from which byte, how many; its key and class.

`Samples` is the currency between the stages: what preparation finds in archives or folders and
what a plan turns into shards. It is columnar, since ImageNet has 1,281,167 of them (about
100 MB; as Python objects it would be a gigabyte).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData, ToolError
from shards.order import Stream, permutation

# Names that ILSVRC2012 gave its images; Hugging Face appends the class to them. Their keys are
# the names without that and without the ending.
_ILSVRC_NAME = re.compile(
    r"(n\d{8}_\d+|ILSVRC2012_(?:train|val|test)_\d{8})(?:_n\d{8})?\.(?:jpe?g|png)",
    re.IGNORECASE | re.ASCII,
)
LONGEST_KEY = 90  # bytes; with ".jpg" it stays within USTAR's 100
UNLABELLED = -1
_NO_CLASS = 99_999  # stands for a class index in the keys of images without one
# bytes; the index has 32 bits for a size, and what claims this much is an attack on memory.
LARGEST_IMAGE = 1 << 30


class Layout(enum.Enum):
    """Where the bytes of samples lie."""

    TAR = "tar"  # places are tars; a sample is `size` bytes from `offset`
    FOLDER = "folder"  # places are folders; a sample is the file `name` in one of them


class Sample(NamedTuple):
    """One image and where it lies."""

    key: str
    name: str
    label: int
    path: Path
    offset: int
    size: int


class Class(NamedTuple):
    """A class: `id` is its WordNet id or folder name, `name` what people call it."""

    id: str
    name: str


class FoundImage(NamedTuple):
    """What a source reports for each image it holds, before there are keys."""

    name: str
    label: int
    place: int
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples in canonical order: ascending by key, bytewise. All columns have equal length."""

    layout: Layout
    places: tuple[Path, ...]
    keys: npt.NDArray[np.bytes_]
    names: npt.NDArray[np.bytes_]  # UTF-8; the file name in its archive or class folder
    labels: npt.NDArray[np.int32]  # class index, or UNLABELLED
    place: npt.NDArray[np.uint32]  # position in `places`
    offsets: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Sample:
        name = self.names[number].decode()
        place = self.places[self.place[number]]
        return Sample(
            key=self.keys[number].decode(),
            name=name,
            label=int(self.labels[number]),
            path=place if self.layout is Layout.TAR else place / name,
            offset=int(self.offsets[number]),
            size=int(self.sizes[number]),
        )

    def take(self, numbers: npt.NDArray[np.int64]) -> Samples:
        """Those of the samples whose canonical numbers are given, ascending."""
        return replace(
            self,
            keys=self.keys[numbers],
            names=self.names[numbers],
            labels=self.labels[numbers],
            place=self.place[numbers],
            offsets=self.offsets[numbers],
            sizes=self.sizes[numbers],
        )

    def subset(self, per_class: int, seed: int) -> Samples:
        """At most `per_class` samples of each class, drawn by `seed`."""
        drawn = permutation(seed, Stream.SUBSET, 0, len(self))
        by_class = drawn[np.argsort(self.labels[drawn], kind="stable")]
        labels = self.labels[by_class]
        rank = np.arange(len(self)) - np.searchsorted(labels, labels)
        return self.take(np.sort(by_class[rank < per_class]))

    @classmethod
    def collect(
        cls, layout: Layout, places: Iterable[Path], images: Iterable[FoundImage]
    ) -> Samples:
        """Give every image its key and put them in canonical order.

        Raises ToolError where two images would get the same key, or a name is unusable.
        """
        columns = list(zip(*images, strict=True)) or [()] * 5
        names, labels, place, offsets, sizes = columns
        return cls.from_columns(
            layout,
            places,
            names=names,
            labels=np.array(labels, np.int32),
            place=np.array(place, np.uint32),
            offsets=np.array(offsets, np.uint64),
            sizes=np.array(sizes, np.uint64),
        )

    @classmethod
    def from_columns(
        cls,
        layout: Layout,
        places: Iterable[Path],
        *,
        names: Sequence[str],
        labels: npt.NDArray[np.int32],
        place: npt.NDArray[np.uint32],
        offsets: npt.NDArray[np.uint64],
        sizes: npt.NDArray[np.uint64],
    ) -> Samples:
        """As `collect`, of images that are too many to be objects."""
        if sizes.max(initial=0) > LARGEST_IMAGE:
            name = names[int(sizes.argmax())]
            raise DamagedData(f"{name} has {sizes.max()} bytes; an image may have {LARGEST_IMAGE}")
        keys = make_keys(names, labels.tolist())
        order = np.argsort(keys, kind="stable")
        samples = cls(
            layout=layout,
            places=tuple(places),
            keys=keys[order],
            names=np.array([name.encode() for name in names], dtype=np.bytes_)[order],
            labels=labels[order],
            place=place[order],
            offsets=offsets[order],
            sizes=sizes[order],
        )
        samples._refuse_duplicates()
        return samples

    def _refuse_duplicates(self) -> None:
        same = np.flatnonzero(self.keys[1:] == self.keys[:-1])
        if len(same):
            one, other = self[int(same[0])], self[int(same[0]) + 1]
            raise ToolError(
                f"{one.path} ({one.name}) and {other.path} ({other.name}) would both have the "
                f"key {one.key}; remove or rename one of them"
            )


def make_keys(names: Iterable[str], labels: Iterable[int]) -> npt.NDArray[np.bytes_]:
    """Keys of images, given their file names and class indices: unique, ASCII, without dots.

    A name of ILSVRC2012's gives its key itself. Any other image is `CCCCC_RRRRRRR`: its class
    index and its rank among the names of its class in bytewise order.
    """
    names, labels = list(names), list(labels)
    keys = [ilsvrc_key(name) or "" for name in names]
    if not all(keys):
        for number, rank in _ranks_in_class(names, labels):
            group = _NO_CLASS if labels[number] == UNLABELLED else labels[number]
            keys[number] = keys[number] or f"{group:05d}_{rank:07d}"
    longest = max(map(len, keys), default=1)
    if longest > LONGEST_KEY:
        name = names[max(range(len(keys)), key=lambda number: len(keys[number]))]
        raise DamagedData(
            f"the name {name!r} is too long for a key ({LONGEST_KEY} bytes); rename it"
        )
    return np.array(keys, dtype=f"S{longest}")


def ilsvrc_key(name: str) -> str | None:
    """The key that a file name of ILSVRC2012's gives; None for any other name."""
    match = _ILSVRC_NAME.fullmatch(name)
    return match[1] if match else None


def _ranks_in_class(names: list[str], labels: list[int]) -> Iterable[tuple[int, int]]:
    """(image number, rank of its name within its class) for every image."""
    rank, previous = 0, None
    for number in sorted(range(len(names)), key=lambda i: (labels[i], names[i].encode())):
        rank = rank + 1 if labels[number] == previous else 0
        previous = labels[number]
        yield number, rank
