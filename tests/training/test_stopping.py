"""Signals become a request, and all processes come to the same verdict after the same step."""

from __future__ import annotations

import dataclasses
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import UsageError
from shards.progress import Silent
from training.config import minutes_of, resolve
from training.device import choose
from training.distributed import World, joined
from training.place import BEGAN_VARIABLE
from training.stopping import STOPPED, Signals, Stopped
from training.trainer import train
from training.verdict import Agreement, Verdict

ROOT = Path(__file__).parents[2]
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def catches(process: int, number: int) -> bool:
    """Whether a process has a handler of a signal (proc_pid_status(5): SigCgt)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_leaves_a_note_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # passed on by somebody else as well: the same one
        assert signals.received == number.name
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def work_until_told(signals: Signals) -> None:
    with signals.ending_at_once():
        os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("still at work")


def test_where_nothing_is_to_be_saved_a_signal_ends_the_work_itself() -> None:
    with Signals() as signals:
        for _ in ("while it works", "before"):
            with pytest.raises(Stopped, match="SIGUSR1 asked for it"):
                work_until_told(signals)


def test_a_terminal_that_is_gone_takes_no_run_with_it() -> None:
    code = (
        "import fcntl, sys, termios\n"
        "from training.stopping import Signals\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "with Signals() as signals:\n"
        "    print('ready', flush=True)\n"
        "    while not signals.received: pass\n"
        "    print('saved', signals.received, flush=True)\n"
        "    print('saved', file=sys.stderr, flush=True)\n"
        "sys.exit(75)\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"ready")
    os.close(ours)
    assert process.wait(timeout=60) == STOPPED


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_a_command_can_be_stopped_before_it_has_loaded_torch(
    start: Callable[..., subprocess.Popen[str]], shards: Path, tmp_path: Path
) -> None:
    process = start("resnet", "train", "--shards", shards, "--out", tmp_path, "--device", "cpu",
                    "--model", "resnet18", "--image-size", 32)  # fmt: skip
    while not handles(process.pid, signal.SIGTERM):
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == STOPPED
    assert said == (
        "stopped before training began, because SIGTERM asked for it; nothing is lost, and the "
        "same command begins it or goes on from its last checkpoint\n"
    )


def test_a_command_that_has_ended_keeps_its_exit_code() -> None:
    """What was registered first comes last: a signal as late as Python lets us send one."""
    code = (
        "import atexit, os, signal\n"
        "from shards.console import command\n"
        "from training.commands.base import StoppableCommand\n"
        "@command('x', StoppableCommand)\n"
        "def work(as_json):\n"
        "    print('done')\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "work([])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from training import stopping\n"
        "stopping.SAME_SECONDS = 0.0\n"
        "with stopping.Signals() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while time.monotonic() <= signals._received_at: pass\n"
        "    print(signals.received, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "SIGTERM\n")


def test_being_stopped_has_an_exit_code_of_its_own() -> None:
    assert (STOPPED, Stopped("saved").exit_code) == (75, 75)


def agreement(world: World, signals: Signals, **limits: Any) -> Agreement:
    given = {"started": time.monotonic(), "max_minutes": None, "save_minutes": None} | limits
    return Agreement(world, signals, **given)


def test_alone_the_clock_and_signals_decide() -> None:
    signals = Signals()
    assert agreement(ALONE, signals).after_step() is Verdict.GO_ON
    late = agreement(ALONE, signals, started=time.monotonic() - 61, max_minutes=1.0)
    assert late.after_step() is Verdict.STOP_BY_TIME
    saving = agreement(ALONE, signals, save_minutes=1e-9)
    assert saving.after_step() is Verdict.SAVE
    signals.received = "SIGTERM"
    assert late.after_step() is Verdict.STOP_BY_SIGNAL


def steps_until_all_stop(told_rank: int, told_step: int) -> list[int]:
    """The step after which this process stops; one of them is told to after `told_step`.

    Steps take nothing here, so the period between two exchanges becomes the longest there is.
    """
    with joined(choose("cpu")) as world:
        signals = Signals()
        agreed = agreement(world, signals)
        for step in range(1, 5000):
            if (world.rank, step) == (told_rank, told_step):
                signals.received = "SIGTERM"
            if agreed.after_step() is Verdict.STOP_BY_SIGNAL:
                return [step]
        return []


def test_all_processes_stop_after_the_same_step_whoever_was_told(ranks: Any) -> None:
    first, *others = ranks.run(steps_until_all_stop, 1, 40, world=3)
    assert 40 <= first[0] <= 1100
    assert others == [first, first]


def test_between_exchanges_nobody_is_asked_and_they_are_a_second_apart() -> None:
    """Alone in a world of two, where an exchange would fail."""
    agreed = agreement(dataclasses.replace(ALONE, size=2), Signals())
    agreed._asked_at -= 100.0
    agreed._steps = 10_000  # of 10 ms each, and little more on a machine that stood still
    agreed._period = agreed._next_period()
    assert 50 <= agreed._period <= 100
    agreed._steps = 0
    for _ in range(agreed._period - 1):
        assert agreed.after_step() is Verdict.GO_ON
    with pytest.raises(ValueError, match="process group"):
        agreed.after_step()


def clock_of_rank_0() -> list[str]:
    with joined(choose("cpu")) as world:
        started = time.monotonic() - (100 if world.is_main else 0)
        return [agreement(world, Signals(), started=started, max_minutes=1.0).now().name]


def test_the_clock_is_that_of_rank_0(ranks: Any) -> None:
    assert ranks.run(clock_of_rank_0, world=2) == [["STOP_BY_TIME"]] * 2


def test_the_clock_starts_with_the_command_that_launched_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart, say: of a minute nothing is left."""
    monkeypatch.setenv(BEGAN_VARIABLE, str(time.monotonic() - 61))
    config = resolve(shards=shards, out=tmp_path, model="resnet18", batch_size=12, image_size=32,
                     world=1, threads=1, device="cpu", max_minutes=1.0)  # fmt: skip
    with pytest.raises(Stopped, match=r"epoch 0 and 1 steps, because --max-time is over"):
        train(config, progress=Silent(), on_record=lambda _record: None)


def test_a_time_limit_is_minutes_or_as_slurm_writes_it() -> None:
    assert [minutes_of(text) for text in ("90", "0.5", "01:30:30")] == [90, 0.5, 90.5]
    for text in ("", "soon", "1:2", "1:2:3:4", "a:b:c"):
        with pytest.raises(UsageError, match="--max-time"):
            minutes_of(text)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_slurm_example_hands_a_stopped_run_back_to_the_queue(
    tmp_path: Path, number: int
) -> None:
    """The script of training/README.md, with stand-ins for the trainer and Slurm's scontrol.

    The trainer's is told twice, and saves after that.
    """
    readme = (ROOT / "training" / "README.md").read_text()
    script = next(part for part in readme.split("```\n") if part.startswith("#!/bin/bash"))
    (tmp_path / "job.sh").write_text(script)
    stands = {
        "resnet": "trap 'touch told$((told++))' USR1\ntouch started\n"
        "while [ ! -e told1 ]; do sleep 0.01; done\n"
        f"exit {STOPPED}\n",
        "scontrol": 'echo "$@" > asked\n',
    }
    for name, body in stands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)
    while not catches(job.pid, number):
        assert job.poll() is None
    for sign in ("started", "told0"):
        while not (tmp_path / sign).exists():
            assert job.poll() is None
        job.send_signal(number)  # as --signal=B:USR1@120 does: the batch shell alone
    assert job.wait(timeout=60) == STOPPED
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
