"""Evaluating what was saved: the same counts from any engine, each answer kept, two compared."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from models import CLASSES, NAMES, SIZE, colour_onnx, network, write_checkpoint

import cli
from shards.dataset import Dataset
from shards.errors import UsageError
from shards.loader import Loader
from shards.progress import Silent
from shards.transform import EvalTransform
from training.batches import MEAN, STD
from training.evaluate import Answers
from training.results.agreement import agreement_of
from training.results.by_class import by_class
from training.results.evaluation import How, Results, evaluate_saved
from training.results.onnx_file import runtime_library
from training.results.saved import View

CPU = How(threads=1, device="cpu", batch_size=4)
TRANSFORM = EvalTransform(image_size=SIZE, resize=73)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("saved") / "best.pt")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of other weights."""
    return write_checkpoint(tmp_path_factory.mktemp("saved") / "other.pt", seed=11)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's network as ONNX of a fixed batch that does not divide the images."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("exported") / "best.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's other exporter needs an operator set of 18
        torch.onnx.export(
            network(),
            (torch.zeros(4, 3, SIZE, SIZE),),
            str(path),
            opset_version=12,
            input_names=["input"],
            output_names=["output"],
            dynamo=False,
        )
    return path


def evaluated(*models: Path, split: Path, how: How = CPU, keep: bool = False) -> Results:
    requests = [(path, "auto") for path in models]
    return evaluate_saved(requests, split, how, keep_answers=keep, progress=Silent())  # type: ignore[arg-type]


def expected_logits(split: Path) -> Any:
    """The network's answers, image by image, normalised in float64."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    options: dict[str, Any] = {"shuffle": "none", "drop_last": False, "threads": 1}
    rows, model = [], network()
    with (
        Dataset.open(split) as dataset,
        Loader(dataset, TRANSFORM, global_batch=1, **options) as loader,
        torch.no_grad(),
    ):
        for batch in loader.epoch(0):
            images = batch.images.permute(0, 3, 1, 2).double() / 255
            rows.append(model(((images - mean) / std).float()))
    return torch.cat(rows)


# --- counts and answers -----------------------------------------------------------------------


def test_every_answer_is_kept_in_the_order_of_keys(checkpoint: Path, shards: Path) -> None:
    found = evaluated(checkpoint, split=shards / "val", keep=True)
    (model,) = found.models
    assert (model.engine, model.precision) == ("torch", "fp32")
    assert list(found.keys) == sorted(found.keys)
    assert len(found.keys) == 15
    logits = expected_logits(shards / "val")
    assert model.answers is not None
    assert model.answers.classes.tolist() == logits.topk(3).indices.tolist()
    chances = logits.softmax(1).topk(3).values.numpy()
    assert np.abs(model.answers.probabilities - chances).max() < 1e-5
    right = (logits.argmax(1).numpy() == found.labels).sum()
    assert model.evaluation.top1_count == right
    assert found.spent.seconds >= found.spent.wait_seconds >= 0
    assert found.spent.decode_seconds > 0


def answers_of(checkpoint: Path, split: Path) -> tuple[Any, Any, Any]:
    (model,) = evaluated(checkpoint, split=split, keep=True).models
    assert model.answers is not None
    return model.evaluation, model.answers.classes.tolist(), model.answers.probabilities


def test_three_processes_gather_what_one_has(ranks: Any, checkpoint: Path, shards: Path) -> None:
    evaluation, classes, chances = answers_of(checkpoint, shards / "val")
    for each in ranks.run(answers_of, checkpoint, shards / "val", world=3):
        assert (each[0].samples, each[0].top1_count) == (15, evaluation.top1_count)
        assert each[0].top5_count == evaluation.top5_count
        assert each[1] == classes
        assert np.abs(each[2] - chances).max() < 1e-5


def test_onnxruntime_counts_what_torch_counts(
    checkpoint: Path, exported: Path, shards: Path
) -> None:
    found = evaluated(exported, checkpoint, split=shards / "val")
    one, other = found.models
    assert (one.engine, other.engine) == ("onnxruntime", "torch")
    assert one.evaluation.top1_count == other.evaluation.top1_count
    assert one.evaluation.top5_count == other.evaluation.top5_count
    assert one.evaluation.loss == pytest.approx(other.evaluation.loss, rel=1e-4)
    agreement = agreement_of(found)
    assert (agreement.samples, agreement.same_top1, agreement.differing) == (15, 15, ())
    assert agreement.largest_difference is not None
    assert agreement.largest_difference < 1e-3
    assert (agreement.reference, agreement.allowed, agreement.error) == (1, 0.01, 0.0)
    assert agreement.within


def test_models_that_differ_are_told_apart(shards: Path, checkpoint: Path, other: Path) -> None:
    found = evaluated(checkpoint, other, split=shards / "val")
    agreement = agreement_of(found)
    answers = [each.answers.classes[:, 0] for each in found.models if each.answers]
    apart = np.flatnonzero(answers[0] != answers[1]).tolist()
    assert [each.key for each in agreement.differing] == [found.keys[at] for at in apart]
    assert agreement.same_top1 == 15 - len(apart)
    assert agreement.largest_difference is not None
    for each in agreement.differing:
        assert each.first != each.second
        assert each.logit is not None
        assert 0 < each.logit <= agreement.largest_difference
    wanted, got = (each.evaluation.top1_count for each in found.models)
    assert wanted != got
    assert agreement.error == pytest.approx(abs(got - wanted) / wanted if wanted else float("inf"))
    assert not agreement.within


@pytest.mark.usefixtures("teco")
def test_the_vendors_engine_is_held_to_onnxruntime(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = colour_onnx(tmp_path / "a.onnx")
    how = dataclasses.replace(CPU, batch_size=7)
    found = evaluate_saved(
        [(path, "teco"), (path, "onnxruntime")], shards / "val", how, progress=Silent()
    )
    assert [each.engine for each in found.models] == ["teco", "onnxruntime"]
    agreement = agreement_of(found)
    assert (agreement.same_top1, agreement.reference, agreement.allowed) == (15, 1, 0.001)


def test_classes_are_listed_worst_first_with_what_they_are_taken_for() -> None:
    classes = np.array([[0, 1], [1, 0], [1, 0], [2, 1], [0, 1], [0, 2]])
    answers = Answers(classes=classes, probabilities=np.ones((6, 2), np.float32))
    labels = np.array([0, 0, 1, 1, 1, 1], np.int32)
    found = by_class(answers, labels, CLASSES, NAMES)
    assert [(each.index, each.name, each.samples) for each in found] == [
        (1, "hamster", 4),
        (0, "tench", 2),
    ]
    assert (found[0].top1_count, found[0].top5_count) == (1, 3)
    assert found[0].confused == ((0, 2), (2, 1))
    assert (found[1].top1, found[1].top5, found[1].confused) == (50.0, 100.0, ((1, 1),))


# --- refusals ---------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_refused(
    checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    val = shards / "val"
    four = colour_onnx(tmp_path / "four.onnx", classes=4)
    with pytest.raises(UsageError, match=r"four\.onnx gives 4 logits and .*val has 3 classes"):
        evaluated(four, split=val)
    renamed = colour_onnx(tmp_path / "renamed.onnx", metadata={"classes": ["a", "b", "c"]})
    with pytest.raises(UsageError, match=r"class 0 is a there and n01440764 here"):
        evaluated(renamed, split=val)
    usual = colour_onnx(tmp_path / "usual.onnx", shape=("batch", 3, "height", "height"))
    with pytest.raises(
        UsageError, match=r"64 px of 73 px .* and .* 224 px of 256 px .*--image-size"
    ):
        evaluated(checkpoint, usual, split=val)
    how = dataclasses.replace(CPU, view=View(image_size=64, resize=73))
    _, second = evaluated(checkpoint, usual, split=val, how=how).models
    assert second.evaluation.samples == 15


def test_an_onnx_file_that_leaves_its_classes_open_is_counted_by_its_answers(
    shards: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    onnx = runtime_library("onnx")
    graph = onnx.load(colour_onnx(tmp_path / "a.onnx", classes=5))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    (tmp_path / "a.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(UsageError, match=r"a\.onnx gives 5 logits and .*val has 3 classes"):
        evaluated(tmp_path / "a.onnx", split=shards / "val")


def several(path: Path, split: Path) -> None:
    evaluated(path, split=split)


def test_an_onnx_file_is_not_for_several_processes(
    ranks: Any, shards: Path, tmp_path: Path
) -> None:
    found = ranks.run(several, colour_onnx(tmp_path / "a.onnx"), shards / "val", world=2)
    assert {kind for kind, _ in found} == {"UsageError"}
    assert all("onnxruntime answers in one process" in said for _, said in found)


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def resnet() -> Callable[..., Result]:
    def call(*arguments: object) -> Result:
        return CliRunner().invoke(cli.resnet, [str(each) for each in arguments])

    return call


def test_the_command_says_what_it_found_and_where_the_time_went(
    resnet: Callable[..., Result], checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "new" / "predictions.jsonl"
    options = ("--shards", shards, "--device", "cpu", "--per-class", "--save-predictions", saved)
    told = resnet("eval", checkpoint, *options)
    assert told.exit_code == 0, told.output
    assert "best.pt: top-1 " in told.output
    assert "64 px of 73 px (bilinear) on cpu" in told.output
    assert "resnet18 after 3 epochs; torch, fp32" in told.output
    assert "the worst 3 of 3 classes" in told.output
    data = json.loads(resnet("eval", checkpoint, *options, "--json").stdout)
    assert data["evaluation"]["samples"] == 15
    assert (data["engine"], data["form"], data["image_size"]) == ("torch", "checkpoint", 64)
    assert data["seconds"] == pytest.approx(data["wait_seconds"] + data["device_seconds"])
    assert sum(each["top1_count"] for each in data["per_class"]) == data["evaluation"]["top1_count"]
    header, *lines = map(json.loads, saved.read_text().splitlines())
    assert header["kind"] == "header"
    assert (header["classes"], header["class_names"]) == (list(CLASSES), list(NAMES))
    assert (header["model"], header["split"], header["samples"]) == ("resnet18", "val", 15)
    assert [line["key"] for line in lines] == sorted(line["key"] for line in lines)
    right = sum(line["top"][0][0] == line["label"] for line in lines)
    assert right == data["evaluation"]["top1_count"]
    for line in lines:
        assert sum(chance for _, chance in line["top"]) == pytest.approx(1, abs=1e-5)


def test_the_command_compares_two_and_fails_where_they_differ_too_much(
    resnet: Callable[..., Result], checkpoint: Path, other: Path, shards: Path
) -> None:
    options = ("--shards", shards, "--device", "cpu")
    same = resnet("eval", checkpoint, checkpoint, *options)
    assert same.exit_code == 0, same.output
    assert "equal top-1: 15 of 15 images (100.00 %)" in same.output
    assert "within the 1.0% that the vendor accepts" in same.output
    told = resnet("eval", checkpoint, other, *options)
    assert told.exit_code == 1, told.output
    assert "OUT OF the 1.0%" in told.output
    data = json.loads(resnet("eval", checkpoint, other, *options, "--json").stdout)
    agreement = data["agreement"]
    assert len(agreement["differing"]) == 15 - agreement["same_top1"] > 0
    assert set(agreement["differing"][0]) == {"key", "label", "first", "second", "logit"}
    assert data["other"]["path"].endswith("other.pt")


def test_the_command_refuses_what_cannot_be(
    resnet: Callable[..., Result], checkpoint: Path, shards: Path, tmp_path: Path
) -> None:
    options = ("--shards", shards, "--device", "cpu")
    for arguments, said in (
        ((checkpoint, checkpoint, checkpoint), "one model, or two to compare"),
        ((checkpoint, "--engine", "onnxruntime"), "--engine onnxruntime takes ONNX files"),
        ((checkpoint, "--engine", "torch", "--engine", "torch"), "at most one --engine for each"),
        ((checkpoint, checkpoint, "--save-predictions", tmp_path / "p"), "is for one model"),
        ((checkpoint, "--save-predictions", tmp_path), "cannot be written"),
        ((checkpoint, "--save-predictions", checkpoint), "would replace what this command"),
        ((checkpoint, "--save-predictions", shards / "val" / "manifest.json"), "would replace"),
        ((tmp_path / "none.pt",), "does not exist"),
        ((checkpoint, "--resize", "3"), "crops 64 pixels out of a short side of 3"),
    ):
        told = resnet("eval", *arguments, *options)
        assert told.exit_code in (1, 2), arguments
        assert said in told.stderr, (arguments, told.stderr)
        assert told.stderr.count("error:") == 1
