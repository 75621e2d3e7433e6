"""What an extraction would do: files, bytes and inodes, by headers and names alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from prep.extraction.extraction import Extraction
from prep.extraction.journal import Filled


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What an extraction of one archive would do.

    `missing` is what is not there yet, `inodes` what that takes with its folders.
    """

    archive: Path
    folders: tuple[str, ...]
    files: int
    bytes: int
    missing: Filled
    inodes: int


def plan_archive(work: Extraction, out: Path) -> Planned:
    """Look ahead at one archive. Its damaged places are in `work.failures`."""
    folders: set[str] = set()
    total, missing = [0, 0], [0, 0]
    for placed, lacks in work.files():
        folders.add(placed.folder)
        for count in (total, missing) if lacks else (total,):
            count[0] += 1
            count[1] += placed.size
    above = {str(each) for folder in folders for each in PurePath(folder).parents} - {"."}
    new = sum(not (out / folder).is_dir() for folder in folders | above)
    return Planned(
        archive=work.archive.path,
        folders=tuple(sorted({folder.partition("/")[0] for folder in folders})),
        files=total[0],
        bytes=total[1],
        missing=Filled(files=missing[0], bytes=missing[1]),
        inodes=missing[0] + new,
    )
