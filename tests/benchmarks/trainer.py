"""Our trainer against a bare loop and against others', and how soon it begins.

ResNet-18 in float32 on the CPU with all its cores; every figure is of a process of its own, and
ways take turns. Sections can be named, all is the default:

  step    images/s on one batch that is made up: `resnet train --shards synthetic:` with everything
          that it does between two steps, against the network, optimiser and loss alone
  shards  images/s of `resnet train` from shards, against loops in the form of torchvision's and
          timm's own scripts on the same pictures as class folders
  start   seconds from the command to the end of its first step, with 1,281,167 samples indexed,
          and with the few pictures of the other sections

Needs no accelerator. --peers names a Python that has timm. Name pictures of real size by
--images. `start` at full size takes 5 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bench import Bench, parse_sections, run_on_pictures, write_folders
from _commands import OURS, timed, wait_for_rest
from _processes import Answer, Way, take_turns

from shards.cores import available_cores

RESNET = str(Path(sys.executable).with_name("resnet"))
HERE = Path(__file__).parent
BATCH = 64
SIZE = 64  # pixels: at 224 the network takes so long on a CPU that nothing else would show


@dataclass(frozen=True)
class Setup:
    """What the sections work with."""

    options: argparse.Namespace
    images: list[bytes]
    folder: Path

    @property
    def steps(self) -> int:
        return len(self.images) // BATCH

    @property
    def tree(self) -> Path:
        """Class folders: train/ and, for `resnet train`, a small val/."""
        tree = self.folder / "tree"
        if not tree.exists():
            write_folders(self.images, tree / "train")
            write_folders(self.images[:20], tree / "val")
        return tree

    def shards(self, *options: str) -> Path:
        out = self.folder / "-".join(["shards", *options])
        if not out.exists():
            timed(OURS, "shard", self.tree, "--out", out, *options, hurry=True)
        return out


def work(setup: Setup, data: str) -> str:
    return json.dumps(
        {
            "data": data,
            "batch": BATCH,
            "size": SIZE,
            "steps": setup.steps,
            "workers": available_cores(),
        }
    )


def answer(*command: object) -> dict[str, Any]:
    """The JSON object that a command prints last; it is started when the machine rests."""
    wait_for_rest()
    words = [str(word) for word in command]
    result = subprocess.run(words, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise LookupError((result.stderr.strip().splitlines() or ["it failed"])[-1])
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def peer(setup: Setup, name: str, data: str = "") -> Answer:
    """One of _trainers.py's; those that need no library but torch run in this Python."""
    python = setup.options.peers if name == "timm" else sys.executable
    return answer(python, HERE / "_trainers.py", name, work(setup, data))


# --- step ---


def step(setup: Setup) -> Iterator[Bench]:
    bench = Bench(unit="images/s", rounds=setup.options.rounds, title="one batch over and over")
    ways: dict[str, Way] = {
        "ours": lambda: ours(setup, setup.shards(), synthetic=True),
        "bare loop": lambda: peer(setup, "bare"),
    }
    take_turns(ways, bench.rounds, {"rate": bench})
    yield bench


# --- shards ---


def shards(setup: Setup) -> Iterator[Bench]:
    bench = Bench(unit="images/s", rounds=setup.options.rounds, title="from real pictures")
    ways: dict[str, Way] = {
        "ours": lambda: ours(setup, setup.shards("--jpeg", "restart")),
        "ours, ordinary shards": lambda: ours(setup, setup.shards()),
        "torchvision's script": lambda: peer(setup, "torchvision", str(setup.tree / "train")),
        "timm's script": lambda: peer(setup, "timm", str(setup.tree / "train")),
    }
    take_turns(ways, bench.rounds, {"rate": bench})
    yield bench


def ours(setup: Setup, data: Path, *, synthetic: bool = False) -> Answer:
    """Images/s of all steps but those before the first line of the log."""
    with tempfile.TemporaryDirectory(dir=setup.folder) as folder:
        run = Path(folder) / "run"
        given: tuple[object, ...] = ("--shards", data)
        if synthetic:
            given = ("--shards", "synthetic:", "--steps-per-epoch", setup.steps, "--val", data)
        answer(*train(given, run, setup.steps - 1), "--log-every", 5)
        lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        steps = [line for line in lines if line["kind"] == "step"][1:]
        seconds = sum(line["steps"] * line["step_seconds"] for line in steps)
        return {"rate": sum(line["steps"] for line in steps) * BATCH / seconds}


def train(given: tuple[object, ...], run: Path, steps: int) -> tuple[object, ...]:
    return (
        *(RESNET, "train", *given, "--out", run, "--model", "resnet18", "--json"),
        *("--device", "cpu", "--nproc", 1, "--amp", "off"),
        *("--image-size", SIZE, "--batch-size", BATCH, "--max-steps", steps),
    )


# --- start ---


def start(setup: Setup) -> Iterator[Bench]:
    title = "seconds to the end of the first step, by samples"
    bench = Bench(unit="s", rounds=setup.options.rounds, title=title)
    sets = {f"{len(setup.images):,}": setup.shards()}
    if not setup.options.quick:
        sets["1,281,167"] = full_scale(setup)
    bench.measure({name: lambda data=data: first_step(setup, data) for name, data in sets.items()})
    yield bench


def full_scale(setup: Setup) -> Path:
    """An index of archives with ImageNet's number of tiny pictures."""
    archives, out = setup.folder / "archives", setup.folder / "index"
    if not out.exists():
        timed(OURS, "sample-data", "--out", archives, "--full-scale", hurry=True)
        timed(OURS, "index", archives, "--out", out, hurry=True)
    return out


def first_step(setup: Setup, data: Path) -> float:
    """The command's whole time: it ends, with a checkpoint, after its first step."""
    with tempfile.TemporaryDirectory(dir=setup.folder) as folder:
        return timed(*train(("--shards", data), Path(folder) / "run", 1))


SECTIONS = {section.__name__: section for section in (step, shards, start)}


def main() -> None:
    options = parse_sections(__doc__, SECTIONS, count=6400, quick_rounds=1, peers=True)
    run_on_pictures(SECTIONS, Setup, options)


if __name__ == "__main__":
    main()
