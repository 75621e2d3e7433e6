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
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prep.sample_data import write_sample_data
from shards.progress import Silent


@dataclass
class Bench:
    """The rows of one benchmark; `rate` is better when larger."""

    unit: str
    rounds: int
    runs: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def measure(self, ways: dict[str, Callable[[], float]]) -> None:
        """Run every way once a round; a way returns its rate."""
        for _ in range(self.rounds):
            for name, way in ways.items():
                self.runs.setdefault(name, []).append(way())

    def report(self, ours: str, options: argparse.Namespace) -> None:
        """Print the table, and write --json where asked for."""
        medians = {name: statistics.median(runs) for name, runs in self.runs.items()}
        ratios = {f"ours/{name}": medians[ours] / value for name, value in medians.items()}
        del ratios[f"ours/{ours}"]
        print(f"| way | {self.unit} (min - max) | ours is |\n|---|---|---|")
        for name, value in medians.items():
            runs = self.runs[name]
            ratio = f"{medians[ours] / value:.2f}x" if name != ours else ""
            print(f"| {name} | {value:,.0f} ({min(runs):,.0f} - {max(runs):,.0f}) | {ratio} |")
        for name, reason in self.absent.items():
            print(f"| {name} | absent: {reason} | |")
        if options.json:
            rows = [
                {"name": name, "value": medians[name], "unit": self.unit, "runs": runs}
                for name, runs in self.runs.items()
            ]
            result = {"machine": machine(), "rows": rows, "ratios": ratios, "absent": self.absent}
            options.json.write_text(json.dumps(result, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if line.startswith("model name")), ": unknown")
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def parse(description: str) -> argparse.Namespace:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", type=Path, help="tar or folder of JPEGs to work on")
    parser.add_argument("--count", type=int, help="pictures; the given ones are repeated")
    parser.add_argument("--rounds", type=int, help="how often each way runs")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    options.count = options.count or (600 if options.quick else 6000)
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


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
