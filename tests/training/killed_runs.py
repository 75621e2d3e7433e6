"""Trains small runs and ends them at random moments: for tests/training/test_killed.py.

Each process of a run is a fork of this one, which has loaded torch and computes nothing itself,
so a start costs no import. Moments are drawn from the work that is left; about half of them then
wait for the next save. Only a signal that ended a run counts, not one that found it finished.
Prints one JSON object: how often what happened, and what ended otherwise than an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from shards.durable import TEMPORARY_PREFIX
from shards.progress import Silent
from training.checkpoint import load_checkpoint
from training.config import resolve
from training.run_folder import RunFolder
from training.stopping import STOPPED, Signals, Stopped
from training.trainer import train

EPOCHS, STEPS = 2, 4  # 51 samples, 12 a step
KILLS = 3  # of each run at most, before it is let go to its end
SIGNALS = (signal.SIGKILL, signal.SIGTERM)  # in turn


def start(shards: Path, out: Path, world: int) -> list[int]:
    """Begin or go on with a run; its processes, which listen for signals from the first moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    with Signals() as signals:
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
            os._exit(outcome(shards, out, world, signals))
    return children


def outcome(shards: Path, out: Path, world: int, signals: Signals) -> int:
    """Train in this process to its exit code."""
    config = resolve(
        shards=shards,
        out=out,
        world=world,
        threads=1,
        model="resnet18",
        epochs=EPOCHS,
        batch_size=12 // world,
        image_size=32,
        device="cpu",
        lr=0.01,
        save_steps=1,
        settings={"ema_decay": 0.9},
    )
    try:
        train(config, progress=Silent(), on_record=lambda _record: None, signals=signals)
    except Stopped:
        return STOPPED
    except BaseException:  # noqa: BLE001 - a fork must not return into the loop below
        traceback.print_exc()
        return 1
    return 0


def ends(children: list[int]) -> list[int]:
    """The exit codes of all; a signal's number as a negative one."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def finish(shards: Path, out: Path, world: int) -> float:
    """Take a run to its end undisturbed; seconds."""
    begun = time.monotonic()
    assert ends(start(shards, out, world)) == [0] * world
    return time.monotonic() - begun


def left(out: Path) -> float:
    """The part of a run's steps that is not saved yet."""
    folder = RunFolder(out)
    saved = folder.saved()
    epoch, step = folder.place_at(saved[-1]) if saved else (0, 0)
    return 1 - (epoch * STEPS + step) / (EPOCHS * STEPS)


def is_saving(out: Path, writer: int) -> bool:
    """Whether this process is writing a checkpoint: its file has its name when it is whole."""
    return any((out / "checkpoints").glob(f"{TEMPORARY_PREFIX}{writer}-*"))


def wait_for_save(out: Path, writer: int) -> None:
    """Return when this process writes a checkpoint, or has ended."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT  # its exit code is left for `ends`
    while not is_saving(out, writer) and os.waitid(os.P_PID, writer, ended) is None:
        time.sleep(0.001)


def send(number: signal.Signals, children: list[int], dice: random.Random) -> None:
    """End a run: all of it without warning, or by asking one of its processes."""
    for child in children if number == signal.SIGKILL else [dice.choice(children)]:
        os.kill(child, number)


def allowed(number: signal.Signals, codes: list[int]) -> bool:
    """Whether processes may end so: killed, or stopped together; or finished just before."""
    if number == signal.SIGKILL:
        return {0, -number}.issuperset(codes)
    return codes in ([STOPPED] * len(codes), [0] * len(codes))


def state(out: Path) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(out / "last.pt")
    momentum = {name: each["momentum_buffer"] for name, each in saved.optimizer.items()}
    parts = {"model": saved.model, "momentum": momentum, "ema": saved.ema}
    return {f"{part} {name}": each for part, found in parts.items() for name, each in found.items()}


def main(shards: Path, folder: Path, world: int, kills: int) -> None:
    torch.set_num_threads(1)
    dice = random.Random(world)
    whole = finish(shards, folder / "undisturbed", world)
    starting = finish(shards, folder / "undisturbed", world)  # there is nothing left to do
    expected = state(folder / "undisturbed")
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    while seen["landed"] < kills and seen["finished"] < kills:  # signals may do nothing at all
        out = folder / f"run-{seen['finished']}"
        for more in range(min(KILLS, kills - seen["landed"]), 0, -1):
            number = SIGNALS[seen["landed"] % len(SIGNALS)]
            children = start(shards, out, world)
            time.sleep(dice.uniform(0, starting + (whole - starting) * left(out)) / more)
            if dice.random() < 0.5:
                wait_for_save(out, children[0])
            saving = is_saving(out, children[0])
            send(number, children, dice)
            codes = ends(children)
            wrong += [] if allowed(number, codes) else [f"{out.name}, {number.name}: {codes}"]
            landed = any(codes)
            seen["landed"] += landed
            seen[number.name] += landed
            seen[f"{number.name} while saving"] += landed and saving
            seen["too late"] += not landed
        finish(shards, out, world)
        found = state(out)
        wrong += [f"{out.name}: {n}" for n in expected if not found[n].equal(expected[n])]
        seen["finished"] += 1
        shutil.rmtree(out)
    print(json.dumps({"seen": seen, "wrong": wrong}))  # noqa: T201 - its answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
