"""What the benchmarks share: options, inputs, alternating rounds, medians, one report.

Every benchmark runs ours and its peers in turn (A B C A B C ...), so that a machine that
drifts drifts for all, and reports medians. A peer that is not installed is listed as absent.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prep.sample.data import write_sample_data
from shards.progress import Silent

Setup = TypeVar("Setup")


@dataclass
class Bench:
    """The rows of one comparison; a figure is a rate, better when larger.

    `title` tells the comparisons of one benchmark apart.
    """

    unit: str
    rounds: int
    title: str = ""
    runs: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def measure(self, ways: dict[str, Callable[[], float]]) -> None:
        """Run every way once a round; a way returns its rate."""
        for _ in range(self.rounds):
            for name, way in ways.items():
                self.add(name, way())

    def add(self, name: str, rate: float) -> None:
        """Take the figure of one run of one way."""
        self.runs.setdefault(name, []).append(rate)

    def medians(self) -> dict[str, float]:
        """The median of each way."""
        return {name: statistics.median(runs) for name, runs in self.runs.items()}

    def ratios(self, ours: str) -> dict[str, float]:
        """How many times faster ours is than each other way; empty where ours is not there."""
        medians = self.medians()
        mine = medians.pop(ours, None)
        return {} if mine is None else {name: mine / value for name, value in medians.items()}

    def show(self, ours: str) -> None:
        """Print the table."""
        ratios = self.ratios(ours)
        print(f"| {self.title or 'way'} | {self.unit} (min - max) | ours is |\n|---|---|---|")
        for name, value in self.medians().items():
            runs = self.runs[name]
            spread = f" ({figure(min(runs))} - {figure(max(runs))})" if len(runs) > 1 else ""
            ratio = f"{ratios[name]:.2f}x" if name in ratios else ""
            print(f"| {name} | {figure(value)}{spread} | {ratio} |")
        for name, reason in self.absent.items():
            print(f"| {name} | absent: {reason} | |")


def figure(value: float) -> str:
    """Three digits, or more where they stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_json(benches: Sequence[Bench], ours: str, path: Path) -> None:
    """Write the figures of all comparisons, each under its title."""
    result: dict[str, Any] = {"machine": machine(), "rows": [], "ratios": {}, "absent": {}}
    for bench in benches:
        title = f"{bench.title}: " if bench.title else ""
        result["rows"] += [
            {"name": title + name, "value": value, "unit": bench.unit, "runs": bench.runs[name]}
            for name, value in bench.medians().items()
        ]
        ratios = bench.ratios(ours).items()
        result["ratios"] |= {f"{title}ours/{name}": value for name, value in ratios}
        result["absent"] |= {title + name: reason for name, reason in bench.absent.items()}
    path.write_text(json.dumps(result, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if line.startswith("model name")), ": unknown")
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
    }


def parse_sections(
    description: str,
    sections: Collection[str],
    *,
    count: int,
    quick_rounds: int = 2,
    peers: bool = False,
    checkpoint: bool = False,
) -> argparse.Namespace:
    """The options that all benchmarks have, some where wanted; --quick takes count / 10."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(sections))
    parser.add_argument("--memory", type=Path, default="/dev/shm", help="a tmpfs")  # noqa: S108
    parser.add_argument("--disk", type=Path, default=tempfile.gettempdir(), help="a folder on disk")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw bars of them")
    if peers:
        parser.add_argument(
            "--peers", default=sys.executable, help="a Python that has the libraries"
        )
    if checkpoint:
        parser.add_argument("--checkpoint", type=Path, help="a network that was trained")
    parser.add_argument("--images", type=Path, help="tar or folder of JPEGs to work on")
    parser.add_argument("--count", type=int, help="pictures; the given ones are repeated")
    parser.add_argument("--rounds", type=int, help="how often each way runs")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that all works")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    options.count = options.count or (count // 10 if options.quick else count)
    options.rounds = options.rounds or (quick_rounds if options.quick else 5)
    unknown = set(options.sections) - set(sections)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    return options


def run_sections(
    sections: Mapping[str, Callable[[Setup], Iterator[Bench]]],
    setup: Setup,
    options: argparse.Namespace,
) -> None:
    """Run the sections that are named, or all, and show each comparison when it is complete."""
    benches: list[Bench] = []
    for name in options.sections or sections:
        for bench in sections[name](setup):
            bench.show("ours")
            print(f"\nload average now: {os.getloadavg()[0]:.1f}\n", flush=True)
            benches.append(bench)
    if options.json:
        write_json(benches, "ours", options.json)
    if options.plot:
        from _plot import draw

        draw(benches, options.plot)


def run_on_pictures(
    sections: Mapping[str, Callable[[Setup], Iterator[Bench]]],
    setup: Callable[..., Setup],
    options: argparse.Namespace,
) -> None:
    """Run sections on `setup(options=, images=, folder=)`; the folder is a new one on --disk."""
    with tempfile.TemporaryDirectory(dir=options.disk) as disk:
        folder = Path(disk)
        images = pictures(options, folder)
        run_sections(sections, setup(options=options, images=images, folder=folder), options)


def pictures(options: argparse.Namespace, scratch: Path) -> list[bytes]:
    """JPEGs to work on, repeated up to --count; without --images those of sample-data."""
    source = options.images
    if source is None:
        made = write_sample_data(
            scratch / "pictures", classes=10, train_per_class=60, val_per_class=1, progress=Silent()
        )
        source = made.train
    found = list(_from_folder(source) if source.is_dir() else _from_tar(source.read_bytes()))
    return [found[number % len(found)] for number in range(options.count)]


def _from_folder(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpeg", ".jpg"):
            yield path.read_bytes()


def _from_tar(data: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            inner = content.read()
            if member.name.endswith(".tar"):
                yield from _from_tar(inner)
            else:
                yield inner


def write_folders(pictures: list[bytes], root: Path, classes: int = 10) -> Path:
    """The pictures as class folders root/nXXXXXXXX/*.JPEG."""
    for number, data in enumerate(pictures):
        wnid = f"n{number % classes:08d}"
        folder = root / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{wnid}_{number}.JPEG").write_bytes(data)
    return root
