"""A model as it was saved, whoever saved it: our checkpoints, plain weights, ONNX files.

Whatever it is, it comes with what an evaluation has to know: its classes where it names them,
how its pictures are prepared, and an engine that answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch
from torch import nn

from shards.dataset import Dataset
from shards.errors import DamagedData, UsageError
from shards.transform import EvalTransform, Interpolation
from training.batches import MEAN, STD
from training.checkpoint import Checkpoint, ForeignFile, load_checkpoint
from training.config import MODELS
from training.device import AmpRequest, Device, DeviceRequest, choose
from training.engines import Engine, EngineName, EngineRequest, TorchEngine, engine_for
from training.evaluate import check_classes, restored_model
from training.model import build_model
from training.results.onnx_engines import open_onnxruntime, open_teco
from training.results.onnx_file import OnnxFile, read_onnx
from training.results.told import read_told
from training.train_set import eval_transform
from training.weights import fill, read_weights

ONNX_ENDING: Final = ".onnx"
# What weights without a word about it were evaluated with: torchvision's first weights, timm's
# and the vendor's alike, but for the interpolation of some of timm's.
_USUAL: Final = EvalTransform(image_size=224, resize=256)
_BATCH: Final = 64  # samples a process


@dataclass(frozen=True, kw_only=True)
class View:
    """How pictures are cut where it is not as the model's own word says; None is as that."""

    image_size: int | None = None
    resize: int | None = None  # the short side before the crop
    interpolation: Interpolation | None = None

    def of(self, own: EvalTransform) -> EvalTransform:
        """A model's own way, changed; another crop keeps the short side's ratio to it."""
        size = own.image_size if self.image_size is None else self.image_size
        in_ratio = (
            own.resize if size == own.image_size else round(own.resize * size / own.image_size)
        )
        return EvalTransform(
            image_size=size,
            resize=in_ratio if self.resize is None else self.resize,
            interpolation=self.interpolation or own.interpolation,
        )


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A model and what its file says of it. `network` or `onnx` is there, the other is None."""

    path: Path
    form: Literal["checkpoint", "weights", "onnx"]
    said: str  # what it is, for people
    model: str | None
    outputs: int | None  # None where an ONNX file leaves it open
    classes: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    transform: EvalTransform
    epoch: int | None  # epochs it was trained
    batch_size: int = _BATCH
    amp: AmpRequest = "auto"
    network: nn.Module | None = None
    onnx: OnnxFile | None = None

    def check(self, dataset: Dataset) -> None:
        """Refuse a dataset whose classes are not the model's. Raises UsageError."""
        if self.classes is not None:
            check_classes(self.path, self.classes, dataset)
        elif self.outputs is not None and self.outputs != len(dataset.classes):
            raise UsageError(
                f"{self.path} gives {self.outputs} logits and {dataset.folder} has "
                f"{len(dataset.classes)} classes; give shards of the classes that it was trained on"
            )

    def class_name(self, index: int) -> str:
        """What people call a class, or its number."""
        return f"class {index}" if self.class_names is None else self.class_names[index]

    def named(self, classes: tuple[str, ...], names: tuple[str, ...]) -> Saved:
        """It with a class list that its user gives. Raises UsageError for one that does not fit."""
        if self.outputs not in (None, len(classes)):
            raise UsageError(
                f"the class list has {len(classes)} classes and {self.path} gives {self.outputs} "
                "logits; give the list that it was trained with"
            )
        return replace(self, classes=classes, class_names=names)


def open_saved(
    path: Path, *, view: View | None = None, ema: bool | None = None, model: str | None = None
) -> Saved:
    """Read a saved model, its weights on the CPU.

    `ema` asks for a checkpoint's averaged weights (by default they are taken where there are
    any), `model` names the network of weights that do not tell it. Raises ToolError where there
    is no such file, DamagedData where it is none of a model, UsageError where it does not have
    what was asked for.
    """
    view = view or View()
    if path.suffix.lower() == ONNX_ENDING:
        if ema is not None or model is not None:
            raise UsageError(f"--ema and --model are for weights of torch, and {path} is ONNX")
        return _onnx(path, view)
    try:
        loaded = load_checkpoint(path)
    except ForeignFile:
        if ema is not None:
            raise UsageError(
                f"--ema and --no-ema are for checkpoints of `resnet train`, and {path} is none"
            ) from None
        return _weights(path, view, model)
    return _checkpoint(path, loaded, view, ema=ema, model=model)


def _checkpoint(
    path: Path, loaded: Checkpoint, view: View, *, ema: bool | None, model: str | None
) -> Saved:
    config = loaded.config
    if model not in (None, config["model"]):
        raise UsageError(f"{path} is a {config['model']}; leave --model {model} out")
    if ema and not loaded.ema:
        raise UsageError(f"{path} has no averaged weights; leave --ema out")
    averaged = bool(loaded.ema) if ema is None else ema
    return Saved(
        path=path,
        form="checkpoint",
        said=f"{config['model']} after {loaded.position.epoch} epochs"
        + (", averaged weights" if averaged else ""),
        model=config["model"],
        outputs=len(loaded.classes),
        classes=tuple(loaded.classes),
        class_names=tuple(loaded.class_names),
        transform=view.of(eval_transform(config, image_size=view.image_size)),
        epoch=loaded.position.epoch,
        batch_size=config["batch_size"],
        amp=config["amp"],
        network=restored_model(loaded, ema=averaged),
    )


def _weights(path: Path, view: View, model: str | None) -> Saved:
    """A state dict of torchvision, timm or the vendor's trainer, or safetensors of anyone."""
    weights = read_weights(path)
    name = weights.model
    if model is not None and model not in MODELS:
        raise UsageError(f"--model {model}: choose one of {', '.join(MODELS)}")
    if name is None:
        raise DamagedData(
            f"{path} ({weights.layout}) holds the weights of no network that there is here "
            f"({', '.join(MODELS)}); give others"
        )
    if model not in (None, name):
        raise UsageError(f"{path} is a {name}; leave --model {model} out")
    network = build_model(name, weights.classes, stem=weights.stem)
    fill(network, weights.state, path=path, model=name)
    told = read_told(path, weights.metadata, weights.classes)
    if (told.mean, told.std) != (MEAN, STD):
        raise DamagedData(
            f"{path}: its metadata say mean {told.mean} and std {told.std}, and torch's networks "
            f"are given {MEAN} and {STD} here; export it as ONNX where it was made"
        )
    return Saved(
        path=path,
        form="weights",
        said=f"{name}, {weights.layout}",
        model=name,
        outputs=weights.classes,
        classes=told.classes,
        class_names=told.class_names or told.classes,
        transform=view.of(_transform(told.crop, told.resize, told.interpolation)),
        epoch=told.epochs,
        network=network.eval(),
    )


def _onnx(path: Path, view: View) -> Saved:
    file = read_onnx(path)
    if file.fixed_size and view.image_size not in (None, file.image_size):
        raise UsageError(
            f"{path} takes pictures of {file.image_size} pixels; leave --image-size "
            f"{view.image_size} out, or export it with that size"
        )
    own = _transform(file.image_size, file.resize, file.interpolation)
    return Saved(
        path=path,
        form="onnx",
        said=f"{file.model or 'a network'} as ONNX, {_types(file)}, "
        + (f"batch {file.batch}" if file.batch else "any batch"),
        model=file.model,
        outputs=file.outputs,
        classes=file.classes,
        class_names=file.class_names or file.classes,
        transform=view.of(own),
        epoch=file.epochs,
        onnx=file,
    )


def _transform(crop: int | None, resize: int | None, interpolation: Interpolation) -> EvalTransform:
    """As an exported file says; what it leaves out is as usual."""
    size = crop or _USUAL.image_size
    return EvalTransform(
        image_size=size,
        resize=resize or round(size * _USUAL.resize / _USUAL.image_size),
        interpolation=interpolation,
    )


def _types(file: OnnxFile) -> str:
    """What an ONNX file computes in, and what it takes where that is something else."""
    weights, taken = ("float16" if each else "float32" for each in (file.half_weights, file.half))
    return weights if weights == taken else f"{weights}, {taken} in"


# --- engines ---


def is_onnx(path: Path) -> bool:
    """Whether a model's name says that it is ONNX, which decides who may compute it."""
    return path.suffix.lower() == ONNX_ENDING


def device_for(path: Path, requested: DeviceRequest, engine: EngineRequest, rank: int) -> Device:
    """Where a model is computed, as far as the name of its file tells; see `choose`."""
    if engine_for(engine, onnx=is_onnx(path)) == "torch":
        return choose(requested, rank)
    return Device(index=0, reason="the engine takes its pictures on the host")


def open_engine(
    saved: Saved,
    engine: EngineName,
    device: Device,
    *,
    amp: AmpRequest | None,
    threads: int,
    batch_size: int,
) -> Engine:
    """What answers for a saved model; the network of torch is moved to the device."""
    if saved.onnx is not None:
        if engine == "teco":
            size = saved.transform.image_size
            return open_teco(saved.onnx, batch_size=batch_size, image_size=size)
        return open_onnxruntime(saved.onnx, threads=threads)
    assert saved.network is not None
    assert saved.outputs is not None
    network = saved.network.to(device.torch_device).to(memory_format=torch.channels_last)
    precision = device.precision(saved.amp if amp is None else amp)
    return TorchEngine(network, device, precision, classes=saved.outputs)
