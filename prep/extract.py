"""Archives become class folders: in parallel, resumable, every image whole or absent.

Inner tars are read in place, so the peak on disk is the archive and the images. Validation
images go straight into their class folders. Images are written under temporary names and
renamed; they are made durable in bulk, by one syncfs before their part is recorded as done,
since an fsync for each of 1.28 million files would take hours.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from prep.archives import ClassTar, class_images, class_tars, flat_images, opened
from prep.ilsvrc import ArchiveKind
from prep.labels import find_labels
from prep.sources import Source
from shards.durable import (
    RECORDS,
    TEMPORARY_PREFIX,
    folder_lock,
    named,
    remove_leftovers,
    sync_file_system,
)
from shards.errors import ToolError, UsageError
from shards.parallel import Stop, run_jobs
from shards.progress import Progress
from shards.reader import Reader
from shards.sample import Layout
from shards.tar import Member

_SYNC_SECONDS = 5.0  # between bulk syncs: what a power cut can cost
_BLOCK = 4096  # bytes a small file takes at least; for the estimate of the space needed


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What was extracted of one archive."""

    split: str
    folder: Path
    images: int
    bytes: int
    images_done_before: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one folder gets from an archive: an inner tar, or the members of one class."""

    folder: str  # beneath OUT/<split>; "" for the split's folder itself
    tar: ClassTar | None
    members: tuple[Member, ...]  # empty where `tar` is to be read
    bytes: int


@dataclass(frozen=True, kw_only=True)
class _Done:
    """The record of a finished part: how many images it has and the digest of their names."""

    archive: str
    folder: str
    images: int
    bytes: int
    names: int


def extract(
    sources: Sequence[Source],
    out: Path,
    *,
    labels: Path | None,
    flat: bool,
    workers: int,
    progress: Progress,
) -> list[Extracted]:
    """Extract archives into OUT/train/WNID/, OUT/val/WNID/ (`flat`: OUT/val/) and OUT/test/.

    The same call completes a killed one and changes nothing in a finished one. Raises
    ToolError where the space does not suffice, DamagedData for archives that are truncated or
    hostile; what was whole before stays.
    """
    for source in sources:
        if source.kind is None:
            raise UsageError(f"{source.path} is a folder of images, no archive to extract")
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        return [
            _extract(
                source, _list_parts(source, labels, progress, flat=flat), out, workers, progress
            )
            for source in sources
        ]


def _extract(
    source: Source, parts: list[_Part], out: Path, workers: int, progress: Progress
) -> Extracted:
    started = time.perf_counter()
    identity = _identify(parts)
    folder = out / source.split
    journal = _Journal(out, out / RECORDS / f"extract-{source.split}.jsonl")
    done = journal.read(identity)
    if journal.others(identity):
        raise ToolError(
            f"{folder} was extracted from another archive, or with other labels; "
            "remove it or choose another --out"
        )
    whole = {part.folder for part in parts if _is_whole(folder, part, done.get(part.folder))}
    missing = [part for part in parts if part.folder not in whole]
    _check_space(out, missing)
    progress.start(f"extracting {source.path.name}", sum(part.bytes for part in missing), "bytes")
    with Reader(Layout.TAR, [source.path]) as reader, opened(source.path) as descriptor:
        writer = _PartWriter(source.path, descriptor, reader, progress)

        def work(part: _Part, stop: Stop) -> _Done:
            written = writer.write(part, folder / part.folder, stop)
            return _Done(archive=identity, folder=part.folder, **written)

        journal.record(run_jobs(work, missing, workers))
    finished = journal.read(identity)
    return Extracted(
        split=source.split,
        folder=folder,
        images=sum(each.images for each in finished.values()),
        bytes=sum(each.bytes for each in finished.values()),
        images_done_before=sum(done[name].images for name in whole),
        seconds=time.perf_counter() - started,
    )


def _list_parts(
    source: Source, labels: Path | None, progress: Progress, *, flat: bool
) -> list[_Part]:
    path = source.path
    with opened(path) as descriptor:
        if source.kind is ArchiveKind.TRAIN:
            return [
                _Part(folder=tar.wnid, tar=tar, members=(), bytes=tar.size)
                for tar in class_tars(descriptor, path)
            ]
        by_folder: dict[str, list[Member]] = defaultdict(list)
        known = None
        if source.kind is ArchiveKind.VALIDATION and not flat:
            known = find_labels(path, labels, progress)
        for member in flat_images(descriptor, path):
            by_folder["" if known is None else known.class_of(member.name)].append(member)
    return [
        _Part(
            folder=folder,
            tar=None,
            members=tuple(members),
            bytes=sum(member.size for member in members),
        )
        for folder, members in sorted(by_folder.items())
    ]


def _identify(parts: Iterable[_Part]) -> str:
    """A digest of an archive's table of contents and of where its images go."""
    digest = xxhash.xxh3_128()
    for part in parts:
        places = [(part.tar.start, part.tar.size)] if part.tar else map(tuple, part.members)
        digest.update(repr((part.folder, *places)).encode())
    return digest.hexdigest()


def _is_whole(root: Path, part: _Part, done: _Done | None) -> bool:
    """Whether a recorded part is still there: by the names in its folder, not their bytes."""
    folder = root / part.folder
    if done is None or not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    if part.members:
        names &= {member.name for member in part.members}
    return (len(names), _digest_names(names)) == (done.images, done.names)


def _digest_names(names: Iterable[str]) -> int:
    """A digest of a set of names that does not depend on their order."""
    return sum(xxhash.xxh3_64_intdigest(name.encode()) for name in names) % (1 << 64)


def _check_space(out: Path, parts: Iterable[_Part]) -> None:
    needed = sum(part.bytes + _BLOCK * len(part.members) for part in parts)
    status = os.statvfs(out)
    free = status.f_bavail * status.f_frsize
    if needed > free:
        raise ToolError(
            f"{out} has {free / 1e9:.1f} GB free and the extraction needs {needed / 1e9:.1f} GB; "
            "make room, or write shards straight from the archives with `imagenet-prep shard`"
        )


class _PartWriter:
    """Writes the images of parts of one archive; used by several threads."""

    def __init__(self, path: Path, descriptor: int, reader: Reader, progress: Progress) -> None:
        self._path = path
        self._descriptor = descriptor
        self._reader = reader
        self._progress = progress

    def write(self, part: _Part, folder: Path, stop: Stop) -> dict[str, int]:
        """Write a part's images into `folder`; their number, bytes and digest of names."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        names: list[str] = []
        total = 0
        buffer = bytearray(1 << 20)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for member in self._members(part):
                stop.check()
                if member.size > len(buffer):
                    buffer = bytearray(member.size)
                view = memoryview(buffer)[: member.size]
                self._reader.read_into(view, 0, "", member.offset)
                try:
                    _write_image(descriptor, member.name, view)
                except OSError as error:  # it knows the temporary name alone
                    error.filename = str(folder / member.name)
                    raise
                names.append(member.name)
                total += member.size
                self._progress.advance(member.size)
        finally:
            os.close(descriptor)
        return {"images": len(names), "bytes": total, "names": _digest_names(names)}

    def _members(self, part: _Part) -> Iterable[Member]:
        if part.tar is None:
            return part.members
        return class_images(self._descriptor, self._path, part.tar)


def _write_image(folder: int, name: str, data: memoryview) -> None:
    """Write an image whole or not at all, replacing what is there."""
    temporary = f"{TEMPORARY_PREFIX}{xxhash.xxh3_64_hexdigest(name.encode())}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644, dir_fd=folder)
    try:
        try:
            done = 0
            while done < len(data):
                done += os.write(descriptor, data[done:])
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise


class _Journal:
    """The finished parts of an extraction, one JSON object a line, in the hidden folder.

    A line is written after a sync of the file system, so what it says survives a power cut. A
    torn last line, which a kill can leave, is passed over.
    """

    def __init__(self, out: Path, path: Path) -> None:
        self._out = out
        self._path = path

    def read(self, identity: str) -> dict[str, _Done]:
        """Finished parts of the archive `identity` by folder; the last record counts."""
        return {done.folder: done for done in self._lines() if done.archive == identity}

    def others(self, identity: str) -> bool:
        """Whether parts of another archive were extracted here."""
        return any(done.archive != identity for done in self._lines())

    def _lines(self) -> Iterator[_Done]:
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            try:
                yield _Done(**json.loads(line))
            except (ValueError, TypeError):
                continue

    def record(self, results: Iterator[_Done]) -> None:
        """Take finished parts and record them in bulk, also when the work ends by an error."""
        waiting: list[_Done] = []
        synced = time.monotonic()
        try:
            for done in results:
                waiting.append(done)
                if time.monotonic() - synced > _SYNC_SECONDS:
                    self._append(waiting)
                    waiting, synced = [], time.monotonic()
        finally:
            self._append(waiting)

    def _append(self, parts: list[_Done]) -> None:
        if not parts:
            return
        sync_file_system(self._out)
        lines = "".join(json.dumps(asdict(part)) + "\n" for part in parts)
        with named(self._path), self._path.open("a") as file:
            file.write(("\n" if file.tell() else "") + lines)
            file.flush()
            os.fsync(file.fileno())
