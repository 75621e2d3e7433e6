"""Tar archives as places: where each member's bytes lie, and headers that are always the same.

An uncompressed tar is random-access once its headers are known, and a tar inside a tar is one
too. `scan` reads nothing but headers (3-6 us a member) and treats the archive as hostile: what
cannot be an image file in a flat archive is refused by name. `header` writes true USTAR with
fixed owner, mode and time, so that equal members give equal bytes.

Format: POSIX.1-1988 (ustar), GNU long names and pax headers as in the GNU tar manual.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from shards.errors import DamagedData

BLOCK = 512
RECORD = 20 * BLOCK
_ZEROS = bytes(BLOCK)
# Long-name and pax headers hold a path and a few numbers; the rest is an attack on memory.
_LARGEST_EXTENSION = 64 * 1024
_LONGEST_NUMBER = 18  # digits; more than any file has bytes
_LONGEST_NAME = 1024  # bytes with all folders; systems take no paths of more than 4096
# Archives are padded to their blocking factor: 10,240 bytes as a rule, more for tapes.
_LONGEST_END = 1 << 20
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_OCTAL = re.compile(rb"[0-7]+")
_EXTENSIONS = (b"L", b"x", b"g")  # GNU long name, pax for the next member, pax for all
_REGULAR = (b"0", b"\0")
# A file's header as it mostly is: its name, and mode, size, sum and type as tar writes them.
_USUAL_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,98}(?=\0)")
_USUAL_REST = re.compile(rb"([0-7]{7})\0.{16}([0-7]{11})\0.{12}([0-7]{6})\0 [0\0]", re.DOTALL)
_SET_ID = 0o6000  # mode bits that no image has
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"M": "part of a multi-volume archive",
}


class Member(NamedTuple):
    """A regular file in an archive: its name and the place of its bytes in the outer file."""

    name: str
    offset: int
    size: int


class Bytes(Protocol):
    """Bytes that can be read from a position: an open file, or what a compressed one inflates to.

    `end` is where they end, or where they end at the latest if only reading on will tell.
    """

    @property
    def end(self) -> int: ...

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end alone."""
        ...


class FileBytes:
    """The bytes of an open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.end = os.fstat(descriptor).st_size

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end alone."""
        return os.pread(self._descriptor, count, position)


class _Extended(NamedTuple):
    """What extended headers say of the member that follows them."""

    name: bytes | None
    size: int | None


_NOT_EXTENDED = _Extended(None, None)


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes
    mode: bytes


def scan(source: Bytes, path: Path, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """Yield the regular files of the tar that lies in the bytes [start, end) of `source`.

    `path` is used in messages alone. Directories are passed over. Raises DamagedData for what
    is no tar, is truncated or altered, and for any member that is not a plain file with a
    relative name inside the archive; what was yielded before is sound.
    """
    end = source.end if end is None else min(end, source.end)
    position = start
    extended = _NOT_EXTENDED
    while (block := _read_block(source, path, position, end)) != _ZEROS:
        usual = _usual(block) if extended is _NOT_EXTENDED else None
        if usual is not None and position + BLOCK + usual[1] <= end:
            name, length = usual
            yield Member(name, position + BLOCK, length)
            position += BLOCK + length + padding(length)
            continue
        found = _parse(block, path, position)
        data = position + BLOCK
        if found.kind in _EXTENSIONS:
            extension = _read_extension(source, path, data, found.size, end)
            extended = _parse_extension(found.kind, extension, extended, path, data)
            position = data + found.size + padding(found.size)
            continue
        length = found.size if extended.size is None else extended.size
        name = check_name(extended.name or found.name, path)
        # A header that leaves its size to a pax header says 0 or the same.
        if found.size not in (0, length):
            raise DamagedData(
                f"{path}: member {name!r} has {found.size} bytes by its header and {length} by its "
                "extended header; refused"
            )
        extended = _NOT_EXTENDED
        position = data + length + padding(length)
        if _is_file(found, name, path):
            if data + length > end:
                raise DamagedData(
                    f"{path}: member {name!r} needs bytes up to {data + length}, but its archive "
                    f"ends at {end}: it is truncated; fetch it again and run the same command"
                )
            yield Member(name, data, length)
    _check_end(source, path, position + BLOCK, end)


def _usual(block: bytes) -> tuple[str, int] | None:
    """Name and size by a plain file's header; None for any other, which takes a closer look.

    A shorter way to what `_parse`, `_is_file` and `check_name` find, in half their time.
    """
    name, rest = _USUAL_NAME.match(block), _USUAL_REST.match(block, 100)
    if name is None or rest is None or block[345]:
        return None
    mode, size, stored = (int(field, 8) for field in rest.groups())
    if mode & _SET_ID or (_sum(block) - stored) % 65521:
        return None
    return name[0].decode("ascii"), size


def _sum(block: bytes) -> int:
    """What a header's sum has to be, modulo 65521.

    adler32's low half is 1 + the sum of all bytes modulo 65521: the same check as adding up 512
    bytes in Python, at a hundredth of the time.
    """
    return (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32


def _check_end(source: Bytes, path: Path, position: int, end: int) -> None:
    """Refuse an archive that goes on after its end mark.

    A download whose file was allocated first and then filled in part has a hole of zeros,
    which looks like the end: what follows must be short and all zeros.
    """
    rest = _read(source, path, position, min(max(end - position, 0), _LONGEST_END + 1))
    if len(rest) > _LONGEST_END or rest.strip(b"\0"):
        raise DamagedData(
            f"{path} has zeros at byte {position} where a member or its end should be: "
            "a part of it is missing; fetch it again"
        )


def _read(source: Bytes, path: Path, position: int, count: int) -> bytes:
    try:
        return source.read_at(position, count)
    except OSError as error:  # a descriptor knows no name
        error.filename = error.filename or str(path)
        raise


def _read_block(source: Bytes, path: Path, position: int, end: int) -> bytes:
    block = _read(source, path, position, BLOCK) if position + BLOCK <= end else b""
    if len(block) < BLOCK:
        raise DamagedData(
            f"{path} ends at byte {min(end, source.end)} without an end-of-archive mark: "
            "it is truncated; fetch it again and run the same command"
        )
    return block


def _is_file(found: _Header, name: str, path: Path) -> bool:
    """Whether a member is a regular file; a directory is not. All else is refused."""
    kind = found.kind
    if kind == b"5" or (kind in _REGULAR and name.endswith("/")):
        return False
    if kind not in _REGULAR or not name:
        what = _REFUSED_TYPES.get(kind, f"of unknown type {kind!r}")
        raise DamagedData(f"{path}: member {name!r} is {what}; refused")
    mode = _number(found.mode)
    if mode is None or mode & _SET_ID:
        raise DamagedData(f"{path}: member {name!r} has a set-user-id or set-group-id bit; refused")
    return True


def _parse(block: bytes, path: Path, position: int) -> _Header:
    """Check one header block's sum and take name, size and type out of it."""
    stored = _number(block[148:156])
    if stored is None or (_sum(block) - stored) % 65521:
        what = "is not a tar archive" if position == 0 else f"is damaged at byte {position}"
        raise DamagedData(
            f"{path} {what} (a header block has a wrong checksum); "
            "check that it is the file you meant, or fetch it again"
        )
    length = _number(block[124:136])
    if length is None:
        raise DamagedData(f"{path} is damaged at byte {position}: a member's size is no number")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\x00" else b""
    full = prefix + b"/" + name if prefix else name
    return _Header(full, length, block[156:157], block[100:108])


def _number(field: bytes) -> int | None:
    """A tar number: octal digits, or base 256 with the high bit set (GNU); None if neither."""
    if field[0] & 0x80:
        return None if field[0] & 0x40 else int.from_bytes(field, "big") & ~(0x80 << 8 * 11)
    text = field.strip(b" \0")
    if not text:
        return 0
    return int(text, 8) if _OCTAL.fullmatch(text) else None


def _read_extension(source: Bytes, path: Path, data: int, length: int, end: int) -> bytes:
    if length > _LARGEST_EXTENSION or data + length > end:
        raise DamagedData(f"{path}: an extended header at byte {data} claims {length} bytes")
    return _read(source, path, data, length)


def _parse_extension(
    kind: bytes, extension: bytes, before: _Extended, path: Path, position: int
) -> _Extended:
    """What an extended header says of the next member; a global one (kind g) says nothing."""
    if kind == b"L":
        return before._replace(name=extension.rstrip(b"\0"))
    if kind == b"g":
        return before
    for key, value in _pax_records(extension, path, position):
        if key == b"path":
            before = before._replace(name=value)
        elif key == b"size":
            if not value.isdigit() or len(value) > _LONGEST_NUMBER:
                raise DamagedData(f"{path}: the extended header at byte {position} has no size")
            before = before._replace(size=int(value))
        elif key.startswith(b"GNU.sparse"):
            raise DamagedData(f"{path}: a sparse member at byte {position}; refused")
    return before


def _pax_records(extension: bytes, path: Path, position: int) -> Iterator[tuple[bytes, bytes]]:
    """The records `LENGTH KEY=VALUE\\n` of a pax header."""
    rest = extension.rstrip(b"\0")
    while rest:
        digits = rest.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) <= _LONGEST_NUMBER else 0
        record, rest = rest[:length], rest[length:]
        key, separator, value = record[len(digits) + 1 :].partition(b"=")
        if not separator or not record.endswith(b"\n"):
            raise DamagedData(f"{path}: the extended header at byte {position} is damaged")
        yield key, value[:-1]


def check_name(name: bytes, path: Path) -> str:
    """`name` as text if it is a relative path that stays inside its archive; else DamagedData."""
    if _PLAIN_NAME.fullmatch(name) and len(name) <= 255:
        return name.decode("ascii")
    if len(name) > _LONGEST_NAME:
        raise DamagedData(f"{path}: member name {name[:50]!r}... is too long ({len(name)} bytes)")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise DamagedData(f"{path}: member name {name!r} is not UTF-8; refused") from None
    inside = text.removeprefix("./")
    parts = inside.removesuffix("/").split("/")
    if text.startswith("/") or ".." in parts:
        raise DamagedData(f"{path}: member {text!r} would be written outside its folder; refused")
    if "." in parts or (inside and "" in parts):
        raise DamagedData(f"{path}: member {text!r} has no plain name; refused")
    if not text.isprintable() or max(len(part.encode()) for part in parts) > 255:
        raise DamagedData(f"{path}: member name {text!r} has control characters or is too long")
    return inside


# What is the same in every header that `header` makes, but for the spaces that stand for its sum.
_OWNED = b"0000444\0" + 2 * b"0000000\0"  # mode, owner, group
_TIME = b"\x0000000000000\0"  # the end of the size, and the time
_TYPE = (
    b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(72, b"\0") + (2 * b"0000000\0").ljust(183, b"\0")
)
_SUM = sum(_OWNED + _TIME + _TYPE) + 8 * 32


def header(name: str, size: int) -> bytes:
    """The USTAR header block of a regular file: mode 0444, owner 0:0, mtime 0, no owner names.

    `name` must be ASCII of at most 100 bytes and `size` below 8 GiB, USTAR's limits.
    """
    encoded = name.encode("ascii")
    assert 0 < len(encoded) <= 100, name
    assert 0 <= size < 1 << 33, size
    digits = b"%011o" % size
    total = _SUM + sum(encoded) + sum(digits)
    name_field = encoded.ljust(100, b"\0")
    return b"".join((name_field, _OWNED, digits, _TIME, b"%06o\0 " % total, _TYPE))


def padding(size: int) -> int:
    """Zero bytes that follow a member of `size` bytes up to the next block."""
    return -size % BLOCK


def trailer(size: int) -> bytes:
    """What ends an archive whose members take `size` bytes: two zero blocks, up to a record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)
