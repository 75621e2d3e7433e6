"""Several machines as one run: commands on this one that meet at 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from launched import alive, answers, ended, noted, wait_for

from training.stopping import STOPPED

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def port() -> int:
    """Where the machines of a test meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def machine(command: Start, port: int) -> Start:
    """Start the command of machine `node`, of two unless told otherwise."""

    def call(node: int, action: str, **options: Any) -> subprocess.Popen[str]:
        place = {"nodes": 2, "node_rank": node, "master": f"127.0.0.1:{port}", "nproc": 1}
        return command(action, **(place | options))

    return call


def test_two_machines_are_one_run(machine: Start, tmp_path: Path) -> None:
    machines = [machine(node, "end", nproc=2) for node in (1, 0)]
    assert [ended(each, 0) for each in machines] == ["", ""]
    assert {name: lines[1:] for name, lines in noted(tmp_path).items()} == {
        f"{rank}.0": ["4", str(rank % 2), "2", "0"] for rank in range(4)
    }


def test_a_loss_on_one_machine_restarts_both(machine: Start, tmp_path: Path) -> None:
    machines = [machine(node, "once", max_restarts=1) for node in (0, 1)]
    for each in machines:
        assert "process 1 on" in (said := ended(each, 0))
        assert "restart 1 of 1" in said
    assert {"0.1", "1.0", "1.1"} <= set(noted(tmp_path))


def test_a_failure_on_one_machine_is_told_on_both(machine: Start, tmp_path: Path) -> None:
    machines = [machine(node, "fail", max_restarts=1) for node in (0, 1)]
    assert [ended(each, 2) for each in machines] == ["error: rank 1 says no\n"] * 2
    assert not alive(tmp_path)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_machine_that_is_lost_can_come_back(machine: Start, tmp_path: Path, lost: int) -> None:
    machines = [machine(node, "sleep", max_restarts=2) for node in (0, 1)]
    wait_for(lambda: len(noted(tmp_path)) == 2)
    machines[lost].kill()
    machines[lost].wait()
    wait_for(lambda: not alive(tmp_path))
    for path in (tmp_path / "out").glob("?.?"):
        path.unlink()
    machines[lost] = machine(lost, "sleep", max_restarts=2)
    wait_for(lambda: len(noted(tmp_path)) == 2)
    machines[1 - lost].terminate()
    said = ended(machines[1 - lost], 143)
    assert f"machine {lost}" in said
    assert "restart 1 of 2" in said
    machines[lost].wait(timeout=60)
    assert not alive(tmp_path)


@pytest.mark.parametrize("lost", [0, 1])
def test_without_restarts_a_lost_machine_ends_the_run(
    machine: Start, tmp_path: Path, lost: int
) -> None:
    machines = [machine(node, "sleep") for node in (0, 1)]
    wait_for(lambda: len(noted(tmp_path)) == 2)
    machines[lost].kill()
    said = ended(machines[1 - lost], 1)
    assert f"machine {lost}" in said
    assert "is gone" in said
    wait_for(lambda: not alive(tmp_path))


@pytest.mark.slow
def test_random_kills_of_processes_and_machines_end_in_a_finished_run(
    machine: Start, tmp_path: Path
) -> None:
    """Seeded: who is killed, and after how many more steps of the run."""
    saved, chance = tmp_path / "saved", random.Random(11)
    saved.write_text("0")
    machines = [machine(node, "count", max_restarts=1000, nproc=2) for node in (0, 1)]
    for _ in range(30):
        goal = int(saved.read_text()) + 1 + chance.randrange(12)
        victim = chance.choice(["machine 0", "machine 1", "0", "1", "2", "3"])
        wait_for(partial(has_reached, saved, goal))
        if victim.startswith("machine"):
            node = int(victim[-1])
            machines[node].kill()
            machines[node].communicate()
            machines[node] = machine(node, "count", max_restarts=1000, nproc=2)
            continue
        attempts = partial((tmp_path / "out").glob, f"{victim}.*")
        wait_for(lambda attempts=attempts: list(attempts()))
        latest = max(attempts(), key=lambda path: path.stat().st_mtime_ns)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(latest.read_text().split("\n")[0]), signal.SIGKILL)
    for each in machines:
        ended(each, 0)
    assert saved.read_text() == "400"
    assert not alive(tmp_path)


def has_reached(saved: Path, goal: int) -> bool:
    return int(saved.read_text()) >= goal


def test_ctrl_c_on_one_machine_ends_both(machine: Start, tmp_path: Path) -> None:
    machines = [machine(node, "sleep", max_restarts=3) for node in (0, 1)]
    wait_for(lambda: len(noted(tmp_path)) == 2)
    machines[1].send_signal(signal.SIGINT)
    ended(machines[1], 130)
    assert "SIGINT ended the command of machine 1" in ended(machines[0], 1)
    assert not alive(tmp_path)


def test_a_machine_that_never_comes_is_named(machine: Start, tmp_path: Path) -> None:
    said = ended(machine(0, "end", join_seconds=0.3), 1)
    assert "machine 1 of 2 did not come to 127.0.0.1:" in said
    assert "within 0.3 s" in said
    said = ended(machine(1, "end", join_seconds=0.3), 1)
    assert "machine 0 did not answer at 127.0.0.1:" in said
    assert not noted(tmp_path)


def test_a_machine_that_waits_can_be_interrupted(machine: Start, tmp_path: Path) -> None:
    process = machine(1, "end")
    wait_for(lambda: b"a program" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
    wait_for(lambda: catches(process.pid, signal.SIGINT))
    process.send_signal(signal.SIGTERM)
    said = ended(process, STOPPED)
    assert f"because SIGTERM asked machine 1 ({socket.gethostname()}) for it" in said
    assert not noted(tmp_path)


def test_machines_that_wait_for_another_stop_together(
    machine: Start, port: int, tmp_path: Path
) -> None:
    machines = [machine(node, "end", nodes=3) for node in (0, 1)]
    wait_for(lambda: is_connected(port))
    machines[1].terminate()
    for each in machines:
        assert "because SIGTERM asked machine 1 (" in ended(each, STOPPED)
    assert not noted(tmp_path)


def is_connected(port: int) -> bool:
    """Whether somebody has a connection to this port of 127.0.0.1, by the kernel's table."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[2] == f"0100007F:{port:04X}" and line[3] == "01" for line in lines)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, by its mask of caught signals."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1 and mask >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nproc": 2}, "machine 1 (HOST) has processes 2 and machine 0"),
        ({"node_rank": 0, "nodes": 2}, "in use"),
        ({"nodes": 3}, "machine 1 (HOST) has --nodes 3"),
    ],
)
def test_machines_that_do_not_fit_together_are_told(
    machine: Start, port: int, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    first = machine(0, "end")
    wait_for(lambda: answers(port))
    said = ended(machine(1, "end", **options), 1 if words == "in use" else 2)
    assert words.replace("HOST", socket.gethostname()) in said
    assert [ended(each, 0) for each in (machine(1, "end"), first)] == ["", ""]
    assert set(noted(tmp_path)) == {"0.0", "1.0"}


def test_two_commands_cannot_be_one_machine(machine: Start, port: int, tmp_path: Path) -> None:
    first, second = machine(0, "end", nodes=3), machine(1, "end", nodes=3)
    wait_for(lambda: answers(port))
    third = machine(1, "end", nodes=3)
    wait_for(lambda: third.poll() is not None or second.poll() is not None)
    refused = third if third.poll() is not None else second
    assert "machine 1 is there already" in ended(refused, 2)
    last = machine(2, "end", nodes=3)
    for each in {first, second, third, last} - {refused}:
        ended(each, 0)
    assert len(noted(tmp_path)) == 3


def test_strangers_at_the_port_are_sent_away(machine: Start, port: int) -> None:
    first = machine(0, "end")
    wait_for(lambda: answers(port))
    for data in (b"GET / HTTP/1.1\r\n\r\n", b'{"what": "hello", "node": "x"}\n', b"[1]\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(data)
            stranger.settimeout(60)
            while stranger.recv(4096):
                pass
    for each in (machine(1, "end"), first):
        ended(each, 0)
