"""Exported files: what is in them, that they answer as torch does, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from models import colour_onnx

from cli import resnet
from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError, UsageError
from training.checkpoint import Checkpoint, Position, save_checkpoint
from training.config import config_values, resolve
from training.export import OnnxOptions, export_onnx
from training.export_check import compare
from training.export_weights import export_weights, format_of
from training.model import build_model, plain_weights
from training.results.onnx_file import read_onnx
from training.results.saved import Saved, open_saved

NAMES = ["tench", "goldfish", "shark"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A ResNet-18 of the shards' classes, with averaged weights, whose batch norm saw something."""
    place = tmp_path_factory.mktemp("export")
    config = resolve(shards=shards, out=place, world=1, threads=1, model="resnet18", image_size=64)
    states = []
    for seed in (8, 9):
        model = build_model("resnet18", 3, seed=seed)
        with torch.no_grad():
            model(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
        states.append(plain_weights(model.state_dict()))
    with Dataset.open(shards / "val") as dataset:
        classes = list(dataset.classes)
    path = place / "best.pt"
    save_checkpoint(
        path,
        Checkpoint(
            model=states[0],
            optimizer={},
            scaler={},
            ema=states[1],
            rng={"torch": torch.get_rng_state()},
            position=Position(epoch=3, step=0, samples=9, order="0" * 16),
            best=None,
            config=config_values(config),
            data={"train": "ab", "val": "cd"},
            classes=classes,
            class_names=NAMES,
            versions={},
        ),
    )
    return path


@pytest.fixture(scope="module")
def saved(checkpoint: Path) -> Saved:
    return open_saved(checkpoint)


def test_the_file_answers_as_torch_does(saved: Saved, shards: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "a.onnx"
    options = OnnxOptions(batch=4)
    report = export_onnx(saved, out, options=options, split=shards / "val", images=10)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert report.bytes == out.stat().st_size
    assert report.agreement is not None
    assert report.agreement.real
    assert report.agreement.same_top1 == report.agreement.pictures == 10
    assert 0 < report.agreement.largest_difference < 1e-4
    graph = onnx.load(out)
    assert (graph.ir_version <= 8, graph.opset_import[0].version) == (True, 12)
    assert [each.name for each in graph.graph.input] == ["input"]
    assert [each.name for each in graph.graph.output] == ["output"]
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    shape = [each.dim_value for each in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [4, 3, 64, 64]
    told = {each.key: each.value for each in graph.metadata_props}
    assert json.loads(told["class_names"]) == NAMES
    assert (told["resize_short_side"], told["center_crop"]) == ("73", "64")
    assert told["interpolation"] == "bilinear"


@pytest.mark.parametrize(("opset", "keep"), [(12, False), (18, True)])
def test_half_precision_and_any_batch(
    saved: Saved, tmp_path: Path, opset: int, *, keep: bool
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxconverter_common")
    options = OnnxOptions(
        opset=opset, dynamic_batch=True, fp16=True, keep_io_types=keep, input_name="picture"
    )
    report = export_onnx(saved, tmp_path / "a.onnx", options=options)
    assert report.batch is None
    assert report.agreement is not None
    assert not report.agreement.real
    graph = onnx.load(tmp_path / "a.onnx")
    assert graph.opset_import[0].version == opset
    (given,) = graph.graph.input
    assert given.name == "picture"
    kind = onnx.TensorProto.FLOAT if keep else onnx.TensorProto.FLOAT16
    assert given.type.tensor_type.elem_type == kind
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert report.input_type == ("float32" if keep else "float16")


@pytest.fixture(scope="module")
def trained_weights(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The network of the weights that were not averaged, as ONNX."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("onnx") / "a.onnx"
    saved = open_saved(checkpoint, ema=False)
    export_onnx(saved, out, options=OnnxOptions(dynamic_batch=True))
    return out.read_bytes()


def test_a_network_that_answers_otherwise_is_noticed(
    saved: Saved, trained_weights: bytes, shards: Path
) -> None:
    found = compare(saved, trained_weights, shards / "val", images=40, threads=1)
    assert found.pictures == 15  # all there are
    assert found.largest_difference > 0.1
    with Dataset.open(shards / "val") as dataset:
        assert set(found.different) <= {key.decode() for key in dataset.keys}
    assert found.same_top1 + len(found.different) == 15


def test_pictures_of_other_classes_are_refused(
    saved: Saved,
    trained_weights: bytes,
    build: Callable[..., Any],
    jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / "val" / name).mkdir(parents=True)
        (tmp_path / "images" / "val" / name / "1.jpg").write_bytes(jpeg(1))
    build(tmp_path / "images", out=tmp_path / "shards")
    with pytest.raises(UsageError, match="was trained on 3 classes"):
        compare(saved, trained_weights, tmp_path / "shards" / "val", images=2, threads=1)


def test_a_missing_extra_is_one_sentence(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ToolError, match=r"pip install 'imagenet-resnet\[export\]'"):
        export_onnx(saved, tmp_path / "a.onnx", options=OnnxOptions())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (OnnxOptions(opset=99), "--opset 99"),
        (OnnxOptions(batch=0), "--batch 0"),
        (OnnxOptions(batch=32769), "--batch 32769: at most 32768 pictures of 64 px"),
        (OnnxOptions(batch=2, dynamic_batch=True), "--dynamic-batch"),
        (OnnxOptions(keep_io_types=True), "--fp16"),
        (OnnxOptions(input_name="output"), "--input-name 'output'"),
        (OnnxOptions(input_name=""), "--input-name ''"),
    ],
)
def test_options_that_cannot_be_are_refused(
    saved: Saved, tmp_path: Path, options: OnnxOptions, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        export_onnx(saved, tmp_path / "a.onnx", options=options)
    assert not list(tmp_path.iterdir())


def test_pictures_and_batches_are_bounded_as_their_reader_bounds_them(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = tmp_path / "a.onnx"
    for batch, size in ((1, 4096), (8, 4096), (9, 4096), (1, 4097)):
        colour_onnx(path, shape=(batch, 3, size, size))
        if (batch, size) in ((1, 4096), (8, 4096)):
            OnnxOptions(batch=batch).check(size)
            assert read_onnx(path).image_size == size
            continue
        with pytest.raises(UsageError, match=r"--batch 9|--image-size 4097"):
            OnnxOptions(batch=batch).check(size)
        with pytest.raises(DamagedData):
            read_onnx(path)


def test_sizes_that_no_machine_holds_and_its_own_model_are_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = checkpoint.read_bytes()
    for out, more, said in (
        ("a.onnx", ["--image-size", "100000"], "--image-size 100000: it must be from 1 to 4096"),
        ("a.onnx", ["--batch", "200000000"], "--batch 200000000: at most "),
        ("a.pt", ["--image-size", "100000"], "--image-size 100000: it must be from 1 to 4096"),
        (checkpoint, [], "would replace what this command reads or writes as well"),
    ):
        arguments = ["export", str(checkpoint), "--out", str(tmp_path / out), *more]
        assert resnet.main(arguments, standalone_mode=False) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
    assert checkpoint.read_bytes() == kept
    assert not list(tmp_path.iterdir())


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ema"), [("a.pt", False), ("a.safetensors", True)])
def test_torchvision_takes_the_weights(
    checkpoint: Path, tmp_path: Path, name: str, *, ema: bool
) -> None:
    safetensors = pytest.importorskip("safetensors")
    saved, out = open_saved(checkpoint, ema=ema), tmp_path / name
    form = format_of(out)
    assert form != "onnx"
    report = export_weights(saved, out, form)
    if form == "state-dict":
        state = torch.load(out, weights_only=True)
    else:
        with safetensors.safe_open(out, "pt") as file:
            state = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
            told = file.metadata()
        assert told["format"] == "pt"
        assert json.loads(told["class_names"]) == NAMES
    assert report.tensors == len(state)
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(state)
    pictures = torch.randn(2, 3, 64, 64)
    assert saved.network is not None
    with torch.no_grad():
        assert torch.equal(model.eval()(pictures), saved.network(pictures))


@pytest.mark.parametrize("more", [["--fp16"], ["--shards", "/nowhere"], ["--opset", "13"]])
def test_options_of_onnx_are_refused_for_weights(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    out = tmp_path / "a.safetensors"
    arguments = ["export", str(checkpoint), "--out", str(out), *more]
    assert resnet.main(arguments, standalone_mode=False) == 2
    assert "are for ONNX, not for safetensors" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_weights(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(checkpoint), "--out", str(tmp_path / "a.pth"), "--no-ema", "--json"]
    resnet.main(arguments, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["said"]) == ("state-dict", "resnet18 after 3 epochs")
    assert found["bytes"] == (tmp_path / "a.pth").stat().st_size
