"""Checks of archives: sizes first, then the MD5 of each against the one that it should have.

Where no sum is known the archive's structure is checked instead, every header of every tar in it,
in the same pass that takes the MD5, so that it can be noted. What is damaged has a finding that
says how much is missing and what to do; none ends the check.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from prep import ilsvrc
from prep.archives import Archive, ArchiveImage, Form, archive_bytes, recognise
from prep.devkit import read_devkit
from prep.ilsvrc import ARCHIVES, ArchiveKind
from prep.inflate import Inflated, is_compressed
from prep.oddities import Oddity
from prep.verification.images import Looks, read_image
from prep.verification.listing import Listing, Stepping
from prep.verification.md5sums import Sums
from prep.wholeness import why_unfinished
from shards.errors import DamagedData, ToolError, UsageError
from shards.hashed import HashedBytes
from shards.hashing import hash_file
from shards.parallel import Stop, run_jobs
from shards.progress import Progress
from shards.reader import Reader
from shards.sample import Layout
from shards.soundness import check_pictures, check_pixels

_PUBLISHED: Final = "the published MD5"
_STRUCTURE: Final = "its structure"
_FETCH: Final = "continue the download (`wget -c`, `curl -C -`) or fetch it again"
_SYNSETS: Final = 1_860  # in the published devkit: 1000 classes and what stands above them


@dataclass(frozen=True, kw_only=True)
class ArchiveReport:
    """What a check of an archive looked at and found; no findings: it is whole.

    `kind` is the published archive that it is named or shaped like, `checked_by` what it was
    measured by. `images` and `md5` are None where they were not counted, or not taken.
    """

    path: Path
    kind: str | None
    bytes: int
    images: int | None = None
    md5: str | None = None
    checked_by: str | None = None
    decoded: bool = False
    oddities: tuple[Oddity, ...] = ()
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How an archive is to be checked; with a finding, not at all."""

    path: Path
    bytes: int = 0
    kind: ArchiveKind | None = None
    expected: str | None = None  # MD5
    origin: str = _STRUCTURE
    compressed: bool = False
    finding: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def work(self) -> int:
        """Bytes to go through: compressed ones are digested, then inflated."""
        twice = self.compressed and self.expected is None
        return 0 if self.finding else self.bytes * (2 if twice else 1)

    def report(self) -> ArchiveReport:
        """What is known before the archive is read."""
        return ArchiveReport(
            path=self.path,
            kind=None if self.kind is None else self.kind.value,
            bytes=self.bytes,
            findings=(self.finding,) if self.finding else (),
            notes=self.notes,
        )


def check_archives(
    paths: Sequence[Path], sums: Sums, *, decode: bool, workers: int, progress: Progress
) -> list[ArchiveReport]:
    """Check archives, several side by side. Reports come in the order of the paths.

    Raises UsageError where one sum was given for several archives.
    """
    if sums.alone and len(paths) != 1:
        raise UsageError(
            f"--md5 with the sum itself is for one archive, and there are {len(paths)}; give a "
            "file of sums, as md5sum writes it"
        )
    plans = [_plan(path, sums) for path in paths]
    progress.start("verifying archives", sum(plan.work for plan in plans), "bytes")

    def check(plan: _Plan, stop: Stop) -> ArchiveReport:
        def step(count: int) -> None:
            stop.check()
            progress.advance(count)

        try:
            return plan.report() if plan.finding else _check(plan, step)
        except OSError as error:
            return replace(plan.report(), findings=(_unreadable(plan.path, error),))

    # The largest first, so that none is left to one thread at the end.
    plans.sort(key=lambda plan: plan.work, reverse=True)
    reports = {report.path: report for report in run_jobs(check, plans, workers)}
    if decode:
        reports = {path: _decode(report, workers, progress) for path, report in reports.items()}
    return [reports[path] for path in paths]


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({os.strerror(error.errno or 0)})"


# --- sizes, before anything is read -----------------------------------------------------------


def _plan(path: Path, sums: Sums) -> _Plan:
    """Tell from names, sizes and first and last bytes how an archive is to be checked."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        return _Plan(path=path, finding=f"{path} is {what}, no archive")
    size = path.stat().st_size
    given = sums.alone or sums.by_name.get(path.name)
    if given:
        return _Plan(path=path, bytes=size, expected=given, origin=sums.origin)
    if not size:
        return _Plan(path=path, finding=f"{path} is empty; fetch it again")
    try:
        return _plan_by_looks(path, size)
    except ToolError as error:
        return _Plan(path=path, bytes=size, finding=str(error))
    except OSError as error:
        return _Plan(path=path, bytes=size, finding=_unreadable(path, error))


def _plan_by_looks(path: Path, size: int) -> _Plan:
    compressed = is_compressed(path)
    official = _official(path, size)
    plan = _Plan(
        path=path, bytes=size, kind=official.kind if official else None, compressed=compressed
    )
    why = why_unfinished(path, is_tar=not compressed)
    if why:
        return replace(plan, finding=_unfinished(path, size, official, why))
    if official is None:
        return plan
    if size == official.bytes or (official.bytes is None and path.name == official.name):
        return replace(plan, expected=official.md5, origin=_PUBLISHED)
    size_of = f" ({official.bytes:,} bytes)" if official.bytes else ""
    return replace(plan, notes=(f"{path} is not the published {official.name}{size_of}",))


def _official(path: Path, size: int) -> ilsvrc.Archive | None:
    """The published archive that a file is by its size, its name, or its first members."""
    for official in ARCHIVES:
        if path.name == official.name or size == official.bytes:
            return official
    archive = _recognise(path)
    return next((each for each in ARCHIVES if archive and each.kind is archive.kind), None)


def _unfinished(path: Path, size: int, official: ilsvrc.Archive | None, why: str) -> str:
    lacks = ""
    if official is not None and official.bytes and size < official.bytes:
        lacks = (
            f"; it has {size:,} of the {official.bytes:,} bytes of the published one, "
            f"{official.bytes - size:,} are missing"
        )
    return f"{path} is not whole: {why}{lacks}; {_FETCH}"


# --- sums and structure -----------------------------------------------------------------------


def _check(plan: _Plan, step: Callable[[int], None]) -> ArchiveReport:
    report = replace(plan.report(), checked_by=plan.origin)
    if plan.expected is None:
        return _check_structure(plan, report, step)
    md5 = hash_file(plan.path, "md5", step)[1]
    report = replace(report, md5=md5)
    if md5 == plan.expected:
        return report
    other = _another_set(plan) if plan.origin == _PUBLISHED else ""
    if other:
        note = f"{plan.path} is not the published one: {other}"
        return replace(report, checked_by=_STRUCTURE, notes=(*report.notes, note))
    origin = "published" if plan.origin == _PUBLISHED else f"by {plan.origin}"
    finding = f"{plan.path} has MD5 {md5} instead of {plan.expected} ({origin})"
    return replace(report, findings=(f"{finding}: it is damaged or altered; fetch it again",))


def _another_set(plan: _Plan) -> str:
    """Why an archive under a published name evidently holds other data; "" if it does not.

    For archives whose size was not published: what claims ILSVRC2012's counts must be its own.
    """
    try:
        if plan.kind is ArchiveKind.DEVKIT:
            devkit = read_devkit(plan.path)
            labels, synsets = len(devkit.ground_truth), len(devkit.synsets)
            if (labels, synsets) != (ilsvrc.VALIDATION_IMAGES, _SYNSETS):
                return (
                    f"it has {labels:,} labels and {synsets:,} synsets, ILSVRC2012's has "
                    f"{ilsvrc.VALIDATION_IMAGES:,} and {_SYNSETS:,}"
                )
        if plan.kind is ArchiveKind.TEST:
            listing = Listing(recognise(plan.path))
            with archive_bytes(plan.path) as source:
                listing.read(plan.path, source)
            images = listing.count
            if images != ilsvrc.TEST_IMAGES:
                return f"it has {images:,} images, ILSVRC2012's has {ilsvrc.TEST_IMAGES:,}"
    except DamagedData:
        pass
    return ""


def _check_structure(
    plan: _Plan, report: ArchiveReport, step: Callable[[int], None]
) -> ArchiveReport:
    """Go through every header of an archive, inflating it where it is compressed."""
    path = plan.path
    listing = Listing(_recognise(path))
    try:
        if plan.compressed:
            md5 = hash_file(path, "md5", step)[1]
            with contextlib.closing(Inflated(path)) as inflated:
                listing.read(path, Stepping(inflated, step))
        else:
            with HashedBytes(path, step, "md5") as hashed:
                listing.read(path, hashed)
                md5 = hashed.hexdigest()
    except DamagedData as error:
        return replace(report, findings=(str(error),))
    findings, notes = listing.compare(path)
    return replace(
        report,
        md5=md5,
        images=listing.count,
        findings=findings,
        notes=(*report.notes, *notes),
    )


def _recognise(path: Path) -> Archive | None:
    """What archive of images a file is; None for any other tar."""
    try:
        return recognise(path)
    except DamagedData:
        return None


# --- pixels -----------------------------------------------------------------------------------


def _decode(report: ArchiveReport, workers: int, progress: Progress) -> ArchiveReport:
    """Decode every image of an archive where it lies, up to where the archive is damaged."""
    path = report.path
    try:
        archive = recognise(path)
    except (ToolError, OSError):  # told already, or no archive of images
        return report
    if archive.form is Form.NO_IMAGES:
        return report
    if archive.compressed:
        note = (
            f"{path} is compressed, so its images were not decoded: extract them and give the "
            "folder with --decode"
        )
        return replace(report, notes=(*report.notes, note))
    looks, listing = Looks(), Listing(archive)
    progress.start(f"decoding {path.name}", report.bytes, "bytes")
    with archive_bytes(path) as source, Reader(Layout.TAR, [path]) as reader:

        def read(image: ArchiveImage) -> bytearray:
            return read_image(reader, 0, image.name, image.offset, image.size)

        for image, verdict in check_pictures(
            listing.images(source), read, check_pixels, workers=workers, progress=progress
        ):
            looks.add(f"{path}: {image.name}", image.name, verdict)
    findings = dict.fromkeys((*report.findings, *listing.damage, *sorted(looks.damage)))
    return replace(
        report,
        images=listing.count,
        decoded=True,
        oddities=looks.oddities(),
        findings=tuple(findings),
    )
