"""Weights of others, as their trainers save them: mapped, refused, begun with."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from shards.errors import DamagedData, ToolError, UsageError
from training.config import MODELS, TrainConfig, resolve
from training.model import build_model
from training.weights import read_weights, starting_network

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """torchvision's ResNet-18 with statistics that are not those of the start."""
    model = torchvision.models.resnet18(num_classes=5)
    for name, buffer in model.named_buffers():
        buffer.fill_(3 if name.endswith("num_batches_tracked") else 0.5)
    return model.state_dict()


def saved(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def vendors(state: State, prefix: str = "module.") -> State:
    """As the vendor's and NVIDIA's networks name them."""
    names = {name: name for name in state}
    for stage in range(4):
        names = {
            name: other.replace(f"layer{stage + 1}.", f"layers.{stage}.", 1)
            for name, other in names.items()
        }
    return {prefix + names[name]: each for name, each in state.items()}


class Vendors(nn.Module):
    """torchvision's parts, put together as NVIDIA's and the vendor's ResNet class does."""

    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = parts.conv1, parts.bn1, parts.relu
        self.maxpool, self.avgpool, self.fc = parts.maxpool, parts.avgpool, parts.fc
        stages = (parts.layer1, parts.layer2, parts.layer3, parts.layer4)
        self.layers = nn.ModuleList(stages)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(pictures))))
        for stage in self.layers:
            x = stage(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def equal(found: State, state: State) -> bool:
    return found.keys() == state.keys() and all(
        torch.equal(found[name], state[name]) for name in state
    )


@pytest.mark.parametrize(
    ("wrap", "layout"),
    [
        (lambda state: state, "a state dict"),
        (
            lambda state: {"state_dict": {f"module.{name}": each for name, each in state.items()}},
            "a",
        ),
        (lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1)}, "a state"),
        (
            lambda state: {
                "state_dict": {name: each * 0 for name, each in state.items()},
                "state_dict_ema": {
                    f"_orig_mod.module.{name}": each for name, each in state.items()
                },
            },
            "a state dict, averaged weights",
        ),
        (
            lambda state: {
                "model_ema": {
                    **{f"module.{k}": v for k, v in state.items()},
                    "n_averaged": torch.tensor(9),
                }
            },
            "a state dict, averaged",
        ),
        (
            lambda state: {"state_dict": vendors(state), "best_prec1": 70.0},
            "a state dict, the vendor's",
        ),
        (
            lambda state: vendors(state, "_orig_mod."),
            "a state dict, the vendor's or NVIDIA's names, without _orig_mod.",
        ),
        (
            lambda state: {
                "state_dict": {f"model._orig_mod.{name}": each for name, each in state.items()},
                "pytorch-lightning_version": "2.5.0",
            },
            "a state dict, without _orig_mod. and model.",
        ),
        (
            lambda state: {"net": {f"net.{name}": each for name, each in state.items()}, "acc": 9},
            "a state dict, without net.",
        ),
    ],
)
def test_whatever_is_around_them_weights_are_read(
    wrap: Any, layout: str, state: State, tmp_path: Path
) -> None:
    found = read_weights(saved(tmp_path, wrap(state)))
    assert equal(found.state, state)
    assert found.layout.startswith(layout)
    assert (found.model, found.stem, found.classes) == ("resnet18", "imagenet", 5)


def test_the_vendors_network_and_ours_answer_alike_both_ways(tmp_path: Path) -> None:
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours, taken, *parts = (build_model("resnet18", 5, seed=seed) for seed in range(4))
    theirs, given = map(Vendors, parts)
    theirs(pictures)  # their statistics are no longer those of the start
    ours(pictures)
    taken.load_state_dict(read_weights(saved(tmp_path, theirs.state_dict())).state)
    given.load_state_dict(vendors(ours.state_dict(), ""))
    with torch.no_grad():
        assert torch.equal(taken.eval()(pictures), theirs.eval()(pictures))
        assert torch.equal(given.eval()(pictures), ours.eval()(pictures))


def test_files_before_zip_are_read(state: State, tmp_path: Path) -> None:
    path = saved(tmp_path, state, _use_new_zipfile_serialization=False)
    assert equal(read_weights(path).state, state)


def test_safetensors_are_read(state: State, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    save_file({name: each.contiguous() for name, each in state.items()}, path)
    assert equal(read_weights(path).state, state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedData, match="is no whole safetensors file"):
        read_weights(path)


def test_half_precision_and_missing_counters_are_made_whole(state: State, tmp_path: Path) -> None:
    stored = {
        name: each.half() if each.is_floating_point() else each
        for name, each in state.items()
        if not name.endswith("num_batches_tracked")
    }
    found = read_weights(saved(tmp_path, stored)).state
    assert found.keys() == state.keys()
    assert found["conv1.weight"].dtype == torch.float32
    torchvision.models.resnet18(num_classes=5).load_state_dict(found)


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_known_by_their_blocks(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name).state_dict()
    # One number behind each tensor: a file of ResNet-152 would be 240 MB.
    content = {key: torch.zeros(()).expand(each.shape) for key, each in shapes.items()}
    found = read_weights(saved(tmp_path, content))
    assert (found.model, found.classes) == (name, 1000)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_networks_of_other_widths_are_none_of_ours(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name).state_dict()
    content = {key: torch.zeros(()).expand(each.shape) for key, each in shapes.items()}
    assert read_weights(saved(tmp_path, content)).model is None


@pytest.mark.parametrize("name", MODELS)
def test_timms_networks_have_our_names_and_answers(name: str) -> None:
    timm = pytest.importorskip("timm")
    if name in ("resnet18", "resnet50"):
        theirs = timm.create_model(name, num_classes=5).eval()
        ours = build_model(name, 5).eval()
        ours.load_state_dict(theirs.state_dict())
        pictures = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.allclose(ours(pictures), theirs(pictures), atol=1e-5)
        return
    with torch.device("meta"):
        theirs, ours = timm.create_model(name, num_classes=5), build_model(name, 5)
    shapes = [{key: each.shape for key, each in m.state_dict().items()} for m in (theirs, ours)]
    assert shapes[0] == shapes[1]


# --- refused ---


def test_two_networks_in_one_are_refused(state: State, tmp_path: Path) -> None:
    two = {f"{prefix}{name}": each for prefix in ("", "model.") for name, each in state.items()}
    with pytest.raises(DamagedData, match=r"'conv1\.weight' comes under two prefixes"):
        read_weights(saved(tmp_path, two))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": Evil()}, "could run code when loaded, and was refused"),
        ([1, 2], "holds no weights by name"),
        ({"epoch": 3}, "holds no ResNet: conv1.weight or fc.weight is not among its 0 tensors"),
        ({"conv1.0.weight": torch.zeros(1)}, "holds no ResNet"),  # timm's deep stems
    ],
)
def test_what_holds_no_weights_is_refused(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedData, match=said):
        read_weights(saved(tmp_path, content))


def test_what_is_no_file_of_weights_is_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="is not a file; give a state dict"):
        read_weights(tmp_path)
    path = saved(tmp_path, state)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedData, match="is truncated or damaged; get it again"):
        read_weights(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(DamagedData, match="is damaged: the checksum of its part"):
        read_weights(path)
    path.write_text("not weights")
    with pytest.raises(DamagedData, match="is no file of weights"):
        read_weights(path)


def test_a_pickle_that_is_code_is_refused_without_another_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DamagedData, match="could run code"):
        read_weights(path)
    assert not recwarn.list


# --- begun with ---


def config(**options: Any) -> TrainConfig:
    given = {"shards": Path("S"), "out": Path("R"), "world": 1, "threads": 1, "model": "resnet18"}
    return resolve(**(given | options))


def begun(classes: int, **options: Any) -> tuple[nn.Module, list[str]]:
    said: list[str] = []
    return starting_network(config(**options), classes, said.append), said


def test_without_weights_a_run_begins_as_its_recipe_says() -> None:
    network, said = begun(3, recipe="a3", seed=7)
    expected = build_model("resnet18", 3, init="fan_out", zero_init_residual=True, seed=7)
    assert equal(network.state_dict(), expected.state_dict())
    assert not said


def test_weights_for_as_many_classes_are_taken_whole(state: State, tmp_path: Path) -> None:
    network, (said,) = begun(5, init_weights=saved(tmp_path, vendors(state)))
    assert equal(network.state_dict(), state)
    assert "the vendor's or NVIDIA's names" in said


def test_the_classifier_is_the_runs_own_where_classes_differ(state: State, tmp_path: Path) -> None:
    network, (said,) = begun(4, init_weights=saved(tmp_path, state), seed=2)
    fresh = build_model("resnet18", 4, seed=2).state_dict()
    for name, each in network.state_dict().items():
        assert torch.equal(each, (fresh if name.startswith("fc.") else state)[name]), name
    assert said.endswith("but for the classifier: it has 5 classes, this run 4")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "resnet34"}, "weights for --model resnet18 and this command says resnet34"),
        ({"stem": "small"}, "weights for --stem imagenet and this command says small"),
    ],
)
def test_weights_of_another_network_are_refused(
    options: dict[str, Any], said: str, state: State, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        begun(5, init_weights=saved(tmp_path, state), **options)


def test_weights_that_lack_a_tensor_are_refused(state: State, tmp_path: Path) -> None:
    part = {name: each for name, each in state.items() if name != "layer3.1.bn1.bias"}
    with pytest.raises(DamagedData, match=r"resnet18: 'layer3\.1\.bn1\.bias' is missing"):
        begun(5, init_weights=saved(tmp_path, part))
    more = {**state, "layer3.1.bn9.bias": torch.zeros(1)}
    with pytest.raises(DamagedData, match=r"'layer3\.1\.bn9\.bias' is not one of them"):
        begun(5, init_weights=saved(tmp_path, more))
    part = {name: each for name, each in state.items() if name != "fc.bias"}
    with pytest.raises(DamagedData, match=r"'fc\.bias' is missing; give other weights"):
        begun(5, init_weights=saved(tmp_path, part))
    begun(4, init_weights=saved(tmp_path, part))
    bad = {**state, "fc.weight": torch.zeros(5, 9)}
    with pytest.raises(DamagedData, match=r"'fc\.weight' is 5 x 9 and must be 5 x 512"):
        begun(5, init_weights=saved(tmp_path, bad))
