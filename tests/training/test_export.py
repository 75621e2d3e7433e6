from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from shards.errors import ToolError, UsageError
from training.checkpoint import Checkpoint, Position, save_checkpoint
from training.config import config_values, resolve
from training.export import export_onnx
from training.model import build_model, plain_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 for 4 classes whose batch norm has seen something."""
    place = tmp_path_factory.mktemp("export")
    config = resolve(shards=place, out=place, world=1, threads=1, model="resnet18", image_size=64)
    model = build_model("resnet18", 4, seed=8)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
    path = place / "best.pt"
    save_checkpoint(
        path,
        Checkpoint(
            model=plain_weights(model.state_dict()),
            optimizer={},
            scaler={},
            rng={"torch": torch.get_rng_state()},
            position=Position(epoch=3, step=0, samples=9, order="0" * 16),
            best=None,
            config=config_values(config),
            data={},
            classes=["n01", "n02", "n03", "n04"],
            class_names=["tench", "goldfish", "shark", "ray"],
            versions={},
        ),
    )
    return path


def test_the_file_answers_as_torch_does(checkpoint: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    report = export_onnx(checkpoint, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert report.bytes == (tmp_path / "a.onnx").stat().st_size
    assert report.agreement is not None
    assert report.agreement.same_top1 == report.agreement.pictures == 1
    assert report.agreement.largest_difference < 1e-4
    graph = onnx.load(tmp_path / "a.onnx")
    assert (graph.ir_version <= 8, graph.opset_import[0].version) == (True, 12)
    assert [each.name for each in graph.graph.input] == ["input"]
    assert [each.name for each in graph.graph.output] == ["output"]
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    shape = [each.dim_value for each in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, 64, 64]
    told = {each.key: each.value for each in graph.metadata_props}
    assert json.loads(told["class_names"]) == ["tench", "goldfish", "shark", "ray"]
    assert (told["resize_short_side"], told["center_crop"]) == ("73", "64")


def test_half_precision_and_any_batch(checkpoint: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxconverter_common")
    report = export_onnx(checkpoint, tmp_path / "a.onnx", dynamic_batch=True, fp16=True)
    assert report.batch is None
    assert report.agreement is not None
    assert report.agreement.pictures == 8
    given = onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type
    assert given.elem_type == onnx.TensorProto.FLOAT16
    assert given.shape.dim[0].dim_param == "batch"


def test_a_missing_extra_is_one_sentence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ToolError, match=r"pip install 'imagenet-resnet\[export\]'"):
        export_onnx(checkpoint, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_options_that_cannot_be_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--opset 99"):
        export_onnx(checkpoint, tmp_path / "a.onnx", opset=99)
    with pytest.raises(UsageError, match="--batch 0"):
        export_onnx(checkpoint, tmp_path / "a.onnx", batch=0)
