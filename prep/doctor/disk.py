"""A disk as it is: file system, room left, and how fast it reads, writes and makes files.

The rates are measured in about a second and a half on the folder itself, because no table knows
what a given disk, array or server does. They are those of a moment: caches of the disk and
other users of it make them estimates.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.durable import TEMPORARY_PREFIX, named

_MEASURED_BYTES: Final = 256 << 20  # less tells more of the disk's own cache than of it
_MEASURED_FILES: Final = 500
_WRITE: Final = 8 << 20  # bytes a sync: a slow disk is given up after one
_READ: Final = 1 << 20
_SECONDS: Final = 0.5  # for each of reading, writing and making files; the last step may exceed it
_OCTAL = re.compile(r"\\([0-7]{3})")  # how /proc/mounts writes blanks in names


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system that holds a path, and what it has left for this user."""

    kind: str  # ext4, nfs4, ...; "unknown" where /proc does not say
    mount: Path
    writable: bool
    free_bytes: int
    free_inodes: int | None  # None where the file system makes them as it needs them
    block: int  # bytes that files are rounded up to


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured on a folder, a single thread at a time."""

    read: float  # bytes a second, past the page cache
    write: float  # bytes a second, synced
    create: float  # small files a second, written under another name and renamed
    hash: float  # bytes of SHA-256 a second


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def disk_of(path: Path) -> Disk:
    """The file system of `path`, or of where it would be made."""
    place = existing(path)
    status = os.statvfs(place)
    kind, mount = _mount_of(Path(os.path.realpath(place)))
    return Disk(
        kind=kind,
        mount=mount,
        writable=os.access(place, os.W_OK | os.X_OK),
        free_bytes=status.f_bavail * status.f_frsize,
        free_inodes=status.f_favail if status.f_files else None,
        block=status.f_frsize,
    )


def _mount_of(place: Path) -> tuple[str, Path]:
    """Type and mount point of the file system that a real path lies in."""
    found = ("unknown", Path("/"))
    for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines():
        _, point, kind = line.split(" ")[:3]
        mount = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), point))
        # What is mounted later on the same place covers what was there before.
        if place.is_relative_to(mount) and len(mount.parts) >= len(found[1].parts):
            found = (kind, mount)
    return found


def measure(folder: Path, archive: Path | None) -> Rates:
    """Read, write and make files in `folder` for about 1.5 s; nothing is left behind.

    Reading is measured in the middle of `archive` where there is one that is large enough.
    Raises OSError where the folder cannot be written to or is full.
    """
    # Random bytes: file systems that compress would take zeros for nothing.
    data = os.urandom(_WRITE)
    with named(folder), tempfile.TemporaryFile(dir=folder) as file:
        write = _write_rate(file.fileno(), data)
        read = _read_rate(file.fileno())
    if archive is not None and archive.stat().st_size >= _MEASURED_BYTES:
        with named(archive), archive.open("rb") as source:
            read = _read_rate(source.fileno())
    started = time.perf_counter()
    hashlib.sha256(data).digest()
    hashed = len(data) / (time.perf_counter() - started)
    return Rates(read=read, write=write, create=_create_rate(folder), hash=hashed)


def _write_rate(descriptor: int, data: bytes) -> float:
    done, started = 0, time.perf_counter()
    while done < _MEASURED_BYTES and time.perf_counter() - started < _SECONDS:
        done += os.write(descriptor, data)
        os.fdatasync(descriptor)
    return done / (time.perf_counter() - started)


def _read_rate(descriptor: int) -> float:
    """Bytes a second of the middle of a file, which is dropped from the page cache before."""
    size = os.fstat(descriptor).st_size
    begin = max(0, (size - _MEASURED_BYTES) // 2)
    end = min(size, begin + _MEASURED_BYTES)
    os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)
    position, started = begin, time.perf_counter()
    while position < end and time.perf_counter() - started < _SECONDS:
        position += len(os.pread(descriptor, min(_READ, end - position), position))
    return (position - begin) / (time.perf_counter() - started)


def _create_rate(folder: Path) -> float:
    """Files a second, made as extraction makes them: under another name, then renamed."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as name:
        place, number, started = Path(name), 0, time.perf_counter()
        while number < _MEASURED_FILES and time.perf_counter() - started < _SECONDS:
            temporary = place / f"{TEMPORARY_PREFIX}{number}"
            temporary.write_bytes(b"x" * 512)
            temporary.rename(place / f"{number}")
            number += 1
        return number / (time.perf_counter() - started)
