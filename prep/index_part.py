"""A split that is to be indexed where its images lie, and what all kinds of them share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.contents import Contents, Place
from shards.linked import LAYOUT, Split, check_folder, whole_split, write_split
from shards.links import Link
from shards.manifest import Manifest
from shards.progress import Progress
from shards.sample import Class, Samples
from shards.writer import OnBad


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What a user may say of tars and folders besides where they lie.

    `labels` are for archives and folders, `label_field` is for shards without a .cls (see
    shards.foreign.Reading), the others for all.
    """

    split: str | None = None
    labels: Path | None = None
    classes: Path | None = None
    label_field: str | None = None
    on_bad: OnBad = "fail"


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What `index_tars` did for a split; `written` is False where it was whole already."""

    folder: Path
    manifest: Manifest
    written: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call: where to, and how."""

    out: Path
    options: IndexOptions
    workers: int
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Part:
    """A split that is to be indexed; see shards.linked.Split."""

    split: str
    folder: Path
    links: Sequence[Link]
    claim: str
    layout: str = LAYOUT

    def whole(self) -> Manifest | None:
        """The manifest that an earlier run wrote, where nothing has changed since. Under the lock.

        Raises ToolError where the folder is not for this.
        """
        check_folder(self.folder, self.links)
        return whole_split(self.folder, self.links, self.claim)

    def write(
        self,
        contents: Sequence[Contents],
        keys: npt.NDArray[np.bytes_],
        classes: tuple[Class, ...],
    ) -> Manifest:
        """Write what was found behind the links."""
        split = Split(
            name=self.split,
            folder=self.folder,
            links=self.links,
            contents=contents,
            keys=keys,
            classes=classes,
            claim=self.claim,
            layout=self.layout,
        )
        return write_split(split)

    def done(self, manifest: Manifest, started: float, *, written: bool) -> Indexed:
        """The result, for the user."""
        seconds = time.perf_counter() - started
        return Indexed(folder=self.folder, manifest=manifest, written=written, seconds=seconds)


def places_of(samples: Samples) -> Iterator[Place]:
    """The samples one by one, in their order."""
    columns = (samples.keys, samples.names, samples.labels, samples.offsets, samples.sizes)
    for key, name, label, offset, size in zip(*(each.tolist() for each in columns), strict=True):
        yield Place(key.decode(), name.decode(), label, offset, size)


def note_left_out(links: Sequence[Link], contents: Sequence[Contents], progress: Progress) -> None:
    """Say which samples were left out, and which members belong to none."""
    found = list(zip(links, contents, strict=True))
    skipped = [(link, bad) for link, each in found for bad in each.skipped]
    if skipped:
        link, bad = skipped[0]
        progress.note(
            f"{len(skipped)} samples were left out and are listed in the manifest; the first is "
            f"{bad.name} of {link.target}: {bad.reason}"
        )
    ignored = [(link, *each.ignored) for link, each in found]
    count = sum(each for _, each, _ in ignored)
    if count:
        link, name = next((link, name) for link, each, name in ignored if each)
        progress.note(
            f"{count} members belong to no sample (no ending, hidden, or __meta__) and were passed "
            f"over; the first is {name} of {link.target}"
        )
