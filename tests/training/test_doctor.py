"""`resnet doctor`: what it makes of measurements, and of processes that crash, hang or are well."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import teco_smi

from shards.errors import UsageError
from shards.finding import Finding, Status
from training.doctor.examine import Asked, Examined, examine_devices, take_part
from training.doctor.judge import judge_devices, judge_reduction, judge_share, judge_survey
from training.doctor.network import interface_of, network
from training.doctor.report import Product, Reduction, Report, Survey

Run = Callable[..., "subprocess.CompletedProcess[str]"]

CPU = Survey(kind="cpu", reason="asked for", processes=2)
CARD = Survey(kind="sdaa", reason="4 SDAA devices found", processes=4, per_card=4, count=4)


def spa(rank: int, **changes: Any) -> Report:
    """A device of a healthy card."""
    healthy = Report(
        rank=rank,
        device=f"sdaa:{rank}",
        name="TECO_AICARD_01",
        free=16_000_000_000,
        total=16_384_000_000,
        fp32=Product(rate=4e12, error=1e-6),
        fp16=Product(rate=30e12, error=1e-3),
        copy=12e9,
    )
    return dataclasses.replace(healthy, **changes)


def judged(reports: Sequence[Report], survey: Survey = CARD) -> list[Finding]:
    found = list(judge_devices(reports, survey))
    for each in found:
        assert (each.status is Status.OK) is (each.remedy == ""), each
    return found


# --- judging ----------------------------------------------------------------------------------


def test_healthy_devices_are_told_with_their_figures() -> None:
    found = judged([spa(rank) for rank in range(4)])
    assert [each.what for each in found] == ["sdaa:0", "sdaa:1", "sdaa:2", "sdaa:3"]
    assert {each.status for each in found} == {Status.OK}
    assert found[0].found == (
        "TECO_AICARD_01, 4 TFLOPS in fp32, 30 TFLOPS in fp16, 12 GB/s from the host, "
        "16.0 of 16.4 GB free"
    )


@pytest.mark.parametrize(
    ("sick", "status", "said"),
    [
        (spa(2, fp16=Product(rate=12e12, error=1e-3)), Status.PROBLEM, "fp16 at 40% of its"),
        (spa(2, fp32=Product(rate=4e12, error=0.5)), Status.PROBLEM, "fp32 is off by 0.5"),
        (spa(2, fp16=Product(rate=3e13, error=None)), Status.PROBLEM, "fp16 gives no numbers"),
        (spa(2, failure="RuntimeError: device lost"), Status.PROBLEM, "device lost"),
        (spa(2, free=9_000_000_000), Status.NOTE, "9.0 of 16.4 GB free"),
        (spa(2, free=None, total=None, copy=None), Status.OK, "30 TFLOPS in fp16"),
    ],
    ids=["slow", "wrong", "nan", "failed", "occupied", "tells little"],
)
def test_a_sick_device_stands_out_among_its_siblings(
    sick: Report, status: Status, said: str
) -> None:
    found = judged([spa(0), spa(1), sick, spa(3)])
    assert [each.status for each in found if each.what != "sdaa:2"] == [Status.OK] * 3
    assert found[2].status is status
    assert said in found[2].found


def test_of_two_devices_the_slower_one_is_behind() -> None:
    found = judged([spa(0, fp32=Product(rate=1e12, error=0.0)), spa(1)])
    assert [each.status for each in found] == [Status.PROBLEM, Status.OK]


def test_processes_on_the_cpu_are_not_compared() -> None:
    """They share cores, and whoever else runs there takes from one of them."""
    rates = (1e10, 9e10)
    reports = [
        Report(rank=rank, device="cpu", fp32=Product(rate=rate, error=0.0))
        for rank, rate in enumerate(rates)
    ]
    found = judged(reports, CPU)
    assert [(each.what, each.status) for each in found] == [
        ("cpu:0", Status.OK),
        ("cpu:1", Status.OK),
    ]


@pytest.mark.parametrize(
    ("survey", "cards", "status"),
    [
        (CPU, 0, Status.OK),
        (CARD, 1, Status.OK),
        (CARD, 0, Status.OK),  # a system that shows its cards by other files
        (CARD, 2, Status.PROBLEM),
        (dataclasses.replace(CARD, visible="0,1,2,3"), 2, Status.OK),
    ],
)
def test_cards_that_torch_does_not_see_are_a_problem(
    survey: Survey, cards: int, status: Status
) -> None:
    (found,) = judge_survey(survey, cards)
    assert found.status is status
    assert ("should have 8" in found.found) is (status is Status.PROBLEM)


def test_fewer_cores_than_processes_are_a_note() -> None:
    many = dataclasses.replace(CARD, processes=100_000)
    assert judge_share(many)[0].status is Status.NOTE
    assert [each.what for each in judge_share(CARD)] == ["cores a process", "locked memory"]
    (alone,) = judge_share(dataclasses.replace(CPU, processes=1))
    assert alone.status is Status.OK


def test_a_wrong_sum_is_a_problem() -> None:
    right = Reduction(processes=8, backend="tccl", bytes=32 << 20, seconds=0.01, right=True)
    found = judge_reduction(right, 2)
    assert found.found == "8 processes on 2 machines by tccl: 34 MB in 10.0 ms, 5.87 GB/s"
    wrong = judge_reduction(dataclasses.replace(right, right=False), 1)
    assert (wrong.status, wrong.found[:10]) == (Status.PROBLEM, "wrong sum:")


def test_reports_come_back_as_they_were_left(tmp_path: Path) -> None:
    assert (Survey.read(tmp_path), Reduction.read(tmp_path)) == (None, None)
    CARD.write(tmp_path)
    reports = [spa(0), spa(1, fp16=None), spa(11, failure="RuntimeError: x")]
    for each in reversed(reports):
        each.write(tmp_path)
    fast = Reduction(processes=2, backend="gloo", bytes=8, seconds=0.1, right=True)
    slow = dataclasses.replace(fast, seconds=0.2)
    for rank, each in enumerate((fast, slow)):
        each.write(tmp_path, rank)
    assert (Survey.read(tmp_path), Report.read_all(tmp_path)) == (CARD, reports)
    assert Reduction.read(tmp_path) == slow
    dataclasses.replace(fast, right=False).write(tmp_path, 2)
    assert Reduction.read(tmp_path) == dataclasses.replace(fast, right=False)


# --- the way between machines -----------------------------------------------------------------


def test_the_way_to_the_master_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    (found,) = network("127.0.0.1:29500")
    assert (found.status, found.found) == (Status.OK, "127.0.0.1 by lo to 127.0.0.1")
    assert interface_of("192.0.2.77") is None  # RFC 5737: nobody's


def test_an_interface_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert [each.status for each in network("127.0.0.1:1")] == [Status.OK] * 2
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib9")
    found = network("127.0.0.1:1")[1]
    assert (found.status, found.found) == (Status.PROBLEM, "there is no interface ib9")
    assert "lo" in found.remedy


def test_a_master_that_cannot_be_found_is_a_problem() -> None:
    (found,) = network("no-such-host.invalid:29500")
    assert (found.what, found.status) == ("network", Status.PROBLEM)
    for master in (None, "host", "host:", ":1", "host:port"):
        with pytest.raises(UsageError, match="--master HOST:PORT"):
            network(master)


# --- processes that look ----------------------------------------------------------------------


def write_torch_sdaa(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import torch_sdaa` run that code, in processes of this one."""
    (folder / "torch_sdaa").mkdir()
    (folder / "torch_sdaa" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def following(code: int, command: str) -> str:
    """What is to be run next: the machine that runs the tests may have problems of its own."""
    return "mend what is a problem above, then: resnet doctor" if code else command


def examined(script: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Examined:
    monkeypatch.setattr(sys, "argv", [script("resnet")])
    return examine_devices(Asked(device="sdaa"), before=[], cards_there=0, seconds=3)


def test_a_torch_that_hangs_is_given_up(
    script: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_torch_sdaa(tmp_path, "import signal; signal.pause()", monkeypatch)
    (found,) = examined(script, monkeypatch).findings
    assert found.status is Status.PROBLEM
    assert found.found == "no answer within 3 s: torch or the driver hangs"


def test_a_torch_that_crashes_is_a_problem_beside_what_needs_none(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_torch_sdaa(tmp_path, "import os; os.abort()", monkeypatch)
    done = run("resnet", "doctor", "--device", "sdaa", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    found = {each["what"]: each for each in report["findings"]}
    assert found["device"]["found"] == "SIGABRT ended the process that loaded torch"
    assert found["device"]["status"] == "problem"
    assert {"Python", "cores", "memory", "open files"} < set(found)
    assert (report["device"], report["processes"], report["devices"]) == (None, 0, [])
    assert report["next"].startswith("mend what is a problem")


def test_a_doctor_inside_a_launch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        examine_devices(Asked(), before=[], cards_there=0)


def test_a_bare_machine_is_told_what_it_can_do(run: Run) -> None:
    done = run("resnet", "doctor", "--device", "cpu", "--json")
    report = json.loads(done.stdout)
    assert set(report) == {"findings", "device", "processes", "devices", "reduction", "next"}
    found = {each["what"]: each for each in report["findings"]}
    assert found["device"]["found"] == "cpu (asked for)"
    assert "TFLOPS in fp32" in found["cpu"]["found"]
    assert "cores a process" in found
    assert (report["device"], report["processes"], report["reduction"]) == ("cpu", 1, None)
    assert report["devices"][0]["fp32"]["error"] < 1e-5
    assert report["next"] == following(done.returncode, "resnet train --shards DIR --device cpu")
    assert done.returncode == any(each["status"] == "problem" for each in report["findings"])


def test_processes_are_started_as_those_of_a_run(run: Run) -> None:
    done = run("resnet", "doctor", "--device", "cpu", "--nproc", 2)
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       cpu:1 ") for line in lines), done.stderr
    (reduced,) = (line for line in lines if " all-reduce " in line)
    assert reduced.startswith("ok ")
    assert "2 processes by gloo: 34 MB in " in reduced
    wanted = following(done.returncode, "resnet train --shards DIR --device cpu --nproc 2")
    assert lines[-1] == f"next: {wanted}"


# --- simulated cards --------------------------------------------------------------------------


def measured_on_card(folder: Path) -> None:
    take_part(Asked(device="sdaa"), folder)


def test_the_devices_of_a_card_are_measured_together(spas: Any, tmp_path: Path) -> None:
    assert spas.run(measured_on_card, tmp_path, world=2) == [None, None]
    reports = Report.read_all(tmp_path)
    assert [(each.device, each.failure) for each in reports] == [("sdaa:0", ""), ("sdaa:1", "")]
    for each in reports:
        assert each.total == 1 << 34
        for product in (each.fp32, each.fp16):
            assert product is not None
            assert product.error is not None
            assert product.error < 1e-2
    reduction = Reduction.read(tmp_path)
    assert reduction is not None
    assert (reduction.backend, reduction.processes, reduction.right) == ("tccl", 2, True)


def measured_with_one_lost(folder: Path) -> None:
    os.environ["SDAA_SIMULATOR_LOST"] = "1"
    try:
        measured_on_card(folder)
    finally:
        del os.environ["SDAA_SIMULATOR_LOST"]


def test_where_a_device_fails_the_others_do_not_wait_for_it(spas: Any, tmp_path: Path) -> None:
    assert spas.run(measured_with_one_lost, tmp_path, world=2) == [None, None]
    reports = Report.read_all(tmp_path)
    assert [bool(each.failure) for each in reports] == [False, True]
    lost = judged(reports)[1]
    assert (lost.what, lost.status) == ("sdaa:1", Status.PROBLEM)
    assert lost.found.startswith("sdaa:1 does not answer (")
    assert "teco-smi -c" in lost.remedy
    assert Reduction.read(tmp_path) is None


@pytest.fixture
def with_cards(simulated_sdaa: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands that a test starts find the simulated torch_sdaa."""
    for name, value in simulated_sdaa.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("with_cards")
@pytest.mark.parametrize("table", [teco_smi.SPAS, teco_smi.HALF], ids=["healthy", "half gone"])
def test_a_card_is_examined_from_its_tool_to_its_sums(
    table: str, run: Run, tool: Callable[..., Path]
) -> None:
    tool("teco-smi", table)
    done = run("resnet", "doctor", "--json")
    report = json.loads(done.stdout)
    found = {each["what"]: each for each in report["findings"]}
    assert found["SDAA"]["status"] == ("ok" if table == teco_smi.SPAS else "problem")
    assert found["SDAA_VISIBLE_DEVICES"]["found"].startswith("0,1,2,3: 4 devices")
    assert found["SDAA access"]["status"] == "problem"  # simulated cards have no device files
    assert found["device"]["found"].startswith("4 sdaa devices (4 SDAA devices found")
    assert [each["device"] for each in report["devices"]] == [f"sdaa:{n}" for n in range(4)]
    assert found["all-reduce"]["found"].startswith("4 processes by tccl: ")
    assert report["next"].startswith("mend what is a problem")
    assert done.returncode == 1


@pytest.mark.slow
def test_a_device_whose_process_dies_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = "import os\nif os.environ.get('RANK') == '1': os.kill(os.getpid(), 9)\n"
    (tmp_path / "sitecustomize.py").write_text(dying)  # which Python runs before anything else
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run("resnet", "doctor", "--device", "cpu", "--nproc", 2, "--json")
    assert done.returncode == 1
    found = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["devices"]["status"] == "problem"
    assert "cpu:1" in found["devices"]["found"]
    assert "SIGKILL" in found["devices"]["found"]
    assert "all-reduce" not in found


@pytest.mark.slow
def test_two_machines_add_up_together(start: Callable[..., Any]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{probe.getsockname()[1]}"
    options = ("--device", "cpu", "--nproc", 1, "--nodes", 2, "--master", master)
    machines = [start("resnet", "doctor", *options, "--node-rank", rank) for rank in range(2)]
    for rank, machine in enumerate(machines):
        said, errors = machine.communicate(timeout=240)
        assert "2 processes on 2 machines by gloo" in said, errors
        assert "network" in said
        command = "resnet train --shards DIR --device cpu --nodes 2 "
        command += f"--node-rank {rank} --master {master}"
        assert said.endswith(f"next: {following(machine.returncode, command)}\n")
