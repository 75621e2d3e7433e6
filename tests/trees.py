"""What tests share: trees as dictionaries, tars in memory, open files, one call of extract."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prep.extraction.extract import Extracted, extract
from prep.extraction.extraction import Options
from shards.durable import RECORDS
from shards.progress import Silent

Tree = dict[str, bytes]


def run_extract(*paths: Path, out: Path, workers: int = 2, **options: Any) -> list[Extracted]:
    """Extract with the usual options."""
    return extract(paths, out, Options(**options), workers=workers, progress=Silent())


def tree(out: Path) -> Tree:
    """Every file's bytes by its relative path, temporary ones too; the hidden records left out."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and RECORDS not in path.parts
    }


def tar(members: Mapping[str, bytes], layout: int = tarfile.DEFAULT_FORMAT) -> bytes:
    """A tar as tarfile writes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def open_files(process: int | str = "self") -> list[Path]:
    """What a process's descriptors lead to; one it closes meanwhile is left out."""
    targets = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(descriptor.readlink())
    return targets


def nested(classes: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """A tar of class tars."""
    return tar({f"{wnid}.tar": tar(images) for wnid, images in classes.items()})
