"""The log's first line: what trains, where, from which weights, by which software."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision

from shards.progress import Silent
from training.config import TrainConfig, resolve
from training.trainer import train


def config(shards: Path, out: Path, **options: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "shards": shards,
        "out": out,
        "world": 1,
        "threads": 1,
        "model": "resnet18",
        "settings": {"warmup_epochs": 8},
        "epochs": 3,
        "batch_size": 12,
        "image_size": 32,
        "device": "cpu",
    }
    return resolve(**(given | options))


def started(made: TrainConfig) -> tuple[dict[str, Any], list[str]]:
    """The line, and what is noted."""
    records: list[dict[str, Any]] = []
    notes: list[str] = []

    class Listener(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    train(made, progress=Listener(), on_record=records.append)
    return records[0], notes


def test_it_says_where_and_from_what_a_run_begins(shards: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "weights.pth", tmp_path / "run"
    torch.save(torchvision.models.resnet18().state_dict(), file)
    start, notes = started(config(shards, out, init_weights=file, max_steps=1))
    assert start["host"] == socket.gethostname()
    assert start["device_name"]
    assert start["cores"] >= 1
    assert start["init_weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert start["versions"]["pillow"] == PIL.__version__
    assert {"timm", "simplejpeg", "torch"} <= start["versions"].keys()
    plan = start["plan"]
    tars = {split: len(list((shards / split).glob("*.tar"))) for split in ("train", "val")}
    assert {"train": plan["train_shards"], "val": plan["val_shards"]} == tars
    assert (plan["checkpoints"], plan["log"]) == (str(out / "checkpoints"), str(out / "log.jsonl"))
    assert any("the warm-up takes 8 epochs and the run has 3" in note for note in notes)
    file.unlink()  # a run that goes on does not need it
    again, _ = started(config(shards, out, init_weights=file, max_steps=2))
    assert (again["step"], again["init_weights_sha256"]) == (1, None)
