"""Training from shards without an index: steps as they are told, exact evaluation, refusals."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import ON_DEVICE

from shards.errors import DamagedData, UsageError
from shards.progress import Silent
from shards.stream import INEXACT
from training.config import TrainConfig, resolve
from training.distributed import World
from training.train_set import Streamed, make_loader
from training.trainer import TrainResult, train

Command = Callable[..., subprocess.CompletedProcess[str]]


def pattern(shards: Path) -> str:
    return f"{shards}/train/imagenet-train-00000{{0..3}}.tar"


def config(shards: Path, out: Path, **options: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "shards": shards,
        "stream": pattern(shards),
        "steps_per_epoch": 3,
        "out": out,
        "world": 1,
        "threads": 1,
        "model": "resnet18",
        "epochs": 2,
        "batch_size": 8,
        "image_size": 32,
        **ON_DEVICE,
        "lr": 0.01,
    }
    return resolve(**(given | options))


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def run(asked: TrainConfig, progress: Silent | None = None) -> TrainResult:
    return train(asked, progress=progress or Silent(), on_record=lambda _record: None)


def log_of(out: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def test_epochs_have_the_steps_they_were_told_and_evaluation_is_exact(
    shards: Path, tmp_path: Path
) -> None:
    notes = Notes()
    result = run(config(shards, tmp_path), notes)
    assert (result.reason, result.epoch, result.samples) == ("finished", 2, 48)
    assert [record["consumed"] for record in log_of(tmp_path, "epoch")] == [24, 24]
    assert result.evaluation is not None
    assert result.evaluation.samples == 15
    assert notes.said == [INEXACT]


def test_a_stopped_run_goes_on_with_the_steps_that_are_left(shards: Path, tmp_path: Path) -> None:
    assert run(config(shards, tmp_path, max_steps=2)).reason == "max-steps"
    result = run(config(shards, tmp_path))
    assert (result.reason, result.epoch, result.samples) == ("finished", 2, 48)
    for options, named in (
        ({"steps_per_epoch": 4}, "--steps-per-epoch 3"),
        ({"stream": f"{shards}/train/imagenet-train-000000.tar"}, "with other shards than"),
        ({"stream": None, "steps_per_epoch": None}, "with other train data"),
    ):
        with pytest.raises(UsageError, match=named):
            run(config(shards, tmp_path, **options))


def test_a_batch_that_processes_cannot_share_is_refused(shards: Path, tmp_path: Path) -> None:
    asked = config(shards, tmp_path)
    streamed = Streamed(
        urls=pattern(shards), steps=3, label_field=None, classes=("a",), class_names=("a",)
    )
    world = World(rank=0, size=3, local_rank=0, device=torch.device("cpu"))
    with pytest.raises(UsageError, match="3 processes take equal parts"):
        make_loader(streamed, asked, world, pin_memory=False)


@pytest.mark.slow
def test_the_command_trains_on_one_shard_in_two_processes(
    shards: Path, tmp_path: Path, run: Command
) -> None:
    done = run(
        "resnet", "train", "--shards", f"pipe:cat {shards}/train/imagenet-train-000000.tar",
        "--steps-per-epoch", 2, "--val", shards, "--epochs", 1, "--model", "resnet18",
        "--batch-size", 5, "--image-size", 32, "--device", "cpu", "--nproc", 2, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert INEXACT in done.stderr
    assert [record["consumed"] for record in log_of(tmp_path, "epoch")] == [20]


def test_a_truncated_shard_ends_the_run_by_name(shards_copy: Path, tmp_path: Path) -> None:
    shard = shards_copy / "train" / "imagenet-train-000000.tar"
    os.truncate(shard, 20_000)
    with pytest.raises(DamagedData) as raised:
        run(config(shards_copy, tmp_path / "run", stream=str(shard)))
    assert str(raised.value).startswith(f"{shard}: the tar ends at byte 20000")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            ["--shards", "/x/x-{000..009}.tar"],
            "imagenet-prep index '/x/x-{000..009}.tar' --out DIR",
        ),
        (["--shards", "-"], "- has no index"),
        (["--shards", "-", "--steps-per-epoch", "5"], "need --val DIR"),
        (["--shards", "/x", "--val", "/y"], "--val and --label-field are for --steps-per-epoch"),
        (["--shards", "/x.tar", "--steps-per-epoch", "0", "--val", "/y"], "at least 1"),
    ],
)
def test_the_command_says_what_is_missing(options: list[str], named: str, run: Command) -> None:
    done = run("resnet", "train", *options, "--device", "cpu")
    assert done.returncode == 2
    assert named in done.stderr
