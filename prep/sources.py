"""What a user points at becomes samples: archives as they lie, or folders of images.

Nothing is extracted. Each split is found once, whatever it lies in, and comes out as the same
ordered list, so everything after this does not know where the images came from.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from prep.archives import (
    SPLITS,
    Archive,
    Form,
    archive_bytes,
    is_image,
    list_images,
    recognise,
)
from prep.ilsvrc import ARCHIVES, ArchiveKind
from prep.labels import canonical_name, class_in_name, class_list, find_labels
from shards.errors import DamagedData, ToolError, UsageError
from shards.links import FOLDER_ENDING
from shards.manifest import MANIFEST_NAME
from shards.progress import Progress
from shards.sample import UNLABELLED, Class, Layout, Samples

KAGGLE_ROOTS: Final = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
ARCHIVE_ENDINGS: Final = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
# Archives that a folder of archives may hold beside the images; they are used when named.
_ON_REQUEST: Final = (
    ArchiveKind.DEVKIT,
    ArchiveKind.TRAIN_DOGS,
    ArchiveKind.TRAIN_BOXES,
    ArchiveKind.VALIDATION_BOXES,
)
_LOOKED_FOR: Final = (
    f"looked for archives (*{', *'.join(ARCHIVE_ENDINGS)}), for Kaggle's ILSVRC/Data/CLS-LOC, for "
    f"{'/, '.join(SPLITS)}/ with a folder a class or with ILSVRC2012's names, for class folders "
    "with .JPEG, .jpg or .png files, and for a flat folder of ILSVRC2012's names"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A split as it was found: an archive, or a folder."""

    split: str
    path: Path
    form: Form
    kind: ArchiveKind | None  # which published archive it is shaped like


@dataclass(kw_only=True)
class _Found:
    """Images of one split with the ids of their classes (None where they have no label)."""

    layout: Layout
    places: list[Path] = field(default_factory=list)
    # By columns: a million objects take half a gigabyte, and the collector of garbage seconds.
    names: list[str] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    place: array[int] = field(default_factory=lambda: array("L"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    ignored: list[str] = field(default_factory=list)

    def add(self, name: str, class_id: str | None, offset: int, size: int) -> None:
        """Add an image of the place that was named last."""
        self.names.append(name)
        self.ids.append(class_id)
        self.place.append(len(self.places) - 1)
        self.offsets.append(offset)
        self.sizes.append(size)

    def extend(self, other: _Found) -> None:
        """Add the images of another archive of the same split."""
        before = len(self.places)
        self.places += other.places
        self.names += other.names
        self.ids += other.ids
        self.place.extend(each + before for each in other.place)
        self.offsets += other.offsets
        self.sizes += other.sizes

    def samples(self, index: Mapping[str | None, int]) -> Samples:
        """The images whose classes `index` has, labelled by it."""
        inside = np.array([each in index for each in self.ids], np.bool_)
        whole = bool(inside.all())
        names = self.names if whole else list(itertools.compress(self.names, inside))
        ids = self.ids if whole else itertools.compress(self.ids, inside)
        return Samples.from_columns(
            self.layout,
            self.places,
            names=names,
            labels=np.array([index[each] for each in ids], np.int32),
            place=np.array(self.place, np.uint32)[inside],
            offsets=np.array(self.offsets, np.uint64)[inside],
            sizes=np.array(self.sizes, np.uint64)[inside],
        )


def find_archives(paths: Iterable[Path], finished: Collection[Path] = ()) -> list[Archive]:
    """The archives that the paths are, or that lie in them; raises ToolError for none.

    Of a folder, the archives of images are taken; devkit, boxes and dogs when named themselves.
    `finished` are absolute paths that need not be there any more.
    """
    folders = {path.parent for path in finished}
    found: list[Archive] = []
    for path in paths:
        inside = _archives_in(path) if path.is_dir() else []
        known = path.absolute() in (folders if path.is_dir() else finished)
        if not path.is_dir() and not (known and not path.exists()):
            inside = [recognise(path)]
        if not inside and not known:
            raise ToolError(
                f"{path} was not recognised as a folder of archives; looked for "
                f"*{', *'.join(ARCHIVE_ENDINGS)} (class folders need no extraction)"
            )
        found += inside
    return list({archive.path.resolve(): archive for archive in found}.values())


def _archives_in(folder: Path) -> list[Archive]:
    """Archives of images in a folder, by name; an archive that is damaged or strange raises."""
    left_alone = {each.name for each in ARCHIVES if each.kind in _ON_REQUEST}
    names = sorted(each.name for each in folder.iterdir() if each.name.endswith(ARCHIVE_ENDINGS))
    archives = [
        recognise(folder / name)
        for name in names
        if not name.startswith(".") and name not in left_alone
    ]
    return [each for each in archives if each.kind not in _ON_REQUEST]


def find_sources(paths: Iterable[Path], split: str | None) -> list[Source]:
    """Tell what the given paths are: archives, folders of archives, or folders of images.

    `split` selects one split, and names it where the source itself does not. Raises ToolError
    with what was looked for where nothing is recognised, or a split is there twice.
    """
    found: dict[tuple[str, str], Source] = {}
    for path in paths:
        for source in _recognise(path, split):
            # Hugging Face's archives of a split are several.
            alike = source.form is Form.FLAT_TAR and source.kind is None
            part = source.path.name if alike or source.form is Form.COMPRESSED else ""
            other = found.setdefault((source.split, part), source)
            if other is not source:
                raise UsageError(
                    f"both {other.path} and {source.path} are the split {source.split!r}; "
                    "give one of them"
                )
    chosen = [each for each in found.values() if split is None or each.split == split]
    if not chosen:
        splits = ", ".join(each.split for each in found.values())
        raise ToolError(f"no split {split!r} was found (found: {splits or 'nothing'})")
    return chosen


def _recognise(path: Path, split: str | None) -> list[Source]:
    if not path.is_dir():
        return _from_archive(recognise(path), split)
    for root in KAGGLE_ROOTS:
        if (path / root).is_dir():
            return _recognise(path / root, split)
    archives = _archives_in(path)
    if archives:
        return [source for each in archives for source in _from_archive(each, split)]
    inside = [(SPLITS[name], path / name, _folder_form(path / name)) for name in SPLITS]
    sources = [
        Source(split=named, path=folder, form=form, kind=None)
        for named, folder, form in inside
        if form is not None
    ]
    if sources:
        return sources
    form = _folder_form(path)
    if form is None:
        raise ToolError(f"{path} was not recognised; {_LOOKED_FOR}")
    return [Source(split=_named_split(path, split), path=path, form=form, kind=None)]


def _named_split(path: Path, split: str | None) -> str:
    """The split that the user or the folder's own name says."""
    named = split or SPLITS.get(path.name) or _split_in_names(path)
    if named is None:
        raise UsageError(f"{path} does not say which split its images are; say it: --split train")
    return named


def _split_in_names(path: Path) -> str | None:
    """The split of a flat folder with ILSVRC2012's validation or test images."""
    name = next(flat_names(path), "") if path.is_dir() else ""
    return {"ILSVRC2012_val_": "val", "ILSVRC2012_test": "test"}.get(name[:15])


def _from_archive(archive: Archive, split: str | None) -> list[Source]:
    path, kind = archive.path, archive.kind
    if archive.form is Form.NO_IMAGES:
        raise UsageError(f"{path} holds no images; give it by --labels if it is the devkit")
    splits = [archive.split]
    if archive.form is Form.CLASS_TAR and not archive.compressed:
        with archive_bytes(path) as source:
            listed = list_images(archive, source, [])
            splits = sorted({image.split for image in listed}, key=str)
    form = Form.COMPRESSED if archive.compressed else archive.form
    return [
        Source(split=each or _named_split(path, split), path=path, form=form, kind=kind)
        for each in splits
    ]


def _folder_form(path: Path) -> Form | None:
    """How images lie in a folder; None where it has none, or is not there."""
    if not path.is_dir():
        return None
    if (path / MANIFEST_NAME).exists() and any(path.glob(f"*{FOLDER_ENDING}")):
        raise ToolError(
            f"{path} is an index of class folders (`imagenet-prep index`); give those themselves"
        )
    flat = next(flat_names(path), None)
    if not class_folders(path):
        return None if flat is None else Form.FLAT_FOLDER
    if flat is not None:
        raise ToolError(
            f"{path} holds class folders and images beside them ({flat} first), so a part would be "
            "left out; run `imagenet-prep organize-val` on it, or move them away"
        )
    return Form.CLASS_FOLDERS


def class_folders(path: Path) -> list[Path]:
    """Folders of `path` that could be classes, sorted by name, hidden ones left out."""
    with os.scandir(path) as entries:
        names = [each.name for each in entries if each.is_dir() and not each.name.startswith(".")]
    return [path / name for name in sorted(names) if name not in SPLITS]


def flat_names(path: Path) -> Iterator[str]:
    """Names of images in a folder that say themselves what they are: ILSVRC2012's."""
    with os.scandir(path) as entries:
        for entry in entries:
            ours = entry.name.startswith("ILSVRC2012_") or class_in_name(entry.name)
            if ours and is_image(entry.name) and entry.is_file():
                yield entry.name


def collect(
    sources: Sequence[Source],
    *,
    labels: Path | None,
    classes: Path | Sequence[Class] | None,
    progress: Progress,
) -> tuple[dict[str, Samples], tuple[Class, ...]]:
    """All images of the sources by split, in canonical order, and the list of their classes.

    One class list serves all splits; with `classes`, images of others are left out. Raises
    ToolError for labels that do not fit, DamagedData for archives that are truncated or hostile,
    UsageError for compressed ones.
    """
    found: dict[str, _Found] = {}
    for source in sources:
        part = _find(source, labels, progress)
        other = found.setdefault(source.split, part)
        if other is not part:
            other.extend(part)
    if classes is None:
        _check_splits_agree(found)
    ids = {each for part in found.values() for each in part.ids if each is not None}
    listed = class_list(ids, classes)
    index: dict[str | None, int] = {each.id: label for label, each in enumerate(listed)}
    index[None] = UNLABELLED
    samples = {}
    for split, part in found.items():
        samples[split] = part.samples(index)
        left_out = len(part.names) - len(samples[split])
        if left_out:
            given = classes if isinstance(classes, Path) else "the manifest"
            progress.note(
                f"{split}: {left_out:,} images of classes that {given} does not list are left out"
            )
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
    if source.form is Form.CLASS_FOLDERS:
        found = _find_folders(source.path)
    elif source.form is Form.FLAT_FOLDER:
        found = _find_flat_folder(source.path)
    else:
        found = _find_in_archive(source)
    if not found.names:
        raise ToolError(f"{source.path} holds no images")
    if found.ignored:
        progress.note(
            f"{source.path}: {len(found.ignored)} entries that are no images were left out, "
            f"{found.ignored[0]} first"
        )
    if source.split != "test" and None in found.ids:
        _label(found, source, labels, progress)
    return found


def _find_in_archive(source: Source) -> _Found:
    archive = recognise(source.path)
    if archive.compressed:
        raise UsageError(
            f"{source.path} is compressed, so its images cannot be read in place: run "
            f"`imagenet-prep extract {source.path} --out DIR` and give DIR instead"
        )
    found = _Found(layout=Layout.TAR, places=[source.path])
    with archive_bytes(source.path) as opened:
        for image in list_images(archive, opened, found.ignored):
            if image.split is None or image.split == source.split:
                found.add(image.name, image.class_id, image.offset, image.size)
    return found


def _label(found: _Found, source: Source, labels: Path | None, progress: Progress) -> None:
    """Give the images without a class the one that the labels say."""
    sizes = None
    if source.form is Form.FLAT_FOLDER:
        sizes = dict(zip(map(canonical_name, found.names), found.sizes, strict=True))
    known = find_labels(source.path, sizes, labels, progress)
    for number, name in enumerate(found.names):
        if found.ids[number] is None:
            found.ids[number] = known.class_of(name)


def _find_flat_folder(path: Path) -> _Found:
    found = _Found(layout=Layout.FOLDER, places=[path])
    _add_files(found, path, None)
    return found


def _find_folders(path: Path) -> _Found:
    found = _Found(layout=Layout.FOLDER)
    for folder in class_folders(path):
        found.places.append(folder)
        _add_files(found, folder, folder.name)
    return found


def _add_files(found: _Found, folder: Path, class_id: str | None) -> None:
    """Add the images in a folder; without a class they have that which their names carry."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.name.startswith("."):
                continue
            if not entry.name.isprintable():
                raise DamagedData(
                    f"{folder} holds a file whose name is no printable UTF-8, "
                    f"{os.fsencode(entry.name)!r}; rename it"
                )
            if not is_image(entry.name) or not entry.is_file():
                found.ignored.append(entry.path)
                continue
            of_name = class_in_name(entry.name) if class_id is None else class_id
            found.add(entry.name, of_name, 0, entry.stat().st_size)
