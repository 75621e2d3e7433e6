"""Launching real processes: what they report, how they end, that none stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import ToolError, UsageError
from shards.parallel import available_cores
from training.launch import launch, report_failure

# Stands in for the console script: starts in milliseconds, without torch.
PROGRAM = """
import os, pathlib, sys, time
from shards.errors import UsageError
from training.launch import follow_launcher, launch, report_failure

if "RANK" not in os.environ:
    sys.exit(launch(sys.argv[1:], nproc=2, master=None))
follow_launcher()

out, action, *rest = sys.argv[1:]
rank = os.environ["RANK"]
names = ("WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")
note = [str(os.getpid()), *map(os.environ.get, names), *rest]
pathlib.Path(out, rank).write_text("\\n".join(note))
if action == "fail" and rank == "1":
    report_failure(UsageError("rank 1 says no"))
    sys.exit(2)
if action == "crash" and rank == "1":
    sys.stderr.close()
    sys.exit(7)
if action == "killed" and rank == "1":
    os.kill(os.getpid(), 9)
if action != "end":
    time.sleep(60)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Launch PROGRAM with (action, arguments); its processes note themselves in tmp_path/out."""
    script = tmp_path / "a program"
    script.write_text(PROGRAM)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda *argv, nproc=2: launch([str(tmp_path / "out"), *argv], nproc=nproc, master=None)


def noted(tmp_path: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().split("\n") for path in (tmp_path / "out").iterdir()}


def test_every_process_knows_its_place_and_gets_the_arguments_as_they_are(
    program: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--log", "--nnodes=9", "a b; rm -rf *", "--epochs", "2"]
    assert program("end", *arguments) == 0
    share = str(max(1, available_cores() // 2))
    assert {rank: rest for rank, (_, *rest) in noted(tmp_path).items()} == {
        rank: ["2", rank, share, *arguments] for rank in ("0", "1")
    }
    assert capfd.readouterr() == ("", "")
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_reported_failure_is_raised_once_and_ends_the_others(
    program: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"^rank 1 says no$"):
        program("fail")
    assert not alive(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_killed_process_is_named_and_ends_the_others(
    program: Callable[..., int], tmp_path: Path
) -> None:
    with pytest.raises(ToolError, match="process 1 was ended by SIGKILL"):
        program("killed")
    assert not alive(tmp_path)


def test_an_unreported_failure_gives_its_exit_code(
    program: Callable[..., int], tmp_path: Path
) -> None:
    assert program("crash") == 7
    assert not alive(tmp_path)


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_however_the_launcher_ends_no_process_stays(tmp_path: Path, number: int, code: int) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([sys.executable, sys.argv[0], str(tmp_path / "out"), "sleep"]) as process:
        signal.signal(signal.SIGINT, before)
        wait_for(lambda: len(noted(tmp_path)) == 2)
        process.send_signal(number)
        assert process.wait(timeout=120) == code
    wait_for(lambda: not alive(tmp_path))


def alive(tmp_path: Path) -> list[int]:
    running = []
    for pid in (int(lines[0]) for lines in noted(tmp_path).values()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            running.append(pid)
    return running


def wait_for(sign: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not sign():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_without_a_launcher_nobody_takes_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not report_failure(ToolError("alone"))
    monkeypatch.setenv("IMAGENET_RESNET_FAILURES", str(tmp_path / "gone"))
    assert not report_failure(ToolError("the launcher is gone"))


@pytest.mark.parametrize("master", [None, "host", "host:", ":29500", "host:port"])
def test_several_machines_need_an_address(master: str | None) -> None:
    with pytest.raises(UsageError, match="--master HOST:PORT"):
        launch([], nproc=1, nodes=2, master=master)


def test_a_machines_number_is_below_their_count() -> None:
    with pytest.raises(UsageError, match="--node-rank 2: it must be from 0 to 1"):
        launch([], nproc=1, nodes=2, node_rank=2, master="127.0.0.1:29500")
