"""What lies somewhere becomes splits that training reads: shards of others, archives, folders.

Nothing is copied or extracted: all is read once, and what is written are links, an index and a
manifest. A shard says itself which samples it has; an archive's samples are found as they are
for sharding, with the same keys and labels, so its content is that of shards made of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from prep import ilsvrc
from prep.folders import index_folders, parts_of
from prep.index_part import Indexed, IndexOptions, Part, Run, note_left_out, places_of
from prep.labels import class_in_name, class_list, note_numbering
from prep.sources import collect
from prep.tars import find_tars
from shards.contents import Contents, Step
from shards.durable import folder_lock
from shards.errors import ToolError
from shards.foreign import Reading, foreign_keys, read_archive, read_shard
from shards.linked import Source, claim_of, read_all
from shards.links import Link, name_links
from shards.manifest import Manifest
from shards.plan import fingerprint
from shards.progress import Progress
from shards.sample import UNLABELLED, Class, Layout, Samples, ilsvrc_key
from shards.writer import OnBad

_WITHOUT_LABELS: Final = "test"


def index_tars(
    paths: Sequence[Path], out: Path, options: IndexOptions, *, workers: int, progress: Progress
) -> list[Indexed]:
    """Link and index tars and class folders in OUT/<split>/; what is whole and unchanged is kept.

    Paths are tars, patterns such as `train-{000..146}.tar`, folders that hold tars, or folders of
    images. Raises ToolError where something is missing or belongs to no split, DamagedData with the
    member's name for what is odd in a tar, UsageError for what no index can be made of.
    """
    shards, archives = find_tars(paths, options.split)
    run = Run(out=out, options=options, workers=workers, progress=progress)
    done: list[Indexed] = []
    if archives:
        parts = parts_of(archives, out, options)
        found, classes = collect(
            archives, labels=options.labels, classes=options.classes, progress=progress
        )
        if options.classes is None:
            note_numbering(classes, progress)
        done += [
            index_folders(parts[split], samples, classes, run)
            if samples.layout is Layout.FOLDER
            else _index_archive(split, samples, classes, run)
            for split, samples in found.items()
        ]
    return done + (_index_shards(shards, run) if shards else [])


# --- archives ---------------------------------------------------------------------------------


def _index_archive(split: str, samples: Samples, classes: tuple[Class, ...], run: Run) -> Indexed:
    """Index an archive whose images are known, as they are for sharding."""
    started = time.perf_counter()
    folder, on_bad = run.out / split, run.options.on_bad
    links = name_links(samples.places)
    told: dict[str, object] = {"split": split, "classes": _listed(classes), "on_bad": on_bad}
    asked = {"samples": fingerprint(told, samples.keys, samples.labels, samples.sizes)}
    part = Part(split=split, folder=folder, links=links, claim=claim_of(links, asked))
    with folder_lock(folder):
        whole = part.whole()
        if whole is not None:
            return part.done(whole, started, written=False)
        rows = [_rows(samples, link) for link in links]
        sources = [
            Source(
                folder=folder,
                path=link.target,
                asked=asked,
                read=partial(_read_archive, samples.take(inside), on_bad),
            )
            for link, inside in zip(links, rows, strict=True)
        ]
        contents = read_all(sources, workers=run.workers, progress=run.progress)
        note_left_out(links, contents, run.progress)
        kept = [inside[each.columns["number"]] for inside, each in zip(rows, contents, strict=True)]
        manifest = part.write(contents, samples.keys[np.concatenate(kept)], classes)
    return part.done(manifest, started, written=True)


def _listed(classes: tuple[Class, ...]) -> list[list[str]]:
    return [list(each) for each in classes]


def _rows(samples: Samples, link: Link) -> npt.NDArray[np.int64]:
    """The samples that lie in a tar, in its order."""
    target = link.target.resolve()
    places = [number for number, each in enumerate(samples.places) if each.resolve() == target]
    inside = np.flatnonzero(np.isin(samples.place, places))
    return inside[np.argsort(samples.offsets[inside])]


def _read_archive(samples: Samples, on_bad: OnBad, path: Path, step: Step) -> Contents:
    return read_archive(path, places_of(samples), on_bad, step)


# --- shards -----------------------------------------------------------------------------------


def _index_shards(tars: Mapping[str, Sequence[Path]], run: Run) -> list[Indexed]:
    """Index shards of any number of splits, which have one list of classes."""
    started = time.perf_counter()
    given = None
    if run.options.classes is not None:
        given = class_list(set(), run.options.classes)
    parts = _parts(tars, given, run)
    with ExitStack() as locks:
        for part in parts:
            locks.enter_context(folder_lock(part.folder))
        whole = [part.whole() for part in parts]
        unchanged = [manifest for manifest in whole if manifest is not None]
        if len(unchanged) == len(parts):
            return [
                part.done(manifest, started, written=False)
                for part, manifest in zip(parts, unchanged, strict=True)
            ]
        contents = _read_shards(parts, given, run)
        classes = _classes(contents, run.progress) if given is None else given
        for part, found in zip(parts, contents, strict=True):
            note_left_out(part.links, found, run.progress)
            _check_labels(part, found, classes)
        return [
            part.done(_write_shards(part, found, classes, run.progress), started, written=True)
            for part, found in zip(parts, contents, strict=True)
        ]


def _parts(
    tars: Mapping[str, Sequence[Path]], given: tuple[Class, ...] | None, run: Run
) -> list[Part]:
    """The splits. The classes of each may follow from the labels of all, so each claims all."""
    links = {split: name_links(paths) for split, paths in sorted(tars.items())}
    asked = {
        "label_field": run.options.label_field,
        "classes": None if given is None else _listed(given),
        "on_bad": run.options.on_bad,
        "splits": {split: claim_of(each, {}) for split, each in links.items()},
    }
    return [
        Part(split=split, folder=run.out / split, links=each, claim=claim_of(each, asked))
        for split, each in links.items()
    ]


def _read_shards(
    parts: Sequence[Part], given: tuple[Class, ...] | None, run: Run
) -> list[list[Contents]]:
    """What the shards of each split hold, in the order of its links."""
    sources = []
    for part in parts:
        reading = Reading(
            label_field=run.options.label_field,
            classes=None if given is None else len(given),
            labelled=part.split != _WITHOUT_LABELS,
            on_bad=run.options.on_bad,
        )
        sources += [
            Source(
                folder=part.folder,
                path=link.target,
                asked=asdict(reading),
                read=partial(_read_shard, reading),
            )
            for link in part.links
        ]
    contents = iter(read_all(sources, workers=run.workers, progress=run.progress))
    return [[next(contents) for _ in part.links] for part in parts]


def _write_shards(
    part: Part, contents: Sequence[Contents], classes: tuple[Class, ...], progress: Progress
) -> Manifest:
    keys, reason = foreign_keys(contents)
    if reason:
        progress.note(f"{part.split}: {reason}, so samples go by their place in the tars")
    return part.write(contents, keys, classes)


def _read_shard(reading: Reading, path: Path, step: Step) -> Contents:
    return read_shard(path, reading, step)


def _classes(parts: Sequence[Sequence[Contents]], progress: Progress) -> tuple[Class, ...]:
    """ILSVRC2012's 1000 classes where labels and names are its own, else as many as there are."""
    columns = [each.columns for part in parts for each in part]
    labels = np.unique(np.concatenate([each["label"] for each in columns]))
    count = int(labels.max(initial=UNLABELLED)) + 1
    known = ilsvrc.classes()
    every_one = count == len(known) == np.count_nonzero(labels != UNLABELLED)
    names = (name for each in columns for name in each["name"].tolist())
    if every_one and all(ilsvrc_key(_file_name(name)) for name in names):
        return tuple(Class(each.wnid, each.name) for each in known)
    if count:
        progress.note(
            f"labels are 0 to {count - 1}, and classes are called by these numbers; --classes FILE "
            "lists their ids in that order"
        )
    return tuple(Class(str(label), str(label)) for label in range(count))


def _file_name(name: bytes) -> str:
    return name.rpartition(b"/")[2].decode()


def _check_labels(part: Part, contents: Sequence[Contents], classes: tuple[Class, ...]) -> None:
    """Refuse labels that names contradict, as ILSVRC2012's can, and a test set labelled in part."""
    ids = [each.id for each in classes]
    listed = set(ids)
    for link, each in zip(part.links, contents, strict=True):
        columns = (each.columns["name"].tolist(), each.columns["label"].tolist())
        for name, label in zip(*columns, strict=True):
            wnid = class_in_name(_file_name(name))
            if label != UNLABELLED and wnid in listed and wnid != ids[label]:
                raise ToolError(
                    f"{link.target}: {name.decode()} has the label {label}, which is {ids[label]}: "
                    "the labels are in another order than the classes; list them in theirs by "
                    "--classes FILE"
                )
    labels = np.concatenate([each.columns["label"] for each in contents])
    bare = np.count_nonzero(labels == UNLABELLED)
    if 0 < bare < len(labels):
        raise ToolError(
            f"{part.split}: {bare} of {len(labels)} samples have no label; it takes all or none"
        )
