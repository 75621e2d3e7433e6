"""The image archives of ILSVRC2012, told apart by what is in them and read in place.

The training archive is a tar of 1000 tars. All are uncompressed, so every image is a place in
the outer file: nothing is unpacked to be found, and nothing is copied to be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prep.ilsvrc import ArchiveKind
from shards.errors import DamagedData, ToolError
from shards.tar import Member, scan

_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class ClassTar:
    """One inner tar of the training archive: its class, and where it lies in the outer file."""

    wnid: str
    start: int
    size: int


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A read-only descriptor of `path`, closed at the end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def recognise(path: Path) -> ArchiveKind:
    """Tell which archive `path` is by its first member.

    Raises ToolError for a missing or empty file, DamagedData for what is none of ILSVRC2012's.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist; give the path of an archive or folder") from None
    if size == 0:
        raise DamagedData(f"{path} is empty; fetch it again")
    with opened(path) as descriptor:
        if os.pread(descriptor, 2, 0) == _GZIP:
            return ArchiveKind.DEVKIT
        first = next(scan(descriptor, path), None)
    name = "" if first is None else first.name
    if _CLASS_TAR.fullmatch(name):
        return ArchiveKind.TRAIN
    if name.startswith("ILSVRC2012_val_"):
        return ArchiveKind.VALIDATION
    if name.removeprefix("test/").startswith("ILSVRC2012_test_"):
        return ArchiveKind.TEST
    raise DamagedData(
        f"{path} begins with {name!r}: it is neither ILSVRC2012's training archive (a tar of "
        "nXXXXXXXX.tar), nor its validation or test archive (ILSVRC2012_val_*, ILSVRC2012_test_*)"
    )


def class_tars(descriptor: int, path: Path) -> list[ClassTar]:
    """The inner tars of an open training archive, in the archive's order."""
    found: dict[str, ClassTar] = {}
    for member in scan(descriptor, path):
        match = _CLASS_TAR.fullmatch(member.name)
        if match is None:
            raise DamagedData(f"{path}: member {member.name!r} is no class archive nXXXXXXXX.tar")
        wnid = match[1]
        if wnid in found:
            raise DamagedData(f"{path}: member {member.name!r} is there twice; refused")
        found[wnid] = ClassTar(wnid=wnid, start=member.offset, size=member.size)
    return list(found.values())


def class_images(descriptor: int, path: Path, tar: ClassTar) -> Iterator[Member]:
    """The images of one inner tar; their places are in the outer file."""
    inside = Path(f"{path}:{tar.wnid}.tar")
    return _flat(scan(descriptor, inside, tar.start, tar.start + tar.size), inside)


def flat_images(descriptor: int, path: Path) -> Iterator[Member]:
    """The images of the validation or test archive, in the archive's order."""
    members = scan(descriptor, path)
    return _flat((each._replace(name=each.name.removeprefix("test/")) for each in members), path)


def _flat(members: Iterator[Member], path: Path) -> Iterator[Member]:
    """Pass on members that are plain file names and all different."""
    seen: set[str] = set()
    for member in members:
        if "/" in member.name:
            raise DamagedData(f"{path}: member {member.name!r} lies in a folder; refused")
        if member.name in seen:
            raise DamagedData(f"{path}: member {member.name!r} is there twice; refused")
        seen.add(member.name)
        yield member
