"""Shard folders: checked, and where asked mended from the sources that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prep.replan import Origin
from shards.errors import ToolError
from shards.examination import examine
from shards.index import INDEX_NAME, SHARDS_LAYOUT
from shards.manifest import MANIFEST_NAME, SUMS_NAME, Manifest
from shards.progress import Progress
from shards.repair import Mended, repair_shards
from shards.sidecars import TIMM_NAME, timm_info, write_timm_info
from shards.verify import Report, decode_shards, report_of


@dataclass(frozen=True, kw_only=True)
class ShardChecks:
    """How shards are checked: `deep` with the digest of every image, and what is done about damage.

    `sources` are what the shards were made of, with their `labels`; without them `repair` mends
    what follows from the rest.
    """

    deep: bool = False
    decode: bool = False
    repair: bool = False
    sources: tuple[Path, ...] = ()
    labels: Path | None = None


def check_shards(
    folders: Sequence[Path], checks: ShardChecks, *, workers: int, progress: Progress
) -> list[Report]:
    """Check shard folders, and the _info.json beside them.

    Raises ToolError where something is to be mended and the source is another, or the folder is
    in use.
    """
    reports = [_check(folder, checks, workers, progress) for folder in folders]
    for out in dict.fromkeys(folder.parent for folder in folders):
        inside = [i for i, folder in enumerate(folders) if folder.parent == out]
        damaged = {name for number in inside for name in reports[number].damaged}
        if damaged.isdisjoint({MANIFEST_NAME, INDEX_NAME, SUMS_NAME}):
            reports[inside[0]] = _with_timm_info(reports[inside[0]], out, checks)
    return reports


def _check(folder: Path, checks: ShardChecks, workers: int, progress: Progress) -> Report:
    try:
        found = examine(folder, deep=checks.deep, workers=workers, progress=progress)
    except ToolError as error:  # it is unfinished; what else was asked for is checked all the same
        return Report(
            folder=folder, split=folder.name, files=0, samples=0, bytes=0, findings=(str(error),)
        )
    mended = Mended(found)
    if checks.repair and found.faults:
        origin = Origin(
            paths=checks.sources,
            labels=checks.labels,
            out=folder.parent,
            workers=workers,
            progress=progress,
        )
        mended = repair_shards(
            found,
            origin.material if checks.sources else None,
            deep=checks.deep,
            workers=workers,
            progress=progress,
        )
    more = []
    if checks.decode:
        more = decode_shards(mended.found, workers=workers, progress=progress)
    report = report_of(mended.found, more)
    return replace(report, repaired=mended.repaired, notes=mended.notes)


def _with_timm_info(report: Report, out: Path, checks: ShardChecks) -> Report:
    """A report of one of the splits in `out` with what is wrong with their _info.json."""
    path, name = out / TIMM_NAME, f"../{TIMM_NAME}"
    if not path.is_file() or not _is_told(out) or path.read_bytes() == timm_info(out):
        return report
    if checks.repair:
        write_timm_info(out)
        return replace(report, repaired=(*report.repaired, name))
    return replace(
        report,
        findings=(*report.findings, f"{path} does not agree with the manifests of its splits"),
        damaged=(*report.damaged, name),
    )


def _is_told(out: Path) -> bool:
    """Whether the splits in a folder say what its _info.json must be: all ours, none damaged."""
    signs = (MANIFEST_NAME, INDEX_NAME, "*.tar")
    folders = {path.parent for sign in signs for path in out.glob(f"*/{sign}")}
    try:
        manifests = [Manifest.read(folder) for folder in folders]
    except ToolError:
        return False
    return all(each.layout == SHARDS_LAYOUT for each in manifests)
