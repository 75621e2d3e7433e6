"""Weights of others answer as their own libraries do; our checkpoints come with all they need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from models import CLASSES, NAMES, network, write_checkpoint

from shards.errors import DamagedData, ToolError, UsageError
from training.device import choose
from training.engines import TorchEngine
from training.export_weights import export_weights
from training.results.saved import Saved, View, open_saved

OUTPUTS = 7


def logits(saved: Saved, images: torch.Tensor) -> torch.Tensor:
    """What a saved model answers about float pictures, without our normalisation."""
    assert saved.network is not None
    assert not saved.network.training
    with torch.no_grad():
        answer: torch.Tensor = saved.network(images)
    return answer


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def seen(model: torch.nn.Module) -> torch.nn.Module:
    """A network whose batch norm has statistics that are not those it began with."""
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    return model.eval()


# --- whose weights they are -------------------------------------------------------------------


def plain(state: dict[str, Any]) -> Any:
    return state


def vendors(state: dict[str, Any]) -> Any:
    """As the vendor's trainer names them, out of both wrappers, beside what it saves with them."""
    names = {name: name for name in state}
    for stage in (1, 2, 3, 4):
        for name in names:
            if name.startswith(f"layer{stage}."):
                names[name] = f"layers.{stage - 1}." + name.removeprefix(f"layer{stage}.")
    return {
        "epoch": 49,
        "arch": "resnet18",
        "best_prec1": 70.0,
        "state_dict": {f"module._orig_mod.{new}": state[old] for old, new in names.items()},
    }


@pytest.mark.parametrize("layout", [plain, vendors])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_and_the_vendors_weights_answer_as_theirs(
    name: str, layout: Callable[[dict[str, Any]], Any], images: torch.Tensor, tmp_path: Path
) -> None:
    theirs = seen(torchvision.models.get_model(name, weights=None, num_classes=OUTPUTS))
    torch.save(layout(theirs.state_dict()), tmp_path / "weights.pth")
    saved = open_saved(tmp_path / "weights.pth")
    assert (saved.form, saved.model, saved.outputs) == ("weights", name, OUTPUTS)
    assert (saved.classes, saved.epoch) == (None, None)
    assert (saved.transform.image_size, saved.transform.resize) == (224, 256)
    with torch.no_grad():
        assert (logits(saved, images) - theirs(images)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timms_weights_answer_as_theirs(name: str, images: torch.Tensor, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = seen(timm.create_model(name, num_classes=OUTPUTS))
    for place, content in {
        "a.pth": theirs.state_dict(),
        "b.pth.tar": {"epoch": 3, "arch": name, "state_dict": theirs.state_dict()},
    }.items():
        torch.save(content, tmp_path / place)
        saved = open_saved(tmp_path / place)
        assert (saved.model, saved.outputs) == (name, OUTPUTS)
        with torch.no_grad():
            assert (logits(saved, images) - theirs(images)).abs().max() <= 1e-5


def test_safetensors_answer_too(images: torch.Tensor, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    theirs = network()
    library.save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    saved = open_saved(tmp_path / "weights.safetensors")
    with torch.no_grad():
        assert torch.equal(logits(saved, images), theirs(images))


def test_exported_safetensors_bring_what_their_header_says(
    images: torch.Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    first = open_saved(write_checkpoint(tmp_path / "best.pt"), view=View(interpolation="bicubic"))
    export_weights(first, tmp_path / "a.safetensors", "safetensors")
    saved = open_saved(tmp_path / "a.safetensors")
    assert (saved.form, saved.model, saved.epoch) == ("weights", "resnet18", 3)
    assert (saved.classes, saved.class_names) == (CLASSES, NAMES)
    assert saved.transform == first.transform
    assert torch.equal(logits(saved, images), logits(first, images))
    asked = open_saved(tmp_path / "a.safetensors", view=View(image_size=128)).transform
    assert (asked.image_size, asked.resize) == (128, 146)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"center_crop": "true"}, "'true' for center_crop, which must be a whole number"),
        ({"classes": '["a"]'}, "gives 3 logits and its metadata name 1 classes"),
        ({"class_names": "{"}, "'{' for class_names, which must be JSON"),
        ({"mean": "[0, 0, 0]"}, "say mean (0.0, 0.0, 0.0) and std"),
    ],
)
def test_headers_that_cannot_be_are_refused(
    header: dict[str, str], said: str, tmp_path: Path
) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file(network().state_dict(), tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(DamagedData) as refused:
        open_saved(tmp_path / "a.safetensors")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_that_is_named_wrong_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"weights\.pt is a resnet18; leave --model resnet50 out"):
        open_saved(tmp_path / "weights.pt", model="resnet50")
    with pytest.raises(UsageError, match="--model vgg16: choose one of resnet18"):
        open_saved(tmp_path / "weights.pt", model="vgg16")
    with pytest.raises(UsageError, match="--ema and --no-ema are for checkpoints of"):
        open_saved(tmp_path / "weights.pt", ema=True)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save(state | {"fc.weight": torch.ones(3, 100)}, tmp_path / "narrow.pt")
    with pytest.raises(DamagedData, match=r"'fc\.weight' is 3 x 100 and must be 3 x 512; give"):
        open_saved(tmp_path / "narrow.pt")
    del state["layer1.0.bn1.bias"]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(DamagedData, match=r"'layer1\.0\.bn1\.bias' is missing; give other"):
        open_saved(tmp_path / "short.pt")


def test_a_class_list_must_fit(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    saved = open_saved(tmp_path / "weights.pt")
    assert saved.class_name(2) == "class 2"
    assert saved.named(CLASSES, NAMES).class_name(2) == "mortar"
    with pytest.raises(UsageError, match=r"has 2 classes and .*weights\.pt gives 3 logits"):
        saved.named(CLASSES[:2], NAMES[:2])


# --- our checkpoints --------------------------------------------------------------------------


def test_a_checkpoint_brings_its_classes_and_its_preparation(
    images: torch.Tensor, tmp_path: Path
) -> None:
    saved = open_saved(write_checkpoint(tmp_path / "best.pt"))
    assert (saved.form, saved.model, saved.epoch) == ("checkpoint", "resnet18", 3)
    assert (saved.classes, saved.class_names) == (CLASSES, NAMES)
    assert (saved.transform.image_size, saved.transform.resize) == (64, 73)
    with torch.no_grad():
        assert torch.equal(logits(saved, images), network()(images))


def test_averaged_weights_are_taken_where_there_are_any(
    images: torch.Tensor, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "best.pt", averaged=9)
    with torch.no_grad():
        own, averaged = network()(images), network(seed=9)(images)
    for ema, expected in ((None, averaged), (True, averaged), (False, own)):
        assert torch.equal(logits(open_saved(path, ema=ema), images), expected)
    without = write_checkpoint(tmp_path / "without.pt")
    assert torch.equal(logits(open_saved(without, ema=False), images), own)
    with pytest.raises(UsageError, match=r"without\.pt has no averaged weights; leave --ema out"):
        open_saved(without, ema=True)
    with pytest.raises(UsageError, match=r"is a resnet18; leave --model resnet50 out"):
        open_saved(path, model="resnet50")


def test_another_way_to_cut(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "best.pt")
    for view, expected in (
        (View(image_size=32), (32, 37, "bilinear")),
        (View(resize=64), (64, 64, "bilinear")),
        (View(image_size=32, resize=48, interpolation="bicubic"), (32, 48, "bicubic")),
    ):
        found = open_saved(path, view=view).transform
        assert (found.image_size, found.resize, found.interpolation) == expected
    with pytest.raises(UsageError, match="crops 64 pixels out of a short side of 32"):
        open_saved(path, view=View(resize=32))


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors", "a.onnx", "a"])
def test_what_is_no_model_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ToolError, match=f"{name} (does not exist|is not a file)"):
        open_saved(path)
    for content in (b"", b"GIF89a", bytes(5000), b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        if name == "a.safetensors":
            pytest.importorskip("safetensors")
        if name == "a.onnx":
            pytest.importorskip("onnx")
        with pytest.raises(DamagedData) as refused:
            open_saved(path)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)


def test_the_engine_of_torch_normalises_and_answers_in_float32() -> None:
    model = network()
    pictures = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    engine = TorchEngine(model, choose("cpu"), "bf16", classes=3)
    found = engine.logits(pictures)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    exact = TorchEngine(model, choose("cpu"), "fp32", classes=3).logits(pictures)
    assert 0 < (found - exact).abs().max() < 0.2
