"""A program that is launched as `resnet` is, and what a test sees of it from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# Stands in for the console script: starts in milliseconds, without torch.
PROGRAM = """
import json, os, pathlib, signal, sys, time
from shards.errors import ToolError, UsageError
from training.children import PeerLost, follow_launcher, report_failure
from training.launch import launch
from training.stopping import STOP_SIGNALS, Stopped

def say(text):
    print(text, file=sys.stderr, flush=True)

if "RANK" not in os.environ:
    try:
        sys.exit(launch(sys.argv[1:], say=say, **json.loads(os.environ["OPTIONS"])))
    except ToolError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
follow_launcher()

out, action, *rest = sys.argv[1:]
rank, restart = os.environ["RANK"], os.environ["IMAGENET_RESNET_RESTART"]
out, mine = pathlib.Path(out), rank == "1"

def fail(error):
    report_failure(error)
    sys.exit(error.exit_code)

def save(*_):
    fail(Stopped("stopped and saved"))

if action in ("save", "slow"):
    for number in STOP_SIGNALS:
        signal.signal(number, save if action == "save" else signal.SIG_IGN)
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "IMAGENET_RESNET_RESTART")
note = [str(os.getpid()), *map(os.environ.get, names), *rest]
(out / "new").mkdir(exist_ok=True)
new = out / "new" / rank
new.write_text("\\n".join(note))
new.rename(out / f"{rank}.{restart}")
if action == "stopped":
    save()
if action == "fail" and mine:
    fail(UsageError("rank 1 says no"))
if action == "crash" and mine:
    sys.stderr.close()
    sys.exit(7)
if action == "killed" and mine or action == "once" and mine and restart == "0":
    os.kill(os.getpid(), 9)
if action == "peer":
    if not mine:
        fail(PeerLost("lost the others"))
    other = out / f"0.{restart}"
    while not other.exists() or os.path.exists(f"/proc/{other.read_text().splitlines()[0]}/exe"):
        time.sleep(0.01)  # until process 0 is a zombie, or gone
    fail(ToolError("the true reason"))
if action == "peers":
    fail(PeerLost("lost the others"))
if action == "count":  # a run that saves each step; the other processes follow it
    saved, new = out.parent / "saved", out.parent / "saved.new"
    while int(saved.read_text()) < 400:
        if rank == "0":
            new.write_text(str(int(saved.read_text()) + 1))
            new.rename(saved)
        time.sleep(0.005)
if action not in ("end", "once", "count"):
    time.sleep(60)
"""


def noted(tmp_path: Path) -> dict[str, list[str]]:
    """What the processes noted, by RANK.RESTART."""
    files = [path for path in (tmp_path / "out").iterdir() if path.name != "new"]
    return {path.name: path.read_text().split("\n") for path in files}


def alive(tmp_path: Path) -> list[int]:
    running = []
    for pid in (int(lines[0]) for lines in noted(tmp_path).values()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            running.append(pid)
    return running


def wait_for(sign: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not sign():
        assert time.monotonic() < end
        time.sleep(0.02)


def answers(port: int) -> bool:
    """Whether somebody takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What a command said, once it has ended with this code."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said
