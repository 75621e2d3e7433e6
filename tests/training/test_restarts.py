"""Runs that lose processes and machines at the worst moments, and end as if nothing had been.

Moments are what a run leaves on the disk: a new checkpoint, one that is being written, a line
of the log. Most of these start torch many times and are slow.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import load_checkpoint
from training.stopping import STOPPED

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
SMALL = ("--model", "resnet18", "--image-size", 32, "--device", "cpu", "--save-steps", 1,
         "--log-every", 1)  # fmt: skip
TWO = (*SMALL, "--batch-size", 4, "--nproc", 2, "--epochs", 2)
LONG = 30  # epochs of the run that is killed again and again
KILLS = 30
LAST_STEP = 6  # of an epoch: 51 samples, 8 a step


class Watched:
    """A run's folder, as somebody sees it who looks at it from outside."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            whole = (self.out / "log.jsonl").read_bytes().rpartition(b"\n")[0]
            lines = [json.loads(line) for line in whole.splitlines()]
            return [line for line in lines if kind in {None, line["kind"]}]
        return []

    def orders(self) -> list[str]:
        return [line["order"] for line in self.lines("epoch")]

    def checkpoints(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return {path.name for path in (self.out / "checkpoints").iterdir()}
        return set()

    def has_saved(self) -> bool:
        return any(name.startswith("epoch-") for name in self.checkpoints())

    def is_saving(self) -> bool:
        return any(not name.startswith("epoch-") for name in self.checkpoints())

    def is_evaluating(self) -> bool:
        """The last line of an epoch's steps is there, and the evaluation's is not."""
        lines = self.lines()
        return bool(lines) and (lines[-1]["kind"], lines[-1]["step"]) == ("step", LAST_STEP)


def rank_of(command: subprocess.Popen[str], rank: int) -> int | None:
    """The number of a command's process with this RANK, from /proc."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == command.pid:
                variables = (entry / "environ").read_bytes().split(b"\0")
                if b"RANK=%d" % rank in variables:
                    return int(entry.name)
    return None


def kill_rank(command: subprocess.Popen[str], rank: int) -> bool:
    pid = rank_of(command, rank)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def wait_for(sign: Callable[[], object], *alive: subprocess.Popen[str]) -> bool:
    """Wait for a sign; False when a command has ended before."""
    end = time.monotonic() + 300
    while not sign():
        if any(command.poll() is not None for command in alive):
            return False
        assert time.monotonic() < end
        time.sleep(0.002)
    return True


def told(command: subprocess.Popen[str]) -> str:
    _, said = command.communicate(timeout=300)
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def undisturbed(run: Run, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Two epochs by two processes that nobody harms."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run("resnet", "train", "--shards", shards, "--out", out, *TWO)
    assert done.returncode == 0, done.stderr
    return Watched(out)


def assert_equal(ours: Watched, theirs: Watched) -> None:
    assert ours.orders() == theirs.orders()
    one, other = (load_checkpoint(each.out / "last.pt").model for each in (ours, theirs))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "rank"),
    [
        (Watched.has_saved, 1),
        (Watched.has_saved, 0),
        (Watched.is_evaluating, 1),
        (Watched.is_saving, 0),
        (Watched.is_saving, 1),
    ],
    ids=["training", "training, rank 0", "evaluation", "saving, rank 0", "saving"],
)
def test_a_rank_that_is_killed_costs_a_restart_and_nothing_else(
    start: Start,
    shards: Path,
    undisturbed: Watched,
    tmp_path: Path,
    moment: Callable[[Watched], bool],
    rank: int,
) -> None:
    seen = Watched(tmp_path / "run")
    command = start(
        "resnet", "train", "--shards", shards, "--out", seen.out, *TWO, "--max-restarts", 2
    )
    assert wait_for(lambda: moment(seen), command)
    assert kill_rank(command, rank)
    said = told(command)
    assert command.returncode == 0, said
    assert f"process {rank} on {socket.gethostname()} was ended by SIGKILL" in said
    assert "restart 1 of 2 from the last checkpoint" in said
    assert "restart 2" not in said
    assert len(seen.lines("start")) <= 2
    assert_equal(seen, undisturbed)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_samples(
    run: Run, start: Start, shards: Path, undisturbed: Watched, tmp_path: Path
) -> None:
    """A machine with fewer cards than before: the command ends, one for what is left goes on."""
    seen = Watched(tmp_path / "run")
    command = start(
        "resnet", "train", "--shards", shards, "--out", seen.out, *TWO, "--max-restarts", 0
    )
    assert wait_for(seen.has_saved, command)
    assert kill_rank(command, 1)
    assert "start the same command again" in told(command)
    assert command.returncode == 1
    for nproc in (3, 1):
        steps = ("--max-steps", 8) if nproc == 3 else ()
        done = run("resnet", "train", "--shards", shards, "--out", seen.out, *TWO, *steps,
                   "--nproc", nproc)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert seen.orders() == undisturbed.orders()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_command_stops_all_ranks_saved(
    run: Run, start: Start, shards: Path, undisturbed: Watched, tmp_path: Path, number: int
) -> None:
    seen = Watched(tmp_path / "run")
    arguments = ("train", "--shards", shards, "--out", seen.out, *TWO)
    command = start("resnet", *arguments)
    assert wait_for(seen.has_saved, command)
    command.send_signal(number)
    said = told(command)
    assert command.returncode == STOPPED, said
    assert "restart" not in said
    done = run("resnet", *arguments)
    assert done.returncode == 0, done.stderr
    assert_equal(seen, undisturbed)


def test_a_signal_to_a_rank_that_has_only_begun_stops_all_ranks(
    start: Start, shards: Path, tmp_path: Path
) -> None:
    seen = Watched(tmp_path / "run")
    command = start("resnet", "train", "--shards", shards, "--out", seen.out, *TWO)
    assert wait_for(lambda: rank_of(command, 1), command)
    pid = rank_of(command, 1)
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    said = told(command)
    assert command.returncode == STOPPED, said
    assert "stopped before training began, because a signal to another process asked" in said
    assert "restart" not in said
    assert not seen.lines()


@pytest.mark.slow
def test_processes_that_slurm_started_join_each_other(
    script: Callable[[str], str], shards: Path, undisturbed: Watched, tmp_path: Path
) -> None:
    seen = Watched(tmp_path / "run")
    command = [script("resnet"), "train", "--shards", shards, "--out", seen.out, *TWO]
    tasks = [
        subprocess.Popen(
            list(map(str, command)),
            env={
                **os.environ,
                "SLURM_JOB_ID": str(os.getpid()),
                "SLURM_JOB_NODELIST": "vm[1-2]",
                "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_NODEID": "0",
                "SLURM_PROCID": str(task),
                "SLURM_LOCALID": str(task),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in (1, 0)
    ]
    for task in tasks:
        said = told(task)
        assert task.returncode == 0, said
    assert_equal(seen, undisturbed)


class Machines:
    """Two commands that are two machines of one process each; a dead one is started again."""

    def __init__(self, program: str, arguments: Sequence[object]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            master = f"127.0.0.1:{probe.getsockname()[1]}"
        self._command = [program, "train", *map(str, arguments), "--nodes", "2", "--master", master]
        self.running = [self._start(node) for node in (0, 1)]

    def _start(self, node: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, "--node-rank", str(node)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def kill(self, victim: str) -> bool:
        """End a rank, or a machine's command, which is then started again."""
        kind, _, number = victim.partition(" ")
        command = self.running[int(number)]
        if kind == "rank":
            return kill_rank(command, int(number))
        command.kill()
        command.wait()
        self.running[int(number)] = self._start(int(number))
        return True

    def close(self) -> None:
        for command in self.running:
            command.kill()
            command.wait()


@pytest.fixture
def machines(script: Callable[[str], str]) -> Iterator[Callable[..., Machines]]:
    with contextlib.ExitStack() as stack:

        def begin(*arguments: object) -> Machines:
            found = Machines(script("resnet"), arguments)
            stack.callback(found.close)
            return found

        yield begin


@pytest.mark.slow
def test_random_kills_of_ranks_and_machines_leave_no_trace(
    run: Run, machines: Callable[..., Machines], shards: Path, tmp_path: Path
) -> None:
    """Seeded: which is killed, at which kind of moment, after how many more checkpoints."""
    alone = Watched(tmp_path / "alone")
    common = ("--shards", shards, *SMALL, "--epochs", LONG)
    done = run("resnet", "train", *common, "--out", alone.out, "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    seen = Watched(tmp_path / "run")
    both = machines(*common, "--out", seen.out, "--batch-size", 4, "--nproc", 1,
                    "--max-restarts", 10 * KILLS)  # fmt: skip
    chance, killed = random.Random(7), 0
    while killed < KILLS:
        victim = chance.choice(["rank 0", "rank 1", "machine 0", "machine 1"])
        moment = chance.choice([Watched.is_saving, Watched.is_evaluating, Watched.has_saved])
        before, more = seen.checkpoints(), chance.choice([0, 1, 2])
        assert wait_for(partial(_has_more, seen, before, more), *both.running)
        assert wait_for(partial(moment, seen), *both.running)
        killed += both.kill(victim)
    for command in both.running:
        assert command.wait(timeout=300) == 0
    assert seen.orders() == alone.orders()
    assert len(seen.orders()) == LONG


def _has_more(seen: Watched, before: set[str], more: int) -> bool:
    """Whether so many checkpoints and one have been written since."""
    return len({name for name in seen.checkpoints() - before if name[0] != "."}) > more
