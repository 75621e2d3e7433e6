"""What a folder of data has and lacks, what each way from there takes, and what to run next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prep.doctor.disk import Disk, Rates, disk_of, existing, measure
from prep.doctor.holdings import HeldArchive, HeldShards, Holdings, State, Tree, find_holdings
from prep.doctor.routes import DOWNLOADS, NEEDED, Plan, Route, archive_name
from prep.ilsvrc import CLASSES
from shards.cores import available_cores
from shards.finding import Finding, counted, note, ok, problem

_NETWORK: Final = (
    "nfs", "cifs", "smb", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "9p", "afs", "fuse.",
)  # fmt: skip
_NETWORK_REMEDY: Final = (
    "a network serves shards well and class folders badly: do not extract here, and train from a "
    "local copy of the shards where there is room for one"
)
_KIND_REMEDIES: Final = {
    "overlay": "this is the container's own layer, slow and gone with it: mount a disk into the "
    "container (docker run -v /data:/data)",
    "tmpfs": "it is memory: what lies here counts as such, and is gone after a restart",
    "ramfs": "it is memory: what lies here counts as such, and is gone after a restart",
}
_ROOM: Final = 512 << 20  # bytes that must be free before a disk is measured
_FILES: Final = 2_000  # the same for files


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The findings on a path, the rates of its disk, the ways from it, the command to run next."""

    findings: list[Finding]
    rates: Rates | None
    routes: list[Route]
    next: str


def examine_data(path: Path) -> DataReport:
    """Look at a path of data: its disk, what lies there, what is missing and what to do.

    A file stands for its folder, where an archive's companions lie.
    Takes about two seconds, most of them to measure the disk; nothing is left behind. Raises
    OSError where the path cannot be read.
    """
    path = path.parent if path.is_file() else path
    disk, holdings = disk_of(path), find_holdings(path)
    plan = Plan(path, holdings)
    rates, speed = _measured(path, disk, plan.archive())
    routes = plan.routes(disk, rates, available_cores())
    findings = [
        *_place(path, disk),
        speed,
        *(_archive(each, path) for each in holdings.archives),
        *(_tree(each, path) for each in holdings.trees),
        *(_shards(each, path) for each in holdings.shards),
        *_refused(path, holdings),
        *_missing(path, holdings, plan),
        *_routes(routes, plan, disk),
    ]
    room = all(_fits(each, plan, disk) for each in routes[:1])
    return DataReport(findings=findings, rates=rates, routes=routes, next=plan.next(room=room))


# --- the disk ---------------------------------------------------------------------------------


def _place(path: Path, disk: Disk) -> Iterator[Finding]:
    if not path.exists():
        remedy = f"check the spelling, or make it: mkdir -p {shlex.quote(str(path))}"
        yield note(str(path), "does not exist yet", remedy)
    inodes = "any number of" if disk.free_inodes is None else f"{disk.free_inodes:,}"
    found = f"{disk.kind} at {disk.mount}, {_gb(disk.free_bytes)} and {inodes} files free"
    if not disk.writable:
        yield note("disk", f"{found}, not writable", "give --out where you may write")
    elif disk.kind.startswith(_NETWORK):
        yield note("disk", found, _NETWORK_REMEDY)
    elif disk.kind in _KIND_REMEDIES:
        yield note("disk", found, _KIND_REMEDIES[disk.kind])
    else:
        yield ok("disk", found)


def _measured(path: Path, disk: Disk, archive: Path | None) -> tuple[Rates | None, Finding]:
    folder = existing(path)
    remedy = "times are left out; give a folder that can be written to to learn them"
    files = _FILES if disk.free_inodes is None else disk.free_inodes
    if disk.free_bytes < _ROOM or files < _FILES:
        return None, note("speed", "not measured: there is too little room", remedy)
    try:
        rates = measure(folder, archive)
    except OSError as error:
        found = f"not measured: {folder}: {error.strerror}"
        return None, note("speed", found, remedy)
    return rates, ok(
        "speed",
        f"reads {rates.read / 1e6:,.0f} MB/s, writes {rates.write / 1e6:,.0f} MB/s, makes "
        f"{rates.create:,.0f} files/s, measured now in {folder}",
    )


# --- what is there ----------------------------------------------------------------------------


def _archive(held: HeldArchive, path: Path) -> Finding:
    name = _name(held.path, path)
    size = f"{held.bytes:,} bytes"
    if held.state is State.PUBLISHED:
        return ok(name, f"{size} as published; its MD5 was not looked at")
    if held.state is State.WHOLE:
        return ok(name, f"{size}; its size was not published")
    if held.state is State.OTHER:
        return note(
            name,
            f"{size}, whole; ILSVRC2012's has {held.published:,}",
            "right for a sample or another set; if it should be ILSVRC2012's, fetch it again",
        )
    if held.state is State.COMPRESSED:
        return note(
            name,
            f"{size}, compressed, not looked into",
            f"if it has images: imagenet-prep extract {shlex.quote(str(held.path))} --out DIR",
        )
    return _unusable(held, name)


def _unusable(held: HeldArchive, name: str) -> Finding:
    """An archive that is not whole, cannot be read, or is none."""
    size = f"{held.bytes:,} bytes"
    if held.state is State.UNREADABLE:
        return problem(name, f"{size}: {held.why}", "check its owner and permissions, and the disk")
    if held.state is State.STRANGE and held.kind is None:
        return note(name, held.why, "name the archives themselves rather than their folder")
    share = "" if held.published is None else f" of {held.published:,}"
    return problem(
        name,
        f"{size}{share}: {held.why}",
        "go on with the download (wget --continue, aria2c --continue), or fetch it again from "
        f"{DOWNLOADS} (without logging in one gets a web page)",
    )


def _tree(tree: Tree, path: Path) -> Finding:
    name = _name(tree.path, path)
    if tree.classes is None:
        return ok(name, f"{tree.split} images in one folder")
    found = f"{tree.split} images in {counted(tree.classes, 'class folder')}"
    if tree.classes == CLASSES:
        return ok(name, found)
    return note(
        name,
        f"{found}; ILSVRC2012 has {CLASSES:,}",
        "right for another set; if extraction was stopped, the same `imagenet-prep extract` "
        "command goes on",
    )


def _shards(held: HeldShards, path: Path) -> Finding:
    name = _name(held.path, path)
    if not held.finished:
        command = "index" if held.linked else "shard"
        found = "" if held.linked else f", {counted(held.shards, 'shard')} so far"
        remedy = f"the same `imagenet-prep {command}` command goes on where it was stopped"
        return note(name, f"unfinished{found}", remedy)
    if held.damage and held.linked:
        remedy = (
            "run `imagenet-prep index` again on the tars where they lie now, or put missing ones "
            "back where their links lead"
        )
        return problem(name, held.damage, remedy)
    if held.damage:
        return problem(
            name,
            held.damage,
            "the `imagenet-prep shard` command that made them puts missing ones back; "
            "`imagenet-prep verify` names all damage",
        )
    images = counted(held.samples, f"{held.split} image")
    if held.linked:
        what = counted(held.shards, "class folder" if held.loose else "tar")
        return ok(name, f"{images} in {what} as they lie, indexed")
    return ok(name, f"{images} in {counted(held.shards, 'shard')}, finished")


def _refused(path: Path, holdings: Holdings) -> Iterator[Finding]:
    if holdings.unnamed is not None:
        place = shlex.quote(str(holdings.unnamed))
        yield note(
            str(holdings.unnamed),
            "class folders that do not say which split they are",
            f"say it to the command: imagenet-prep shard {place} --split train --out DIR",
        )
    if holdings.refused:
        remedy = "give the right one itself to `imagenet-prep shard`"
        yield note(str(path), holdings.refused, remedy)


def _missing(path: Path, holdings: Holdings, plan: Plan) -> Iterator[Finding]:
    """What is needed and is there in no form; what has a problem was reported already."""
    there = {each.kind for each in holdings.archives}
    for split in plan.missing():
        if NEEDED[split] not in there:
            yield note(
                archive_name(split),
                "not here, and nothing that could stand for it",
                f"log in at {DOWNLOADS} and fetch it to {path} (the devkit is not needed); or "
                "try everything on `imagenet-prep sample-data`",
            )


# --- the routes -------------------------------------------------------------------------------


def _fits(route: Route, plan: Plan, disk: Disk) -> bool:
    inodes = disk.free_inodes is None or route.inodes <= disk.free_inodes
    return disk.writable and plan.needs(route) <= disk.free_bytes and inodes


def _routes(routes: Sequence[Route], plan: Plan, disk: Disk) -> Iterator[Finding]:
    """Each route, with its command where it fits."""
    for route in routes:
        time = "" if route.seconds is None else f", about {_about(route.seconds)} here"
        if time and route.headers:
            time += f" besides {route.headers:,} small reads of headers"
        found = f"{_gb(route.bytes)} in {route.inodes:,} files beside what is there{time}"
        if _fits(route, plan, disk):
            yield ok(f"route: {route.name}", f"{found}: {route.command}")
        else:
            indexable = any(each.name == "index" and _fits(each, plan, disk) for each in routes)
            yield _unfit(route, found, plan, disk, indexable=indexable)


def _unfit(route: Route, found: str, plan: Plan, disk: Disk, *, indexable: bool) -> Finding:
    """A route that does not fit; only shards are needed, so of others that is no problem."""
    what = f"route: {route.name}"
    if not disk.writable:
        return note(what, f"{found}; nothing can be written here", "give --out where you may write")
    short = plan.needs(route) - disk.free_bytes
    lacking = (
        f"{_gb(short)} more room is needed"
        + (" (the archives still to be fetched counted)" if plan.missing() else "")
        if short > 0
        else f"{route.inodes - (disk.free_inodes or 0):,} more files (inodes) are needed"
    )
    if route.name == "shards":
        remedy = f"make room, or give --out on a disk with {_gb(route.bytes)} free"
        remedy += "; or train from the archives as they lie, the route index" * indexable
        return problem(what, f"{found}; {lacking}", remedy)
    if route.name == "index":
        remedy = "make room for the archives" if plan.missing() else "give --out on another disk"
        return note(what, f"{found}; {lacking}", remedy)
    return note(what, f"{found}; {lacking}", "not needed to train: shards are made without them")


def _name(path: Path, base: Path) -> str:
    """A path as seen from the one that was asked about."""
    return str(path.relative_to(base)) if path.is_relative_to(base) and path != base else str(path)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _about(seconds: float) -> str:
    """A time as exact as an estimate is."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
