"""Compressed archives made readable in place: inflated once, beside the shards that come of them.

Shards need any image at any time, and a compressed tar can be read front to back only. So it is
inflated in one pass into the hidden folder of the output, and removed when the shards are whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from prep.archives import Form
from prep.inflate import Inflated
from prep.sources import Source, find_sources
from shards.durable import RECORDS, atomic_file, folder_lock, remove_leftovers
from shards.parallel import Stop, run_jobs
from shards.progress import Progress

_CHUNK: Final = 4 << 20


@contextlib.contextmanager
def readable_in_place(
    paths: Sequence[Path], split: str | None, out: Path, *, workers: int, progress: Progress
) -> Iterator[list[Source]]:
    """The sources at the paths, compressed ones inflated beneath `out` for the time of the block.

    The same call goes on with the archives that a killed one had inflated. They are removed when
    the block ends without an error. Raises ToolError and its kinds as `find_sources` does.
    """
    sources = find_sources(paths, split)
    packed = list(dict.fromkeys(each.path for each in sources if each.form is Form.COMPRESSED))
    if not packed:
        yield sources
        return
    folder = out / RECORDS / "inflated"
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        remove_leftovers(folder)
        progress.start("inflating", sum(path.stat().st_size for path in packed), "bytes")

        def inflate(path: Path, stop: Stop) -> Path:
            return _inflate(path, _target(folder, path), stop, progress)

        inflated = find_sources(run_jobs(inflate, packed, workers), split)
        yield [each for each in sources if each.form is not Form.COMPRESSED] + inflated
        shutil.rmtree(folder)


def _target(folder: Path, path: Path) -> Path:
    """Where an archive inflates to; its size and time are in the name, so a new one is another."""
    status = path.stat()
    return folder / f"{path.name}-{status.st_size}-{status.st_mtime_ns}.tar"


def _inflate(path: Path, target: Path, stop: Stop, progress: Progress) -> Path:
    if target.exists():
        return target
    with contextlib.closing(Inflated(path)) as source, atomic_file(target) as file:
        position = packed = 0
        while data := source.read_at(position, _CHUNK):
            stop.check()
            file.write(data)
            position += len(data)
            progress.advance(source.packed - packed)
            packed = source.packed
    return target
