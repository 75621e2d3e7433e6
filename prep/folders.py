"""Images in folders become splits that training reads as they lie: an index, and links to them.

They are found as they are for sharding, with the same keys, labels and classes, and every image is
read once for its header and digest. So the content of such a split is that of shards made of the
folders, and a run that was begun on the one goes on with the other. What was read is noted by
class folder: after a change only the folders that have changed are read again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from prep.archives import SPLITS, Form, is_image
from prep.index_part import Indexed, IndexOptions, Part, Run, note_left_out, places_of
from prep.sources import KAGGLE_ROOTS, Source, class_folders, collect, find_sources, flat_names
from shards import linked
from shards.contents import Contents, Step
from shards.durable import folder_lock, identity
from shards.errors import DamagedData, ToolError, UsageError
from shards.index import FOLDERS_LAYOUT
from shards.linked import begin, claim_of, forget_others, read_all, whole_split
from shards.links import FOLDER_ENDING, Link, name_links
from shards.loose import read_folder, times_of
from shards.manifest import MANIFEST_NAME
from shards.plan import canonical_json, fingerprint
from shards.progress import Progress
from shards.sample import Class, Samples
from shards.writer import OnBad

_TRAINED_ON: Final = ("train", "val")
_OTHER_LETTERS = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME: Final = 40  # letters of a folder's name that the name of its index has


# --- indexing ---------------------------------------------------------------------------------


def parts_of(sources: Sequence[Source], out: Path, options: IndexOptions) -> dict[str, Part]:
    """The splits of sources, by name. Looks at folders and archives alone, at no file in a folder.

    The claim of each covers all of them, since they have one list of classes. It changes when an
    image is added, removed or renamed, but not when one is written to in its place. Raises
    UsageError where the index would lie among the images.
    """
    _refuse_inside(out, sources)
    places: dict[str, list[Path]] = {}
    for source in sources:
        inside = class_folders(source.path) if source.form is Form.CLASS_FOLDERS else [source.path]
        places.setdefault(source.split, []).extend(inside)
    links = {split: name_links(paths, FOLDER_ENDING) for split, paths in sorted(places.items())}
    asked = {
        "labels": _told(options.labels),
        "classes": _told(options.classes),
        "on_bad": options.on_bad,
        "splits": {split: claim_of(each, {}) for split, each in links.items()},
    }
    return {
        split: Part(
            split=split,
            folder=out / split,
            links=each,
            claim=claim_of(each, asked),
            layout=FOLDERS_LAYOUT,
        )
        for split, each in links.items()
    }


def _refuse_inside(out: Path, sources: Sequence[Source]) -> None:
    """Refuse to write where the next command would take the index for images."""
    roots = {source.path.resolve() for source in sources if source.path.is_dir()}
    for folder in ((out / source.split).resolve() for source in sources):
        if not roots.isdisjoint({folder, *folder.parents}):
            raise UsageError(f"{folder} lies among the images to be indexed; choose another --out")


def _told(path: Path | None) -> list[object] | None:
    return None if path is None else [str(path.absolute()), *identity(path)]


def index_folders(part: Part, samples: Samples, classes: tuple[Class, ...], run: Run) -> Indexed:
    """Index a split whose images lie in folders; read what has changed since it was last read.

    Raises DamagedData for an image that cannot be used, and for one that changes meanwhile.
    """
    started = time.perf_counter()
    folder, on_bad = part.folder, run.options.on_bad
    with folder_lock(folder):
        whole = part.whole()
        rows = _rows(samples, part.links)
        sources = [
            _source(folder, link, samples.take(inside), on_bad)
            for link, inside in zip(part.links, rows, strict=True)
        ]
        if whole is not None and all(each.record.exists() for each in sources):
            return part.done(whole, started, written=False)
        begin(folder)
        contents = read_all(sources, workers=run.workers, progress=run.progress)
        note_left_out(part.links, contents, run.progress)
        kept = [inside[each.columns["number"]] for inside, each in zip(rows, contents, strict=True)]
        manifest = part.write(contents, samples.keys[np.concatenate(kept)], classes)
        forget_others(folder, sources)
    return part.done(manifest, started, written=True)


def _rows(samples: Samples, links: Sequence[Link]) -> list[npt.NDArray[np.int64]]:
    """The samples that lie in each folder, in the order of their names."""
    numbers = {link.target.resolve(): number for number, link in enumerate(links)}
    places = [numbers.get(each.resolve(), -1) for each in samples.places]
    if -1 in places:
        path = samples.places[places.index(-1)]
        raise DamagedData(f"{path} came while its folder was indexed; run the same command again")
    link_of = np.array(places, np.int64)[samples.place]
    order = np.lexsort((samples.names, link_of))
    bounds = np.searchsorted(link_of[order], np.arange(len(links) + 1)).tolist()
    return [order[first:last] for first, last in pairwise(bounds)]


def _source(folder: Path, link: Link, samples: Samples, on_bad: OnBad) -> linked.Source:
    """What is to be read of a folder; any other name, size, time or label makes it another one."""
    told: dict[str, object] = {
        "times": times_of(link.target, [name.decode() for name in samples.names.tolist()]),
        "on_bad": on_bad,
    }
    names = hashlib.sha256(b"\0".join(samples.names.tolist())).hexdigest()
    asked = {
        "names": names,
        "samples": fingerprint(told, samples.keys, samples.labels, samples.sizes),
    }
    return linked.Source(
        folder=folder,
        path=link.target,
        asked=asked,
        read=partial(_read_folder, samples, on_bad),
        bytes=int(samples.sizes.sum()),
    )


def _read_folder(samples: Samples, on_bad: OnBad, path: Path, step: Step) -> Contents:
    return read_folder(path, list(places_of(samples)), on_bad, step)


# --- folders that are trained on ----------------------------------------------------------------


def find_folders(path: Path, wanted: Sequence[str]) -> list[Source]:
    """The splits of images in folders at a path, among them all `wanted` ones; else none at all.

    There are none where the path holds shards, or anything else. One split that is wanted alone
    may lie at the path itself. Raises UsageError where a wanted split is missing.
    """
    if any((path / split / MANIFEST_NAME).exists() for split in wanted):
        return []
    roots = [path, *(path / root for root in KAGGLE_ROOTS)]
    names = [name for name, split in SPLITS.items() if split in _TRAINED_ON]
    inside = [root / name for root in roots for name in names if _holds_images(root / name)]
    if not inside and _holds_images(path):
        if len(wanted) > 1:
            raise UsageError(
                f"{path} holds images in class folders, but no {' and no '.join(wanted)}: give the "
                "folder that has train/ and val/, each with its class folders"
            )
        return find_sources([path], wanted[0])
    sources = find_sources(inside, None) if inside else []
    missing = sorted(set(wanted) - {source.split for source in sources})
    if sources and missing:
        raise UsageError(
            f"{path} holds images in class folders for {sources[0].split}/ alone and none in "
            f"{path / missing[0]}, which is needed too"
        )
    return sources


def _holds_images(folder: Path) -> bool:
    """Whether a folder holds images in class folders, or flat with ILSVRC2012's names."""
    if not folder.is_dir():
        return False
    if next(flat_names(folder), None) is not None:
        return True
    return any(is_image(each.name) for inside in class_folders(folder) for each in inside.iterdir())


def cache_place(path: Path) -> Path:
    """Where the index of the folders at a path is kept: in the user's cache, by machine and path.

    By machine, since a home is often shared between machines that have each its own copy of the
    images. Raises ToolError where the user has no cache.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise ToolError(
            f"{path} needs an index, and there is no home folder to keep it in: set XDG_CACHE_HOME"
        ) from None
    resolved = path.resolve()
    digest = hashlib.sha256(canonical_json([platform.node(), str(resolved)])).hexdigest()
    name = _OTHER_LETTERS.sub("-", resolved.name)[:_LONGEST_NAME] or "folders"
    return base / "imagenet-resnet" / f"{name}-{digest[:16]}"


def keep_index(
    sources: Sequence[Source], wanted: Sequence[str], out: Path, *, workers: int, progress: Progress
) -> Mapping[str, int]:
    """Have an index of the wanted splits in OUT/<split>/; how many images each has.

    One that is there is taken if no image came, went or was renamed since. Else one process on the
    machine makes it while others wait. All sources are listed, so that classes have their numbers.
    """
    parts = parts_of(sources, out, IndexOptions())
    counts = _counts(parts, wanted)
    if counts is not None:
        return counts

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"{out}, where an index of the images would be kept, cannot be made "
            f"({error.strerror}): set XDG_CACHE_HOME to another place, or make an index yourself "
            "with `imagenet-prep index` and give that"
        ) from error

    def waiting() -> None:
        progress.note(f"another process indexes into {out}; waiting for it")

    with folder_lock(out, waiting=waiting):
        counts = _counts(parts, wanted)
        if counts is not None:
            return counts
        progress.note(f"every image is read once, for an index that is kept in {out}")
        run = Run(out=out, options=IndexOptions(), workers=workers, progress=progress)
        found, classes = collect(sources, labels=None, classes=None, progress=progress)
        done = [index_folders(parts[split], found[split], classes, run) for split in wanted]
    return {each.manifest.split: each.manifest.samples for each in done}


def _counts(parts: Mapping[str, Part], wanted: Sequence[str]) -> dict[str, int] | None:
    """The samples of splits that are whole and unchanged; None where one is not."""
    counts = {}
    for split in wanted:
        part = parts[split]
        manifest = whole_split(part.folder, part.links, part.claim)
        if manifest is None:
            return None
        counts[split] = manifest.samples
    return counts
