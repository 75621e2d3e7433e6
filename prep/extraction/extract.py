"""Archives become folders: in parallel, resumable, every file whole or absent.

Inner tars are read in place and validation images go straight into their class folders, so the
peak on disk is the archive and the images. Files are written under temporary names and renamed,
and made durable in bulk before their part of the archive is recorded as done. All archives are
worked on side by side, part by part (extraction.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prep.extraction.extraction import Extraction, Job, Options
from prep.extraction.journal import Done, Journal
from prep.extraction.plan import Planned, plan_archive
from prep.sources import find_archives
from shards.durable import folder_lock
from shards.errors import DamagedData, ToolError, UsageError
from shards.parallel import run_jobs
from shards.progress import Progress

_NAMED_FAILURES: Final = 5


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What came out of one archive; `written` of the `files` were not there before."""

    archive: Path
    folders: tuple[str, ...]
    files: int
    bytes: int
    written: int
    md5: str | None
    removed: bool


def extract(
    paths: Sequence[Path], out: Path, options: Options, *, workers: int, progress: Progress
) -> list[Extracted]:
    """Extract archives into OUT/train/WNID/, OUT/val/WNID/, OUT/test/ and so on.

    The same call completes a killed one and changes nothing in a finished one. Raises ToolError
    where the space does not suffice or another archive was extracted there, DamagedData for
    archives that are truncated or hostile; what was whole before stays.
    """
    archives = find_archives(paths, Journal(out).removed())
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out), contextlib.ExitStack() as stack:
        journal = Journal(out)
        removed = {path: done for path, done in journal.removed().items() if not path.exists()}
        works = [
            stack.enter_context(Extraction(archive, out, options, journal, progress))
            for archive in archives
        ]
        _refuse_doubles(works)
        missing = [work for work in works if not work.is_whole()]
        needed = sum(work.missing_bytes() for work in missing)
        _check_space(out, missing)
        progress.start(f"extracting to {out}", needed, "bytes")
        try:
            _run((job for work in missing for job in work.jobs()), workers)
            _raise_failures(missing)
            for work in missing:
                work.finish()
            if options.remove_archives:
                _remove(works, workers, progress)
            results = [_result(work.archive.path, work.result(), work.written()) for work in works]
        finally:
            journal.flush()
        given = {path.absolute() for path in paths}
        return results + [
            _result(path, done, 0)
            for path, done in removed.items()
            if path in given or path.parent in given
        ]


def plan(paths: Sequence[Path], out: Path, options: Options, progress: Progress) -> list[Planned]:
    """What `extract` would do; every header is read and nothing is written."""
    journal = Journal(out)
    archives = find_archives(paths, journal.removed())
    works = [Extraction(archive, out, options, journal, progress) for archive in archives]
    _refuse_doubles(works)
    planned = []
    for work in works:
        progress.start(f"listing {work.archive.path.name}", work.size, "bytes")
        planned.append(plan_archive(work, out))
        _raise_failures([work])
    return planned


def _run(jobs: Iterable[Job], workers: int) -> None:
    for _ in run_jobs(lambda job, stop: job(stop), jobs, workers):
        pass


def _refuse_doubles(works: Sequence[Extraction]) -> None:
    """Refuse two archives of which each would fill the same place."""
    seen: dict[str, Path] = {}
    for work in works:
        for place in {work.key, work.group} - {""}:
            other = seen.setdefault(place, work.archive.path)
            if other != work.archive.path:
                raise UsageError(
                    f"both {other} and {work.archive.path} hold the same, or all that "
                    f"{work.group or 'a split'}/ may hold; give one of them"
                )


def _check_space(out: Path, works: Iterable[Extraction]) -> None:
    """Refuse what cannot fit: an archive's images take about its own size.

    Of an archive that was begun, files may be there that no record says anything of.
    """
    needed: dict[int, int] = {}
    for work in works:
        place = out / work.group if (out / work.group).is_dir() else out  # maybe on another disk
        device = place.stat().st_dev
        needed[device] = needed.get(device, 0) + (0 if work.begun() else work.size)
        status = os.statvfs(place)
        free = status.f_bavail * status.f_frsize
        if needed[device] > free:
            raise ToolError(
                f"{place} has {free / 1e9:.1f} GB free and the extraction needs "
                f"{needed[device] / 1e9:.1f} GB; make room, or write shards straight from the "
                "archives with `imagenet-prep shard`"
            )


def _remove(works: Sequence[Extraction], workers: int, progress: Progress) -> None:
    """Remove archives when every byte that came out of them was compared with them."""
    progress.start("reading back", sum(work.size for work in works), "bytes")
    _run((job for work in works for job in work.jobs_to_compare()), workers)
    _raise_failures(works)
    for work in works:
        work.remove()


def _raise_failures(works: Sequence[Extraction]) -> None:
    """Raise one error that names the damaged places, or nothing."""
    failures = list(dict.fromkeys(str(each) for work in works for each in work.failures))
    if not failures:
        return
    kept = sum(work.kept() for work in works)
    more = len(failures) - _NAMED_FAILURES
    if more > 0:
        failures = [*failures[:_NAMED_FAILURES], f"and {more} more damaged places"]
    if kept:
        failures.append(f"{kept:,} files that were whole are extracted and stay")
    raise DamagedData("; ".join(failures))


def _result(path: Path, done: Done, written: int) -> Extracted:
    total = done.total
    return Extracted(
        archive=path,
        folders=tuple(sorted({folder.partition("/")[0] for folder in done.folders})),
        files=total.files,
        bytes=total.bytes,
        written=written,
        md5=done.md5,
        removed=done.removed is not None and not path.exists(),
    )
