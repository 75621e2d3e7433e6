"""Trains small runs and kills them at random moments: for tests/training/test_killed.py.

Each process of a run is a fork of this one, which has loaded torch and computes nothing itself,
so a start costs no import. Prints one JSON object: how often what happened, and what ended
otherwise than an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from shards.progress import Silent
from training.checkpoint import load_checkpoint
from training.config import resolve
from training.stopping import STOPPED, Stopped
from training.trainer import train

KILLS = 3  # of each run, before it is let go to its end
# Finished before, stopped and saved, killed, or asked to end before anybody listened.
EXPECTED = {0, STOPPED, -signal.SIGKILL, -signal.SIGTERM}


def start(shards: Path, out: Path, world: int) -> list[int]:
    """Begin or go on with a run; its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        os._exit(outcome(shards, out, world))
    return children


def outcome(shards: Path, out: Path, world: int) -> int:
    """Train in this process to its exit code."""
    config = resolve(
        shards=shards,
        out=out,
        world=world,
        threads=1,
        model="resnet18",
        epochs=2,
        batch_size=12 // world,
        image_size=32,
        device="cpu",
        lr=0.01,
        save_steps=1,
        settings={"ema_decay": 0.9},
    )
    try:
        train(config, progress=Silent(), on_record=lambda _record: None)
    except Stopped:
        return STOPPED
    except BaseException:  # noqa: BLE001 - a fork must not return into the loop below
        traceback.print_exc()
        return 1
    return 0


def ends(children: list[int]) -> list[int]:
    """The exit codes of all; a signal's number as a negative one."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def kill(children: list[int], dice: random.Random) -> str:
    """End a run: all of it without warning, or by asking one of its processes."""
    if dice.random() < 0.5:
        for child in children:
            os.kill(child, signal.SIGKILL)
        return "SIGKILL"
    os.kill(dice.choice(children), signal.SIGTERM)
    return "SIGTERM"


def state(out: Path) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(out / "last.pt")
    momentum = {name: each["momentum_buffer"] for name, each in saved.optimizer.items()}
    parts = {"model": saved.model, "momentum": momentum, "ema": saved.ema}
    return {f"{part} {name}": each for part, found in parts.items() for name, each in found.items()}


def main(shards: Path, folder: Path, world: int, moments: int) -> None:
    torch.set_num_threads(1)
    dice = random.Random(world)
    begun = time.monotonic()
    assert ends(start(shards, folder / "undisturbed", world)) == [0] * world
    seconds = time.monotonic() - begun
    expected = state(folder / "undisturbed")
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    for moment in range(moments):
        out = folder / f"run-{moment // KILLS}"
        children = start(shards, out, world)
        time.sleep(dice.uniform(0, seconds))
        seen[kill(children, dice)] += 1
        codes = ends(children)
        wrong += [f"{out.name} ended with {codes}"] if not EXPECTED.issuperset(codes) else []
        seen["stopped"] += codes == [STOPPED] * world
        if (moment + 1) % KILLS == 0:
            assert ends(start(shards, out, world)) == [0] * world
            found = state(out)
            wrong += [f"{out.name}: {n}" for n in expected if not found[n].equal(expected[n])]
            seen["finished"] += 1
    print(json.dumps({"seen": seen, "wrong": wrong}))  # noqa: T201 - its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
