"""The trainer against a plain one on CIFAR-10, and killed against undisturbed.

    python tests/proof/cifar10.py SECTION... --images cifar10-jpeg.tar [--train N] [--epochs N]

  curves  top-1 by epoch of `resnet train` on shards and of plain.py on the same class folders,
          three seeds each, for the recipes seed and torchvision-v1
  killed  the command of a run of two processes gets ten signals at random moments, SIGKILL and
          SIGTERM in turn, and the run ends where the undisturbed one does: the same weights and
          momentum bit for bit and the same order of samples

The tar has train/CLASS/*.jpg and test/CLASS/*.jpg. Nothing is timed, so other work on the machine
does not matter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

BIN = Path(sys.executable).parent
PLAIN = Path(__file__).with_name("plain.py")
SEEDS = (1, 2, 3)
RECIPES = ("seed", "torchvision-v1")
SIGNALS = (signal.SIGKILL, signal.SIGTERM) * 5
STOPPED = 75  # the exit code of a run that SIGTERM ended, saved
SIZE = 32


def unpacked(options: argparse.Namespace, folder: Path) -> Path:
    """train/CLASS and val/CLASS with the first images of each class."""
    tree, taken = folder / "tree", dict[str, int]()
    limits = {"train": options.train // 10, "test": options.val // 10}
    with tarfile.open(options.images, "r|*") as archive:
        for member in archive:
            split, _, name = member.name.partition("/")
            kind = f"{split}/{name.partition('/')[0]}"
            if not member.isfile() or taken.get(kind, 0) >= limits[split]:
                continue
            taken[kind] = taken.get(kind, 0) + 1
            path = tree / {"train": "train", "test": "val"}[split] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            assert content is not None
            path.write_bytes(content.read())
    return tree


def sharded(tree: Path, out: Path) -> Path:
    done(BIN / "imagenet-prep", "shard", tree, "--out", out)
    return out


def done(*command: object) -> str:
    """The output of a command that has to succeed."""
    words = [str(word) for word in command]
    result = subprocess.run(words, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(words)} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def train_command(shards: Path, out: Path, epochs: int, *more: object) -> list[str]:
    words = [BIN / "resnet", "train", "--shards", shards, "--out", out, "--epochs", epochs]
    words += ["--model", "resnet18", "--image-size", SIZE, "--device", "cpu", *more]
    return [str(word) for word in words]


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


# --- curves ---


def curves(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    tree = unpacked(options, folder)
    shards = sharded(tree, folder / "shards")
    found: dict[str, Any] = {}
    for recipe in options.recipes:
        ways: dict[str, list[list[float]]] = {"ours": [], "plain": []}
        for seed in SEEDS:
            ways["ours"].append(ours(shards, folder / f"{recipe}-{seed}", recipe, seed, options))
            ways["plain"].append(plain(tree, recipe, seed, options))
            print(recipe, seed, {name: runs[-1] for name, runs in ways.items()}, flush=True)
        found[recipe] = ways | {"summary": summary(ways)}
        print(recipe, found[recipe]["summary"], flush=True)
    return found


def ours(
    shards: Path, out: Path, recipe: str, seed: int, options: argparse.Namespace
) -> list[float]:
    more = ("--recipe", recipe, "--seed", seed, "--batch-size", 64, "--nproc", 1)
    done(*train_command(shards, out, options.epochs, *more))
    return [line["top1"] for line in records(out, "eval")]


def plain(tree: Path, recipe: str, seed: int, options: argparse.Namespace) -> list[float]:
    words = (sys.executable, PLAIN, "train", tree, recipe, seed, options.epochs, SIZE)
    found: list[float] = json.loads(done(*words))
    return found


def summary(ways: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Means and deviations of the last epoch, and their difference in units of its deviation."""
    last = {name: [run[-1] for run in runs] for name, runs in ways.items()}
    means = {name: statistics.mean(values) for name, values in last.items()}
    deviations = {name: statistics.stdev(values) for name, values in last.items()}
    error = sum(value**2 / len(SEEDS) for value in deviations.values()) ** 0.5
    difference = means["ours"] - means["plain"]
    return {
        "mean": means,
        "deviation": deviations,
        "difference": difference,
        "standard_error": error,
        "t": difference / error if error else None,
    }


# --- killed ---


def killed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    tree = unpacked(options, folder)
    shards = sharded(tree, folder / "shards")
    more = ("--nproc", 2, "--batch-size", 32, "--save-steps", 5, "--log-every", 1, "--seed", 7)
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    done(*train_command(shards, undisturbed, options.epochs, *more))
    total = len((undisturbed / "log.jsonl").read_text().splitlines())
    moments = sorted(random.Random(5).sample(range(2, total - 2), len(SIGNALS)))
    command = train_command(shards, disturbed, options.epochs, *more)
    for number, lines in zip(SIGNALS, moments, strict=True):
        end_at(command, disturbed / "log.jsonl", lines, number)
    done(*command)
    same = equal(undisturbed / "last.pt", disturbed / "last.pt")
    orders = [[line["order"] for line in records(run, "epoch")] for run in (undisturbed, disturbed)]
    answer = {
        "ended_at_lines": moments,
        "states_equal": same,
        "orders_equal": orders[0] == orders[1],
        "top1": [records(run, "eval")[-1]["top1"] for run in (undisturbed, disturbed)],
    }
    print(answer, flush=True)
    if not (same and answer["orders_equal"]):
        sys.exit("the killed run did not end where the undisturbed one did")
    return answer


def end_at(command: list[str], log: Path, lines: int, number: signal.Signals) -> None:
    """Start a run; once it writes to its log and that has so many lines, signal its command.

    SIGTERM it hands on, and all save. With SIGKILL its processes, which have sessions of their
    own, are ended by the kernel.
    """
    before = content(log)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for written in growing(process, log):
        if written != before and written.count(b"\n") >= lines:
            process.send_signal(number)
            break
    code = process.wait()
    if code != (STOPPED if number == signal.SIGTERM else -number):
        sys.exit(f"the run that got {number.name} at {lines} lines ended with {code}")


def growing(process: subprocess.Popen[bytes], log: Path) -> Iterator[bytes]:
    """What the log holds, for as long as the run lives."""
    while process.poll() is None:
        yield content(log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)


def content(log: Path) -> bytes:
    return log.read_bytes() if log.exists() else b""


def equal(one: Path, other: Path) -> bool:
    states = [state(path) for path in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        tensor.equal(states[1][name]) for name, tensor in states[0].items()
    )


def state(path: Path) -> dict[str, torch.Tensor]:
    """Weights and momentum of a checkpoint."""
    saved = torch.load(path, weights_only=True)
    momentum = {name: each["momentum_buffer"] for name, each in saved["optimizer"].items()}
    assert momentum
    return saved["model"] | {f"momentum of {name}": each for name, each in momentum.items()}


SECTIONS = {"curves": curves, "killed": killed}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--train", type=int, default=50_000, help="training images")
    parser.add_argument("--val", type=int, default=10_000, help="validation images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--json", type=Path, help="also write what was found here")
    options = parser.parse_args()
    found: dict[str, Any] = {"options": {name: str(value) for name, value in vars(options).items()}}
    for name in options.sections:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = SECTIONS[name](options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
