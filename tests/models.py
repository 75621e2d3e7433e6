"""Models as files: checkpoints with random weights, and ONNX files that are quick to run."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.batches import MEAN, STD
from training.checkpoint import Checkpoint, Position, save_checkpoint
from training.config import config_values, resolve
from training.model import build_model, plain_weights

SIZE = 64  # pixels; the short side before the crop is 73
CLASSES = ("n01440764", "n02342885", "n03786901")  # those of the sample data
NAMES = ("tench", "hamster", "mortar")


@functools.cache
def network(classes: int = len(CLASSES), seed: int = 8) -> torch.nn.Module:
    """A ResNet-18 that answers by the picture's colours, in evaluation mode; not to be changed.

    As it begins it would take all pictures for one class; its batch norm and its classifier are
    given what flat colours come to.
    """
    model = build_model("resnet18", classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    flat = 2 * torch.randn(16, 3, 1, 1, generator=generator).expand(-1, -1, SIZE, SIZE)
    noise = torch.randn(16, 3, SIZE, SIZE, generator=generator)
    with torch.no_grad():
        for _ in range(8):  # until the running statistics are near those of this batch
            model(flat + noise)
        logits = model.eval()(flat + noise)
        deviation = logits.std(0)
        model.fc.weight.div_(deviation[:, None])
        model.fc.bias.sub_(logits.mean(0)).div_(deviation)
    return model


def write_checkpoint(
    path: Path,
    *,
    classes: Sequence[str] = CLASSES,
    names: Sequence[str] = NAMES,
    seed: int = 8,
    averaged: int | None = None,
) -> Path:
    """A checkpoint after 3 epochs; `averaged` is the seed of its averaged weights."""
    place = path.parent
    config = resolve(shards=place, out=place, world=1, threads=1, model="resnet18", image_size=SIZE)
    ema = {} if averaged is None else network(len(classes), averaged).state_dict()
    save_checkpoint(
        path,
        Checkpoint(
            model=plain_weights(network(len(classes), seed).state_dict()),
            optimizer={},
            scaler={},
            ema=plain_weights(ema),
            rng={"torch": torch.get_rng_state()},
            position=Position(epoch=3, step=0, samples=9, order="0" * 16),
            best=None,
            config=config_values(config),
            data={"train": "ab", "val": "cd"},
            classes=list(classes),
            class_names=list(names),
            versions={},
        ),
    )
    return path


def colours(classes: int = len(CLASSES)) -> tuple[Any, Any]:
    """Weights and biases by which `colour_onnx` answers: float32 (3, classes) and (classes,)."""
    generator = np.random.default_rng(classes)
    return (
        generator.normal(size=(3, classes)).astype(np.float32),
        generator.normal(size=classes).astype(np.float32),
    )


def colour_answers(images: Any, classes: int = len(CLASSES)) -> Any:
    """What `colour_onnx` answers about uint8 pictures (n, 3, H, W), in float64."""
    weights, biases = colours(classes)
    means = np.asarray(images, np.float64).mean((2, 3)) / 255
    return (means - np.array(MEAN)) / np.array(STD) @ weights + biases


def colour_onnx(
    path: Path,
    *,
    shape: Sequence[int | str] = ("batch", 3, SIZE, SIZE),
    classes: int = len(CLASSES),
    kind: str = "FLOAT",
    metadata: Mapping[str, object] | None = None,
    inputs: int = 1,
    location: str | None = None,
) -> Path:
    """A classifier by the mean colour. `location` is where its weights claim to lie."""
    import onnx
    from onnx import TensorProto, helper

    element = getattr(TensorProto, kind)
    real = element if kind in ("FLOAT", "FLOAT16") else TensorProto.FLOAT
    values = [
        each.astype(np.float16 if kind == "FLOAT16" else np.float32) for each in colours(classes)
    ]
    stored = [
        onnx.numpy_helper.from_array(each, name) for each, name in zip(values, "wb", strict=True)
    ]
    if location is not None:
        stored[0].ClearField("raw_data")
        stored[0].data_location = TensorProto.EXTERNAL
        stored[0].external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("Cast", ["input"], ["cast"], to=real),
        helper.make_node("GlobalAveragePool", ["cast"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["output"]),
    ]
    names = ["input", *(f"more{number}" for number in range(1, inputs))][:inputs]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info(name, element, list(shape)) for name in names],
        [helper.make_tensor_value_info("output", real, [shape[0], classes])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    told = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (metadata or {}).items()
    }
    helper.set_model_props(model, told)
    path.write_bytes(model.SerializeToString())
    return path
