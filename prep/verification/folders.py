"""Checks of images in folders: how many of each class, under which names, and each one whole.

Every byte is read. Headers and ends are looked at, or with `decode` every pixel. All findings are
collected, none ends the check.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prep.devkit import read_devkit
from prep.inflate import is_compressed
from prep.labels import ImageLabels, canonical_name, class_in_name, find_labels, labels_beside
from prep.oddities import Oddity
from prep.verification.expected import (
    Comparison,
    Expected,
    compare,
    from_devkit,
    listed,
    published,
)
from prep.verification.images import Looks, read_image
from prep.verification.tree import Place, Tree, TreeFile, list_tree
from shards.errors import DamagedData, ToolError
from shards.progress import Progress
from shards.reader import Reader
from shards.sample import Layout
from shards.soundness import check_ends, check_pictures, check_pixels

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What a check of a split in folders looked at and found; no findings: all is whole.

    `compared` says what the number of images was compared with, `labels` what their classes were;
    None where there was nothing to compare with. `part`: it has too few to claim to be whole.
    """

    path: Path
    split: str | None
    form: str
    classes: int
    images: int
    bytes: int
    compared: str | None
    part: bool
    labels: str | None
    decoded: bool
    oddities: tuple[Oddity, ...]
    strays: tuple[str, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class _Subject:
    """A listed tree, and what it is measured by."""

    tree: Tree
    counts: Counter[str]
    images: int  # of those that are compared with what is expected
    expected: Expected | None
    labels: ImageLabels | None
    notes: list[str] = field(default_factory=list)


def check_folders(
    places: Sequence[Place],
    *,
    labels: Path | None,
    decode: bool,
    workers: int,
    progress: Progress,
) -> list[FolderReport]:
    """Check splits that lie in folders; those right in one folder belong together.

    Raises ToolError where the labels given by hand cannot be used.
    """
    trees = [list_tree(place, workers=workers, progress=progress) for place in places]
    subjects = [_measure(tree, labels, progress) for tree in trees]
    return [
        _check(subject, subjects, decode=decode, workers=workers, progress=progress)
        for subject in subjects
    ]


def _measure(tree: Tree, given: Path | None, progress: Progress) -> _Subject:
    """Count a tree's images, and find what they should be."""
    counts: Counter[str] = Counter()
    for file in tree.files:
        # A name with two classes is a finding later on.
        class_id = tree.folders[file.folder].name if file.folder else _class_in_name(file.name)
        if class_id is not None:
            counts[class_id] += 1
    subject = _Subject(
        tree=tree,
        counts=counts,
        images=len(tree.files),
        expected=published(tree.split),
        labels=None,
    )
    if tree.split == "train":
        _measure_by_devkit(subject, given)
    elif tree.split in {"val", "test"} and not counts:
        subject.images = len(list(_numbered(tree)))
    if tree.split == "val" and any(_numbered(tree)):
        _measure_by_labels(subject, given, progress)
    return subject


def _class_in_name(name: str) -> str | None:
    try:
        return class_in_name(name)
    except DamagedData:
        return None


def _numbered(tree: Tree) -> Iterator[TreeFile]:
    """The images that have a number in their split, and no class, in their names."""
    start = f"ILSVRC2012_{tree.split}_"
    return (file for file in tree.files if file.name.startswith(start))


def _measure_by_devkit(subject: _Subject, given: Path | None) -> None:
    """Take the exact counts of a devkit that was given or lies beside."""
    path = given or labels_beside(subject.tree.path)
    if path is None or not is_compressed(path):
        return
    try:
        expected = from_devkit(read_devkit(path), str(path))
    except DamagedData as error:
        if given is not None:
            raise
        subject.notes.append(f"{subject.tree.path}: not compared with the devkit: {error}")
        return
    if expected.images:
        subject.expected = expected


def _measure_by_labels(subject: _Subject, given: Path | None, progress: Progress) -> None:
    tree = subject.tree
    sizes = {canonical_name(file.name): file.size for file in tree.files}
    try:
        labels = find_labels(tree.path, sizes, given, progress)
    except ToolError as error:
        if given is not None:
            raise
        why = (
            str(error)
            if isinstance(error, DamagedData)
            else "they are not the official ones, all and alone, and neither a devkit nor "
            "LOC_val_solution.csv lies beside them (--labels FILE gives others)"
        )
        subject.notes.append(f"{tree.path}: its images were not compared with labels: {why}")
        return
    each = Counter(labels.by_stem.values())
    subject.labels = labels
    subject.expected = Expected(
        origin=labels.origin,
        images=len(labels.by_stem),
        by_class={class_id: (count, count) for class_id, count in each.items()},
    )


def _check(
    subject: _Subject,
    together: Iterable[_Subject],
    *,
    decode: bool,
    workers: int,
    progress: Progress,
) -> FolderReport:
    tree = subject.tree
    siblings = [each for each in together if each.tree.path.parent == tree.path.parent]
    whole = any(_claims(each) and _set_of(each) == _set_of(subject) for each in siblings)
    comparison = _compare(subject, whole=whole)
    findings = [*tree.findings, *(f"{tree.path} {each}" for each in comparison.findings)]
    findings += _missing_classes(subject, siblings)
    findings += _check_names(tree, subject.labels)
    if comparison.claims and subject.labels is not None:
        findings += _missing_images(tree, subject.labels)
    notes = [*subject.notes, *(f"{tree.path} has {each}" for each in comparison.notes)]
    notes += _what_else(tree)
    looks = _look(tree, decode=decode, workers=workers, progress=progress)
    return FolderReport(
        path=tree.path,
        split=tree.split,
        form=tree.form.value,
        classes=len(subject.counts),
        images=len(tree.files),
        bytes=sum(file.size for file in tree.files),
        compared=subject.expected.origin if subject.expected and comparison.met else None,
        part=comparison.met and not comparison.claims and bool(comparison.notes),
        labels=None if subject.labels is None else subject.labels.origin,
        decoded=decode,
        oddities=looks.oddities(),
        strays=tuple(tree.strays),
        findings=(*findings, *sorted(looks.damage)),
        notes=tuple(notes),
    )


def _what_else(tree: Tree) -> Iterator[str]:
    """Notes on what lies among the images."""
    if tree.strays:
        some = listed(Path(each).name for each in tree.strays)
        yield f"{tree.path} holds {len(tree.strays):,} entries that are no images: {some}"
    if tree.leftovers:
        yield (
            f"{tree.path} holds {tree.leftovers:,} temporary files of an extraction that was "
            "killed; the same command completes it and removes them"
        )


def _compare(subject: _Subject, *, whole: bool) -> Comparison:
    expected = subject.expected
    if expected is None:
        return Comparison(met=False, claims=False, findings=(), notes=())
    found = subject.counts if expected.by_class else {}
    return compare(found, subject.images, expected, whole=whole)


def _claims(subject: _Subject) -> bool:
    """Whether a split alone claims to be a whole one."""
    return _compare(subject, whole=False).claims


def _set_of(subject: _Subject) -> str | None:
    """Of which set a split would be the whole: one whole split of it wants the other whole too."""
    official = published(subject.tree.split)
    if official is None or subject.expected is None:
        return None
    same = subject.expected.images == official.images
    return official.origin if same else subject.expected.origin


def _missing_classes(subject: _Subject, siblings: Iterable[_Subject]) -> Iterator[str]:
    """Validation images of classes without training images, and the other way round."""
    if subject.tree.split not in {"train", "val"} or not subject.counts:
        return
    for other in siblings:
        missing = sorted(set(other.counts) - set(subject.counts))
        if other.tree.split in {"train", "val"} and missing:
            yield (
                f"{subject.tree.path} lacks {len(missing):,} classes that {other.tree.path} has: "
                f"{listed(missing)}"
            )


def _missing_images(tree: Tree, labels: ImageLabels) -> Iterator[str]:
    found = {canonical_name(file.name).rsplit(".", 1)[0] for file in tree.files}
    missing = sorted(set(labels.by_stem) - found)
    if missing:
        yield f"{tree.path} lacks {len(missing):,} images of {labels.origin}: {listed(missing)}"


def _check_names(tree: Tree, labels: ImageLabels | None) -> Iterator[str]:
    """Images whose names say that they belong elsewhere, or are there twice."""
    # A training image has its class in its name, so two of one name meet within a folder.
    numbered: dict[str, TreeFile] = {}
    in_folder: dict[str, TreeFile] = {}
    previous = 0
    misplaced: list[str] = []
    for file in tree.files:
        if file.folder != previous:
            in_folder, previous = {}, file.folder
        try:
            own = class_in_name(file.name)
        except DamagedData as error:
            yield f"{tree.path_of(file)}: {error}"
            continue
        stem = canonical_name(file.name).rsplit(".", 1)[0]
        is_numbered = stem.startswith("ILSVRC2012_")
        if own or is_numbered:
            seen = numbered if is_numbered else in_folder
            first = seen.setdefault(stem.casefold(), file)
            if first is not file:
                yield f"{tree.path_of(file)} is there twice: also as {tree.path_of(first)}"
        if own is None and is_numbered and labels is not None:
            own = labels.by_stem.get(stem)
            if own is None:
                yield f"{tree.path_of(file)} is not among the images of {labels.origin}"
        misplaced += _misplaced(tree, file, own)
    yield from _summed_up(tree, misplaced, labels)


def _misplaced(tree: Tree, file: TreeFile, class_id: str | None) -> Iterator[str]:
    """Whether an image of a class lies in the folder of another."""
    folder = tree.folders[file.folder].name
    # Folders may be called otherwise than classes: by numbers, or by what people call them.
    if file.folder and class_id not in {None, folder} and _WNID.fullmatch(folder):
        yield f"{tree.path_of(file)} is an image of {class_id} and lies in {folder}"


def _summed_up(tree: Tree, misplaced: list[str], labels: ImageLabels | None) -> Iterable[str]:
    """One finding instead of thousands where all images lie in wrong folders."""
    if labels is None or 2 * len(misplaced) <= len(tree.files):
        return misplaced
    finding = (
        f"{len(misplaced):,} of the {len(tree.files):,} images in {tree.path} lie in folders of "
        f"other classes than {labels.origin} says: they were sorted by other labels, or these are "
        f"another set's; the first: {misplaced[0]}"
    )
    return [finding]


def _look(tree: Tree, *, decode: bool, workers: int, progress: Progress) -> Looks:
    """Read every image, and look at its ends or at all of it."""
    total = sum(file.size for file in tree.files)
    progress.start(f"{'decoding' if decode else 'reading'} {tree.path}", total, "bytes")
    looks = Looks()
    with Reader(Layout.FOLDER, tree.folders) as reader:

        def read(file: TreeFile) -> bytearray:
            return read_image(reader, file.folder, file.name, 0, file.size)

        check = check_pixels if decode else check_ends
        for file, verdict in check_pictures(
            tree.files, read, check, workers=workers, progress=progress
        ):
            looks.add(tree.path_of(file), file.name, verdict)
    return looks
