"""Plans become folders of shards: in parallel, resumable, the same bytes whoever writes them.

Every image is read once, straight from its archive or folder, and never decoded. Its digest,
header and the shard's SHA-256 are taken in the same pass. What a killed run finished is known
from a record beside the shards, so the same command goes on where it ended.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from shards.columns import Column, read_columns, write_columns
from shards.durable import (
    RECORDS,
    atomic_file,
    atomic_write_bytes,
    folder_lock,
    named,
    remove_leftovers,
)
from shards.errors import DamagedData, ToolError
from shards.hashing import hash_file
from shards.image import read_info
from shards.index import INDEX_FORMAT, INDEX_NAME, INDEX_VERSION, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest, check_sizes
from shards.parallel import Stop, run_jobs
from shards.plan import Plan
from shards.progress import Progress
from shards.reader import Reader
from shards.sample import UNLABELLED
from shards.tar import BLOCK, header, padding, trailer

_CHUNK = 4 << 20  # bytes gathered before they are hashed and written: fewer, longer calls


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write_shards` did."""

    folder: Path
    manifest: Manifest
    written: int  # shards written now; the others were whole already
    images: int  # in the shards written now
    seconds: float


def write_shards(plan: Plan, folder: Path, *, workers: int, progress: Progress) -> Written:
    """Write the shards of `plan`, their index, sums and manifest into `folder`.

    Whole shards of an earlier, killed run of the same plan are kept. Raises ToolError where
    the folder holds another plan's shards, DamagedData for an image that cannot be stored.
    """
    if not len(plan.samples):
        raise ToolError(f"there are no samples for the split {plan.options.split!r}")
    started = time.perf_counter()
    with folder_lock(folder):
        remove_leftovers(folder)
        if (folder / MANIFEST_NAME).exists():
            manifest = Manifest.read(folder)
            missing = _complete(plan, folder, manifest, workers, progress)
            return _report(plan, folder, manifest, missing, started)
        records = folder / RECORDS / "shards"
        _claim(records, plan, folder)
        missing = [shard for shard in range(plan.shards) if not _is_whole(plan, folder, shard)]
        _write_missing(plan, folder, missing, workers=workers, progress=progress)
        manifest = _finish(plan, folder)
        shutil.rmtree(records)
    return _report(plan, folder, manifest, missing, started)


def _report(
    plan: Plan, folder: Path, manifest: Manifest, missing: list[int], started: float
) -> Written:
    return Written(
        folder=folder,
        manifest=manifest,
        written=len(missing),
        images=sum(len(plan.members(shard)) for shard in missing),
        seconds=time.perf_counter() - started,
    )


def _claim(records: Path, plan: Plan, folder: Path) -> None:
    """Mark the folder as this plan's, or refuse it as another's."""
    claim = records / "plan"
    if claim.exists() and claim.read_text() != plan.fingerprint:
        raise ToolError(_other_plan(folder))
    if not claim.exists():
        if any(folder.glob("*.tar")):
            raise ToolError(
                f"{folder} holds tars but neither a {MANIFEST_NAME} nor the records of a run that "
                "could be completed; remove it or choose another --out"
            )
        atomic_write_bytes(claim, plan.fingerprint.encode())


def _other_plan(folder: Path) -> str:
    return (
        f"{folder} holds shards of another plan (other images, classes or options); "
        "remove it or choose another --out"
    )


def _complete(
    plan: Plan, folder: Path, manifest: Manifest, workers: int, progress: Progress
) -> list[int]:
    """Put back what is missing from a folder that was finished once; the shards written."""
    if manifest.plan.get("fingerprint") != plan.fingerprint:
        raise ToolError(_other_plan(folder))
    lost = check_sizes(folder, manifest.files())
    if INDEX_NAME in lost:
        raise DamagedData(f"{lost[INDEX_NAME]}; remove {folder} and write the shards again")
    missing = [shard for shard in range(plan.shards) if plan.shard_name(shard) in lost]
    _write_missing(plan, folder, missing, workers=workers, progress=progress, expected=manifest)
    shutil.rmtree(folder / RECORDS / "shards", ignore_errors=True)
    sums = folder / SUMS_NAME
    if not sums.is_file() or sums.read_bytes() != manifest.sums():
        atomic_write_bytes(sums, manifest.sums())
    return missing


def _write_missing(
    plan: Plan,
    folder: Path,
    missing: list[int],
    *,
    workers: int,
    progress: Progress,
    expected: Manifest | None = None,
) -> None:
    """Write shards and their records; where `expected` is given they must come out as it says."""
    samples = plan.samples
    count = sum(len(plan.members(shard)) for shard in missing)
    progress.start(f"writing {plan.options.split} shards", count, "images")
    with Reader(samples.layout, samples.places) as reader:

        def write(shard: int, stop: Stop) -> None:
            path = folder / plan.shard_name(shard)
            members = plan.members(shard)
            with atomic_file(path) as file:
                writer = _ShardWriter(file, path, len(members))
                for row, number in enumerate(members):
                    stop.check()
                    writer.add(row, plan, int(number), reader)
                    progress.advance(1)
                size, sha256 = writer.close()
                if expected is not None and sha256 != expected.shards[shard].sha256:
                    raise DamagedData(
                        f"{path} would come out different from its manifest: "
                        "the source has changed since the shards were written"
                    )
            with atomic_file(_record(folder, shard)) as file:
                write_columns(file, writer.columns, {"bytes": str(size), "sha256": sha256})

        for _ in run_jobs(write, missing, workers):
            pass


class _ShardWriter:
    """Gathers members into chunks; hashes and writes each chunk once."""

    def __init__(self, file: BinaryIO, path: Path, count: int) -> None:
        self._file = file
        self._path = path
        self._buffer = bytearray(_CHUNK)
        self._used = 0
        self._position = 0  # of the buffer's first byte in the shard
        self._digest = hashlib.sha256()
        self.columns: dict[str, Column] = {
            "offset": np.zeros(count, np.uint64),
            "xxh3": np.zeros(count, np.uint64),
            "width": np.zeros(count, np.uint32),
            "height": np.zeros(count, np.uint32),
            "components": np.zeros(count, np.uint8),
            "format": np.zeros(count, np.uint8),
        }

    def add(self, row: int, plan: Plan, number: int, reader: Reader) -> None:
        """Append a sample's image and label, and note what the index needs."""
        samples = plan.samples
        size = int(samples.sizes[number])
        self._reserve(2 * BLOCK + size + 3 * BLOCK)
        start = self._used + BLOCK
        view = memoryview(self._buffer)[start : start + size]
        name = samples.names[number].decode()
        place = int(samples.place[number])
        reader.read_into(view, place, name, int(samples.offsets[number]))
        try:
            info = read_info(view)
        except DamagedData as error:
            raise DamagedData(f"{samples.places[place]}: {name}: {error}") from None
        columns = self.columns
        columns["offset"][row] = self._position + start
        columns["xxh3"][row] = xxhash.xxh3_64_intdigest(view)
        columns["width"][row], columns["height"][row] = info.width, info.height
        columns["components"][row], columns["format"][row] = info.components, info.format
        key = samples.keys[number].decode()
        self._frame(f"{key}.{info.format.extension}", size)
        self._add_label(key, int(samples.labels[number]))

    def _add_label(self, key: str, label: int) -> None:
        if label == UNLABELLED:
            return
        text = b"%d" % label
        start = self._used + BLOCK
        self._buffer[start : start + len(text)] = text
        self._frame(f"{key}.cls", len(text))

    def _frame(self, name: str, size: int) -> None:
        """Put the header before and the padding after a member that lies in the buffer."""
        buffer, start = self._buffer, self._used
        buffer[start : start + BLOCK] = header(name, size)
        end = start + BLOCK + size
        self._used = end + padding(size)
        buffer[end : self._used] = bytes(padding(size))

    def _reserve(self, size: int) -> None:
        if self._used + size <= len(self._buffer):
            return
        self._flush()
        if size > len(self._buffer):
            self._buffer = bytearray(size)

    def _flush(self) -> None:
        view = memoryview(self._buffer)[: self._used]
        with named(self._path):
            self._file.write(view)
        self._digest.update(view)
        self._position += self._used
        self._used = 0

    def close(self) -> tuple[int, str]:
        """End the archive; its length in bytes and SHA-256 (hex)."""
        self._flush()
        end = trailer(self._position)
        self._file.write(end)
        self._digest.update(end)
        return self._position + len(end), self._digest.hexdigest()


def _record(folder: Path, shard: int) -> Path:
    return folder / RECORDS / "shards" / f"{shard:06d}"


def _read_record(folder: Path, shard: int) -> tuple[dict[str, Column], dict[str, str]]:
    return read_columns(_record(folder, shard))


def _is_whole(plan: Plan, folder: Path, shard: int) -> bool:
    """Whether an earlier run finished this shard. Its record is written after it, synced."""
    try:
        size = int(_read_record(folder, shard)[1]["bytes"])
        return (folder / plan.shard_name(shard)).stat().st_size == size
    except (FileNotFoundError, DamagedData):
        return False


def _finish(plan: Plan, folder: Path) -> Manifest:
    """Join the shards' records into the index and write what stands beside the shards."""
    records = [_read_record(folder, shard) for shard in range(plan.shards)]
    index = build_index(plan, [columns for columns, _ in records])
    with atomic_file(folder / INDEX_NAME) as file:
        index.write(file)
    manifest = Manifest(
        split=plan.options.split,
        samples=len(index),
        classes=plan.classes,
        plan=_described(plan),
        content=index.content_digest(),
        index=_file(folder / INDEX_NAME, len(index)),
        shards=tuple(
            File(
                name=plan.shard_name(shard),
                bytes=int(metadata["bytes"]),
                sha256=metadata["sha256"],
                samples=len(columns["offset"]),
            )
            for shard, (columns, metadata) in enumerate(records)
        ),
    )
    atomic_write_bytes(folder / SUMS_NAME, manifest.sums())
    atomic_write_bytes(folder / MANIFEST_NAME, manifest.to_bytes())
    return manifest


def build_index(plan: Plan, parts: list[dict[str, Column]]) -> Index:
    """The index of a plan whose shards' own columns are `parts`, shard by shard."""
    order, samples = plan.order, plan.samples
    shard: npt.NDArray[np.uint32] = np.repeat(
        np.arange(len(parts), dtype=np.uint32), [len(part["offset"]) for part in parts]
    )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns |= {
        "key": samples.keys[order],
        "name": samples.names[order],
        "label": samples.labels[order],
        "rank": order.astype(np.uint32),
        "size": samples.sizes[order].astype(np.uint32),
        "shard": shard,
    }
    header = {
        "format": INDEX_FORMAT,
        "version": INDEX_VERSION,
        "split": plan.options.split,
        "layout": "shards",
        "files": [plan.shard_name(number) for number in range(plan.shards)],
        "classes": [each._asdict() for each in plan.classes],
        "plan": _described(plan),
    }
    return Index(header=header, columns=columns)


def _described(plan: Plan) -> dict[str, object]:
    return {**plan.describe(), "fingerprint": plan.fingerprint}


def _file(path: Path, samples: int) -> File:
    size, sha256 = hash_file(path)
    return File(name=path.name, bytes=size, sha256=sha256, samples=samples)
