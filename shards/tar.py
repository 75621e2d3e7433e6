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
from typing import NamedTuple

from shards.errors import DamagedData

BLOCK = 512
RECORD = 20 * BLOCK
_ZEROS = bytes(BLOCK)
# Long-name and pax headers hold a path and a few numbers; the rest is an attack on memory.
_LARGEST_EXTENSION = 64 * 1024
_LONGEST_NUMBER = 18  # digits; more than any file has bytes
# Archives are padded to their blocking factor: 10,240 bytes as a rule, more for tapes.
_LONGEST_END = 1 << 20
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
_OCTAL = re.compile(rb"[0-7]+")
_EXTENSIONS = (b"L", b"x", b"g")  # GNU long name, pax for the next member, pax for all
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


class _Extended(NamedTuple):
    """What extended headers say of the member that follows them."""

    name: bytes | None
    size: int | None


class _Header(NamedTuple):
    name: bytes
    size: int
    kind: bytes


def scan(descriptor: int, path: Path, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """Yield the regular files of the tar that lies in bytes [start, end) of an open file.

    `path` is used in messages alone. Directories are passed over. Raises DamagedData for what
    is no tar, is truncated or altered, and for any member that is not a plain file with a
    relative name inside the archive; what was yielded before is sound.
    """
    size = os.fstat(descriptor).st_size
    end = size if end is None else min(end, size)
    position = start
    extended = _Extended(None, None)
    while (block := _read_block(descriptor, path, position, end)) != _ZEROS:
        found = _parse(block, path, position)
        data = position + BLOCK
        if found.kind in _EXTENSIONS:
            extension = _read_extension(descriptor, path, data, found.size, end)
            extended = _parse_extension(found.kind, extension, extended, path, data)
            position = data + found.size + padding(found.size)
            continue
        length = found.size if extended.size is None else extended.size
        name = check_name(extended.name or found.name, path)
        extended = _Extended(None, None)
        position = data + length + padding(length)
        if _is_file(found.kind, name, path):
            if data + length > end:
                raise DamagedData(
                    f"{path}: member {name!r} needs bytes up to {data + length}, but its archive "
                    f"ends at {end}: it is truncated; fetch it again and run the same command"
                )
            yield Member(name, data, length)
    _check_end(descriptor, path, position, end)


def _check_end(descriptor: int, path: Path, position: int, end: int) -> None:
    """Refuse an archive that goes on after its end mark.

    A download whose file was allocated first and then filled in part has a hole of zeros,
    which looks like the end: what follows must be short and all zeros.
    """
    if end - position > _LONGEST_END or any(os.pread(descriptor, end - position, position)):
        raise DamagedData(
            f"{path} has zeros at byte {position} where a member or its end should be: "
            "a part of it is missing; fetch it again"
        )


def _read_block(descriptor: int, path: Path, position: int, end: int) -> bytes:
    block = os.pread(descriptor, BLOCK, position) if position + BLOCK <= end else b""
    if len(block) < BLOCK:
        raise DamagedData(
            f"{path} ends at byte {end} without an end-of-archive mark: "
            "it is truncated; fetch it again and run the same command"
        )
    return block


def _is_file(kind: bytes, name: str, path: Path) -> bool:
    """Whether a member is a regular file; a directory is not. All else is refused."""
    if kind in (b"0", b"\0") and name:
        return not name.endswith("/")
    if kind == b"5":
        return False
    raise DamagedData(
        f"{path}: member {name!r} is {_REFUSED_TYPES.get(kind, f'of unknown type {kind!r}')}; "
        "refused"
    )


def _parse(block: bytes, path: Path, position: int) -> _Header:
    """Check one header block's sum and take name, size and type out of it."""
    stored = _number(block[148:156])
    # adler32's low half is 1 + the sum of all bytes modulo 65521: the same check as adding
    # up 512 bytes in Python, at a hundredth of the time.
    found = (zlib.adler32(block) & 0xFFFF) - 1
    expected = None if stored is None else stored - 8 * 32 + sum(block[148:156])
    if expected is None or (found - expected) % 65521 != 0:
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
    return _Header(prefix + b"/" + name if prefix else name, length, block[156:157])


def _number(field: bytes) -> int | None:
    """A tar number: octal digits, or base 256 with the high bit set (GNU); None if neither."""
    if field[0] & 0x80:
        return None if field[0] & 0x40 else int.from_bytes(field, "big") & ~(0x80 << 8 * 11)
    text = field.strip(b" \0")
    if not text:
        return 0
    return int(text, 8) if _OCTAL.fullmatch(text) else None


def _read_extension(descriptor: int, path: Path, data: int, length: int, end: int) -> bytes:
    if length > _LARGEST_EXTENSION or data + length > end:
        raise DamagedData(f"{path}: an extended header at byte {data} claims {length} bytes")
    return os.pread(descriptor, length, data)


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


def header(name: str, size: int) -> bytes:
    """The USTAR header block of a regular file: mode 0444, owner 0:0, mtime 0, no owner names.

    `name` must be ASCII of at most 100 bytes and `size` below 8 GiB, USTAR's limits.
    """
    encoded = name.encode("ascii")
    assert 0 < len(encoded) <= 100, name
    assert 0 <= size < 1 << 33, size
    block = bytearray(BLOCK)
    block[: len(encoded)] = encoded
    block[100:108] = b"0000444\x00"
    block[108:124] = 2 * b"0000000\x00"  # owner and group
    block[124:136] = b"%011o\x00" % size
    block[136:148] = b"00000000000\x00"  # time
    block[148:156] = b" " * 8
    block[156:157] = b"0"
    block[257:265] = b"ustar\x0000"
    block[329:345] = 2 * b"0000000\x00"  # device numbers
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


def padding(size: int) -> int:
    """Zero bytes that follow a member of `size` bytes up to the next block."""
    return -size % BLOCK


def trailer(size: int) -> bytes:
    """What ends an archive whose members take `size` bytes: two zero blocks, up to a record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)
