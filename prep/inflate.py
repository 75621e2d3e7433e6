"""Compressed files as bytes that are read front to back: gzip, xz and bzip2, told by content.

What a compressed file inflates to is read in chunks as it is wanted and never kept, so neither
a large archive nor one made to explode takes memory.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from shards.durable import named
from shards.errors import DamagedData, ToolError

_CHUNK: Final = 1 << 20
# What inflates to more than both is made to explode. Zeros shrink to a 1,032nd by gzip and to less
# by the others; photographs hardly, and the bounding boxes with their headers to a 40th.
_HARMLESS: Final = 64 << 20  # bytes
_HIGHEST_RATIO: Final = 256
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_Opener: TypeAlias = Callable[[BinaryIO], "gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File"]
_OPENERS: Final[dict[bytes, _Opener]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}


def _opener(path: Path) -> _Opener | None:
    with named(path), path.open("rb") as file:
        head = file.read(6)
    if head.startswith(_ZSTD):
        raise ToolError(f"{path} is compressed by zstd: run `unzstd` on it and give the tar")
    return next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes. Raises ToolError for zstd."""
    return _opener(path) is not None


class Inflated:
    """What a compressed file inflates to; each read begins where the last ended, or later.

    `packed` is how many bytes of the file itself were used so far. Reading to the end checks
    the checksums. Raises DamagedData where the file is truncated or damaged.
    """

    def __init__(self, path: Path) -> None:
        opener = _opener(path)
        if opener is None:
            raise DamagedData(f"{path} is not compressed")
        self._path = path
        self._packed = path.open("rb")
        self._file = opener(self._packed)
        self._position = 0
        self.end = sys.maxsize  # until the end was reached

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end alone."""
        assert position >= self._position, "a compressed file is read front to back"
        while self._position < position:
            if not self._read(min(_CHUNK, position - self._position)):
                return b""
        parts = []
        while count > 0 and (part := self._read(min(_CHUNK, count))):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _read(self, count: int) -> bytes:
        try:
            with named(self._path):
                data = self._file.read(count)
        except EOFError:
            raise DamagedData(
                f"{self._path} ends before its compressed data does: it is truncated; "
                "fetch it again and run the same command"
            ) from None
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, ValueError) as error:
            raise DamagedData(f"{self._path} is damaged ({error}); fetch it again") from None
        except OSError as error:  # bz2 has no exception of its own
            if error.errno is not None:
                raise
            raise DamagedData(f"{self._path} is damaged ({error}); fetch it again") from None
        self._position += len(data)
        if self._position > max(_HARMLESS, _HIGHEST_RATIO * self.packed):
            raise DamagedData(
                f"{self._path} inflates to more than {_HIGHEST_RATIO} times its size: it is made "
                "to fill disks; refused"
            )
        if not data:
            self.end = self._position
        return data

    @property
    def packed(self) -> int:
        """Bytes of the compressed file that were used so far, for progress."""
        return self._packed.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._packed.close()
