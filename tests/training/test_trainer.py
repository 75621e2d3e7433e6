"""Real runs on small shards: stopped, killed, gone on with, finished, refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.dataset import Dataset
from shards.errors import ToolError, UsageError
from shards.progress import Silent
from training.checkpoint import load_checkpoint
from training.config import TrainConfig, resolve
from training.distributed import place_from_environment
from training.evaluate import evaluate_checkpoint
from training.order_digest import digest_text, expected_digest
from training.trainer import TrainResult, train

BATCH = 12  # of 51 training samples: 4 steps an epoch, 3 samples dropped
EPOCHS = 2


def config(shards: Path, out: Path, **options: Any) -> TrainConfig:
    world = place_from_environment()[1]
    given: dict[str, Any] = {
        "shards": shards,
        "out": out,
        "world": world,
        "threads": 1,
        "model": "resnet18",
        "epochs": EPOCHS,
        "batch_size": BATCH // world,
        "image_size": 32,
        "device": "cpu",
        "log_every": 3,
        "lr": 0.01,
    }
    return resolve(**(given | options))


def run(shards: Path, out: Path, options: dict[str, Any]) -> TrainResult:
    return train(config(shards, out, **options), progress=Silent(), on_record=lambda _record: None)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def orders(out: Path) -> list[str]:
    return [record["order"] for record in log_of(out) if record["kind"] == "epoch"]


def positions(out: Path) -> list[tuple[str, int, int]]:
    return [
        (record["kind"], record["epoch"], record["step"])
        for record in log_of(out)
        if record["kind"] != "start"
    ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    loaded = load_checkpoint(out / "last.pt")
    momentum = {f"momentum of {name}": each for name, each in loaded.optimizer.items()}
    return loaded.model | momentum


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run with one process. Not to be written to."""
    out = tmp_path_factory.mktemp("finished")
    result = run(shards, out, {"save_steps": 3})
    assert (result.reason, result.epoch, result.step, result.samples) == ("finished", 2, 0, 96)
    return out


@pytest.fixture(scope="module")
def finished_by_two(ranks: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two processes."""
    out = tmp_path_factory.mktemp("finished-by-two")
    for result in ranks.run(run, shards, out, {"save_steps": 3}, world=2):
        assert result.reason == "finished"
    return out


def test_the_log_proves_which_samples_were_consumed(finished: Path, shards: Path) -> None:
    with Dataset.open(shards / "train") as dataset:
        expected = [
            digest_text(expected_digest(seed=1234, epoch=epoch, samples=len(dataset), used=48))
            for epoch in range(EPOCHS)
        ]
    assert orders(finished) == expected


def test_the_log_has_its_documented_lines(finished: Path) -> None:
    assert positions(finished) == [
        ("step", 0, 3),
        ("step", 0, 4),
        ("epoch", 1, 0),
        ("eval", 1, 0),
        ("step", 1, 3),
        ("step", 1, 4),
        ("epoch", 2, 0),
        ("eval", 2, 0),
        ("end", 2, 0),
    ]
    start, first, *_ = log_of(finished)
    assert start["plan"]["steps_per_epoch"] == 4
    assert start["plan"]["dropped_per_epoch"] == 3
    assert start["config"]["model"] == "resnet18"
    assert start["data"]["train_samples"] == 51
    assert (first["samples"], first["steps"], first["lr"]) == (36, 3, 0.01)
    assert first["loss"] > 0
    assert first["images_per_second"] > 0


def test_the_folder_holds_what_was_promised(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "epoch-0001-step-000003.pt",
        "epoch-0001.pt",
        "epoch-0002.pt",
    ]
    last, best = load_checkpoint(finished / "last.pt"), load_checkpoint(finished / "best.pt")
    assert last.position.place == (2, 0)
    assert last.best is not None
    assert best.position.place == (last.best.epoch, 0)
    top1 = [record["top1_count"] for record in log_of(finished) if record["kind"] == "eval"]
    assert last.best.top1_count == max(top1)
    assert all(tensor.device.type == "cpu" for tensor in last.model.values())


@pytest.mark.parametrize("stops", [(4,), (2, 5)])
def test_going_on_is_never_having_stopped(
    finished: Path, shards: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    for steps in stops:
        result = run(shards, tmp_path, {"max_steps": steps})
        assert (result.reason, result.epoch * 4 + result.step) == ("max-steps", steps)
    assert run(shards, tmp_path, {}).reason == "finished"
    assert_same_weights(tmp_path, finished)
    assert orders(tmp_path) == orders(finished)
    assert load_checkpoint(tmp_path / "last.pt").best == load_checkpoint(finished / "last.pt").best


def test_a_killed_run_does_its_unsaved_work_again(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    """What a kill after some more steps leaves: later log lines, a torn one, a temporary file."""
    run(shards, tmp_path, {"max_steps": 4})
    cut = {"kind": "step", "epoch": 1, "step": 3}
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(json.dumps(cut) + '\n{"kind": "st')
    (tmp_path / "checkpoints" / ".tmp-77-epoch-0002.pt").write_bytes(b"half")
    run(shards, tmp_path, {"save_steps": 3})
    assert_same_weights(tmp_path, finished)
    assert cut not in log_of(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_a_damaged_checkpoint_is_passed_over(finished: Path, shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path, {"max_steps": 6, "save_steps": 3})
    latest = tmp_path / "checkpoints" / "epoch-0001-step-000002.pt"
    os.truncate(latest, latest.stat().st_size // 2)
    notes: list[str] = []

    class Listener(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    train(config(shards, tmp_path), progress=Listener(), on_record=lambda _record: None)
    assert "step-000002.pt is truncated or damaged" in notes[0]
    assert "going back to epoch-0001.pt" in notes[0]
    assert_same_weights(tmp_path, finished)


def test_a_finished_run_stays_as_it_is(finished: Path, shards: Path) -> None:
    before = (finished / "log.jsonl").read_bytes()
    result = run(shards, finished, {})
    assert (result.reason, result.epoch) == ("already-finished", 2)
    assert result.best is not None
    assert (finished / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 3}, "--epochs 2"),
        ({"model": "resnet34"}, "--model resnet18"),
        ({"batch_size": 6}, "--batch-size 12"),
        ({"resume": "never"}, "--resume auto"),
    ],
)
def test_another_run_does_not_go_on_here(
    finished: Path, shards: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        run(shards, finished, options)


def test_other_shards_are_refused(finished: Path, shards_copy: Path) -> None:
    shutil.rmtree(shards_copy / "train")
    shutil.copytree(shards_copy / "val", shards_copy / "train")
    with pytest.raises(UsageError, match="other train data"):
        run(shards_copy, finished, {})


def test_a_checkpoint_by_its_path_starts_another_folder(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    middle = finished / "checkpoints" / "epoch-0001.pt"
    run(shards, tmp_path, {"resume": middle})
    assert_same_weights(tmp_path, finished)
    with pytest.raises(UsageError, match=r"later checkpoint \(epoch-0002.pt\)"):
        run(shards, tmp_path, {"resume": middle})


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(
    shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(ToolError, match=r"the loss is not finite .* smaller --lr"):
        run(shards, tmp_path, {"lr": 1e12})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_two_processes_consume_what_one_does(finished: Path, finished_by_two: Path) -> None:
    assert orders(finished_by_two) == orders(finished)
    assert positions(finished_by_two) == positions(finished)


def test_live_results_are_those_of_the_saved_model(finished_by_two: Path, shards: Path) -> None:
    live = [record for record in log_of(finished_by_two) if record["kind"] == "eval"][-1]
    found = evaluate_checkpoint(
        finished_by_two / "last.pt", shards / "val", threads=1, device="cpu", progress=Silent()
    )
    assert (found.model, found.image_size, found.short_side) == ("resnet18", 32, 37)
    assert found.evaluation.samples == live["samples"] == 15
    assert found.evaluation.top1_count == live["top1_count"]
    assert found.evaluation.top5_count == live["top5_count"]
    assert found.evaluation.loss == pytest.approx(live["loss"], rel=1e-5)


def test_two_processes_going_on_is_never_having_stopped(
    ranks: Any, finished_by_two: Path, shards: Path, tmp_path: Path
) -> None:
    ranks.run(run, shards, tmp_path, {"max_steps": 6}, world=2)
    ranks.run(run, shards, tmp_path, {}, world=2)
    assert_same_weights(tmp_path, finished_by_two)
    assert orders(tmp_path) == orders(finished_by_two)


def test_other_numbers_of_processes_go_on_with_the_same_batches(
    ranks: Any, finished: Path, shards: Path, tmp_path: Path
) -> None:
    """12 = 6 + 6 = 4 + 4 + 4; the same --batch-size on another world keeps the global batch."""
    options = {"batch_size": 6}
    ranks.run(run, shards, tmp_path, {"max_steps": 2} | options, world=2)
    ranks.run(run, shards, tmp_path, {"max_steps": 5} | options, world=3)
    run(shards, tmp_path, options)
    assert orders(tmp_path) == orders(finished)
    assert load_checkpoint(tmp_path / "last.pt").config["global_batch"] == BATCH


def test_all_processes_say_the_same_when_a_run_is_refused(
    ranks: Any, finished_by_two: Path, shards: Path
) -> None:
    first, second = ranks.run(run, shards, finished_by_two, {"epochs": 3}, world=2)
    assert first == second
    assert first[0] == "UsageError"
