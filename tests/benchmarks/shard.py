"""Sharding against copying, the usual way and other formats; restart markers; verify; true scale.

Every way is a command with its start-up counted; inputs are in the page cache, except where a
row says cold. Sections can be named, all is the default:

  write    nested training archive to finished shards, on a tmpfs and on disk: ours; cp with a
           digest of the archive beside it, which only copies; tar, a loop over inner tars and
           webdataset's ShardWriter; litdata's optimize and MosaicML's MDSWriter, which get class
           folders that were extracted before
  restart  --jpeg restart, pixels compared; jpegtran alone, nothing compared
  verify   SHA-256 of the shards: ours, which also holds them against the index; sha256sum and
           openssl, a process a core
  scale    archives of ILSVRC2012's true structure: planned, indexed, sharded; time and memory

Ours ends with all of it synced and no other way does: on disk they are given without and with a
sync of the file system. `net of its import` leaves out the time in which a library was imported;
ours never is net of anything. Libraries are looked for in this Python or in that of --peers. Name
pictures of real size by --images. All sections at full size take 15 GB of disk and 5 GB of memory.
"""

from __future__ import annotations

import argparse
import io
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from _bench import Bench, parse_sections, pictures, run_sections, write_folders
from _commands import OURS, Place, drop_caches, places, timed, watch

from prep.ilsvrc import TRAIN_IMAGES, VALIDATION_IMAGES
from shards.cores import available_cores
from shards.durable import sync_file_system

PEERS = str(Path(__file__).with_name("_peers.py"))
COPY = 'set -e; cp "$1" "$2/copy.tar" & {} "$1" & wait'
USUAL = """
set -e
mkdir "$2/images" "$2/shards"
tar -xf "$1" -C "$2/images"
cd "$2/images"
for inner in *.tar; do mkdir "${inner%.tar}"; tar -xf "$inner" -C "${inner%.tar}"; rm "$inner"; done
exec "$3" "$4" webdataset "$2/images" "$2/shards"
"""
EACH = 'cores=$1 folder=$2; shift 2; find "$folder" -name "$1" -print0 | xargs -0 -n1 -P"$cores" {}'
PLAN = """
import sys
from pathlib import Path
from prep.build import BuildOptions, plan_shards
from prep.sources import find_sources
from shards.progress import Silent
sources = find_sources([Path(sys.argv[1])], None)
for plan in plan_shards(sources, BuildOptions(), Silent()):
    assert plan.fingerprint and plan.shards
"""
COLD_ROUNDS = 2
SCALE_ROUNDS = 3
SHARDS = 10  # of what is verified: a multiple of any small number of cores


@dataclass(frozen=True)
class Setup:
    """What the sections work with."""

    options: argparse.Namespace
    images: list[bytes]
    memory: Place
    disk: Place

    def bench(self, title: str, unit: str = "images/s", rounds: int = 0) -> Bench:
        return Bench(unit=unit, rounds=rounds or self.options.rounds, title=title)

    def archive(self, place: Place) -> Path:
        """The nested archive, made once a place."""
        path = place.folder / "train.tar"
        return path if path.exists() else write_archive(self.images, path)


def write_archive(images: list[bytes], path: Path, classes: int = 10) -> Path:
    """A tar of one tar a class, as ILSVRC2012's."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as outer:
        for label in range(classes):
            wnid, file = f"n{label:08d}", io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for number, data in enumerate(images[label::classes]):
                    add(inner, f"{wnid}_{number}.JPEG", data)
            add(outer, f"{wnid}.tar", file.getvalue())
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def bash(lines: str, *arguments: object) -> list[object]:
    """The command that runs shell lines."""
    return ["bash", "-c", lines, "bash", *arguments]


# --- write ---

Command = Callable[[Path], list[object]]  # that writes into a folder


def write(setup: Setup) -> Iterator[Bench]:
    for place in (setup.memory, setup.disk):
        bench = setup.bench(f"write, {place.name}")
        ways = ways_to_write(setup, place, bench)
        for _ in range(bench.rounds):
            for name, command in ways.items():
                turn(setup, place, bench, name, command)
        yield bench


def ways_to_write(setup: Setup, place: Place, bench: Bench) -> dict[str, Command]:
    """The commands by name; what is not installed is noted as absent."""
    archive, peers = setup.archive(place), setup.options.peers
    ways: dict[str, Command] = {
        "ours": lambda out: [OURS, "shard", archive, "--out", out],
        "cp, sha256sum beside": lambda out: bash(COPY.format("sha256sum"), archive, out),
        "cp, openssl sha256 beside": lambda out: bash(COPY.format("openssl sha256"), archive, out),
    }
    if has(bench, peers, "webdataset", "tar, loop, webdataset"):
        ways["tar, loop, webdataset"] = lambda out: bash(USUAL, archive, out, peers, PEERS)
    tree = place.folder / "tree"
    for module, name in (("litdata", "litdata optimize"), ("streaming", "MDSWriter, sha256")):
        if setup.options.quick:
            bench.absent[name] = "not with --quick"
        elif has(bench, peers, module, name):
            if not tree.exists():
                write_folders(setup.images, tree)
            ways[name] = lambda out, module=module: [peers, PEERS, module, tree, out]
    return ways


def has(bench: Bench, python: str, module: str, name: str) -> bool:
    """Whether that Python has a module; noted as absent where it has not."""
    find = "import importlib.util as i, sys; sys.exit(i.find_spec(sys.argv[1]) is None)"
    if subprocess.run([python, "-c", find, module], check=False).returncode == 0:
        return True
    bench.absent[name] = f"no {module} in {python}"
    return False


def turn(setup: Setup, place: Place, bench: Bench, name: str, command: Command) -> None:
    """One run of one way into a fresh folder; the others' on disk with and without a sync."""
    out = place.fresh()
    seconds, count = timed(*command(out)), len(setup.images)
    bench.add(name, count / seconds)
    started = time.perf_counter()
    sync_file_system(out)
    if place.keep and name != "ours":
        bench.add(f"{name}, synced as ours is", count / (seconds + time.perf_counter() - started))
    imported = out / "imported"
    if imported.exists():
        rate = count / (seconds - float(imported.read_text()))
        bench.add(f"{name}, net of its import", rate)
    for part in out.iterdir():
        # Image files deleted from a disk would slow down those who make some after this.
        if not (place.keep and part.name == "images"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()


# --- restart, verify ---


def restart(setup: Setup) -> Iterator[Bench]:
    """A fifth of the images, into memory: the processor is the limit."""
    images, place = setup.images[: max(1, len(setup.images) // 5)], setup.memory
    archive = write_archive(images, place.folder / "restart.tar")
    tree = write_folders(images, place.folder / "restart")
    alone = EACH.format("jpegtran -copy none -optimize -restart 4B -outfile /dev/null")
    ways: dict[str, Command] = {
        "ours": lambda out: [OURS, "shard", archive, "--jpeg", "restart", "--out", out],
        "jpegtran alone": lambda _: bash(alone, available_cores(), tree, "*.JPEG"),
    }
    clock = setup.bench("restart", "images/s a core")
    used = setup.bench("restart", "images/s of processor time")
    for _ in range(clock.rounds):
        for name, command in ways.items():
            out, before = place.fresh(), processor_time()
            clock.add(name, len(images) / timed(*command(out)) / available_cores())
            used.add(name, len(images) / (processor_time() - before))
            shutil.rmtree(out)
    yield from (clock, used)


def processor_time() -> float:
    """Seconds of all commands so far, in user and kernel."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def verify(setup: Setup) -> Iterator[Bench]:
    shards = setup.disk.fresh()
    a_shard = max(1, len(setup.images) // SHARDS)
    archive = setup.archive(setup.disk)
    timed(OURS, "shard", archive, "--samples-per-shard", a_shard, "--out", shards)
    megabytes = sum(path.stat().st_size for path in shards.rglob("*.tar")) / 1e6
    ways = {"ours": [OURS, "verify", shards]}
    for name, digest in (("sha256sum", "sha256sum"), ("openssl sha256", "openssl sha256 -r")):
        ways[f"xargs -P, {name}"] = bash(EACH.format(digest), available_cores(), shards, "*.tar")
    bench = setup.bench("verify", "MB/s")
    bench.measure({name: lambda c=command: megabytes / timed(*c) for name, command in ways.items()})
    yield bench


# --- scale ---


def scale(setup: Setup) -> Iterator[Bench]:
    """Planning is without the trial that --dry-run has. Memory is the largest resident set."""
    title = f"{TRAIN_IMAGES + VALIDATION_IMAGES:,} tiny images, {setup.disk.name}"
    rounds = min(SCALE_ROUNDS, setup.options.rounds)
    seconds = setup.bench(title, "s", rounds)
    memory = setup.bench(title, "MB of memory", rounds)
    if setup.options.quick:
        seconds.absent["all"] = "not with --quick"
        yield seconds
        return
    archives, out = setup.disk.fresh(), setup.disk.folder / "scale"
    timed(OURS, "sample-data", "--out", archives, "--full-scale")

    def run(name: str, *command: object) -> None:
        took, resident = watch(*command)
        seconds.add(name, took)
        memory.add(name, resident / 1e6)

    ways: dict[str, list[object]] = {
        "plan": [sys.executable, "-c", PLAN, archives],
        "index the archives as they lie": [OURS, "index", archives, "--out", out],
        "shard": [OURS, "shard", archives, "--out", out],
    }
    for turns, note in ((rounds, ""), (COLD_ROUNDS, ", cold")):
        for _ in range(turns):
            for name, command in ways.items():
                shutil.rmtree(out, ignore_errors=True)
                sync_file_system(setup.disk.folder)
                if note:
                    drop_caches(archives)
                run(name + note, *command)
    memory.add("of which the index", sum(file.stat().st_size for file in indexes(out)) / 1e6)
    shutil.rmtree(out)
    count = f"shard, {len(setup.images):,} images of real size"
    run(count, OURS, "shard", setup.archive(setup.disk), "--out", out)
    memory.add(f"{count}, of which the index", sum(f.stat().st_size for f in indexes(out)) / 1e6)
    yield from (seconds, memory)


def indexes(out: Path) -> Iterator[Path]:
    return out.rglob("index.*")


SECTIONS = {section.__name__: section for section in (write, restart, verify, scale)}


def main() -> None:
    options = parse_sections(__doc__, SECTIONS, count=10_000, peers=True)
    with places(options) as (memory, disk):
        setup = Setup(
            options=options, images=pictures(options, disk.folder), memory=memory, disk=disk
        )
        run_sections(SECTIONS, setup, options)


if __name__ == "__main__":
    main()
