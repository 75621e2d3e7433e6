"""Preparation against the shell lines people use: extraction, MD5 sums, inspection, true scale.

Every way is a command with its start-up counted; inputs are in the page cache, except where a
row says cold. Sections can be named, all is the default:

  extract  the nested training archive: ours; tar and a loop over inner tars
  val      validation into class folders: ours; tar and valprep.sh (one mv for each image)
  peak     the most space that extraction takes, against that of the archive and its images
  verify   MD5 of one archive and of four: ours; md5sum, a process a core
  inspect  50,000 images in class folders: ours; Pillow in one process
  scale    archives of ILSVRC2012's true structure: extracted, run again, killed halfway

Ours ends with a sync of the file system and the shell's lines do not: on disk they are given with
and without one. Every run gets a fresh folder, and nothing on the disk is deleted before the end,
because ext4 makes files slowly for minutes after a deletion, for every way. All sections at full
size take 32 GB of disk and 4 GB of memory; a command is started when other processes have rested,
or after 20 s. --quick shows that all of it works: what it measures is mostly Python's start.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from _bench import Bench, parse_sections, pictures, run_sections, write_folders
from _commands import OURS, Place, drop_caches, places, space, timed, watch
from shard import add, write_archive

from prep.ilsvrc import CLASSES, TRAIN_IMAGES, VALIDATION_IMAGES
from shards.cores import available_cores
from shards.durable import sync_file_system

NESTED = """
set -e
cd "$2"
tar -xf "$1"
find . -name "*.tar" | while read NAME; do
    mkdir -p "${NAME%.tar}"; tar -xf "${NAME}" -C "${NAME%.tar}"; rm -f "${NAME}"
done
"""
VALPREP = 'set -e; cd "$2"; tar -xf "$1"; bash "$3"'
MD5SUM = 'cores=$1; shift; printf "%s\\0" "$@" | xargs -0 -n 1 -P "$cores" md5sum'
PILLOW = """
import os, sys
from PIL import Image
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        with Image.open(os.path.join(folder, name)) as image:
            image.size, image.mode, image.format
"""
COLD_ROUNDS = 2


@dataclass(frozen=True)
class Setup:
    """What the sections work with."""

    options: argparse.Namespace
    images: list[bytes]
    memory: Place
    disk: Place

    def bench(self, title: str, unit: str = "images/s", rounds: int = 0) -> Bench:
        return Bench(unit=unit, rounds=rounds or self.options.rounds, title=title)

    def timed(self, *command: object) -> float:
        """Seconds of a command."""
        return timed(*command, hurry=self.options.quick)


def bash(lines: str, *arguments: object) -> list[object]:
    """The command that runs shell lines."""
    return ["bash", "-c", lines, "bash", *arguments]


# --- extract, val, peak ---


def extract(setup: Setup) -> Iterator[Bench]:
    for place in (setup.memory, setup.disk):
        archive = write_archive(setup.images, place.folder / "train.tar")
        bench = setup.bench(f"extract, {place.name}")
        for _ in range(bench.rounds):
            turn(setup, place, bench, "ours", lambda out, a=archive: ours_into(out, a))
            turn(setup, place, bench, "shell", lambda out, a=archive: bash(NESTED, a, out))
        yield bench


def val(setup: Setup) -> Iterator[Bench]:
    for place in (setup.memory, setup.disk):
        archive, labels, script = write_validation(setup.images, place.folder)
        ours = [archive, "--labels", labels]
        usual = [archive, script]
        bench = setup.bench(f"val, {place.name}")
        for _ in range(bench.rounds):
            turn(setup, place, bench, "ours", lambda out, o=ours: ours_into(out, *o))
            turn(setup, place, bench, "shell", lambda out, u=usual: bash(VALPREP, u[0], out, u[1]))
        yield bench


def ours_into(out: Path, *arguments: object) -> list[object]:
    return [OURS, "extract", "--out", out, *arguments]


def turn(
    setup: Setup, place: Place, bench: Bench, way: str, command: Callable[[Path], list[object]]
) -> None:
    """One run of one way into a fresh folder; the shell's on disk with and without a sync."""
    out = place.fresh()
    seconds = setup.timed(*command(out))
    bench.add(way, len(setup.images) / seconds)
    started = time.perf_counter()
    sync_file_system(out)
    if place.keep and way != "ours":
        seconds += time.perf_counter() - started
        bench.add(f"{way}, synced as ours is", len(setup.images) / seconds)
    place.done(out)


def write_validation(images: list[bytes], folder: Path) -> tuple[Path, Path, Path]:
    """A flat tar as ILSVRC2012's, its labels (a wnid a line), and valprep.sh for it."""
    wnids = [f"n{number % CLASSES:08d}" for number in range(len(images))]
    random.Random(0).shuffle(wnids)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(images) + 1)]
    with tarfile.open(folder / "val.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in zip(names, images, strict=True):
            add(archive, name, data)
    (folder / "labels.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    lines = [f"mkdir -p {wnid}\n" for wnid in sorted(set(wnids))]
    lines += [f"mv {name} {wnid}/\n" for name, wnid in zip(names, wnids, strict=True)]
    (folder / "valprep.sh").write_text("".join(lines))
    return folder / "val.tar", folder / "labels.txt", folder / "valprep.sh"


def peak(setup: Setup) -> Iterator[Bench]:
    """Space is what `du` counts in a folder that holds the archive, the images and $TMPDIR."""
    place = setup.memory
    bench = setup.bench(f"peak space, {place.name}", "of archive + images", rounds=1)
    ways: dict[str, Callable[[Path, Path], list[object]]] = {
        "imagenet-prep extract": lambda archive, out: ours_into(out, archive),
        "shell": lambda archive, out: bash(NESTED, archive, out),
    }
    for name, command in ways.items():
        folder = place.fresh()
        archive, out = write_archive(setup.images, folder / "train.tar"), folder / "out"
        out.mkdir()
        seen = [0]

        def look(_: float, folder: Path = folder, seen: list[int] = seen) -> bool:
            seen.append(space(folder))
            return False

        watch(*command(archive, out), look=look, TMPDIR=str(folder))
        bench.add(name, max(seen) / space(folder))
        place.done(folder)
    yield bench


# --- verify, inspect ---


def verify(setup: Setup) -> Iterator[Bench]:
    """Archives of equal size with sums of their own."""
    folder = setup.disk.fresh()
    archives = [write_archive(setup.images, folder / "1.tar")]
    archives += [Path(shutil.copy(archives[0], folder / f"{number}.tar")) for number in (2, 3, 4)]
    sums = folder / "MD5SUMS"
    with sums.open("wb") as file:
        subprocess.run(["md5sum", *archives], stdout=file, check=True)
    for files in (archives[:1], archives):
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        bench = setup.bench(f"verify, archives: {len(files)}", "MB/s")
        for _ in range(bench.rounds):
            bench.add("ours", megabytes / setup.timed(OURS, "verify", *files, "--md5", sums))
            bench.add("md5sum", megabytes / setup.timed(*bash(MD5SUM, available_cores(), *files)))
        yield bench


def inspect(setup: Setup) -> Iterator[Bench]:
    """The smallest fifth of the images, so that the tree fits into memory; headers are read."""
    smallest = sorted(setup.images, key=len)[: max(1, len(setup.images) // 5)]
    count = VALIDATION_IMAGES // (10 if setup.options.quick else 1)
    images = list(itertools.islice(itertools.cycle(smallest), count))
    tree = write_folders(images, setup.disk.fresh(), classes=CLASSES)
    ways = {
        "ours": [OURS, "inspect", tree],
        "Pillow, one process": [sys.executable, "-c", PILLOW, tree],
    }
    warm = setup.bench(f"inspect {count:,}, warm")
    cold = setup.bench(f"inspect {count:,}, cold", rounds=COLD_ROUNDS)
    for bench in (warm, cold):
        for _ in range(bench.rounds):
            for name, command in ways.items():
                if bench is cold:
                    drop_caches(tree)
                bench.add(name, count / setup.timed(*command))
        yield bench


# --- scale ---


def scale(setup: Setup) -> Iterator[Bench]:
    """Half is when half of the class folders are there; new work, when the next one is."""
    title = f"{TRAIN_IMAGES + VALIDATION_IMAGES:,} tiny images, {setup.disk.name}"
    seconds, memory = setup.bench(title, "s"), setup.bench(title, "MB of memory")
    if setup.options.quick:
        seconds.absent["all"] = "not with --quick"
        yield seconds
        return
    archives, whole, halved = (setup.disk.fresh() for _ in range(3))
    timed(OURS, "sample-data", "--out", archives, "--full-scale")

    def run(name: str, out: Path, look: Callable[[float], bool] | None = None) -> None:
        took, resident = watch(*ours_into(out, archives), look=look)
        seconds.add(name, took)
        memory.add(name, resident / 1e6)

    run("extract", whole)
    for _ in range(seconds.rounds):
        run("the same again", whole)
    for _ in range(COLD_ROUNDS):
        drop_caches(whole)
        run("the same again, cold", whole)
    run("extract, killed at half", halved, lambda _: classes_begun(halved) >= CLASSES // 2)
    before, new = classes_begun(halved), []

    def look(now: float) -> bool:
        if not new and classes_begun(halved) > before:
            new.append(now)
        return False

    drop_caches(halved)
    run("killed at half, from the restart (cold) to the end", halved, look)
    seconds.add("killed at half, from the restart (cold) to new work", new[0])
    for tree in (whole, halved):
        assert sum(len(names) for _, _, names in os.walk(tree / "train")) == TRAIN_IMAGES, tree
    yield from (seconds, memory)


def classes_begun(out: Path) -> int:
    """Training classes that have a folder."""
    train = out / "train"
    return sum(1 for _ in train.iterdir()) if train.is_dir() else 0


SECTIONS = {section.__name__: section for section in (extract, val, peak, verify, inspect, scale)}


def main() -> None:
    options = parse_sections(__doc__, SECTIONS, count=10_000)
    with places(options) as (memory, disk):
        setup = Setup(
            options=options, images=pictures(options, disk.folder), memory=memory, disk=disk
        )
        run_sections(SECTIONS, setup, options)


if __name__ == "__main__":
    main()
