"""An opened split: every sample by its canonical number, read with one pread.

Numbers are positions in key order, so they mean the same image whichever way the split was
sharded, and whether it lies in shards at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.agreement import index_findings
from shards.errors import DamagedData
from shards.image import Format, ImageInfo
from shards.index import INDEX_NAME, SHARDS_LAYOUT, Index
from shards.loose import LooseFiles, lost_folders
from shards.manifest import Manifest, check_sizes
from shards.reader import Reader
from shards.sample import Layout

_FORMATS = {int(each): each for each in Format}


class Place(NamedTuple):
    """Where a sample's bytes lie, and what the index says of them."""

    number: int  # canonical
    shard: int
    offset: int
    size: int
    info: ImageInfo


class Encoded(NamedTuple):
    """A sample as it is stored, and what its index says of it."""

    data: bytearray
    info: ImageInfo


class Dataset:
    """One split, opened and checked; safe to read from any number of threads.

    Attributes:
        split: "train", "val", ...
        classes: class ids (WordNet ids or folder names); a label is a position in it.
        class_names: what people call them, in the same order.
        digest: SHA-256 (hex) over the content, whatever the layout.
        keys: bytes, shape (N,), in canonical (ascending) order.
        labels: int32, shape (N,), by canonical number.
        widths, heights: uint32, shape (N,), pixels, by canonical number.
        shards: uint32, shape (N,): the shard (or class folder) of each sample, by canonical number.
        is_loose: whether each sample is a file of its own, in class folders.
    """

    def __init__(self, folder: Path, manifest: Manifest, index: Index) -> None:
        rows = index.canonical_positions()
        self.folder = folder
        self.split = manifest.split
        self.classes = tuple(each.id for each in manifest.classes)
        self.class_names = tuple(each.name for each in manifest.classes)
        self.digest = manifest.content
        self.keys: npt.NDArray[np.bytes_] = index["key"][rows]
        self.labels: npt.NDArray[np.int32] = index["label"][rows]
        self.widths: npt.NDArray[np.uint32] = index["width"][rows]
        self.heights: npt.NDArray[np.uint32] = index["height"][rows]
        self.shards: npt.NDArray[np.uint32] = index["shard"][rows]
        # Copies, in canonical order: a map of a file that is truncated meanwhile ends the process.
        self._offsets = index["offset"][rows]
        self._sizes = index["size"][rows]
        self._formats = index["format"][rows]
        self._components = index["components"][rows]
        self._files = [shard.name for shard in manifest.shards]
        self.is_loose = manifest.is_loose
        places = [folder / name for name in self._files]
        self._reader = Reader(Layout.TAR, () if self.is_loose else places)
        self._loose = None
        if self.is_loose:
            names, digests = index["name"][rows], index["xxh3"][rows]
            self._loose = LooseFiles(places, names, digests, out=folder.parent)

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Open a split's folder; milliseconds, since sizes are checked but not digests.

        Raises ToolError where there are no finished shards, DamagedData where manifest, index
        and shards do not fit together. Files of class folders are looked at when they are read.
        """
        manifest = Manifest.read(folder)
        lost = check_sizes(folder, manifest.files())
        if manifest.is_loose:
            lost |= lost_folders(folder, [each.name for each in manifest.shards])
        if lost:
            raise DamagedData(_lost_files(folder, manifest, lost))
        index = Index.read(folder / INDEX_NAME)
        findings = index_findings(index, manifest)
        if findings:
            raise DamagedData(f"{folder / INDEX_NAME}: {findings[0]}; write the shards again")
        return cls(folder, manifest, index)

    def __len__(self) -> int:
        return len(self.keys)

    def places(self, numbers: npt.NDArray[np.int64]) -> list[Place]:
        """Where samples lie, by their canonical numbers; all at once, as a batch needs it."""
        columns = (
            self.shards, self._offsets, self._sizes,
            self._formats, self.widths, self.heights, self._components,
        )  # fmt: skip
        return [
            Place(number, shard, offset, size, ImageInfo(_FORMATS[kind], width, height, components))
            for number, shard, offset, size, kind, width, height, components in zip(
                numbers.tolist(), *(column[numbers].tolist() for column in columns), strict=True
            )
        ]

    def read_into(self, view: memoryview, place: Place) -> None:
        """Fill `view`, of the sample's size, with its bytes.

        Raises DamagedData where the shard has become shorter, or the file is another one.
        """
        if self._loose is None:
            self._reader.read_into(view, place.shard, "", place.offset)
        else:
            self._loose.read_into(view, place.shard, place.number)

    def read(self, number: int) -> Encoded:
        """The encoded image of a sample by its canonical number."""
        (place,) = self.places(np.array([number]))
        data = bytearray(place.size)
        self.read_into(memoryview(data), place)
        return Encoded(data, place.info)

    def describe(self, number: int) -> str:
        """Where a sample lies, for messages: shard, key, offset; or its file, and its key."""
        key = self.keys[number].decode()
        if self._loose is not None:
            return f"{self._loose.path(int(self.shards[number]), number)} (sample {key})"
        shard = self._files[int(self.shards[number])]
        return f"{self.folder / shard}: sample {key} at byte {self._offsets[number]}"

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lost_files(folder: Path, manifest: Manifest, lost: Mapping[str, str]) -> str:
    """What to say of files that are missing or of another size, and what to do about them."""
    name, said = next(iter(lost.items()))
    if len(lost) > 1:
        said += f"; {len(lost)} files are missing or of another size in all"
    path = folder / name
    if path.is_symlink() and not path.exists():
        return said  # with what to do
    if manifest.is_loose and name in {each.name for each in manifest.shards}:
        return said  # with what to do
    if manifest.layout != SHARDS_LAYOUT:
        what = "class folders" if manifest.is_loose else "tars"
        return f"{said}; run `imagenet-prep index` again on the {what} where they lie now"
    return (
        f"{said}; `imagenet-prep verify {folder} --repair --source PATH`, with what the shards "
        "were made of, makes it again"
    )
