"""One shard as it is written: members gathered into chunks, digested and noted for the index.

Chunks go to the disk past the page cache where the file system allows it (O_DIRECT): a shard is
synced before it gets its name anyway, and the kernel's copying and writing back of a gigabyte
costs more than reading and hashing it (measured: 2 to 3 times the rate).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import xxhash

from shards.columns import Column
from shards.durable import named
from shards.image import ImageInfo
from shards.index import PLACE_COLUMNS
from shards.sample import UNLABELLED
from shards.tar import BLOCK, header, padding, trailer

_CHUNK: Final = 4 << 20  # bytes gathered before they are hashed and written: fewer, longer calls
_PAGE: Final = 4096  # bytes; what direct writes are aligned to


class ShardWriter:
    """Writes members to an open file; each byte is hashed and written once.

    An image is read into `room`, which is the place where it will be written from, and then added.
    """

    def __init__(self, file: BinaryIO, path: Path, count: int) -> None:
        self._descriptor = file.fileno()
        self._path = path
        self._buffer = mmap.mmap(-1, _CHUNK)  # begins at a page, as direct writes want it
        self._used = 0
        self._position = 0  # of the buffer's first byte in the shard
        self._sha256 = hashlib.sha256()
        self._columns = {name: np.zeros(count, dtype) for name, dtype in PLACE_COLUMNS.items()}
        self._rows = 0
        _set_direct(self._descriptor, on=True)

    def room(self, size: int) -> memoryview:
        """The place of the next image's bytes; valid until the image is added."""
        needed = 2 * BLOCK + size + 3 * BLOCK
        if self._used + needed > len(self._buffer):
            self._flush()
        if self._used + needed > len(self._buffer):
            larger = mmap.mmap(-1, self._used + needed)
            larger[: self._used] = self._buffer[: self._used]
            self._buffer = larger
        start = self._used + BLOCK
        return memoryview(self._buffer)[start : start + size]

    def add(self, image: memoryview, number: int, key: str, label: int, info: ImageInfo) -> None:
        """Add the image that lies in the room that was asked for last, and its label."""
        row = {
            "number": number,
            "offset": self._position + self._used + BLOCK,
            "size": len(image),
            "xxh3": xxhash.xxh3_64_intdigest(image),
            "width": info.width,
            "height": info.height,
            "components": info.components,
            "format": info.format,
        }
        for name, value in row.items():
            self._columns[name][self._rows] = value
        self._rows += 1
        self._frame(f"{key}.{info.format.extension}", len(image))
        if label != UNLABELLED:
            text = b"%d" % label
            start = self._used + BLOCK
            self._buffer[start : start + len(text)] = text
            self._frame(f"{key}.cls", len(text))

    def _frame(self, name: str, size: int) -> None:
        """Put the header before and the padding after a member that lies in the buffer."""
        buffer, start = self._buffer, self._used
        buffer[start : start + BLOCK] = header(name, size)
        end = start + BLOCK + size
        self._used = end + padding(size)
        buffer[end : self._used] = bytes(padding(size))

    def _flush(self) -> None:
        """Write whole pages; what is left moves to the buffer's beginning."""
        whole = self._used - self._used % _PAGE
        self._write(memoryview(self._buffer)[:whole])
        self._used -= whole
        self._buffer[: self._used] = self._buffer[whole : whole + self._used]

    def _write(self, data: memoryview) -> None:
        self._sha256.update(data)
        self._position += len(data)
        while data:
            data = data[self._write_some(data) :]

    def _write_some(self, data: memoryview) -> int:
        with named(self._path):
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                # Of file systems without direct writes some say so when they are asked to write.
                if error.errno != errno.EINVAL or not _set_direct(self._descriptor, on=False):
                    raise
                return os.write(self._descriptor, data)

    def close(self) -> tuple[int, str]:
        """End the archive; its length in bytes and SHA-256 (hex)."""
        self._flush()
        end = trailer(self._position + self._used)
        rest = bytes(self._buffer[: self._used]) + end
        _set_direct(self._descriptor, on=False)  # the rest is no whole page
        self._write(memoryview(rest))
        return self._position, self._sha256.hexdigest()

    @property
    def columns(self) -> dict[str, Column]:
        """What the index needs of each image that was added."""
        return {name: column[: self._rows] for name, column in self._columns.items()}


def _set_direct(descriptor: int, *, on: bool) -> bool:
    """Ask for writes past the page cache, or for ordinary ones; whether that changed anything."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    wanted = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
    if wanted == flags:
        return False
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, wanted)
        return True
    return False
