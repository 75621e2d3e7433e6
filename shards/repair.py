"""Damaged folders made what they were, byte for byte, or left as they are.

Everything that is put in a place is proven first: shards by the manifest's SHA-256 or, where
that is lost, sample by sample against the index; an index by the manifest's SHA-256; a manifest
by that in SHA256SUMS, or by shards that are what the index says to the last byte. Every file is
replaced in one step, the manifest last, so a killed repair is completed by the same command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from shards.columns import Column
from shards.durable import atomic_write_bytes, folder_lock, remove_leftovers
from shards.errors import DamagedData
from shards.examination import Examination, examine, is_misplaced
from shards.index import INDEX_NAME, SHARDS_LAYOUT, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest
from shards.plan import Plan
from shards.progress import Progress
from shards.proof import came_out_different
from shards.rebuild import (
    extra_samples,
    file_of,
    index_bytes,
    index_of,
    likely_names,
    manifest_of,
    read_rows,
    readers_of,
)
from shards.sidecars import extra_files
from shards.writer import WriteOptions, rewrite_shards

if TYPE_CHECKING:
    from shards.transcode import Encoder


@dataclass(frozen=True, kw_only=True)
class Material:
    """What shards are made of: the plan of their sources, and the encoder that it names."""

    plan: Plan
    encoder: Encoder | None


_PASSES: Final = 3  # a file that was made again may prove another wrong: shard, index, manifest

# Called with what is known of a split; the plan that it gives must have the fingerprint of it.
Source: TypeAlias = Callable[[Manifest], AbstractContextManager[Material]]


class Mended(NamedTuple):
    """What became of a folder: how it is now, which files were made again, why others were not."""

    found: Examination
    repaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def repair_shards(
    found: Examination,
    source: Source | None,
    *,
    deep: bool = False,
    workers: int,
    progress: Progress,
) -> Mended:
    """Mend what was found damaged, as far as that can be, and look at it again.

    Shards need a `source`; an index may need it for the names of its images. Raises ToolError
    where another process writes into the folder, and for a source that is not what the shards
    were made of.
    """
    folder = found.evidence.folder
    repaired: dict[str, None] = {}
    notes: list[str] = []
    with folder_lock(folder), ExitStack() as stack:
        remove_leftovers(folder)
        given = _Given(source, stack)
        for _ in range(_PASSES):
            repair = _Repair(
                folder=folder, found=found, given=given, workers=workers, progress=progress
            )
            repair.run()
            notes = repair.notes
            repaired |= dict.fromkeys(repair.repaired)
            touched = found.damaged | repaired.keys()
            found = examine(folder, deep=deep, only=touched, workers=workers, progress=progress)
            if not found.faults or not repair.repaired:
                break
    return Mended(found, tuple(repaired), tuple(notes))


@dataclass
class _Given:
    """What the source gives, asked for when it is first needed."""

    source: Source | None
    stack: ExitStack
    material: Material | None = None

    def ask(self, manifest: Manifest) -> Material | None:
        """The material, or None without a source."""
        if self.source is not None and self.material is None:
            self.material = self.stack.enter_context(self.source(manifest))
        return self.material


@dataclass(kw_only=True)
class _Repair:
    """One folder that is being mended, under its lock."""

    folder: Path
    found: Examination
    given: _Given
    workers: int
    progress: Progress
    repaired: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Mend what can be mended: shards, index, files for other readers, sums, manifest."""
        manifest = self.found.manifest
        if manifest is None:
            self._note(
                f"{MANIFEST_NAME} and {INDEX_NAME} are both lost, so nothing says what the shards "
                "must be: remove the folder and write it again with `imagenet-prep shard`"
            )
            return
        if is_misplaced(self.folder, manifest):
            self._note("a folder is not mended under the name of another split")
            return
        is_vouched = self.found.evidence.believed is not None or self.found.evidence.vouched
        if not is_vouched and not self._can_be_proven(manifest):
            return
        manifest = self._mend_shards(manifest)
        index = self.found.index
        if index is None or not is_vouched:
            index, manifest = self._mend_index(manifest, is_vouched=is_vouched)
        if index is not None:
            manifest = self._mend_extras(manifest, index)
        # Sums that contradict a manifest which nothing else agrees with may yet prove it wrong.
        is_proven = index is not None or self.found.evidence.has(manifest.sha256)
        if is_proven and all(file.sha256 for file in manifest.files()):
            self._put(SUMS_NAME, manifest.sums())
            self._put(MANIFEST_NAME, manifest.to_bytes())

    def _note(self, why: str) -> None:
        self.notes.append(f"{self.folder}: {why}")

    def _put(self, name: str, data: bytes) -> None:
        """Write a file where another one lies, or none."""
        path = self.folder / name
        if not path.is_file() or path.read_bytes() != data:
            atomic_write_bytes(path, data)
            self.repaired.append(name)

    def _can_be_proven(self, manifest: Manifest) -> bool:
        """Whether there is a source to prove the index by, which is all there is."""
        damaged = self.found.damaged
        if all(shard.name in damaged for shard in manifest.shards):
            self._note(
                f"{MANIFEST_NAME} is lost and no shard here is as {INDEX_NAME} says: remove the "
                "folder and write it again with `imagenet-prep shard`"
            )
            return False
        if self.given.source is None:
            self._note(
                f"{MANIFEST_NAME} is lost and {SUMS_NAME} does not have the SHA-256 of "
                f"{INDEX_NAME}, so nothing proves that: say by --source what the shards were made "
                "of"
            )
            return False
        return True

    # --- shards -----------------------------------------------------------------------------

    def _mend_shards(self, manifest: Manifest) -> Manifest:
        """Write what is missing or damaged again; the manifest with the SHA-256s of all."""
        damaged = self.found.damaged
        lost = [number for number, file in enumerate(manifest.shards) if file.name in damaged]
        if not lost:
            return manifest
        if _is_foreign(manifest):
            self._note(
                "put its images back as they were, or run `imagenet-prep index` again"
                if manifest.is_loose
                else "its shards are not of this tool's making: fetch the damaged ones again"
            )
            return manifest
        material = self.given.ask(manifest)
        if material is None:
            self._note(
                f"{len(lost)} of {len(manifest.shards)} shards are damaged, and their images alone "
                "can make them again: say by --source what they were made of"
            )
            return manifest
        shards = list(manifest.shards)

        def prove(shard: int, sha256: str, columns: Mapping[str, Column]) -> None:
            is_known = sha256 == shards[shard].sha256 or self.found.evidence.has(sha256)
            if not is_known and not self._fits_index(shard, columns):
                raise came_out_different(self.folder / shards[shard].name)
            shards[shard] = replace(shards[shard], sha256=sha256)
            self.repaired.append(shards[shard].name)

        options = WriteOptions(
            encoder=material.encoder, on_bad="skip" if manifest.skipped else "fail"
        )
        rewrite_shards(
            material.plan,
            self.folder,
            lost,
            prove,
            options,
            workers=self.workers,
            progress=self.progress,
        )
        return replace(manifest, shards=tuple(shards))

    def _fits_index(self, shard: int, columns: Mapping[str, Column]) -> bool:
        """Whether a shard that was written now has the samples that the index says."""
        index = self.found.index
        if index is None:
            return False
        rows = index["shard"] == shard
        return all(
            np.array_equal(index[name][rows], column)
            for name, column in columns.items()
            if name != "number"
        )

    def _are_whole(self, files: Sequence[File]) -> bool:
        """Whether all of these files are as they must be, by now."""
        damaged = self.found.damaged.difference(self.repaired)
        return not any(file.name in damaged for file in files)

    # --- the index --------------------------------------------------------------------------

    def _mend_index(self, manifest: Manifest, *, is_vouched: bool) -> tuple[Index | None, Manifest]:
        """Make the index again from the shards; the manifest is another if it lied about it."""
        path, evidence = self.folder / INDEX_NAME, self.found.evidence
        if _is_foreign(manifest):
            self._note("its shards are not of this tool's making: run `imagenet-prep index` again")
            return None, manifest
        if not self._are_whole(manifest.shards):
            self._note(f"{INDEX_NAME} can be made again when the shards are whole")
            return None, manifest
        rows = read_rows(self.folder, manifest, workers=self.workers, progress=self.progress)
        told = self._by_names(manifest, rows) if is_vouched else self._by_source(manifest, rows)
        for index, is_independent in told:
            data = index_bytes(index)
            file = file_of(INDEX_NAME, data, len(index))
            # Where two agree that do not know of each other, both are right.
            if evidence.has(file.sha256) or (is_independent and file == evidence.index_file):
                self._put(INDEX_NAME, data)
                if file != manifest.index:
                    manifest = manifest_of(index, file, manifest.shards, manifest.extras)
                return Index.read(path), manifest
        if self.given.material is None:
            self._note(
                f"{INDEX_NAME} holds the names of the images in their source, which nothing else "
                "does: say by --source what the shards were made of"
            )
        else:
            self._note(
                f"{INDEX_NAME} would come out different from what it was, so what is left of "
                f"{MANIFEST_NAME} was altered too: remove the folder and write it again with "
                "`imagenet-prep shard`"
            )
        return None, manifest

    def _by_names(
        self, manifest: Manifest, rows: Mapping[str, Column]
    ) -> Iterator[tuple[Index, bool]]:
        """Indexes with what images may have been called, the cheapest guess first.

        The second value says that it does not depend on the index that lies there.
        """
        for names in likely_names(manifest, rows["key"], rows["label"]):
            yield index_of(manifest, rows, names), True
        with contextlib.suppress(OSError, DamagedData):
            left = Index.read(self.folder / INDEX_NAME)["name"]
            if len(left) == len(rows["key"]):
                yield index_of(manifest, rows, left), False
        material = self.given.ask(manifest)
        if material is not None:
            yield index_of(manifest, rows, _names_in(material.plan, rows)), True

    def _by_source(
        self, manifest: Manifest, rows: Mapping[str, Column]
    ) -> Iterator[tuple[Index, bool]]:
        """The index as the source has it, where nothing else can be believed."""
        material = self.given.ask(manifest)
        if material is not None:
            plan = material.plan
            described = {**plan.describe(), "fingerprint": plan.fingerprint}
            manifest = replace(manifest, classes=plan.classes, plan=described)
            yield index_of(manifest, rows, _names_in(plan, rows)), True

    # --- files for other readers ------------------------------------------------------------

    def _mend_extras(self, manifest: Manifest, index: Index) -> Manifest:
        """Write damaged ones again as the manifest has them; one that is lost gets what it had."""
        evidence = self.found.evidence
        if evidence.believed is not None:
            readers = readers_of({each.name for each in manifest.extras} & self.found.damaged)
        elif self._are_whole(manifest.shards):
            readers = readers_of(
                {
                    name
                    for name in extra_samples(manifest.shards)
                    if name.encode() in evidence.remains or (self.folder / name).is_file()
                }
            )
        else:
            return manifest
        if not self._are_whole(manifest.shards):
            readers.discard("wids")  # whose file has a digest of each
        made = []
        for name, data, samples in extra_files(index, manifest.shards, readers, self.folder):
            file = file_of(name, data, samples)
            made.append(file)
            if evidence.believed is None or file in manifest.extras:
                self._put(name, data)
        if evidence.believed is None:
            manifest = replace(manifest, extras=tuple(sorted(made, key=lambda each: each.name)))
        return manifest


def _is_foreign(manifest: Manifest) -> bool:
    return manifest.layout != SHARDS_LAYOUT


def _names_in(plan: Plan, rows: Mapping[str, Column]) -> npt.NDArray[np.bytes_]:
    """What the samples of these rows are called in the sources of a plan."""
    samples = plan.samples
    numbers = np.searchsorted(samples.keys, rows["key"])
    names: npt.NDArray[np.bytes_] = samples.names[np.minimum(numbers, len(samples) - 1)]
    return names
