"""Every file of a split held against what it must be; what is found ends nothing.

Sizes come first, then each shard is read once: its SHA-256 is the manifest's, and what stands
between its images is what the index says. Where a SHA-256 differs, the shard is read again with
the digests of its images, so that the damaged sample is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final, NamedTuple

from shards.agreement import index_findings
from shards.anatomy import Anatomy, Damage
from shards.comparison import compare
from shards.evidence import Evidence
from shards.hashing import hash_file
from shards.index import INDEX_NAME, Index
from shards.loose import check_folder, lost_folders
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest, check_sizes
from shards.parallel import Stop, run_jobs
from shards.progress import Progress

_SPLITS: Final = ("train", "val", "test")  # folder names that say what must be in them
_SAID: Final = 3  # damaged places of a shard that a sentence names


class Fault(NamedTuple):
    """A file that is not as it must be: its name, a sentence with its path, damaged places."""

    file: str
    what: str
    damage: tuple[Damage, ...] = ()


class Found(NamedTuple):
    """What became of reading a file. `told_wrong` says that it is whole and the manifest is not."""

    file: File
    sha256: str
    fault: Fault | None
    told_wrong: bool = False


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What a folder is and must be.

    `manifest` says how it must be, as far as that can be told: a SHA-256 that nothing tells is "".
    It is None where neither manifest nor index is left. `index` is None where it is not the
    manifest's.
    """

    evidence: Evidence
    manifest: Manifest | None
    index: Index | None
    faults: tuple[Fault, ...]

    @property
    def damaged(self) -> set[str]:
        """Names of the files that have a fault."""
        return {fault.file for fault in self.faults if fault.file}


def examine(
    folder: Path,
    *,
    deep: bool,
    only: Collection[str] | None = None,
    workers: int,
    progress: Progress,
) -> Examination:
    """Look at a folder; of the shards and the files for other readers at `only` those, if given.

    Raises ToolError where there are no shards, or unfinished ones.
    """
    evidence = Evidence.gather(folder)
    manifest = evidence.believed or evidence.provisional
    faults = [*_manifest_faults(evidence), *_doubts(evidence)]
    if manifest is None:
        faults.append(Fault(INDEX_NAME, evidence.index_fault))
        return Examination(evidence=evidence, manifest=None, index=None, faults=tuple(faults))
    index_faults = list(_index_faults(evidence, manifest))
    examiner = _Examiner(
        folder=folder,
        manifest=manifest,
        index=None if index_faults else evidence.index,
        deep=deep,
        progress=progress,
    )
    # What has no SHA-256 yet gets one by being looked at.
    found = examiner.look(None if evidence.believed is None else only, workers)
    manifest = _told_right(manifest, found)
    faults += [fault for _, _, fault, _ in found if fault is not None]
    faults += [*index_faults, *_folder_faults(folder, manifest)]
    if evidence.believed is not None or not (folder / SUMS_NAME).is_file():
        faults += _sums_faults(folder, manifest)
    return Examination(
        evidence=evidence, manifest=manifest, index=examiner.index, faults=tuple(faults)
    )


# --- manifest, index, sums --------------------------------------------------------------------


def _manifest_faults(evidence: Evidence) -> Iterator[Fault]:
    path, manifest = evidence.folder / MANIFEST_NAME, evidence.manifest
    if manifest is None:
        yield Fault(MANIFEST_NAME, evidence.manifest_fault)
    elif evidence.believed is None:
        said = "it is of other shards than lie there, with the index that lies there"
        for each in evidence.contradictions(manifest)[:1]:
            said = f"it was altered: by the index that it vouches for, {each}"
        yield Fault(MANIFEST_NAME, f"{path}: {said}")
    elif manifest != evidence.believed:
        yield Fault(MANIFEST_NAME, f"{path} was altered: index and {SUMS_NAME} prove another one")
    elif path.read_bytes() != manifest.to_bytes():
        yield Fault(MANIFEST_NAME, f"{path} was altered: it is not written as it was")


def _doubts(evidence: Evidence) -> Iterator[Fault]:
    """An index that is all there is, and not the one that the sums have."""
    file, told = evidence.index_file, evidence.sums.get(INDEX_NAME)
    lonely = evidence.believed is None and evidence.index is not None and file is not None
    if lonely and told is not None and not evidence.vouched:
        path = evidence.folder / INDEX_NAME
        yield Fault(INDEX_NAME, f"{path} is not the one whose SHA-256 is in {SUMS_NAME} ({told})")


def _index_faults(evidence: Evidence, manifest: Manifest) -> Iterator[Fault]:
    path, file, expected = evidence.folder / INDEX_NAME, evidence.index_file, manifest.index
    if file is None:
        yield Fault(INDEX_NAME, f"{path} is missing")
    elif file.bytes != expected.bytes:
        yield Fault(INDEX_NAME, f"{path} has {file.bytes} bytes instead of {expected.bytes}")
    elif file.sha256 != expected.sha256:
        said = f"{path} has SHA-256 {file.sha256} instead of {expected.sha256}"
        if evidence.index is not None:
            said += "".join(f": {each}" for each in index_findings(evidence.index, manifest)[:1])
        yield Fault(INDEX_NAME, said)
    elif evidence.index is None:
        yield Fault(INDEX_NAME, evidence.index_fault)


def _sums_faults(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    path = folder / SUMS_NAME
    if not path.is_file():
        yield Fault(SUMS_NAME, f"{path} is missing")
        return
    lines = path.read_bytes().split(b"\n")
    expected = manifest.sums().split(b"\n")
    if lines != expected:
        pairs = enumerate(zip_longest(lines, expected), 1)
        number = next(number for number, (line, right) in pairs if line != right)
        yield Fault(SUMS_NAME, f"{path} does not agree with the manifest (line {number})")


def _folder_faults(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """A split under another's name, and shards that belong to nobody."""
    if is_misplaced(folder, manifest):
        yield Fault(
            "", f"{folder} holds the split {manifest.split!r}: rename it, or put the right one here"
        )
    known = {shard.name for shard in manifest.shards}
    for path in sorted(folder.glob(f"imagenet-{manifest.split}-*.tar")):
        if path.name not in known:
            yield Fault(
                path.name,
                f"{path} is not in the manifest, but a reader that is given *.tar takes it: "
                "remove it",
            )


def is_misplaced(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder has the name of another split."""
    return folder.name in _SPLITS and folder.name != manifest.split


def _told_right(manifest: Manifest, found: Sequence[Found]) -> Manifest:
    """The manifest with the SHA-256s of shards that are whole by the index."""
    told = {each.file.name: each.sha256 for each in found if each.told_wrong}
    return replace(
        manifest,
        shards=tuple(
            replace(shard, sha256=told.get(shard.name, shard.sha256)) for shard in manifest.shards
        ),
    )


# --- shards and files for other readers -------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Examiner:
    """Reads files and says what is wrong with them."""

    folder: Path
    manifest: Manifest
    index: Index | None  # if it can be trusted
    deep: bool
    progress: Progress

    def look(self, only: Collection[str] | None, workers: int) -> list[Found]:
        """Look at all shards and files for other readers, or at `only` those, in order."""
        files = [*self.manifest.shards, *self.manifest.extras]
        names = [each.name for each in self.manifest.shards]
        is_loose = self.manifest.is_loose
        wrong = lost_folders(self.folder, names) if is_loose else check_sizes(self.folder, files)
        jobs = [
            (number, file)
            for number, file in enumerate(files)
            if only is None or file.name in only or file.name in wrong
        ]
        total = sum(file.bytes for _, file in jobs)
        self.progress.start(f"verifying {self.folder.name}", total, "bytes")

        def look(job: tuple[int, File], stop: Stop) -> tuple[int, Found]:
            number, file = job
            return number, self._look(number, file, wrong.get(file.name), stop)

        found = dict(run_jobs(look, jobs, workers))
        # Those of a wrong size first: they are found before anything is read.
        return [
            found[number] for number in sorted(found, key=lambda i: (files[i].name not in wrong, i))
        ]

    def _look(self, number: int, file: File, wrong: str | None, stop: Stop) -> Found:
        path = self.folder / file.name
        if wrong is not None and not path.is_file():
            return Found(file, "", Fault(file.name, wrong))
        if self.manifest.is_loose:
            return self._look_into(number, file, stop)

        def step(count: int) -> None:
            stop.check()
            self.progress.advance(count)

        if self.index is None or number >= len(self.manifest.shards):
            _, sha256 = hash_file(path, step=step)
            return Found(file, sha256, self._fault(file, sha256, wrong, ()))
        anatomy = Anatomy.of(self.index, number, file.bytes)
        found = compare(path, anatomy, deep=self.deep or not file.sha256, step=step)
        differs = bool(file.sha256) and found.sha256 != file.sha256
        if differs and not self.deep:
            found = compare(path, anatomy, deep=True, step=lambda _: stop.check())
        if wrong is None and not found.damage and anatomy.framed and found.sha256 != file.sha256:
            fault = self._other_digest(file, found.sha256)
            return Found(file, found.sha256, fault, told_wrong=True)
        return Found(file, found.sha256, self._fault(file, found.sha256, wrong, found.damage))

    def _look_into(self, number: int, folder: File, stop: Stop) -> Found:
        """Look at the images in a class folder; its SHA-256 follows from the index."""
        if self.index is None:
            return Found(folder, folder.sha256, None)

        def step(count: int) -> None:
            stop.check()
            self.progress.advance(count)

        damage = tuple(check_folder(self.index, number, self.folder / folder.name, step))
        fault = self._fault(folder, folder.sha256, None, damage)
        return Found(folder, folder.sha256, fault)

    def _fault(
        self, file: File, sha256: str, wrong: str | None, damage: tuple[Damage, ...]
    ) -> Fault | None:
        """What to say of a file with this SHA-256, size (`wrong`) and damage, if anything."""
        path = self.folder / file.name
        if wrong is not None and sha256 == file.sha256:
            told = f"{file.bytes} bytes of {file.name}, which has {path.stat().st_size}"
            return self._told_wrong(f"{told} and the SHA-256 that it says")
        if wrong is not None:
            said = wrong
        elif file.sha256 and sha256 != file.sha256:
            said = f"{path} has SHA-256 {sha256} instead of {file.sha256}"
        elif damage:
            said = f"{path} is not what the index says"
        else:
            return None
        twin = next((each for each in self.manifest.files() if each.sha256 == sha256), file)
        if twin.name != file.name:
            return Fault(file.name, f"{said}: it is {twin.name}", damage)
        if damage:
            said = f"{said}: {'; '.join(map(str, damage[:_SAID]))}"
        if len(damage) > _SAID:
            said = f"{said}; and {len(damage) - _SAID} more places"
        return Fault(file.name, said, damage)

    def _other_digest(self, file: File, sha256: str) -> Fault | None:
        """A shard that is byte for byte what the index says, but not what the manifest does."""
        if not file.sha256:
            return None
        told = f"SHA-256 {file.sha256} of {file.name}, which has {sha256}"
        return self._told_wrong(f"{told} and is as the index says")

    def _told_wrong(self, told: str) -> Fault:
        """A manifest that says what is not so of a file that is whole."""
        path = self.folder / MANIFEST_NAME
        return Fault(MANIFEST_NAME, f"{path} was altered: it says {told}")
