"""Manifest, index and files for other readers, made again from what is left of a split.

Each comes out as it was, byte for byte, or not at all: the callers hold the result against a
SHA-256 that was written down when the split was.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from shards.agreement import read_header
from shards.anatomy import shard_sizes
from shards.columns import Column
from shards.errors import DamagedData
from shards.foreign import Reading, read_shard
from shards.hashing import hash_file
from shards.index import FOLDERS_LAYOUT, SHARDS_LAYOUT, Index, make_header
from shards.loose import folder_files
from shards.manifest import File, Manifest
from shards.parallel import Stop, run_jobs
from shards.progress import Progress
from shards.sidecars import WIDS_NAME, ForReader, extra_files

_DALI_ENDING: Final = ".idx"


# --- the manifest -----------------------------------------------------------------------------


def manifest_of(
    index: Index, index_file: File, shards: Sequence[File], extras: Sequence[File]
) -> Manifest:
    """The manifest of the split whose index this is. Raises DamagedData where it has no header."""
    header = read_header(index)
    return Manifest(
        split=header.split,
        samples=len(index),
        classes=header.classes,
        plan=header.plan,
        content=index.content_digest(),
        index=index_file,
        shards=tuple(shards),
        extras=tuple(sorted(extras, key=lambda each: each.name)),
        skipped=header.skipped,
        kept=header.kept,
    )


def shard_files(index: Index, sums: Mapping[str, str], sizes: Mapping[str, int]) -> list[File]:
    """The shards of an index with these SHA-256s ("" where unknown).

    Bytes are those that the rows take. How long shards are that others made no index tells: those
    have these `sizes` (0 where unknown). Of class folders the rows tell everything.
    """
    names = read_header(index).files
    if index.header.get("layout") == FOLDERS_LAYOUT:
        return folder_files(index)
    counts = np.bincount(index["shard"], minlength=len(names)).tolist()
    if index.header.get("layout") == SHARDS_LAYOUT:
        lengths = shard_sizes(index)
    else:
        lengths = [sizes.get(name, 0) for name in names]
    return [
        File(name=name, bytes=size, sha256=sums.get(name, ""), samples=count)
        for name, size, count in zip(names, lengths, counts, strict=True)
    ]


# --- files for other readers ------------------------------------------------------------------


def readers_of(names: Collection[str]) -> set[ForReader]:
    """Which programs the files of a split are for."""
    readers: set[ForReader] = set()
    if any(name.endswith(_DALI_ENDING) for name in names):
        readers.add("dali")
    if WIDS_NAME in names:
        readers.add("wids")
    return readers


def extra_samples(
    shards: Sequence[File], readers: Collection[ForReader] = ("dali", "wids")
) -> dict[str, int]:
    """The names of all files that these readers want beside these shards; samples of each."""
    samples: dict[str, int] = {}
    if "dali" in readers:
        samples |= {Path(shard.name).stem + _DALI_ENDING: shard.samples for shard in shards}
    if "wids" in readers:
        samples[WIDS_NAME] = sum(shard.samples for shard in shards)
    return samples


def extras_of(
    index: Index, shards: Sequence[File], folder: Path, sums: Mapping[str, str]
) -> list[File]:
    """The files for other readers among `sums`, as they lie there if their SHA-256 fits.

    Those that do not, or are lost, are listed as they would be made again.
    """
    samples = extra_samples(shards, readers_of(sums))
    found = {}
    for name in samples.keys() & sums.keys():
        path = folder / name
        size, sha256 = hash_file(path) if path.is_file() else (0, "")
        if sha256 == sums[name]:
            found[name] = File(name=name, bytes=size, sha256=sha256, samples=samples[name])
    lost = samples.keys() - found.keys()
    readers = readers_of(lost)
    if not all((folder / shard.name).is_file() for shard in shards):
        readers.discard("wids")  # whose file has a digest of each
    for name, data, count in extra_files(index, shards, readers, folder):
        if name in lost:
            found[name] = file_of(name, data, count)
    return list(found.values())


def file_of(name: str, data: bytes, samples: int) -> File:
    """What a manifest says of a file with these bytes."""
    return File(
        name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), samples=samples
    )


# --- the index --------------------------------------------------------------------------------


def index_of(
    manifest: Manifest, rows: Mapping[str, Column], names: npt.NDArray[np.bytes_]
) -> Index:
    """The index of a split whose shards have these rows, with the names of its sources."""
    header = make_header(
        split=manifest.split,
        layout=SHARDS_LAYOUT,
        files=[shard.name for shard in manifest.shards],
        classes=manifest.classes,
        plan=manifest.plan,
        skipped=[each._asdict() for each in manifest.skipped],
        kept=manifest.kept,
    )
    return Index(header=header, columns={**rows, "name": names})


def index_bytes(index: Index) -> bytes:
    """The file of an index."""
    file = io.BytesIO()
    index.write(file)
    return file.getvalue()


def likely_names(
    manifest: Manifest, keys: npt.NDArray[np.bytes_], labels: npt.NDArray[np.int32]
) -> Iterator[npt.NDArray[np.bytes_]]:
    """What images with such keys are called in their archives: by ILSVRC2012, by Hugging Face."""
    yield np.char.add(keys, b".JPEG")
    if len(labels) and labels.min() >= 0:
        ids = np.array([b"_" + each.id.encode() + b".JPEG" for each in manifest.classes])
        yield np.char.add(keys, ids[labels])


def read_rows(
    folder: Path, manifest: Manifest, *, workers: int, progress: Progress
) -> dict[str, Column]:
    """All columns of the index but the names, read from the shards.

    Raises DamagedData where a shard is not the manifest's.
    """
    progress.start(f"indexing {folder}", sum(each.bytes for each in manifest.shards), "bytes")
    reading = Reading(classes=len(manifest.classes), labelled=False)

    def read(shard: File, stop: Stop) -> tuple[str, dict[str, Column]]:
        def step(count: int) -> None:
            stop.check()
            progress.advance(count)

        contents = read_shard(folder / shard.name, reading, step)
        if contents.sha256 != shard.sha256:
            raise DamagedData(f"{folder / shard.name} changed while it was read")
        return shard.name, contents.columns

    found = dict(run_jobs(read, manifest.shards, workers))
    parts = [found[shard.name] for shard in manifest.shards]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    del columns["number"]
    members = columns.pop("name")
    # The endings .jpg and .png are the only ones that this tool writes, and have four bytes.
    columns["key"] = np.array([member[:-4] for member in members.tolist()], np.bytes_)
    ranks = np.empty(len(members), np.uint32)
    ranks[np.argsort(columns["key"], kind="stable")] = np.arange(len(members))
    columns["rank"] = ranks
    lengths = [len(part["offset"]) for part in parts]
    columns["shard"] = np.repeat(np.arange(len(parts), dtype=np.uint32), lengths)
    return columns
