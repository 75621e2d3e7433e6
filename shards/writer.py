"""Plans become folders of shards: in parallel, resumable, the same bytes whoever writes them.

Every image is read once, straight from its archive or folder, and stored as it is unless the plan
has an encoder. Its digest, header and the shard's SHA-256 are taken in the same pass. What a
killed run finished is known from a record beside the shards, so the same command goes on where it
ended.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from shards.columns import read_columns, write_columns
from shards.durable import (
    RECORDS,
    atomic_file,
    atomic_write_bytes,
    folder_lock,
    remove_leftovers,
    sync_file_system,
)
from shards.errors import DamagedData, ToolError
from shards.hashing import hash_file
from shards.image import read_info
from shards.index import INDEX_NAME, Index, build_index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest, Skipped, check_sizes
from shards.parallel import Stop, run_jobs
from shards.plan import Plan
from shards.progress import Progress
from shards.proof import Prove, prove_by
from shards.reader import Reader
from shards.shard import ShardWriter
from shards.sidecars import ForReader, extra_files
from shards.verify import altered

if TYPE_CHECKING:
    from shards.transcode import Encoder

OnBad: TypeAlias = Literal["fail", "skip"]
Check: TypeAlias = Literal["fast", "full"]


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How shards are written, beyond what the plan decides.

    `encoder` is None where images are stored as they are; the plan carries its description.
    `on_bad` says what becomes of an image that cannot be read: the run fails, or the image is
    left out and listed. `for_readers` names programs that get files of their own. `check` says how
    shards of an earlier run are recognised: by their size, or by their SHA-256 as well.
    """

    encoder: Encoder | None = None
    on_bad: OnBad = "fail"
    for_readers: Collection[ForReader] = ("timm", "dali")
    check: Check = "fast"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write_shards` did."""

    folder: Path
    manifest: Manifest
    written: int  # shards written now; the others were whole already
    images: int  # in the shards written now
    seconds: float


def write_shards(
    plan: Plan, folder: Path, options: WriteOptions, *, workers: int, progress: Progress
) -> Written:
    """Write the shards of `plan`, their index, sums and manifest into `folder`.

    Whole shards of an earlier, killed run of the same plan are kept. Raises ToolError where
    the folder holds another plan's shards, DamagedData for an image that cannot be stored.
    """
    if not len(plan.samples):
        raise ToolError(f"there are no samples for the split {plan.options.split!r}")
    started = time.perf_counter()
    with folder_lock(folder):
        remove_leftovers(folder)
        run = _Run(plan=plan, folder=folder, options=options, workers=workers, progress=progress)
        if (folder / MANIFEST_NAME).exists():
            manifest, missing = run.complete(Manifest.read(folder))
        else:
            manifest, missing = run.begin()
    return Written(
        folder=folder,
        manifest=manifest,
        written=len(missing),
        images=sum(len(plan.members(shard)) for shard in missing),
        seconds=time.perf_counter() - started,
    )


def rewrite_shards(
    plan: Plan,
    folder: Path,
    shards: Sequence[int],
    prove: Prove,
    options: WriteOptions,
    *,
    workers: int,
    progress: Progress,
) -> None:
    """Write some shards of a finished folder again, whose lock the caller holds.

    None is put in its place before `prove` has passed it.
    """
    run = _Run(plan=plan, folder=folder, options=options, workers=workers, progress=progress)
    run.write(shards, prove)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One call: what is written, where, and how."""

    plan: Plan
    folder: Path
    options: WriteOptions
    workers: int
    progress: Progress

    # --- from the beginning, or from where a killed run ended ---

    def begin(self) -> tuple[Manifest, list[int]]:
        """Write what no earlier run has finished, and then what stands beside the shards."""
        self._claim()
        missing = [shard for shard in range(self.plan.shards) if not self._is_whole(shard)]
        self.write(missing, None)
        manifest = self._finish()
        shutil.rmtree(self._records)
        return manifest, missing

    @property
    def _records(self) -> Path:
        return self.folder / RECORDS / "shards"

    def _claim(self) -> None:
        """Mark the folder as this plan's, or refuse it as another's."""
        claim, told = self._records / "plan", f"{self.plan.fingerprint} {self.options.on_bad}"
        if claim.exists() and claim.read_text() != told:
            raise ToolError(self._other_plan())
        if not claim.exists():
            if any(self.folder.glob("*.tar")):
                raise ToolError(
                    f"{self.folder} holds tars but neither a {MANIFEST_NAME} nor the records of a "
                    "run that could be completed; remove it or choose another --out"
                )
            atomic_write_bytes(claim, told.encode())

    def _other_plan(self) -> str:
        return (
            f"{self.folder} holds shards of another plan (other images, classes or options); "
            "remove it or choose another --out"
        )

    def _record(self, shard: int) -> Path:
        return self._records / f"{shard:06d}"

    def _is_whole(self, shard: int) -> bool:
        """Whether an earlier run finished this shard. Its record is written after it, synced."""
        path = self.folder / self.plan.shard_name(shard)
        try:
            _, told = read_columns(self._record(shard))
            if path.stat().st_size != int(told["bytes"]):
                return False
        except (FileNotFoundError, DamagedData):
            return False
        return self.options.check == "fast" or hash_file(path)[1] == told["sha256"]

    # --- a folder that was finished once ---

    def complete(self, manifest: Manifest) -> tuple[Manifest, list[int]]:
        """Put back what is missing; the manifest, and the shards that were written."""
        plan, folder = self.plan, self.folder
        if manifest.plan.get("fingerprint") != plan.fingerprint:
            raise ToolError(self._other_plan())
        lost = set(check_sizes(folder, manifest.files()))
        index_path = folder / INDEX_NAME
        if INDEX_NAME in lost or hash_file(index_path)[1] != manifest.index.sha256:
            raise DamagedData(
                f"{index_path} is missing or damaged; `imagenet-prep verify {folder} "
                "--repair` makes it again"
            )
        if self.options.check == "full":
            whole = [file for file in manifest.files() if file.name not in lost]
            lost |= {file.name for file, _ in altered(folder, whole, self.workers, self.progress)}
        missing = [number for number, file in enumerate(manifest.shards) if file.name in lost]
        self.write(missing, prove_by(manifest, folder))
        shutil.rmtree(self._records, ignore_errors=True)
        self._write_beside(manifest, Index.read(index_path))
        return Manifest.read(folder), missing

    # --- writing ---

    def write(self, shards: Sequence[int], prove: Prove | None) -> None:
        """Write shards, each with its record; those that `prove` stands for need none."""
        plan = self.plan
        count = sum(len(plan.members(shard)) for shard in shards)
        self.progress.start(f"writing {plan.options.split} shards", count, "images")
        with Reader(plan.samples.layout, plan.samples.places) as reader:

            def write(shard: int, stop: Stop) -> None:
                self._write_shard(shard, reader, stop, prove)

            for _ in run_jobs(write, shards, self.workers):
                pass

    def _write_shard(self, shard: int, reader: Reader, stop: Stop, prove: Prove | None) -> None:
        path, members = self.folder / self.plan.shard_name(shard), self.plan.members(shard)
        encoder = self.options.encoder
        skipped: list[Skipped] = []
        kept = 0
        with atomic_file(path) as file:
            writer = ShardWriter(file, path, len(members))
            for number in members.tolist():
                stop.check()
                try:
                    kept += not add_image(writer, self.plan, number, encoder, reader)
                except BadImage as error:
                    skipped.append(self._skip(number, error, prove))
                self.progress.advance(1)
            reader.refuse_changed()
            size, sha256 = writer.close()
            if prove is not None:
                prove(shard, sha256, writer.columns)
        if prove is not None:
            return
        told = {
            "bytes": str(size),
            "sha256": sha256,
            "skipped": json.dumps(skipped),
            "kept": str(kept),
        }
        with atomic_file(self._record(shard)) as file:
            write_columns(file, writer.columns, told)

    def _skip(self, number: int, error: BadImage, prove: Prove | None) -> Skipped:
        """Leave an image out, where that was asked for; else DamagedData with its place."""
        samples = self.plan.samples
        name = samples.names[number].decode()
        if self.options.on_bad == "fail":
            place = samples.places[int(samples.place[number])]
            remedy = "mend or remove it, or pass --on-bad skip"
            if prove is not None:  # of shards that are finished nothing can be left out any more
                remedy = "give a source that has it whole, as it was when the shards were written"
            raise DamagedData(f"{place}: {name}: {error}; {remedy}") from None
        self.progress.note(f"left out {name}: {error}")
        return Skipped(samples.keys[number].decode(), name, str(error))

    # --- what stands beside the shards ---

    def _finish(self) -> Manifest:
        """Join the shards' records into the index and write what stands beside the shards."""
        plan = self.plan
        records = [read_columns(self._record(shard)) for shard in range(plan.shards)]
        skipped = tuple(
            Skipped(*each) for _, told in records for each in json.loads(told["skipped"])
        )
        kept = None
        if self.options.encoder is not None:
            kept = sum(int(told["kept"]) for _, told in records)
        index = build_index(
            plan,
            [columns for columns, _ in records],
            skipped=[each._asdict() for each in skipped],
            kept=kept,
        )
        if not len(index):
            raise DamagedData(f"{self.folder}: none of the {len(plan.samples)} images is readable")
        with atomic_file(self.folder / INDEX_NAME) as file:
            index.write(file)
        manifest = Manifest(
            split=plan.options.split,
            samples=len(index),
            classes=plan.classes,
            plan=index.header["plan"],
            content=index.content_digest(),
            index=_file(self.folder / INDEX_NAME, len(index)),
            shards=tuple(
                File(
                    name=plan.shard_name(shard),
                    bytes=int(told["bytes"]),
                    sha256=told["sha256"],
                    samples=len(columns["offset"]),
                )
                for shard, (columns, told) in enumerate(records)
            ),
            skipped=skipped,
            kept=kept,
        )
        return self._write_beside(manifest, index)

    def _write_beside(self, manifest: Manifest, index: Index) -> Manifest:
        """Write the files for other readers, the sums and, last, the manifest that lists them."""
        extras = {extra.name: extra for extra in manifest.extras}
        wanted = extra_files(index, manifest.shards, self.options.for_readers, self.folder)
        for name, data, samples in wanted:
            sha256 = hashlib.sha256(data).hexdigest()
            file = File(name=name, bytes=len(data), sha256=sha256, samples=samples)
            path = self.folder / name
            if extras.setdefault(name, file) != file:
                raise DamagedData(
                    f"{path} would come out different from its manifest, so something is damaged; "
                    f"run `imagenet-prep verify {self.folder} --repair`"
                )
            if not path.is_file() or path.read_bytes() != data:
                atomic_write_bytes(path, data, sync=False)
        sync_file_system(self.folder)
        manifest = replace(manifest, extras=tuple(extras[name] for name in sorted(extras)))
        for name, data in ((SUMS_NAME, manifest.sums()), (MANIFEST_NAME, manifest.to_bytes())):
            path = self.folder / name
            if not path.is_file() or path.read_bytes() != data:
                atomic_write_bytes(path, data)
        return manifest


class BadImage(DamagedData):
    """An image that cannot be stored; the reason alone."""


def add_image(
    writer: ShardWriter, plan: Plan, number: int, encoder: Encoder | None, reader: Reader
) -> bool:
    """Append an image of a plan as its encoder makes it; whether that changed it.

    Raises BadImage where the image is damaged.
    """
    samples = plan.samples
    place, name = int(samples.place[number]), samples.names[number].decode()
    size = int(samples.sizes[number])
    room = writer.room(size) if encoder is None else memoryview(bytearray(size))
    reader.read_into(room, place, name, int(samples.offsets[number]))
    try:
        info = read_info(room)
        encoded = None if encoder is None else encoder.encode(room, info)
    except DamagedData as error:
        raise BadImage(str(error)) from None
    if encoded is not None:
        info = read_info(encoded)
    if encoder is not None:
        data = room if encoded is None else encoded
        room = writer.room(len(data))
        room[:] = data
    key, label = samples.keys[number].decode(), int(samples.labels[number])
    writer.add(room, number, key, label, info)
    return encoded is not None


def _file(path: Path, samples: int) -> File:
    size, sha256 = hash_file(path)
    return File(name=path.name, bytes=size, sha256=sha256, samples=samples)
