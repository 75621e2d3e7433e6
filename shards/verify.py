"""Checks that a folder of shards is what its manifest says: sizes, digests, index, sums, pixels.

Every finding names the file, the sample and the byte; all are collected, none ends the check.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.anatomy import Damage
from shards.evidence import BEGUN
from shards.examination import Examination, Fault, examine
from shards.hashing import hash_file
from shards.index import Index
from shards.manifest import MANIFEST_NAME, File, Manifest
from shards.parallel import Stop, run_jobs
from shards.progress import Progress
from shards.reader import Reader
from shards.sample import Layout
from shards.soundness import check_pictures, check_pixels


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check looked at and found; no findings means that all is whole.

    `damaged` are names of files, `damage` the places in shards that are known. `repaired` are
    files that were made again, `notes` say why others were not.
    """

    folder: Path
    split: str
    files: int
    samples: int
    bytes: int
    findings: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    damage: tuple[Damage, ...] = ()
    repaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_splits(path: Path) -> list[Path]:
    """The shard folders that `path` is or holds.

    Raises ToolError where there is none, or one that was not finished.
    """
    signs = (MANIFEST_NAME, "*.tar", *BEGUN)
    inside = {
        path / each.relative_to(path).parts[0] for sign in signs for each in path.glob(f"*/{sign}")
    }
    folders = [path] if any(any(path.glob(sign)) for sign in signs) else sorted(inside) or [path]
    for folder in folders:
        Manifest.read(folder)
    return folders


def verify_shards(
    folder: Path,
    *,
    deep: bool = False,
    decode: bool = False,
    workers: int,
    progress: Progress,
) -> Report:
    """Check a split's folder: sizes first, then SHA-256 in parallel, then index and sums.

    What stands between the images of our own shards is compared with the index, `deep` also the
    images with their XXH3. `decode` decodes every image of the shards that are whole. Raises
    ToolError where there are no shards, or unfinished ones.
    """
    found = examine(folder, deep=deep, workers=workers, progress=progress)
    more = decode_shards(found, workers=workers, progress=progress) if decode else []
    return report_of(found, more)


def report_of(found: Examination, more: Sequence[Fault] = ()) -> Report:
    """The report of an examination, and of other faults."""
    faults = (*found.faults, *more)
    manifest = found.manifest
    files = () if manifest is None else (*manifest.shards, manifest.index, *manifest.extras)
    folder = found.evidence.folder
    return Report(
        folder=folder,
        split=folder.name if manifest is None else manifest.split,
        files=len(files),
        samples=0 if manifest is None else manifest.samples,
        bytes=sum(file.bytes for file in files),
        findings=tuple(fault.what for fault in faults),
        damaged=tuple(sorted({fault.file for fault in faults} - {""})),
        damage=tuple(each for fault in faults for each in fault.damage),
    )


def decode_shards(found: Examination, *, workers: int, progress: Progress) -> list[Fault]:
    """What cannot be decoded in the shards that have no other fault."""
    index, manifest = found.index, found.manifest
    if index is None or manifest is None:
        return []
    damaged = found.damaged
    whole = [shard.name not in damaged for shard in manifest.shards]
    folder = found.evidence.folder
    size = sum(shard.bytes for shard, sound in zip(manifest.shards, whole, strict=True) if sound)
    progress.start(f"decoding {folder}", size, "bytes")
    places = [folder / shard.name for shard in manifest.shards]
    with Reader(Layout.FOLDER if manifest.is_loose else Layout.TAR, places) as reader:

        def read(row: int) -> bytearray:
            data = bytearray(int(index["size"][row]))
            shard, offset = int(index["shard"][row]), int(index["offset"][row])
            reader.read_into(memoryview(data), shard, index["name"][row].decode(), offset)
            return data

        rows = (row for row, shard in enumerate(index["shard"].tolist()) if whole[shard])
        damage = [
            _undecodable(index, row, verdict.damage)
            for row, verdict in check_pictures(
                rows, read, check_pixels, workers=workers, progress=progress
            )
            if verdict.damage
        ]
    damage.sort(key=lambda each: (each.file, each.offset))
    return [Fault(each.file, f"{folder / each.file}: {each}", (each,)) for each in damage]


def _undecodable(index: Index, row: int, what: str) -> Damage:
    return Damage(
        file=index.header["files"][index["shard"][row]],
        sample=index["key"][row].decode(),
        offset=int(index["offset"][row]),
        what=what,
    )


def altered(
    folder: Path, files: Collection[File], workers: int, progress: Progress
) -> Iterator[tuple[File, str]]:
    """Those of the files whose SHA-256 is not the manifest's, and what it is instead."""
    progress.start(f"verifying {folder.name}", sum(file.bytes for file in files), "bytes")

    def check(file: File, stop: Stop) -> tuple[File, str] | None:
        def step(count: int) -> None:
            stop.check()
            progress.advance(count)

        _, sha256 = hash_file(folder / file.name, step=step)
        return None if sha256 == file.sha256 else (file, sha256)

    return filter(None, run_jobs(check, files, workers))
