"""What a user points at becomes samples: archives as they lie, or folders of classes.

Nothing is extracted. Each split is found once, whatever it lies in, and comes out as the same
ordered list, so everything after this does not know where the images came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prep.archives import class_images, class_tars, flat_images, opened, recognise
from prep.ilsvrc import ARCHIVES, ArchiveKind
from prep.labels import class_list, find_labels
from shards.errors import DamagedData, ToolError, UsageError
from shards.progress import Progress
from shards.sample import UNLABELLED, Class, FoundImage, Layout, Samples

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_SPLIT_OF_KIND = {
    ArchiveKind.TRAIN: "train",
    ArchiveKind.VALIDATION: "val",
    ArchiveKind.TEST: "test",
}
_IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
_NOT_IMAGES = {each.name for each in ARCHIVES if each.kind not in _SPLIT_OF_KIND}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A split as it was found: an archive, or a folder of class folders."""

    split: str
    path: Path
    kind: ArchiveKind | None  # None for a folder of class folders


@dataclass(kw_only=True)
class _Found:
    """Images of one split with the ids of their classes (None where they have no label)."""

    layout: Layout
    places: list[Path] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    images: list[FoundImage] = field(default_factory=list)

    def add(self, name: str, class_id: str | None, offset: int, size: int) -> None:
        self.ids.append(class_id)
        self.images.append(FoundImage(name, UNLABELLED, len(self.places) - 1, offset, size))


def find_sources(paths: Iterable[Path], split: str | None) -> list[Source]:
    """Tell what the given paths are: archives, folders of archives, or folders of classes.

    `split` selects one split, and names it where a folder of class folders cannot. Raises
    ToolError with what was looked for where nothing is recognised, or a split is there twice.
    """
    found: dict[str, Source] = {}
    for path in paths:
        for source in _recognise(path, split):
            other = found.setdefault(source.split, source)
            if other is not source:
                raise UsageError(
                    f"both {other.path} and {source.path} are the split {source.split!r}; "
                    "give one of them"
                )
    chosen = [each for each in found.values() if split is None or each.split == split]
    if not chosen:
        raise ToolError(f"no split {split!r} was found (found: {', '.join(found) or 'nothing'})")
    return chosen


def _recognise(path: Path, split: str | None) -> list[Source]:
    if not path.is_dir():
        kind = recognise(path)
        if kind not in _SPLIT_OF_KIND:
            raise UsageError(f"{path} holds no images; give it by --labels if it is the devkit")
        return [Source(split=_SPLIT_OF_KIND[kind], path=path, kind=kind)]
    archives = [each for each in sorted(path.glob("[!.]*.tar")) if each.name not in _NOT_IMAGES]
    if archives:
        return [source for each in archives for source in _recognise(each, split)]
    folders = [path / name for name in SPLITS if _has_classes(path / name)]
    if folders:
        return [Source(split=SPLITS[each.name], path=each, kind=None) for each in folders]
    if not _has_classes(path):
        raise ToolError(
            f"{path} was not recognised; looked for archives (*.tar), for {'/, '.join(SPLITS)}/ "
            "with a folder a class, and for class folders with .JPEG, .jpg or .png files"
        )
    named = split or SPLITS.get(path.name)
    if named is None:
        raise UsageError(f"{path} holds class folders; say which split it is: --split train")
    return [Source(split=named, path=path, kind=None)]


def _has_classes(path: Path) -> bool:
    return path.is_dir() and any(_class_folders(path))


def _class_folders(path: Path) -> list[Path]:
    """Folders of `path` that could be classes, sorted by name, hidden ones left out."""
    with os.scandir(path) as entries:
        names = [each.name for each in entries if each.is_dir() and not each.name.startswith(".")]
    return [path / name for name in sorted(names) if name not in SPLITS]


def collect(
    sources: Sequence[Source], *, labels: Path | None, classes: Path | None, progress: Progress
) -> tuple[dict[str, Samples], tuple[Class, ...]]:
    """All images of the sources by split, in canonical order, and the list of their classes.

    One class list serves all splits. Raises ToolError for labels that do not fit, DamagedData
    for archives that are truncated or hostile.
    """
    found = {source.split: _find(source, labels, progress) for source in sources}
    if classes is None:
        _check_splits_agree(found)
    ids = {each for part in found.values() for each in part.ids if each is not None}
    listed = class_list(ids, classes, progress)
    index: dict[str | None, int] = {each.id: label for label, each in enumerate(listed)}
    index[None] = UNLABELLED
    samples = {
        split: Samples.collect(
            part.layout,
            part.places,
            (
                image._replace(label=index[class_id])
                for image, class_id in zip(part.images, part.ids, strict=True)
            ),
        )
        for split, part in found.items()
    }
    return samples, listed


def _check_splits_agree(found: dict[str, _Found]) -> None:
    """Refuse validation images of classes that training has none of: their labels are wrong."""
    if "train" not in found or "val" not in found:
        return
    strangers = set(found["val"].ids) - set(found["train"].ids)
    if strangers:
        raise ToolError(
            f"{found['val'].places[0]}: validation has the class {min(map(str, strangers))!r}, of "
            "which there is no training image; check its labels, or list the classes by --classes"
        )


def _find(source: Source, labels: Path | None, progress: Progress) -> _Found:
    if source.kind is None:
        found = _find_folders(source.path, progress)
    elif source.kind is ArchiveKind.TRAIN:
        found = _find_nested(source.path)
    else:
        found = _find_flat(source, labels, progress)
    if not found.images:
        raise ToolError(f"{source.path} holds no images")
    return found


def _find_nested(path: Path) -> _Found:
    found = _Found(layout=Layout.TAR, places=[path])
    with opened(path) as descriptor:
        for tar in class_tars(descriptor, path):
            for image in class_images(descriptor, path, tar):
                found.add(image.name, tar.wnid, image.offset, image.size)
    return found


def _find_flat(source: Source, labels: Path | None, progress: Progress) -> _Found:
    path, found = source.path, _Found(layout=Layout.TAR, places=[source.path])
    known = None
    if source.kind is ArchiveKind.VALIDATION:
        known = find_labels(path, labels, progress)
    with opened(path) as descriptor:
        for image in flat_images(descriptor, path):
            class_id = None if known is None else known.class_of(image.name)
            found.add(image.name, class_id, image.offset, image.size)
    return found


def _find_folders(path: Path, progress: Progress) -> _Found:
    found = _Found(layout=Layout.FOLDER)
    ignored: list[str] = []
    for folder in _class_folders(path):
        found.places.append(folder)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if entry.name.startswith("."):
                    continue
                if not entry.name.isprintable():
                    raise DamagedData(
                        f"{folder} holds a file whose name is no printable UTF-8, "
                        f"{os.fsencode(entry.name)!r}; rename it"
                    )
                if not entry.name.lower().endswith(_IMAGE_ENDINGS) or not entry.is_file():
                    ignored.append(entry.path)
                    continue
                found.add(entry.name, folder.name, 0, entry.stat().st_size)
    if ignored:
        progress.note(
            f"{len(ignored)} entries that are no images were left out, {ignored[0]} first"
        )
    return found
