"""Class folders as they lie: each image a file of its own, opened, read and closed.

Of a million files nobody can say cheaply whether they are what they were. So whatever is read is
held against the XXH3 that the index has of it, which costs a few microseconds beside milliseconds
of decoding: a file that is gone, shorter, or other than it was is named, and never trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

from shards.anatomy import Damage
from shards.columns import Column
from shards.contents import BadSample, Contents, Place, Rows, Step, look
from shards.errors import DamagedData
from shards.index import Index
from shards.manifest import File, Skipped
from shards.reader import fill

if TYPE_CHECKING:
    from shards.writer import OnBad

# Files that the kernel is told of before the first of them is read, so that a disk fetches them
# side by side and in its own order.
_TOGETHER: Final = 64
_OTHER_BYTES: Final = "its bytes are others than when it was indexed"


# --- one file ---------------------------------------------------------------------------------


def read_file(path: str, view: memoryview) -> None:
    """Fill `view` with a file that is as long.

    Raises DamagedData, with the reason alone, where it is gone or of another size.
    """
    try:
        # Without waiting: what was a file once may be a pipe by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedData("it is not there any more") from None
    try:
        found = os.fstat(descriptor).st_size
        if found != len(view):
            raise DamagedData(f"it has {found} bytes instead of {len(view)}")
        fill(view, descriptor, Path(path), 0)
    finally:
        os.close(descriptor)


class LooseFiles:
    """The images of a split in their folders; safe to read from any number of threads.

    `names` and `digests` (XXH3) are by canonical number, `out` is what the index was made with.
    """

    def __init__(
        self, folders: Sequence[Path], names: Column, digests: Column, *, out: Path
    ) -> None:
        self._folders = [str(folder.resolve()) for folder in folders]
        self._names = names
        self._digests = digests
        self._out = out

    def path(self, folder: int, number: int) -> str:
        """Where an image lies."""
        return f"{self._folders[folder]}/{self._names[number].decode()}"

    def read_into(self, view: memoryview, folder: int, number: int) -> None:
        """Fill `view`, of the image's size, with its bytes.

        Raises DamagedData, with the reason alone, where they are not those that were indexed.
        """
        try:
            read_file(self.path(folder, number), view)
            is_same = xxhash.xxh3_64_intdigest(view) == int(self._digests[number])
            fault = "" if is_same else _OTHER_BYTES
        except DamagedData as error:
            fault = str(error)
        if fault:
            raise DamagedData(
                f"{fault}; put it back as it was, or run `imagenet-prep index` on the folders "
                f"again, with --out {self._out}"
            )


# --- indexing ---------------------------------------------------------------------------------


def read_folder(folder: Path, places: Sequence[Place], on_bad: OnBad, step: Step) -> Contents:
    """Look at images of a folder, which come in the order of their names.

    Raises DamagedData for an image that cannot be used, or with `on_bad` "skip" lists it.
    """
    rows, skipped, size = Rows(), [], 0
    for number, place in enumerate(_announced(folder, places)):
        try:
            data = _whole(folder, place)
            looked = look(data, 0)
        except BadSample as error:
            if on_bad == "fail":
                raise DamagedData(
                    f"{folder / place.name}: {error}; put a sound one in its place, or leave it "
                    "out of an index of your own: `imagenet-prep index` with --on-bad skip"
                ) from None
            skipped.append(Skipped(place.key, place.name, str(error)))
        else:
            rows.add(place.name, place.label, (number, *looked))
            size += place.size
        step(place.size)
    columns = rows.columns()
    digest = _digest(columns["name"], columns["xxh3"])
    return Contents(bytes=size, sha256=digest, columns=columns, skipped=tuple(skipped))


def _announced(folder: Path, places: Sequence[Place]) -> Iterator[Place]:
    """The images, the kernel told of each some time before it comes."""
    for first in range(0, len(places), _TOGETHER):
        together = places[first : first + _TOGETHER]
        for place in together:
            descriptor = os.open(
                f"{folder}/{place.name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            )
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
        yield from together


def _whole(folder: Path, place: Place) -> bytearray:
    data = bytearray(place.size)
    try:
        read_file(f"{folder}/{place.name}", memoryview(data))
    except DamagedData as error:
        raise DamagedData(
            f"{folder / place.name} changed while it was indexed ({error}); wait until it is "
            "complete and run the same command"
        ) from None
    return data


def times_of(folder: Path, names: Sequence[str]) -> str:
    """A digest (hex) of when files were last written to, by which a later run knows them again."""
    times = [os.stat(f"{folder}/{name}").st_mtime_ns for name in names]  # noqa: PTH116 - a million
    return hashlib.sha256(np.array(times, np.int64).tobytes()).hexdigest()


def _digest(names: Column, digests: Column) -> str:
    """SHA-256 (hex) of what a folder holds: a line `XXH3 NAME` for each image, by name."""
    lines = (
        b"%016x %b\n" % (digest, name)
        for name, digest in zip(names.tolist(), digests.tolist(), strict=True)
    )
    return hashlib.sha256(b"".join(lines)).hexdigest()


# --- what an index of folders says ------------------------------------------------------------


def folder_files(index: Index) -> list[File]:
    """What a manifest says of the folders of an index. It follows from the rows alone."""
    names: list[str] = index.header["files"]
    bounds = np.searchsorted(index["shard"], np.arange(len(names) + 1)).tolist()
    return [
        File(
            name=name,
            bytes=int(index["size"][first:last].sum(dtype=np.int64)),
            sha256=_digest(index["name"][first:last], index["xxh3"][first:last]),
            samples=last - first,
        )
        for name, (first, last) in zip(names, pairwise(bounds), strict=True)
    ]


def loose_findings(index: Index) -> Iterator[str]:
    """Where the rows of an index of folders cannot be files in them. A few ms a million rows."""
    names, folders = index["name"], index["shard"]
    letters = np.ascontiguousarray(names).view(np.uint8).reshape(len(names), -1)
    ended = letters == 0
    if (
        (letters == ord("/")).any()
        or np.isin(names, [b"", b".", b".."]).any()
        or (ended[:, :-1] & ~ended[:, 1:]).any()
    ):
        yield "a name could lead out of its folder"
    if index["offset"].any():
        yield "an image does not begin where its file does"
    same = folders[1:] == folders[:-1]
    if not np.all((folders[1:] > folders[:-1]) | (same & (names[1:] >= names[:-1]))):
        yield "its rows are not in the order of folders and names"


def lost_folders(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Which class folders are not there: a sentence for each, by the name of its link."""
    return {
        name: (
            f"{folder / name} leads to {os.path.realpath(folder / name)}, which is no folder; put "
            "it back, or run `imagenet-prep index` again on the class folders where they lie now"
        )
        for name in names
        if not (folder / name).is_dir()
    }


def check_folder(index: Index, number: int, folder: Path, step: Step) -> list[Damage]:
    """What is wrong with the images in a folder, each of which is read.

    `index` has no `loose_findings`.
    """
    damage = []
    first, last = np.searchsorted(index["shard"], [number, number + 1]).tolist()
    for row in range(first, last):
        size = int(index["size"][row])
        reason = _fault(index, row, folder)
        step(size)
        if reason:
            key, name = index["key"][row].decode(), index["name"][row].decode()
            damage.append(Damage(file=folder.name, sample=key, offset=0, what=f"{name}: {reason}"))
    return damage


def _fault(index: Index, row: int, folder: Path) -> str:
    """What is wrong with an image; "" if nothing is."""
    data = bytearray(int(index["size"][row]))
    try:
        read_file(f"{folder}/{index['name'][row].decode()}", memoryview(data))
        found = look(data, 0)
    except DamagedData as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    columns = ("offset", "size", "xxh3", "width", "height", "components", "format")
    told = tuple(int(index[name][row]) for name in columns)
    if found[2] != told[2]:
        return _OTHER_BYTES
    return "" if found == told else "it is not as the index says"
