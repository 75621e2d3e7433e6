"""Real runs on small shards: stopped, killed, gone on with, finished, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from devices import ON_DEVICE
from torch import nn

from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError, UsageError
from shards.order import epoch_order
from shards.progress import Silent
from training.checkpoint import load_checkpoint
from training.config import TrainConfig, resolve
from training.distributed import place_from_environment
from training.objective import Objective
from training.order_digest import digest_text, expected_digest
from training.results.evaluation import How, evaluate_saved
from training.stopping import Stopped
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
        **ON_DEVICE,
        "log_every": 3,
        "lr": 0.01,
        "settings": {"ema_decay": 0.9},
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
    state = {
        f"{key} of {name}": each
        for name, values in loaded.optimizer.items()
        for key, each in values.items()
        if isinstance(each, torch.Tensor)
    }
    averages = {f"average of {name}": each for name, each in loaded.ema.items()}
    assert state
    assert averages
    return loaded.model | state | averages


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
    assert first["images_per_second"] == first["images_per_second_device"] > 0
    assert first["grad_norm"] > 0
    assert first["step_seconds"] > 0
    assert (first["left_out"], first["loss_scale"]) == (0, None)
    evaluation, end = log_of(finished)[4], log_of(finished)[-1]
    assert evaluation["ema"].keys() == {"top1", "top5", "top1_count", "top5_count", "loss"}
    assert evaluation["ema"]["loss"] != evaluation["loss"]
    assert end["best"]["weights"] == "ema"


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
    top1 = [record["ema"]["top1_count"] for record in log_of(finished) if record["kind"] == "eval"]
    assert last.best.top1_count == max(top1)
    assert all(tensor.device.type == "cpu" for tensor in last.model.values())


@pytest.mark.parametrize("stops", [(4,), (1, 3, 6)])
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


# --- ended from outside, or early -------------------------------------------------------------


def run_told(
    shards: Path, out: Path, options: dict[str, Any], when: tuple[str, int, int]
) -> TrainResult:
    """Train; the process gets SIGTERM when the log has a line of that kind, epoch and step."""

    def tell(record: dict[str, object]) -> None:
        if (record["kind"], record["epoch"], record["step"]) == when:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(config(shards, out, **options), progress=Silent(), on_record=tell)


@pytest.mark.parametrize(
    ("when", "saved"),
    [
        (("start", 0, 0), (0, 1)),
        (("step", 0, 3), (0, 4)),
        (("step", 0, 4), (0, 4)),  # during the evaluation, which is left
        pytest.param(("eval", 1, 0), (1, 0), marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_it_saved_and_it_goes_on_as_if_never_stopped(
    finished: Path, shards: Path, tmp_path: Path, when: tuple[str, int, int], saved: tuple[int, int]
) -> None:
    with pytest.raises(Stopped, match="the same command goes on"):
        run_told(shards, tmp_path, {}, when)
    assert load_checkpoint(tmp_path / "last.pt").position.place == saved
    assert log_of(tmp_path)[-1]["reason"] == "signal"
    evaluations = [record for record in log_of(tmp_path) if record["kind"] == "eval"]
    assert len(evaluations) == saved[0]
    assert run(shards, tmp_path, {}).reason == "finished"
    assert_same_weights(tmp_path, finished)
    assert orders(tmp_path) == orders(finished)


@pytest.mark.parametrize("step", [3, 4])
def test_a_signal_to_one_of_two_processes_stops_both(
    ranks: Any, finished_by_two: Path, shards: Path, tmp_path: Path, step: int
) -> None:
    """Between two steps, and during the evaluation after the last one."""
    told = ranks.run(run_told, shards, tmp_path, {}, ("step", 0, step), world=2)
    assert [kind for kind, _ in told] == ["Stopped"] * 2
    ranks.run(run, shards, tmp_path, {}, world=2)
    assert_same_weights(tmp_path, finished_by_two)


def test_what_was_trained_before_an_evaluation_that_fails_is_saved(
    finished: Path, shards_copy: Path, tmp_path: Path
) -> None:
    """No step is trained again, not even where there are no steps left for --max-steps."""
    (shard,) = (shards_copy / "val").glob("*.tar")
    whole = shard.read_bytes()
    shard.write_bytes(bytes(len(whole)))
    out = tmp_path / "run"
    with pytest.raises(DamagedData, match="imagenet-val"):
        run(shards_copy, out, {"max_steps": 4})
    assert load_checkpoint(out / "last.pt").position.place == (0, 4)
    end = log_of(out)[-1]
    assert (end["kind"], end["reason"], end["epoch"], end["step"]) == ("end", "failed", 0, 4)
    assert str(shard) in end["why"]
    shard.write_bytes(whole)
    result = run(shards_copy, out, {"max_steps": 4})
    assert (result.reason, result.epoch, result.step) == ("max-steps", 1, 0)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["epoch-0001.pt"]
    run(shards_copy, out, {})
    assert_same_weights(out, finished)
    assert [line for line in positions(out) if line[0] == "step"] == [
        line for line in positions(finished) if line[0] == "step"
    ]


def test_a_time_limit_stops_it_saved(finished: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="--max-time is over"):
        run(shards, tmp_path, {"max_minutes": 1e-9})
    assert load_checkpoint(tmp_path / "last.pt").position.place == (0, 1)
    run(shards, tmp_path, {"save_minutes": 1e-9, "keep": 99})
    assert len(list((tmp_path / "checkpoints").iterdir())) == EPOCHS * 4
    assert_same_weights(tmp_path, finished)


def test_without_a_better_result_it_ends_early(shards: Path, tmp_path: Path) -> None:
    options = {"epochs": 9, "lr": 1e-30, "patience": 1}
    assert (run(shards, tmp_path, options).reason, log_of(tmp_path)[-1]["epoch"]) == ("patience", 2)
    before = (tmp_path / "log.jsonl").read_bytes()
    assert run(shards, tmp_path, options).reason == "patience"
    assert (tmp_path / "log.jsonl").read_bytes() == before


# --- losses that are no number ----------------------------------------------------------------


class Faulty(Objective):
    """Infinite for the samples of one step, known by their labels."""

    labels: ClassVar[list[int]]

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = super().__call__(logits, targets)
        return loss * torch.inf if targets.tolist() == self.labels else loss


@pytest.fixture
def faulty(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2 of epoch 2 has an infinite loss."""
    with Dataset.open(shards / "train") as dataset:
        order = epoch_order(1234, 1, len(dataset), shuffle="full")
        Faulty.labels = dataset.labels[order[BATCH : 2 * BATCH]].tolist()
    monkeypatch.setattr("training.step.Objective", Faulty)


@pytest.mark.usefixtures("faulty")
def test_a_step_that_is_not_finite_is_skipped(finished: Path, shards: Path, tmp_path: Path) -> None:
    assert run(shards, tmp_path, {"on_nonfinite": "skip"}).reason == "finished"
    assert [line["left_out"] for line in log_of(tmp_path) if line["kind"] == "step"] == [
        0,
        0,
        12,
        0,
    ]
    assert all(each.isfinite().all() for each in weights(tmp_path).values())
    assert orders(tmp_path) == orders(finished)


@pytest.mark.usefixtures("faulty")
def test_a_run_goes_back_and_leaves_the_steps_out(
    finished: Path, shards: Path, tmp_path: Path
) -> None:
    options = {"on_nonfinite": "rollback"}
    assert run(shards, tmp_path, options).reason == "finished"
    (line,) = [each for each in log_of(tmp_path) if each["kind"] == "rollback"]
    assert (line["epoch"], line["step"], line["left_out"]) == (1, 0, [1, 0, 3])
    assert positions(tmp_path)[:4] == positions(finished)[:4]
    assert [each["left_out"] for each in log_of(tmp_path) if each["kind"] == "step"] == [
        0,
        0,
        36,
        0,
    ]
    assert load_checkpoint(tmp_path / "last.pt").left_out == [(1, 0, 3)]
    assert orders(tmp_path) == orders(finished)


# --- ways of computing the same ---------------------------------------------------------------


def losses(shards: Path, out: Path, options: dict[str, Any]) -> list[float]:
    run(shards, out, {"max_steps": 2, "log_every": 1} | options)
    return [record["loss"] for record in log_of(out) if record["kind"] == "step"]


def test_a_run_computes_in_parts_by_deterministic_algorithms(shards: Path, tmp_path: Path) -> None:
    """That parts add up to the same gradient is tested in test_step.py."""
    assert len(losses(shards, tmp_path, {"accumulate": 2, "deterministic": True})) == 2
    assert log_of(tmp_path)[0]["plan"]["accumulate"] == 2
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_a_compiled_network_trains_the_same(shards: Path, tmp_path: Path) -> None:
    compiled = losses(shards, tmp_path / "compiled", {"compile": True})
    assert compiled == pytest.approx(losses(shards, tmp_path / "eager", {}), rel=1e-4)


# --- several processes -------------------------------------------------------------------------


def test_two_processes_consume_what_one_does(finished: Path, finished_by_two: Path) -> None:
    assert orders(finished_by_two) == orders(finished)
    assert positions(finished_by_two) == positions(finished)


def test_live_results_are_those_of_the_saved_model(finished_by_two: Path, shards: Path) -> None:
    live = [record for record in log_of(finished_by_two) if record["kind"] == "eval"][-1]
    model = [(finished_by_two / "last.pt", "auto")]
    for averaged, expected in ((False, live), (True, live["ema"])):
        how = How(threads=1, device="cpu", ema=averaged)
        (result,) = evaluate_saved(model, shards / "val", how, progress=Silent()).models  # type: ignore[arg-type]
        found = result.evaluation
        assert found.samples == live["samples"] == 15
        assert found.top1_count == expected["top1_count"]
        assert found.top5_count == expected["top5_count"]
        assert found.loss == pytest.approx(expected["loss"], rel=1e-5)


def test_two_processes_going_on_is_never_having_stopped(
    ranks: Any, finished_by_two: Path, shards: Path, tmp_path: Path
) -> None:
    ranks.run(run, shards, tmp_path, {"max_steps": 6}, world=2)
    ranks.run(run, shards, tmp_path, {}, world=2)
    assert_same_weights(tmp_path, finished_by_two)
    assert orders(tmp_path) == orders(finished_by_two)


def run_unshared(shards: Path, out: Path, options: dict[str, Any]) -> TrainResult:
    """`run` with batch norm as in evaluation, so that what shares a batch does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            nn.BatchNorm2d, "train", lambda norm, _mode=True: nn.Module.train(norm, False)
        )
        return run(shards, out, options | {"log_every": 1})


def results(out: Path) -> dict[tuple[str, int, int], float]:
    """Losses of steps and evaluations by kind, epoch and step."""
    lines = [line for line in log_of(out) if line["kind"] in {"step", "eval"}]
    return {(line["kind"], line["epoch"], line["step"]): line["loss"] for line in lines}


def test_other_numbers_of_processes_go_on_with_the_same_batches(
    ranks: Any, shards: Path, tmp_path: Path
) -> None:
    """12 = 6 + 6 = 4 + 4 + 4; the same --batch-size on another world keeps the global batch."""
    alone, cut = tmp_path / "alone", tmp_path / "cut"
    run_unshared(shards, alone, {"lr": 1e-4})
    options = {"batch_size": 6, "lr": 1e-4}
    ranks.run(run_unshared, shards, cut, {"max_steps": 2} | options, world=2)
    ranks.run(run_unshared, shards, cut, {"max_steps": 5} | options, world=3)
    run_unshared(shards, cut, options)
    assert orders(cut) == orders(alone)
    assert load_checkpoint(cut / "last.pt").config["global_batch"] == BATCH
    assert results(cut) == pytest.approx(results(alone), rel=1e-4)


def test_all_processes_say_the_same_when_a_run_is_refused(
    ranks: Any, finished_by_two: Path, shards: Path
) -> None:
    first, second = ranks.run(run, shards, finished_by_two, {"epochs": 3}, world=2)
    assert first == second
    assert first[0] == "UsageError"
