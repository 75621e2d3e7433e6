"""Launching real processes: what they report, how they end, that none stays."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launched import alive, ended, noted, wait_for

from shards.errors import ToolError, UsageError
from training.children import PeerLost, report_failure
from training.launch import launch
from training.place import BEGAN_VARIABLE
from training.stopping import SAME_SECONDS, STOPPED, Signals, Stopped

Program = Callable[..., int]


@pytest.fixture
def program(stand_in: Path, tmp_path: Path) -> Program:
    """Launch PROGRAM with (action, arguments)."""
    assert stand_in.exists()
    return lambda *argv, nproc=2, **options: launch(
        [str(tmp_path / "out"), *argv], nproc=nproc, **options
    )


# --- one machine ------------------------------------------------------------------------------


@pytest.mark.parametrize("nproc", [1, 2, 3, 4])
def test_every_process_knows_its_place_and_gets_the_arguments_as_they_are(
    program: Program, tmp_path: Path, capfd: pytest.CaptureFixture[str], nproc: int
) -> None:
    arguments = ["--log", "--nnodes=9", "a b; rm -rf *", "--epochs", "2"]
    assert program("end", *arguments, nproc=nproc) == 0
    world = str(nproc)
    assert {rank: rest for rank, (_, *rest) in noted(tmp_path).items()} == {
        f"{rank}.0": [world, str(rank), world, "0", *arguments] for rank in range(nproc)
    }
    assert capfd.readouterr() == ("", "")


def test_a_reported_failure_is_raised_once_ends_the_others_and_is_not_tried_again(
    program: Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"^rank 1 says no$"):
        program("fail", max_restarts=3)
    assert not alive(tmp_path)
    assert set(noted(tmp_path)) <= {"0.0", "1.0"}
    assert capfd.readouterr() == ("", "")


def test_a_killed_process_is_named_and_ends_the_others(program: Program, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"process 1 on \S+ was ended by SIGKILL"):
        program("killed")
    assert not alive(tmp_path)


def test_an_unreported_failure_gives_its_exit_code(program: Program, tmp_path: Path) -> None:
    said: list[str] = []
    assert program("crash", say=said.append) == 7
    (text,) = said
    assert "process 1 on" in text
    assert "exit code 7" in text
    assert not alive(tmp_path)


def test_after_a_loss_all_processes_start_again(program: Program, tmp_path: Path) -> None:
    said: list[str] = []
    assert program("once", max_restarts=2, say=said.append) == 0
    (text,) = said
    assert text == (
        f"process 1 on {socket.gethostname()} was ended by SIGKILL (by the system, if memory ran "
        "out); restart 1 of 2 from the last checkpoint"
    )
    assert {"0.1", "1.0", "1.1"} <= set(noted(tmp_path))


def test_restarts_are_counted_and_run_out(program: Program, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ToolError, match=r"SIGKILL.*\(after 2 restarts\); start the same command"):
        program("killed", max_restarts=2, say=said.append)
    assert [text[text.index("restart ") :][:14] for text in said] == [
        "restart 1 of 2",
        "restart 2 of 2",
    ]
    assert "1.2" in noted(tmp_path)
    assert not alive(tmp_path)


def test_who_lost_a_peer_gives_way_to_who_knows_why(program: Program) -> None:
    with pytest.raises(ToolError, match=r"^the true reason$"):
        program("peer", max_restarts=1)


def test_where_nobody_knows_why_the_run_is_started_again(program: Program) -> None:
    said: list[str] = []
    with pytest.raises(ToolError, match="lost the others, and the others with it"):
        program("peers", max_restarts=1, say=said.append)
    assert len(said) == 1


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_however_the_launcher_ends_no_process_stays(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int, code: int
) -> None:
    process = command("sleep", max_restarts=3)
    wait_for(lambda: len(noted(tmp_path)) == 2)
    process.send_signal(number)
    ended(process, code)
    wait_for(lambda: not alive(tmp_path))
    assert set(noted(tmp_path)) == {"0.0", "1.0"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_handed_on_and_the_end_waits_until_all_have_saved(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int
) -> None:
    process = command("save", max_restarts=3)
    wait_for(lambda: len(noted(tmp_path)) == 2)
    process.send_signal(number)
    assert ended(process, STOPPED) == "error: stopped and saved\n"
    assert set(noted(tmp_path)) == {"0.0", "1.0"}


def test_a_process_that_does_not_save_in_time_is_ended(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = command("slow", grace=0.2, max_restarts=3)
    wait_for(lambda: len(noted(tmp_path)) == 2)
    process.terminate()
    process.send_signal(signal.SIGHUP)  # as some send both: the same one
    assert "did not save and end within 0.2 s of SIG" in ended(process, 1)
    assert not alive(tmp_path)


def test_a_second_signal_ends_at_once(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Two within SAME_SECONDS are one, so it is told again after these."""
    process = command("slow", grace=600)
    wait_for(lambda: len(noted(tmp_path)) == 2)
    process.terminate()
    while process.poll() is None:
        process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SAME_SECONDS + 1)
    assert process.returncode == 128 + signal.SIGUSR1
    assert not alive(tmp_path)


def test_a_signal_from_before_the_launch_counts(program: Program, tmp_path: Path) -> None:
    signals = Signals()
    signals.received = "SIGTERM"
    with pytest.raises(Stopped, match="before training began, because SIGTERM asked for it"):
        program("end", signals=signals)
    assert not noted(tmp_path)


def test_restarted_processes_know_when_the_command_began(
    command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = command("sleep", max_restarts=1)
    began = []
    for attempt in (0, 1):
        names = {f"{rank}.{attempt}" for rank in (0, 1)}
        wait_for(lambda names=names: names <= set(noted(tmp_path)))
        pids = [int(noted(tmp_path)[name][0]) for name in names]
        began += [variable_of(pid, BEGAN_VARIABLE) for pid in pids]
        os.kill(pids[0], signal.SIGKILL)
    ended(process, 1)
    assert began[0] is not None
    assert began == [began[0]] * 4


def variable_of(pid: int, name: str) -> str | None:
    """A variable of a process's environment."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(each.split("=", 1) for each in variables if each).get(name)


def test_a_run_that_stopped_and_saved_is_not_started_again(program: Program) -> None:
    with pytest.raises(Stopped, match="stopped and saved"):
        program("stopped", nproc=1, max_restarts=3)


# --- without a launch -------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "code"), [({}, 9), ({"RANK": "0", "WORLD_SIZE": "2"}, 1)])
def test_one_of_several_that_fails_is_gone_before_python_takes_itself_down(
    place: dict[str, str], code: int
) -> None:
    """A process group that is still up may abort then; here something else has its own code."""
    program = (
        "import atexit, os\n"
        "from shards.console import command\n"
        "from shards.errors import ToolError\n"
        "from training.commands.base import RankCommand\n"
        "@command('x', RankCommand)\n"
        "def refuse(as_json):\n"
        "    raise ToolError('no')\n"
        "atexit.register(os._exit, 9)\n"
        "refuse([])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, "error: no\n")


def test_without_a_launcher_nobody_takes_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not report_failure(ToolError("alone"))
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setenv("IMAGENET_RESNET_REPORT", str(writer))
    assert not report_failure(PeerLost("the launcher is gone"))
    os.close(writer)


@pytest.mark.parametrize("master", [None, "host", "host:", ":29500", "host:port", "host:70000"])
def test_several_machines_need_an_address(master: str | None) -> None:
    with pytest.raises(UsageError, match="--master HOST:PORT"):
        launch([], nproc=1, nodes=2, master=master)


@pytest.mark.parametrize(
    ("option", "given"),
    [("--grace", {"grace": float("nan")}), ("--join-timeout", {"join_seconds": float("inf")})],
)
def test_a_time_to_wait_is_a_number(program: Program, option: str, given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=rf"^{option} (nan|inf): it must be a number of seconds"):
        program("end", **given)


def test_a_machines_number_is_below_their_count() -> None:
    with pytest.raises(UsageError, match="--node-rank 2: it must be from 0 to 1"):
        launch([], nproc=1, nodes=2, node_rank=2, master="127.0.0.1:29500")
