"""Where the files of an archive go, and the parts in which they are extracted.

A part is what is read in one piece and recorded as done in one line: an inner tar of the training
archive, or a run of neighbouring members of any other. Parts are found while the archive is read,
so one pass over the disk is enough and what lies before a damaged place is not lost.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from prep.archives import (
    Archive,
    ArchiveImage,
    ClassTar,
    Form,
    class_images,
    class_tars,
    list_files,
    list_images,
)
from prep.ilsvrc import ArchiveKind
from prep.labels import ImageLabels
from shards.errors import DamagedData, UsageError
from shards.sample import LARGEST_IMAGE
from shards.tar import Bytes

# Bytes of a run: enough to read in one sweep of a disk's head, and little to do again.
_RUN: Final = 16 << 20


class Placed(NamedTuple):
    """A file of an archive and where it goes: a folder beneath OUT, and a name."""

    folder: str
    name: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of an archive, its bytes [start, end).

    `tar` is an inner tar whose headers are still to be read, `data` the contents of the files
    where the archive is compressed and cannot be read again.
    """

    start: int
    end: int
    tar: ClassTar | None = None
    files: tuple[Placed, ...] = ()
    data: tuple[bytes, ...] | None = None

    @property
    def name(self) -> str:
        """What the part is recorded by; unique in its archive."""
        return self.tar.wnid if self.tar else str(self.start)


@dataclass(frozen=True, kw_only=True)
class Placer:
    """Says where the images of an archive go: SPLIT/CLASS, or SPLIT alone for `flat` validation."""

    archive: Archive
    split: str | None
    flat: bool
    labels: Callable[[], ImageLabels]

    def folder_of(self, image: ArchiveImage) -> str:
        """The folder of an image beneath OUT. Raises UsageError where no split is known."""
        split = image.split or self.split
        if split is None:
            raise UsageError(
                f"{self.archive.path} does not say which split its images are; "
                "say it: --split train"
            )
        if self.archive.kind is ArchiveKind.TRAIN_DOGS:
            split = "train_t3"
        # Names in class folders may be the same in each.
        flat = self.flat and (self.archive.form is Form.FLAT_TAR or image.class_id is None)
        if (split == "val" and flat) or (split == "test" and image.class_id is None):
            return split
        return f"{split}/{image.class_id or self.labels().class_of(image.name)}"

    def folder_of_tar(self, tar: ClassTar) -> str:
        """The folder of an inner tar's images."""
        return self.folder_of(ArchiveImage("train", tar.wnid, "", 0, 0))


def list_parts(
    archive: Archive, source: Bytes, placer: Placer, ignored: list[str]
) -> Iterator[Part]:
    """The parts of an archive in its order; names of members left out go to `ignored`."""
    if archive.form is Form.NESTED and not archive.compressed:
        for tar in class_tars(source, archive.path):
            yield Part(start=tar.start, end=tar.start + tar.size, tar=tar)
        return
    placed = _placed(archive, source, placer, ignored)
    if not archive.compressed:
        for run in _runs((each, b"") for each in placed):
            yield _run_part([each for each, _ in run], None)
        return
    for run in _runs((each, _contents(source, each, archive)) for each in placed):
        yield _run_part([each for each, _ in run], tuple(data for _, data in run))


def _run_part(files: list[Placed], data: tuple[bytes, ...] | None) -> Part:
    end = files[-1].offset + files[-1].size
    return Part(start=files[0].offset, end=end, files=tuple(files), data=data)


def _runs(files: Iterable[tuple[Placed, bytes]]) -> Iterator[list[tuple[Placed, bytes]]]:
    """Neighbours together until they are large enough to be a part."""
    run: list[tuple[Placed, bytes]] = []
    size = 0
    try:
        for each in files:
            run.append(each)
            size += each[0].size
            if size >= _RUN:
                yield run
                run, size = [], 0
    except DamagedData:
        # What came before the damage is a part of its own.
        if run:
            yield run
        raise
    if run:
        yield run


def _placed(
    archive: Archive, source: Bytes, placer: Placer, ignored: list[str]
) -> Iterator[Placed]:
    if archive.form is not Form.NO_IMAGES:
        for image in list_images(archive, source, ignored):
            yield _bounded(archive, Placed(placer.folder_of(image), *image[2:]))
        return
    root = {ArchiveKind.TRAIN_BOXES: "annotations/train", ArchiveKind.DEVKIT: ""}
    for member in list_files(archive, source):
        folder, name = posixpath.split(member.name)
        above = root.get(archive.kind, "annotations") if archive.kind else ""
        folder = posixpath.join(above, folder)
        yield _bounded(archive, Placed(folder, name, member.offset, member.size))


def _bounded(archive: Archive, placed: Placed) -> Placed:
    """Pass on what is no larger than a file that is read into memory may be."""
    if placed.size > LARGEST_IMAGE:
        raise DamagedData(
            f"{archive.path}: member {placed.name!r} claims {placed.size} bytes "
            f"(at most {LARGEST_IMAGE})"
        )
    return placed


def _contents(source: Bytes, placed: Placed, archive: Archive) -> bytes:
    """The bytes of a file in a compressed archive."""
    data = source.read_at(placed.offset, placed.size)
    if len(data) < placed.size:
        raise DamagedData(
            f"{archive.path} ends inside member {placed.name!r}: it is truncated; "
            "fetch it again and run the same command"
        )
    return data


def files_of(part: Part, source: Bytes, placer: Placer) -> Iterable[Placed]:
    """The files of a part; an inner tar's headers are read as they are wanted."""
    if part.tar is None:
        return part.files
    folder = placer.folder_of_tar(part.tar)
    found = class_images(source, placer.archive.path, part.tar)
    return (_bounded(placer.archive, Placed(folder, *member)) for member in found)
