"""What lies at a path, from headers alone: found, listed, the header of each image read.

Nothing is decoded, and what is missing (labels, the name of a split) leaves a gap in the result
instead of ending it. Shards say all of this in their index and manifest, so nothing of them is
scanned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from prep.archives import Form, archive_bytes, list_images, recognise
from prep.inflate import Inflated
from prep.inspection.contents import Inspected
from prep.inspection.headers import Headers, header_at, read_headers
from prep.inspection.plan import read_plan
from prep.labels import class_list, find_labels
from prep.sources import Source, collect, find_sources
from shards.dataset import Dataset
from shards.errors import ToolError, UsageError
from shards.evidence import BEGUN
from shards.image import ImageInfo
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, Manifest
from shards.progress import Progress
from shards.sample import UNLABELLED, Class, FoundImage, Layout, Samples
from shards.verify import find_splits

_NO_SPLIT: Final = "unknown"
_SIGNS_OF_SHARDS: Final = (MANIFEST_NAME, *BEGUN)
_NO_LABELS_OF_TEST: Final = "test images have none"


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """The images of one split of an archive in its order, with the ids of their classes.

    `infos` are their headers where the archive is compressed, as that is read but once.
    """

    images: list[FoundImage] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    infos: list[ImageInfo | str] = field(default_factory=list)


def inspect(
    paths: Iterable[Path], *, labels: Path | None, progress: Progress
) -> Iterator[Inspected]:
    """Look into archives, folders and shards, split by split.

    Raises ToolError for what is not recognised, DamagedData for an archive that is truncated or
    hostile. An image that cannot be read is listed and ends nothing.
    """
    for path in paths:
        if _holds_shards(path):
            yield from map(_inspect_shards, find_splits(path))
            continue
        for source in _sources(path):
            if source.form in (Form.CLASS_FOLDERS, Form.FLAT_FOLDER):
                yield _inspect_folder(source, labels, progress)
            else:
                yield from _inspect_archive(source, labels, progress)


def _holds_shards(path: Path) -> bool:
    return any(any(path.glob(place + sign)) for sign in _SIGNS_OF_SHARDS for place in ("", "*/"))


def _inspect_shards(folder: Path) -> Inspected:
    Dataset.open(folder).close()  # refuses what does not fit together
    manifest, index = Manifest.read(folder), Index.read(folder / INDEX_NAME)
    rows = index.canonical_positions()
    return Inspected(
        path=folder,
        split=manifest.split,
        form="index of class folders" if manifest.is_loose else "shards",
        archive=None,
        samples=Samples(
            layout=Layout.FOLDER if manifest.is_loose else Layout.TAR,
            places=tuple(folder / shard.name for shard in manifest.shards),
            keys=index["key"][rows],
            names=index["name"][rows],
            labels=index["label"][rows],
            place=index["shard"][rows],
            offsets=index["offset"][rows],
            sizes=index["size"][rows].astype(np.uint64),
        ),
        classes=manifest.classes,
        labels_missing=None,
        headers=Headers(
            format=index["format"][rows],
            width=index["width"][rows],
            height=index["height"][rows],
            components=index["components"][rows],
            unreadable=(),
        ),
        plan=read_plan(folder, manifest),
    )


def _sources(path: Path) -> list[Source]:
    """What a path is, also where it does not say which split."""
    try:
        return find_sources([path], None)
    except UsageError:
        return find_sources([path], _NO_SPLIT)


def _inspect_folder(source: Source, labels: Path | None, progress: Progress) -> Inspected:
    """Class folders or a flat folder; without classes where labels cannot be had."""
    missing = None
    try:
        found, classes = collect([source], labels=labels, classes=None, progress=progress)
    except ToolError as error:
        if labels is not None or source.form is not Form.FLAT_FOLDER:
            raise
        missing, unlabelled = str(error), replace(source, split="test")
        found, classes = collect([unlabelled], labels=None, classes=None, progress=progress)
    (samples,) = found.values()
    if not classes and missing is None:
        missing = _NO_LABELS_OF_TEST
    headers = Headers.collect(read_headers(samples, progress))
    return _inspected(source, samples, classes, missing, headers)


def _inspect_archive(
    source: Source, labels: Path | None, progress: Progress
) -> Iterator[Inspected]:
    for split, listing in _list_archive(source, progress).items():
        of_split = replace(source, split=split)
        missing = _label(listing, of_split, labels, progress)
        classes = class_list({each for each in listing.ids if each is not None}, None)
        index: dict[str | None, int] = {each.id: label for label, each in enumerate(classes)}
        index[None] = UNLABELLED
        images = [
            image._replace(label=index[class_id])
            for image, class_id in zip(listing.images, listing.ids, strict=True)
        ]
        samples = Samples.collect(Layout.TAR, [source.path], images)
        if source.form is Form.COMPRESSED:
            headers = Headers.collect(_in_order(listing, samples))
        else:
            headers = Headers.collect(read_headers(samples, progress))
        yield _inspected(of_split, samples, classes, missing, headers)


def _list_archive(source: Source, progress: Progress) -> dict[str, _Listing]:
    """The images of an archive by split: all of a compressed one, else those of the source's."""
    archive, compressed = recognise(source.path), source.form is Form.COMPRESSED
    listings: dict[str, _Listing] = {}
    ignored: list[str] = []
    with archive_bytes(source.path) as opened:
        progress.start(f"listing {source.path.name}", source.path.stat().st_size, "bytes")
        done = 0
        for image in list_images(archive, opened, ignored):
            split = image.split or source.split
            if split != source.split and not compressed:
                continue
            listing = listings.setdefault(split, _Listing())
            listing.images.append(FoundImage(image.name, UNLABELLED, 0, image.offset, image.size))
            listing.ids.append(image.class_id)
            if compressed:
                listing.infos.append(header_at(opened.read_at, image.offset, image.size))
            position = opened.packed if isinstance(opened, Inflated) else image.offset
            progress.advance(position - done)
            done = position
    if not listings:
        raise ToolError(f"{source.path} holds no images")
    if ignored:
        progress.note(
            f"{source.path}: {len(ignored)} members that are no images were left out, "
            f"{ignored[0]} first"
        )
    return listings


def _label(
    listing: _Listing, source: Source, labels: Path | None, progress: Progress
) -> str | None:
    """Give images without a class that which the labels say; None, or why there are no labels.

    The official images are told by their names and sizes: to describe them, no MD5 is needed.
    """
    if None not in listing.ids:
        return None
    if source.split == "test":
        return _NO_LABELS_OF_TEST
    sizes = {image.name: image.size for image in listing.images}
    try:
        known = find_labels(source.path, sizes, labels, progress)
        listing.ids[:] = [
            known.class_of(image.name) if class_id is None else class_id
            for image, class_id in zip(listing.images, listing.ids, strict=True)
        ]
    except ToolError as error:
        if labels is not None:
            raise
        return str(error)
    return None


def _in_order(listing: _Listing, samples: Samples) -> Iterator[ImageInfo | str]:
    """The headers of a compressed archive in the order of its samples: offsets are unique."""
    offsets = np.array([image.offset for image in listing.images], np.uint64)
    return (listing.infos[number] for number in np.searchsorted(offsets, samples.offsets))


def _inspected(
    source: Source,
    samples: Samples,
    classes: tuple[Class, ...],
    missing: str | None,
    headers: Headers,
) -> Inspected:
    return Inspected(
        path=source.path,
        split=None if source.split == _NO_SPLIT else source.split,
        form=source.form.value,
        archive=None if source.kind is None else source.kind.value,
        samples=samples,
        classes=classes,
        labels_missing=missing,
        headers=headers,
        plan=None,
    )
