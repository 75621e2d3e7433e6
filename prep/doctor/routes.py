"""The ways from what is there to data that can be trained on: room, time, and the commands.

Sizes follow from the archives' own; where an archive is not ILSVRC2012's, the number of its
images is estimated from its first ones. Times follow from rates measured on the disk, reading
and writing one after the other, as a single disk does them. Not in them is what finding the images
takes, for shards and an index alike: the header of each is read by itself, and how long a disk
needs from one to the next was not measured.
"""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from prep.archives import archive_bytes, list_images, recognise
from prep.doctor.disk import Disk, Rates
from prep.doctor.holdings import HeldArchive, Holdings, State, Tree
from prep.ilsvrc import ARCHIVES, CLASSES, TRAIN_IMAGES, VALIDATION_IMAGES, ArchiveKind
from shards.errors import DamagedData
from shards.tar import BLOCK, padding

_FRAME: Final = BLOCK + BLOCK // 2  # bytes of a member's header, and of its padding on average
_LABEL: Final = 2 * BLOCK  # bytes of the member KEY.cls
_INDEX: Final = 80  # bytes of an image in index.safetensors
_IDX: Final = 80  # in the .idx of its shard
_RECORD: Final = 60  # bytes of an image in what was read of a tar, until its split is written
_INDEXED: Final = 62_000  # images a second: 1,331,167 tiny ones in 21 s, warm or cold, on 2 cores
_SHARD: Final = 1000  # images
# Files of a split besides its shards: the folder, index, manifest and sums, and the folder, the
# lock, the folder and the plan of the records.
_BESIDE_SHARDS: Final = 8
_BESIDE_SPLITS: Final = 2  # the folder of all, and _info.json
_EACH_SHARD: Final = 2  # a tar and its .idx
_LINKED: Final = 10  # files of an indexed split: the first four, its link, and records of the run
_MEMBERS: Final = 64  # of an archive that its number of images is estimated from
DOWNLOADS: Final = "https://image-net.org/download-images"
NEEDED: Final = {"train": ArchiveKind.TRAIN, "val": ArchiveKind.VALIDATION}  # for training
_ELSEWHERE: Final = "DIR-ON-ANOTHER-DISK"
_COUNTS: Final = {ArchiveKind.TRAIN: TRAIN_IMAGES, ArchiveKind.VALIDATION: VALIDATION_IMAGES}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What an archive holds: images, their bytes, and the bytes of the archive itself."""

    images: int
    image_bytes: int
    archive_bytes: int


@dataclass(frozen=True, kw_only=True)
class Route:
    """What a way takes beside the archives, at its peak, and the command that goes it.

    `seconds` is None where nothing was measured; `headers` are read one by one besides.
    """

    name: str
    bytes: int
    inodes: int
    seconds: float | None
    headers: int
    command: str


def published_load(kind: ArchiveKind) -> Load:
    """What the published training or validation archive holds."""
    size = next(each.bytes for each in ARCHIVES if each.kind is kind)
    assert size is not None, kind
    images = _COUNTS[kind]
    return Load(images=images, image_bytes=size - images * _FRAME, archive_bytes=size)


def load_of(archive: HeldArchive) -> Load:
    """What an archive holds, exactly for the published ones and estimated for others."""
    if archive.state is State.PUBLISHED and archive.kind in _COUNTS:
        return published_load(archive.kind)
    sizes: list[int] = []
    found = recognise(archive.path)
    with contextlib.suppress(DamagedData), archive_bytes(archive.path) as source:
        sizes += (image.size for image in islice(list_images(found, source, []), _MEMBERS))
    framed = sum(BLOCK + size + padding(size) for size in sizes)
    images = round(archive.bytes * len(sizes) / max(1, framed))
    return Load(
        images=images,
        image_bytes=round(images * sum(sizes) / max(1, len(sizes))),
        archive_bytes=archive.bytes,
    )


class Plan:
    """Which splits are still to be sharded, from what, and into which folder."""

    def __init__(self, path: Path, holdings: Holdings) -> None:
        self._path = path
        self._holdings = holdings
        finished = [each for each in holdings.shards if each.finished and not each.damage]
        roots = [each.path.parent for each in (*finished, *holdings.shards)]
        whole = [root for root in roots if self._done(root) >= set(NEEDED)]
        self.root = next(iter([*whole, *roots]), path / "shards")
        self._held = [each for each in holdings.shards if each.path.parent == self.root]
        self._linked = any(each.linked for each in self._held)
        done = self._done(self.root)
        self.wanted = [split for split in NEEDED if split not in done]

    def _done(self, root: Path) -> set[str]:
        return {
            each.split
            for each in self._holdings.shards
            if each.path.parent == root and each.finished and not each.damage
        }

    def source(self, split: str) -> HeldArchive | Tree | None:
        """What a split can be sharded from: the published archive first, then others, folders."""
        archives = [each for each in self._holdings.archives if each.usable and each.split == split]
        if archives:
            return min(archives, key=lambda each: each.state is not State.PUBLISHED)
        return next((each for each in self._holdings.trees if each.split == split), None)

    def sources(self) -> list[HeldArchive | Tree]:
        """The sources of the splits that are still to be sharded and have one."""
        found = [self.source(split) for split in self.wanted]
        return [each for each in found if each is not None]

    def missing(self) -> list[str]:
        """The splits that are in no form here."""
        return [split for split in self._unsourced() if split not in self._lost()]

    def _unsourced(self) -> list[str]:
        return [split for split in self.wanted if self.source(split) is None]

    def _lost(self) -> list[str]:
        """The splits whose tars were indexed, and lie where nothing here tells."""
        linked = {each.split for each in self._held if each.linked}
        return [split for split in self._unsourced() if split in linked]

    def archive(self) -> Path | None:
        """The largest archive that is to be read, to measure reading with."""
        archives = [each for each in self.sources() if isinstance(each, HeldArchive)]
        return max(archives, key=lambda each: each.bytes).path if archives else None

    def routes(self, disk: Disk, rates: Rates | None, cores: int) -> list[Route]:
        """What each way to the wanted splits takes; none where nobody can say."""
        sources = [self.source(split) for split in self.wanted]
        folders = [each for each in sources if isinstance(each, Tree)]
        if not sources or self._lost() or any(each.classes != CLASSES for each in folders):
            return []
        loads = [
            load_of(source) if isinstance(source, HeldArchive) else published_load(NEEDED[split])
            for split, source in zip(self.wanted, sources, strict=True)
        ]
        places = [
            self._path / archive_name(split) if source is None else source.path
            for split, source in zip(self.wanted, sources, strict=True)
        ]
        shard = _command("shard", places, self.root)
        # How fast images are read from their own files was not measured.
        if folders:
            return [_shards(loads, None, cores, shard)]
        out = self.root if self._linked else self._path / "index"
        index = _index(loads, rates, _command("index", places, out))
        if self._linked:
            return [index]
        routes = [_shards(loads, rates, cores, shard)]
        if not self._held:  # else it would be an index of what the shards lack, in a folder apart
            routes.append(index)
        if not {each.split for each in self._holdings.trees} >= set(self.wanted):
            extract = _command("extract", places, self._path)
            routes.append(_class_folders(loads, disk, rates, extract))
        return routes

    def needs(self, route: Route) -> int:
        """Bytes that must be free for a route: with archives to be fetched, less what is there."""
        kinds = {NEEDED[split] for split in self.missing()}
        there = sum(each.bytes for each in self._holdings.archives if each.kind in kinds)
        fetched = sum(each.bytes or 0 for each in ARCHIVES if each.kind in kinds)
        if route.name == "shards":
            there += sum(each.bytes for each in self._held if each.split in self.wanted)
        return max(0, route.bytes + fetched - there)

    def next(self, *, room: bool) -> str:
        """The command to run next, or what to fetch first; `room`: whether shards fit here."""
        if not self.wanted:
            return f"resnet train --shards {_quoted(self.root)}"
        if self._lost():
            return (
                f"imagenet-prep index TARS --out {_quoted(self.root)}, with the tars where they "
                "lie now; or put missing ones back where their links lead"
            )
        place = _quoted(self._path) if room else _ELSEWHERE
        if missing := self.missing():
            names = " and ".join(archive_name(split) for split in missing)
            return (
                f"fetch {names} to {place} (log in at {DOWNLOADS}), then: "
                f"imagenet-prep doctor {place}"
            )
        sources = self.sources()
        sums = [
            each.path
            for each in sources
            if isinstance(each, HeldArchive) and each.state is State.PUBLISHED and not self._held
        ]
        verify = f"imagenet-prep verify {_quoted(*sums)} && " if sums else ""
        paths = [each.path for each in sources]
        if self._linked and all(isinstance(each, HeldArchive) for each in sources):
            return _command("index", paths, self.root)
        return verify + _command("shard", paths, self.root if room else Path(_ELSEWHERE))


def archive_name(split: str) -> str:
    """The name of the published archive of a split."""
    return next(each.name for each in ARCHIVES if each.kind is NEEDED[split])


def _quoted(*paths: Path) -> str:
    return shlex.join(map(str, paths))


def _command(name: str, sources: Sequence[Path], out: Path) -> str:
    return f"imagenet-prep {name} {_quoted(*sources)} --out {_quoted(out)}"


def _shards(loads: Sequence[Load], rates: Rates | None, cores: int, command: str) -> Route:
    images = sum(load.images for load in loads)
    image_bytes = sum(load.image_bytes for load in loads)
    size = image_bytes + images * (_FRAME + _LABEL + _INDEX + _IDX)
    seconds = None
    if rates is not None:
        moving = sum(load.archive_bytes for load in loads) / rates.read + size / rates.write
        seconds = max(moving, image_bytes / (rates.hash * cores))
    shards = [math.ceil(load.images / _SHARD) for load in loads]
    # One split after the other; until it is finished there is a record of each of its shards.
    inodes = sum(shards) * _EACH_SHARD + max(shards) + len(loads) * _BESIDE_SHARDS + _BESIDE_SPLITS
    return Route(
        name="shards", bytes=size, inodes=inodes, seconds=seconds, headers=images, command=command
    )


def _index(loads: Sequence[Load], rates: Rates | None, command: str) -> Route:
    """Archives that are read where they lie: one after the other, each with its sum."""
    images = sum(load.images for load in loads)
    seconds = None
    if rates is not None:
        archives = sum(load.archive_bytes for load in loads)
        seconds = archives / min(rates.read, rates.hash) + images / _INDEXED
    return Route(
        name="index",
        bytes=images * (_INDEX + _RECORD),
        inodes=_LINKED * len(loads),
        seconds=seconds,
        headers=images,
        command=command,
    )


def _class_folders(loads: Sequence[Load], disk: Disk, rates: Rates | None, command: str) -> Route:
    images = sum(load.images for load in loads)
    image_bytes = sum(load.image_bytes for load in loads)
    seconds = None
    if rates is not None:
        moving = sum(load.archive_bytes for load in loads) / rates.read + image_bytes / rates.write
        seconds = moving + images / rates.create
    return Route(
        name="class folders",
        bytes=image_bytes + images * disk.block // 2,
        inodes=images + (CLASSES + 1) * len(loads),
        seconds=seconds,
        headers=0,
        command=command,
    )
