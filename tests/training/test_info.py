"""What is said of a file, and that hostile ones are refused in a sentence and do no harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import resnet
from shards.errors import DamagedData, ToolError
from training.checkpoint import FORMAT, SCHEMA, Best, Checkpoint, Position, save_checkpoint
from training.config import config_values, resolve
from training.export import OnnxOptions, export_onnx
from training.export_weights import export_weights
from training.info import describe
from training.model import build_model, plain_weights
from training.results.saved import View, open_saved

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A checkpoint, with some of its keys replaced."""
    model = plain_weights(build_model("resnet18", 4, seed=1).state_dict())

    def write(path: Path | None = None, **changed: Any) -> Path:
        path = path or tmp_path_factory.mktemp("info") / "best.pt"
        place = path.parent
        config = resolve(shards=place, out=place, world=1, threads=1, model="resnet18")
        values: dict[str, Any] = {
            "model": model,
            "optimizer": {},
            "scaler": {},
            "rng": {"torch": torch.get_rng_state()},
            "position": Position(epoch=3, step=5, samples=9, order="0" * 16),
            "best": Best(epoch=2, top1_count=3, top5_count=4, samples=5, loss=0.5, weights="ema"),
            "config": config_values(config),
            "data": {"train": "ab" * 32, "val": "cd" * 32},
            "classes": ["n01", "n02", "n03", "n04"],
            "class_names": ["tench", "goldfish", "shark", "ray"],
            "versions": {"torch": "2.7.1"},
        }
        save_checkpoint(path, Checkpoint(**values | changed))
        return path

    return write


def test_a_checkpoint_tells_of_its_run(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(ema={"fc.bias": torch.zeros(4)})
    found = describe(path)
    assert found["kind"] == "checkpoint"
    assert (found["model"], found["recipe"], found["classes"]) == ("resnet18", "seed", 4)
    assert found["parameters"] == 11_178_564
    assert (found["position"]["epoch"], found["position"]["step"]) == (3, 5)
    assert (found["best"]["top1"], found["best"]["weights"]) == (60, "ema")
    assert found["averaged_weights"]
    assert found["data"]["val"] == "cd" * 32
    assert found["versions"] == {"torch": "2.7.1"}
    capsys.readouterr()
    resnet.main(["info", str(path)], standalone_mode=False)
    told = capsys.readouterr().out
    assert "best        top-1 60.00 % (3 of 5) after epoch 2, averaged weights" in told
    assert "trained     3 of 50 epochs and 5 steps" in told


def test_a_run_comes_with_its_history(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "last.pt")
    step = {"kind": "step", "time": 1.0, "epoch": 0, "step": 1, "images_per_second": 50.0}
    result = {"kind": "eval", "time": 9.0, "epoch": 1, "step": 0, "top1": 40.0, "top5": 80.0}
    lines = "".join(json.dumps(line) + "\n" for line in (step, result))
    (tmp_path / "log.jsonl").write_text(lines + '{"kind": "st')
    found = describe(tmp_path)
    assert found["kind"] == "run"
    assert found["history"] == [{"epoch": 1, "top1": 40.0, "top5": 80.0, "loss": None}]
    assert (found["images_per_second"], found["state"]) == (50, "under way, or cut off")
    assert found["best_checkpoint"] is None


def test_exported_files_tell_what_they_are(make: Make, tmp_path: Path) -> None:
    path = make()
    saved = open_saved(path)
    for name, form in (("a.pt", "state-dict"), ("a.safetensors", "safetensors")):
        export_weights(saved, tmp_path / name, form)
        found = describe(tmp_path / name)
        assert (found["kind"], found["model"], found["classes"]) == ("weights", "resnet18", 4)
        assert found["parameters"] == 11_178_564
    pytest.importorskip("onnx")
    small = open_saved(path, view=View(image_size=32))
    export_onnx(small, tmp_path / "a.onnx", options=OnnxOptions(batch=2))
    found = describe(tmp_path / "a.onnx")
    assert (found["kind"], found["model"], found["classes"]) == ("onnx", "resnet18", 4)
    assert (found["opset"], found["batch"], found["image_size"]) == (12, 2, 32)
    assert (found["type"], found["epochs"], found["class_names"]) == ("float32", 3, 4)


def test_nothing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="holds no run"):
        describe(tmp_path)
    with pytest.raises(ToolError, match="does not exist"):
        describe(tmp_path / "best.pt")


# --- hostile files ----------------------------------------------------------------------------


class Program:
    """What a pickle may be: a call when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def nested() -> list[Any]:
    """2**60 values in a few bytes of a pickle."""
    value: list[Any] = ["x"]
    for _ in range(60):
        value = [value, value]
    return value


def bomb(path: Path) -> None:
    """Ten megabytes that are ten kilobytes here; a real one would be the memory's size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"format": FORMAT, "schema": SCHEMA}))
        archive.writestr("archive/data/0", bytes(10_000_000))
        archive.writestr("archive/version", "3\n")


def shrunk(path: Path) -> None:
    """A tensor whose shape says more than its storage holds."""
    file = io.BytesIO()
    torch.save({"fc.weight": torch.zeros(4, 512), "fc.bias": torch.zeros(4)}, file)
    # The shape (4, 512) in the pickle: BININT1 4, BININT2 512.
    data = file.getvalue().replace(b"K\x04M\x00\x02\x86", b"K\xffM\xff\xff\x86", 1)
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
        for each in old.infolist():
            with old.open(each) as member:
                member._expected_crc = None  # type: ignore[attr-defined]
                new.writestr(each.filename, member.read())


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a program": lambda path: torch.save({"state_dict": Program(path / "made")}, path),
    "a pickle of the old kind": lambda path: path.write_bytes(pickle.dumps(Program(path))),
    "a zip bomb": bomb,
    "an absurd shape": shrunk,
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "a page": lambda path: path.write_bytes(b"<html>404</html>" * 100),
    "a zip of something": lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
    "a list": lambda path: torch.save([1, 2], path),
    "another state": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "no tensors": lambda path: torch.save({"conv1.weight": "x", "fc.weight": 3}, path),
    "an absurd header": lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.onnx"])
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, kind: str, name: str) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnx")
    path = tmp_path / name
    HOSTILE[kind](path)
    with pytest.raises(ToolError) as caught:
        describe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [name]  # nothing was run


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {}},
        {"config": {"model": 3, "recipe": "seed"}},
        {"versions": {"torch": nested()}},
        {"data": {"train": 10**5000}},
        {"data": {("a", "b"): 1}},
        {"classes": 4},
        {"config": {"model": "resnet18", "recipe": {"name": torch.zeros(3)}}},
        {"best": Best(epoch=2, top1_count=0, top5_count=0, samples=0, loss=0.0)},
    ],
)
def test_checkpoints_that_were_altered_are_refused(make: Make, changed: dict[str, Any]) -> None:
    with pytest.raises(DamagedData) as caught:
        describe(make(**changed))
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused(make: Make) -> None:
    path = make()
    whole = path.stat().st_size
    for size in (whole - 10, whole // 2, 100):
        os.truncate(path, size)
        with pytest.raises(DamagedData):
            describe(path)
