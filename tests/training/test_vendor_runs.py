"""The vendor's published commands, run: on the CPU and on simulated cards, by a small network."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MIXED = ("--grad_scale", True, "--autocast", True)
SMALL = ("--model_name", "resnet18", "--image-size", 32, "--bs", 4, "--device", "cpu")
COMMON = ("--model_name", "resnet18", "--image-size", 32, "--lr", 0.016, "--log-every", 1)


# --- on the CPU -------------------------------------------------------------------------------


def start_line(out: Path) -> dict[str, Any]:
    return json.loads((out / "log.jsonl").read_text().splitlines()[0])


def told_by(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("note: -")]


def test_a_command_trains_in_two_processes_on_the_cpu(
    run: Run, shards: Path, tmp_path: Path
) -> None:
    done = run("resnet", "train", *SMALL, "--nproc_per_node", 2, "--lr", 0.016, "--epoch", 1,
               "--dataset_path", shards, *MIXED, "--num_workers", 1, "--step", 2,
               "--profiler", False, "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = told_by(done.stderr)
    assert len(told) == len(set(told)) == 9  # the processes repeat none
    assert sum("bf16" in line for line in told) == 1
    started = start_line(tmp_path)
    assert (started["device"], started["precision"]) == ("cpu", "bf16")
    assert (started["plan"]["world"], started["plan"]["global_batch"]) == (2, 8)
    assert [started["config"][name] for name in ("model", "lr", "epochs", "max_steps")] == [
        "resnet18", 0.016, 1, 2
    ]  # fmt: skip
    assert (tmp_path / "last.pt").exists()


def test_class_folders_are_trained_from_and_their_shards_where_they_have_some(
    run: Run, archives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one command that a note names makes the same command line go on with shards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = tmp_path / "image net"
    assert run("imagenet-prep", "extract", archives.train.parent, "--out", folders).returncode == 0
    command = ("train", *SMALL, "--lr", 0.01, "--dataset_path", f"{folders}/", "--out",
               tmp_path / "run", "--step")  # fmt: skip
    done = run("resnet", *command, 1)
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "imagenet-prep shard" in line]
    assert run(*shlex.split(told.split("`")[1])).returncode == 0
    done = run("resnet", *command, 2)
    assert done.returncode == 0, done.stderr
    assert f"{folders}-shards here, the shards beside the class folders" in done.stderr
    assert "goes on from" in done.stderr
    assert start_line(tmp_path / "run")["precision"] == "fp32"


def test_the_pair_of_commands_trains_on_two_machines(
    start: Callable[..., subprocess.Popen[str]], shards: Path, tmp_path: Path
) -> None:
    """Two agents on this machine, each with one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agents = [
        start("resnet", "train", "--nnode", 2, "--node_rank", rank, "--master_addr", "127.0.0.1",
              "--master_port", port, "--nproc_per_node", 1, *SMALL, "--lr", 0.016, "--epoch", 1,
              "--dataset_path", shards, *MIXED, "--step", 2, "--out", tmp_path)
        for rank in (0, 1)
    ]  # fmt: skip
    for agent in agents:
        _, stderr = agent.communicate(timeout=300)
        assert agent.returncode == 0, stderr
        assert len(told_by(stderr)) == 10
    assert start_line(tmp_path)["plan"]["world"] == 2


def test_under_another_launcher_the_first_process_tells(
    script: Callable[[str], str], shards: Path, tmp_path: Path
) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node", 2, "--no-python", script("resnet"),
               "train", *SMALL, "--shards", shards, "--step", 1, "--out", tmp_path]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(told_by(done.stderr)) == 3


# --- on simulated cards -----------------------------------------------------------------------


@pytest.fixture
def published(
    with_cards: None,  # noqa: ARG001 - whoever runs such a command needs them
    shards: Path,
    tmp_path: Path,
) -> Callable[..., tuple[Any, ...]]:
    """The words of a command of README 2.4 with this many processes, and more of them."""

    def words(processes: int, batch: int, *more: object) -> tuple[Any, ...]:
        return (
            *("resnet", "train", *COMMON, "--nproc_per_node", processes, "--bs", batch),
            *("--device", "sdaa", "--dataset_path", shards, *MIXED, "--out", tmp_path / "run"),
            *more,
        )

    return words


def log_of(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_one_card(run: Run, published: Callable[..., Any], tmp_path: Path) -> None:
    """Four processes, one a SPA; a whole epoch with its evaluation."""
    done = run(*published(4, 3, "--epoch", 1))
    assert done.returncode == 0, done.stderr
    (start,) = log_of(tmp_path, "start")
    assert (start["device"], start["precision"]) == ("sdaa:0", "fp16")
    assert (start["plan"]["world"], start["plan"]["global_batch"]) == (4, 12)
    (evaluation,) = log_of(tmp_path, "eval")
    assert evaluation["samples"] == 15


def test_four_cards(
    run: Run,
    published: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SDAA_SIMULATOR_DEVICES", "16")
    monkeypatch.delenv("SDAA_VISIBLE_DEVICES")
    done = run(*published(16, 3, "--epoch", 1, "--step", 1, "--num_workers", 1))
    assert done.returncode == 0, done.stderr
    (start,) = log_of(tmp_path, "start")
    assert (start["plan"]["world"], start["plan"]["global_batch"]) == (16, 48)
    assert load_checkpoint(tmp_path / "run" / "last.pt").position.samples == 48


def test_two_machines(
    start: Callable[..., subprocess.Popen[str]], published: Callable[..., Any], tmp_path: Path
) -> None:
    """Two agents with two SPAs each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agents = [
        start(
            *published(2, 3, "--epoch", 1, "--step", 2, "--nnode", 2, "--node_rank", rank),
            *("--master_addr", "127.0.0.1", "--master_port", port),
        )
        for rank in (0, 1)
    ]
    for agent in agents:
        _, stderr = agent.communicate(timeout=300)
        assert agent.returncode == 0, stderr
    (begun,) = log_of(tmp_path, "start")
    assert (begun["plan"]["world"], begun["device"]) == (4, "sdaa:0")


def test_every_other_option(run: Run, published: Callable[..., Any], tmp_path: Path) -> None:
    """Profiler, compiler, warm-up, an early stop, and going on from a checkpoint by its path."""
    traces = tmp_path / "profiler_log"
    done = run(
        *published(1, 4, "--epoch", 3, "--early_stop", 1, "--warm_up", 2, "--optimizer", "sgd"),
        *(
            "--profiler",
            True,
            "--profiler_path",
            traces,
            "--compile",
            True,
            "--dataset",
            "imagenet",
        ),
    )
    assert done.returncode == 0, done.stderr
    assert "could not be compiled" not in done.stderr
    assert list(traces.iterdir())
    (begun,) = log_of(tmp_path, "start")
    assert begun["plan"]["warmup_epochs"] == 2
    assert len(log_of(tmp_path, "epoch")) == 1
    done = run(
        *published(1, 4, "--epoch", 3, "--warm_up", 2, "--step", 13),
        *("--resume", tmp_path / "run" / "last.pt"),
    )
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "run" / "last.pt").position.step == 1


def test_the_recipe_of_mlperf(run: Run, published: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("timm")
    done = run(*published(1, 4, "--epoch", 1, "--step", 2, "--mlperf_mode", True))
    assert done.returncode == 0, done.stderr
    (begun,) = log_of(tmp_path, "start")
    assert begun["config"]["recipe"]["optimizer"] == "lars"


def test_a_compiler_that_fails_is_said_once_and_training_goes_on(
    run: Run, published: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDAA_SIMULATOR_COMPILER", "AssertionError")
    done = run(*published(2, 3, "--epoch", 1, "--step", 2, "--compile", True))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("could not be compiled") == 1
