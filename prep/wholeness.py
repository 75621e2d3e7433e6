"""What the size, the holes and the last bytes of an archive say before it is read.

A download that was cut off ends in the middle of something; one whose room was reserved first has
the right size and holes. Both are told in a moment, where the MD5 of 148 GB takes minutes.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from shards.tar import BLOCK

_LONGEST_HOLE: Final = 1 << 20  # bytes; copies that skip zeros have holes where a tar is padded
_PIECES: Final = 4096  # of a file between its holes that are looked at


def why_unfinished(path: Path, *, is_tar: bool) -> str:
    """Why a file cannot be a whole archive; "" if nothing shows. Milliseconds at any size."""
    size = path.stat().st_size
    control = path.with_name(f"{path.name}.aria2")
    if control.exists():
        return f"{control.name} lies beside it, so aria2 has not finished"
    with path.open("rb") as file:
        hole = _first_hole(file.fileno(), size)
        if hole is not None:
            return f"its bytes {hole[0]:,} to {hole[1]:,} were never written"
        if is_tar and not _ends_as_tar(file.fileno(), size):
            return "it ends without a tar's end mark"
    return ""


def _first_hole(descriptor: int, size: int) -> tuple[int, int] | None:
    """The first part of a file that takes no room on disk and is too long for a tar's padding."""
    position = 0
    for _ in range(_PIECES):
        hole = os.lseek(descriptor, position, os.SEEK_HOLE) if position < size else size
        if hole >= size:
            return None
        try:
            position = os.lseek(descriptor, hole, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            position = size  # no data up to the end
        if position - hole > _LONGEST_HOLE:
            return hole, position
    return None


def _ends_as_tar(descriptor: int, size: int) -> bool:
    """Whether the two blocks of zeros are there that end a tar, and the file ends with a block."""
    if size % BLOCK or size < 2 * BLOCK:
        return False
    return not any(os.pread(descriptor, 2 * BLOCK, size - 2 * BLOCK))
