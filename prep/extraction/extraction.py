"""One archive on its way into a tree of folders: what is to be done, what is done, what failed.

A part of the archive (parts.py) is a job for one thread. Its files are written, then
recorded (journal.py); a part that is recorded is only looked at, and what lacks is put back. A
damaged part is kept as a failure and ends no other.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import xxhash

from prep.archives import Archive, archive_bytes
from prep.extraction.files import Folders, found_in, is_there
from prep.extraction.journal import Done, Filled, Journal, add_up
from prep.extraction.md5 import Md5Follower
from prep.extraction.parts import Part, Placed, Placer, files_of, list_parts
from prep.ilsvrc import ARCHIVES, ArchiveKind
from prep.inflate import Inflated
from prep.labels import ImageLabels, built_in_labels, find_labels, labels_beside
from shards.durable import named
from shards.errors import DamagedData, ToolError
from shards.hashing import hash_file
from shards.parallel import Stop
from shards.progress import Progress
from shards.reader import Reader
from shards.sample import Layout
from shards.tar import Bytes

Job: TypeAlias = Callable[[Stop], None]

_HEAD: Final = 1024  # bytes that tell archives apart: the first headers, with sizes and times
_HEADER_AND_PADDING: Final = 512 + 256  # bytes that a member of a tar takes besides its own
_BUFFER: Final = 1 << 20  # bytes; grows for larger images
# Places that one archive alone may fill; Hugging Face's five share train/ with their likes.
_GROUPS: Final = {
    ArchiveKind.TRAIN: "train",
    ArchiveKind.VALIDATION: "val",
    ArchiveKind.TEST: "test",
    ArchiveKind.TRAIN_DOGS: "train_t3",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How archives are extracted.

    `split` is where images go whose archive does not say; `flat` leaves validation images in one
    folder; `md5` digests every archive on the way; `remove_archives` frees each when all that
    came out of it was read back.
    """

    labels: Path | None = None
    split: str | None = None
    flat: bool = False
    md5: bool = False
    remove_archives: bool = False


class Extraction:
    """One archive and where it goes; a context manager. `failures` are its damaged places."""

    def __init__(
        self, archive: Archive, out: Path, options: Options, journal: Journal, progress: Progress
    ) -> None:
        self.archive = archive
        self.failures: list[DamagedData] = []
        self._out = out
        self._options = options
        self._journal = journal
        self._progress = progress
        self._status = archive.path.stat()
        self.group = _GROUPS.get(archive.kind, "") if archive.kind else ""
        labels = functools.cache(self._find_labels)
        self._placer = Placer(
            archive=archive, split=options.split, flat=options.flat, labels=labels
        )
        labelled = archive.kind is ArchiveKind.VALIDATION and not options.flat
        self._labels_digest = labels().digest() if labelled else ""
        self.key = self._digest_key()
        if journal.others(self.key, self.group):
            raise ToolError(
                f"{out / self.group} was extracted from another archive, or with other labels or "
                "options; remove it or choose another --out"
            )
        self._whole = journal.whole(self.key, self.size)
        self._parts = journal.parts(self.key)
        self._ignored: list[str] = []
        self._seen: dict[str, Done] = {}  # parts that were found or made whole now
        self._written: list[int] = []  # files of each part that was worked on
        self._stack = contextlib.ExitStack()
        self._md5: Md5Follower | None = None

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @functools.cached_property
    def _source(self) -> Bytes:
        """The bytes of an archive that is not compressed."""
        return self._stack.enter_context(archive_bytes(self.archive.path))

    @functools.cached_property
    def _reader(self) -> Reader:
        return self._stack.enter_context(Reader(Layout.TAR, [self.archive.path]))

    def _find_labels(self) -> ImageLabels:
        """Labels by the rules of find_labels; the MD5 of a known archive is not taken again."""
        path, given = self.archive.path, self._options.labels
        known = built_in_labels()
        if (
            given is None
            and labels_beside(path) is None
            and self._journal.labels(self.group) == known.digest()
        ):
            return known
        return find_labels(path, None, given, self._progress)

    def _digest_key(self) -> str:
        """A digest of the archive's beginning and of what decides where its images go.

        It is still the same when a truncated archive has been completed.
        """
        path, kind = self.archive.path, self.archive.kind
        with named(path), path.open("rb") as file:
            digest = xxhash.xxh3_128(file.read(_HEAD))
        flat = self._options.flat and kind in {None, ArchiveKind.VALIDATION}
        split = None if kind else self._options.split
        digest.update(repr((self._labels_digest, flat, split)).encode())
        return digest.hexdigest()

    # --- what is there ---

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self._status.st_size

    def missing_bytes(self) -> int:
        """Bytes of the archive of which no record says that they are extracted, about."""
        _, done = add_up(self._parts.values())
        return max(0, self.size - done.bytes - done.files * _HEADER_AND_PADDING)

    def kept(self) -> int:
        """Files of the parts that were found or made whole now."""
        return add_up(self._seen.values())[1].files

    def begun(self) -> bool:
        """Whether anything of the archive is recorded."""
        return bool(self._parts)

    def is_whole(self) -> bool:
        """Whether the archive is recorded as extracted and the tree still holds its names."""
        if self._whole is None or not self._is_of_this_file(self._whole):
            return False
        return all(self._holds(folder, filled) for folder, filled in self._whole.folders.items())

    def _is_of_this_file(self, done: Done) -> bool:
        """Whether the archive was not changed since: one fetched again may hold other bytes."""
        return done.mtime == self._status.st_mtime_ns

    def _holds(self, folder: str, filled: Filled) -> bool:
        found = found_in(self._out / folder)
        if not self.group:  # others may have put files there
            return found.files >= self._expected[folder].files
        return (found.files, found.names) == (filled.files, filled.names)

    @functools.cached_property
    def _expected(self) -> dict[str, Filled]:
        return self._journal.expected()

    # --- extracting ---

    def jobs(self) -> Iterator[Job]:
        """Jobs that extract what is missing."""
        published = self.archive.compressed and self.archive.kind is not None
        if self._options.md5 or published:
            self._md5 = self._stack.enter_context(Md5Follower(self.archive.path))
        return self._jobs(self._extract)

    def _jobs(self, work: Callable[[Part, Bytes, Stop], None]) -> Iterator[Job]:
        """A job for each part, or one for all of them where they come front to back."""
        if self.archive.compressed:
            yield functools.partial(self._stream, work)
            return
        for part in self._listed(self._source):
            yield functools.partial(self._attempt, work, part, self._source)

    def _listed(self, source: Bytes) -> Iterator[Part]:
        """The parts of the archive up to where it is damaged."""
        self._ignored.clear()
        try:
            for part in list_parts(self.archive, source, self._placer, self._ignored):
                if self._md5 is not None:
                    self._md5.begin(part.start)
                yield part
        except DamagedData as error:
            self._fail(error)

    def _fail(self, error: DamagedData) -> None:
        self._refuse_changed()  # which explains any damage
        self.failures.append(error)

    def _stream(self, work: Callable[[Part, Bytes, Stop], None], stop: Stop) -> None:
        with contextlib.closing(Inflated(self.archive.path)) as source:
            done = 0
            for part in self._listed(source):
                self._attempt(work, part, source, stop)
                self._progress.advance(source.packed - done)
                done = source.packed
        if self.failures:  # a checksum that comes at the end speaks of all before
            self._distrust()

    def _attempt(
        self, work: Callable[[Part, Bytes, Stop], None], part: Part, source: Bytes, stop: Stop
    ) -> None:
        try:
            work(part, source, stop)
            self._refuse_changed()
        except DamagedData as error:
            self._fail(error)
        if self._md5 is not None:
            self._md5.finish(part.start, part.end)

    def _advance(self, part: Part, placed: Placed) -> None:
        """Count a file as progress, unless that is told by the compressed bytes used."""
        if part.data is None:
            self._progress.advance(placed.size + _HEADER_AND_PADDING)

    def _refuse_changed(self) -> None:
        """Refuse what came out of an archive that somebody writes to."""
        now, before = self.archive.path.stat(), self._status
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (
            before.st_ino,
            before.st_size,
            before.st_mtime_ns,
        ):
            raise ToolError(
                f"{self.archive.path} changed while it was read; wait until it is complete and run "
                "the same command"
            )

    def _distrust(self) -> None:
        """Forget what was extracted, for the next run to write it anew: any of it may be wrong."""
        self._journal.forget(lambda each: each.archive == self.key)

    def _extract(self, part: Part, source: Bytes, stop: Stop) -> None:
        """Write the files of a part; of a recorded one, those that are not there.

        Where the archive is not the file that it was, what is there is compared with it.
        """
        done = self._parts.get(part.name)
        if done and self._is_untouched(part, done):
            self._seen[part.name] = done
            self._progress.advance(part.end - part.start)
            return
        buffer, written = bytearray(_BUFFER), 0
        covered = done.total.files if done else 0
        known = done is not None and self._is_of_this_file(done)
        with Folders(self._out, self.key) as folders:
            for number, placed in enumerate(files_of(part, source, self._placer)):
                stop.check()
                there = number < covered and folders.holds(placed)
                if not (there and known):
                    if placed.size > len(buffer):
                        buffer = bytearray(placed.size)
                    data = self._contents(part, number, placed, buffer)
                    if not (there and folders.equals(placed, data)):
                        written += 1
                        folders.write(placed, data)
                folders.count(placed)
                self._advance(part, placed)
            filled = folders.filled()
        self._written.append(written)
        if done is None or done.folders != filled or not known:
            self._refuse_changed()
            done = self._record(part.name, filled)
            self._journal.add(done)
        self._seen[part.name] = done

    def _is_untouched(self, part: Part, done: Done) -> bool:
        """Whether the names of a recorded inner tar are all there, so that it is passed over."""
        if part.tar is None or not self._is_of_this_file(done):
            return False
        return all(self._holds(*each) for each in done.folders.items())

    def _contents(self, part: Part, number: int, placed: Placed, buffer: bytearray) -> memoryview:
        """The bytes of a file, in `buffer` where they are read now."""
        if part.data is not None:
            return memoryview(part.data[number])
        view = memoryview(buffer)[: placed.size]
        self._reader.read_into(view, 0, "", placed.offset)
        return view

    def _record(self, part: str, folders: dict[str, Filled], md5: str | None = None) -> Done:
        return Done(
            archive=self.key,
            size=self.size,
            mtime=self._status.st_mtime_ns,
            group=self.group,
            labels=self._labels_digest,
            part=part,
            folders=folders,
            md5=md5,
        )

    def finish(self) -> None:
        """Record that all of the archive is extracted, when its digest is right."""
        md5 = self._whole.md5 if self._whole else None
        if self._md5 is not None:
            md5 = self._md5.result()
            self._refuse_changed()
            self._check_md5(md5)
        folders, _ = add_up(self._seen.values())
        self._whole = self._record("", folders, md5=md5)
        self._journal.add(self._whole)
        if self._ignored:
            self._progress.note(
                f"{self.archive.path}: {len(self._ignored)} members that are no images were left "
                f"out, {self._ignored[0]} first"
            )

    def _check_md5(self, md5: str) -> None:
        """Compare with the published sum of an archive of exactly this kind and size."""
        published = [each for each in ARCHIVES if each.kind is self.archive.kind]
        if not published or published[0].md5 == md5:
            return
        message = f"{self.archive.path} has MD5 {md5}, the published one has {published[0].md5}"
        if published[0].bytes == self.size:
            self._distrust()
            raise DamagedData(f"{message}: it is damaged; fetch it again")
        self._progress.note(message)

    # --- reading back, removing, looking ahead ---

    def jobs_to_compare(self) -> Iterator[Job]:
        """Jobs that compare what lies in the tree with the archive, byte by byte."""
        return self._jobs(self._compare)

    def _compare(self, part: Part, source: Bytes, stop: Stop) -> None:
        buffer = bytearray(_BUFFER)
        with Folders(self._out, self.key) as folders:
            for number, placed in enumerate(files_of(part, source, self._placer)):
                stop.check()
                if placed.size > len(buffer):
                    buffer = bytearray(placed.size)
                if not folders.equals(placed, self._contents(part, number, placed, buffer)):
                    raise DamagedData(
                        f"{self._out / placed.folder / placed.name} is not what "
                        f"{self.archive.path} holds; remove it and run the same command"
                    )
                self._advance(part, placed)

    def remove(self) -> None:
        """Remove the archive and remember that it was extracted."""
        assert self._whole is not None
        self._whole = replace(self._whole, removed=str(self.archive.path.absolute()))
        self._journal.add(self._whole)
        self._journal.flush()
        self._refuse_changed()
        self.archive.path.unlink()

    def files(self) -> Iterator[tuple[Placed, bool]]:
        """Every file, by its header, and whether an extraction would write it. Nothing is read."""
        whole = self.is_whole()
        with archive_bytes(self.archive.path) as source:
            for part in self._listed(source):
                done = self._parts.get(part.name)
                covered = done.total.files if done else 0
                found = whole or (done is not None and self._is_untouched(part, done))
                try:
                    for number, placed in enumerate(files_of(part, source, self._placer)):
                        there = found or (number < covered and is_there(self._out, placed))
                        yield placed, not there
                        self._advance(part, placed)
                except DamagedData as error:
                    self._fail(error)

    def result(self) -> Done:
        """The record of the whole archive, with its MD5 where that was asked for."""
        assert self._whole is not None
        if self._options.md5 and self._whole.md5 is None:
            self._progress.start(f"MD5 of {self.archive.path.name}", self.size, "bytes")
            md5 = hash_file(self.archive.path, "md5", self._progress.advance)[1]
            self._check_md5(md5)
            self._whole = replace(self._whole, md5=md5)
            self._journal.add(self._whole)
        return self._whole

    def written(self) -> int:
        """Files that were written, not found."""
        return sum(self._written)
