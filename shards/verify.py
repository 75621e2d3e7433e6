"""Checks that a folder of shards is what its manifest says: sizes, digests, index, sums.

Every finding names the file and what differs; all findings are collected, none ends the check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.durable import RECORDS
from shards.errors import DamagedData
from shards.hashing import hash_file
from shards.image import LARGEST_PIXELS, Format
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest, check_sizes
from shards.parallel import Stop, run_jobs
from shards.progress import Progress
from shards.sample import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check looked at and found; no findings means that all is whole."""

    folder: Path
    split: str
    files: int
    samples: int
    bytes: int
    findings: tuple[str, ...]


def find_splits(path: Path) -> list[Path]:
    """The shard folders that `path` is or holds.

    Raises ToolError where there is none, or one that was not finished.
    """
    signs = (MANIFEST_NAME, "*.tar", f"{RECORDS}/shards")
    inside = {
        path / each.relative_to(path).parts[0] for sign in signs for each in path.glob(f"*/{sign}")
    }
    folders = [path] if any(any(path.glob(sign)) for sign in signs) else sorted(inside) or [path]
    for folder in folders:
        Manifest.read(folder)
    return folders


def verify_shards(folder: Path, *, workers: int, progress: Progress) -> Report:
    """Check a split's folder: sizes first, then SHA-256 in parallel, then index and sums.

    Raises ToolError where there is no manifest to check against.
    """
    manifest = Manifest.read(folder)
    lost = check_sizes(folder, manifest.files())
    whole = [file for file in manifest.files() if file.name not in lost]
    findings = list(lost.values())
    findings += _check_digests(folder, whole, workers, progress)
    if INDEX_NAME not in lost:
        findings += _check_index(folder, manifest)
    findings += _check_sums(folder, manifest)
    return Report(
        folder=folder,
        split=manifest.split,
        files=len(manifest.files()),
        samples=manifest.samples,
        bytes=sum(file.bytes for file in manifest.files()),
        findings=tuple(findings),
    )


def _check_digests(
    folder: Path, files: list[File], workers: int, progress: Progress
) -> Iterator[str]:
    progress.start(f"verifying {folder.name}", sum(file.bytes for file in files), "bytes")

    def check(file: File, stop: Stop) -> str | None:
        def step(count: int) -> None:
            stop.check()
            progress.advance(count)

        _, sha256 = hash_file(folder / file.name, step=step)
        if sha256 == file.sha256:
            return None
        return f"{folder / file.name} has SHA-256 {sha256} instead of {file.sha256}"

    return filter(None, run_jobs(check, files, workers))


def _check_index(folder: Path, manifest: Manifest) -> list[str]:
    path = folder / INDEX_NAME
    try:
        index = Index.read(path)
    except DamagedData as error:
        return [str(error)]
    findings = index_findings(index, manifest)
    if not findings and index.content_digest() != manifest.content:
        findings = ["it holds other content than the manifest says"]
    return [f"{path}: {finding}" for finding in findings]


def index_findings(index: Index, manifest: Manifest) -> list[str]:
    """Where an index contradicts its manifest or itself, or leads out of its shards.

    Looks at whole columns and at no shard: 0.1 s for 1.28 million samples.
    """
    findings = []
    if index.header.get("plan") != manifest.plan:
        findings.append("it belongs to another plan than the manifest")
    if index.header.get("files") != [shard.name for shard in manifest.shards]:
        findings.append("it lists other shards than the manifest")
    if len(index) != manifest.samples:
        findings.append(f"it has {len(index)} samples, the manifest {manifest.samples}")
    if findings or not len(index):
        return findings
    try:
        index.canonical_positions()
    except DamagedData as error:
        findings.append(str(error))
    return [*findings, *_place_findings(index, manifest), *_image_findings(index, manifest)]


def _place_findings(index: Index, manifest: Manifest) -> Iterator[str]:
    if int(index["shard"].max()) >= len(manifest.shards):
        yield "it names a shard that does not exist"
        return
    ends = np.array([shard.bytes for shard in manifest.shards], np.uint64)[index["shard"]]
    sizes = index["size"].astype(np.uint64)
    # Compared without adding, since offset + size of a hostile index could wrap around.
    outside = np.flatnonzero((sizes > ends) | (index["offset"] > ends - np.minimum(sizes, ends)))
    if len(outside):
        row = int(outside[0])
        yield (
            f"sample {index['key'][row].decode('ascii', 'replace')} would lie outside its shard "
            f"(offset {index['offset'][row]}, {sizes[row]} bytes)"
        )


def _image_findings(index: Index, manifest: Manifest) -> Iterator[str]:
    labels = index["label"]
    if int(labels.min()) < UNLABELLED or int(labels.max()) >= len(manifest.classes):
        yield f"a label is outside the {len(manifest.classes)} classes"
    keys = index["key"].view(np.uint8)
    if not np.all(((keys > 0x20) & (keys < 0x7F)) | (keys == 0)):
        yield "a key is not printable ASCII"
    if not np.isin(index["format"], list(Format)).all():
        yield "a format is unknown"
    pixels = index["width"].astype(np.uint64) * index["height"]
    if not np.all((pixels > 0) & (pixels <= LARGEST_PIXELS)):
        yield f"a sample has no pixels, or more than {LARGEST_PIXELS}"


def _check_sums(folder: Path, manifest: Manifest) -> list[str]:
    path = folder / SUMS_NAME
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return [f"{path} is missing"]
    return [] if found == manifest.sums() else [f"{path} does not agree with the manifest"]
