"""ONNX files from checkpoints, checked against the network they came from before they appear.

The classic exporter with opset 12 gives files that the vendor's inference engine can take
(onnx 1.12: IR version 8 at most, real inputs only, names "input" and "output", one file).
What a user of the file must know to prepare a picture travels in its metadata.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from shards.durable import atomic_write_bytes
from shards.errors import ToolError, UsageError
from training.batches import MEAN, STD
from training.checkpoint import Checkpoint, load_checkpoint
from training.evaluate import restored_model

_OPSETS = range(9, 21)  # what torch's classic exporter writes
_CHECKED = 8  # pictures compared where the batch is free
# Largest difference to torch that is still rounding, as a share of the largest logit.
_FP32_TOLERANCE = 1e-3
_FP16_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the file's answers compare with torch's on random pictures."""

    pictures: int
    largest_difference: float  # of logits
    largest_logit: float
    same_top1: int  # pictures with the same best class


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    out: Path
    bytes: int
    model: str
    classes: int
    image_size: int
    opset: int
    batch: int | None  # None: any
    fp16: bool
    agreement: Agreement | None  # None where onnxruntime is not installed


def export_onnx(
    checkpoint: Path,
    out: Path,
    *,
    opset: int = 12,
    batch: int = 1,
    dynamic_batch: bool = False,
    fp16: bool = False,
) -> ExportReport:
    """Write the checkpoint's network as ONNX: float32 (or float16) NCHW in, logits out.

    Raises UsageError for options that cannot be, ToolError where an extra is missing or the
    file does not agree with torch; nothing is written then.
    """
    if opset not in _OPSETS:
        raise UsageError(f"--opset {opset}: it must be {_OPSETS[0]} to {_OPSETS[-1]}")
    if batch < 1:
        raise UsageError(f"--batch {batch}: it must be at least 1")
    onnx = _extra("onnx")
    loaded = load_checkpoint(checkpoint)
    model = restored_model(loaded)
    size = int(loaded.config["image_size"])
    graph = _exported(model, (batch, 3, size, size), opset, dynamic_batch=dynamic_batch)
    if fp16:
        graph = _halved(graph)
    _describe(onnx, graph, loaded)
    onnx.checker.check_model(graph, full_check=True)
    content = graph.SerializeToString()
    pictures = _pictures(_CHECKED if dynamic_batch else batch, size)
    agreement = _compare(model, content, pictures, fp16=fp16)
    atomic_write_bytes(out, content)
    return ExportReport(
        out=out,
        bytes=len(content),
        model=loaded.config["model"],
        classes=len(loaded.classes),
        image_size=size,
        opset=opset,
        batch=None if dynamic_batch else batch,
        fp16=fp16,
        agreement=agreement,
    )


def _exported(model: nn.Module, shape: tuple[int, ...], opset: int, *, dynamic_batch: bool) -> Any:
    """The network as an ONNX graph in memory."""
    axes = {"input": {0: "batch"}, "output": {0: "batch"}} if dynamic_batch else None
    with tempfile.TemporaryDirectory(prefix="imagenet-resnet-") as folder:
        path = Path(folder) / "model.onnx"
        with warnings.catch_warnings():
            # torch announces that its other exporter is the default now; that one needs
            # opset 18, which the inference engine's onnx does not read.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.zeros(shape),),
                str(path),
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
                do_constant_folding=True,
                dynamic_axes=axes,
                dynamo=False,
            )
        return _extra("onnx").load(path)


def _halved(graph: Any) -> Any:
    """The graph with float16 weights, input and output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights too small for float16 become 0: expected
        return _extra("onnxconverter_common.float16").convert_float_to_float16(graph)


def _describe(onnx: Any, graph: Any, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    short_side = round(config["image_size"] * config["recipe"]["eval_resize"])
    values = {
        "model": config["model"],
        "epochs": checkpoint.position.epoch,
        "classes": checkpoint.classes,
        "class_names": checkpoint.class_names,
        "channels": "RGB, of 0..1",
        "mean": MEAN,
        "std": STD,
        "resize_short_side": short_side,
        "resize": "bilinear, antialiased",
        "center_crop": config["image_size"],
    }
    onnx.helper.set_model_props(graph, {name: _text(value) for name, value in values.items()})


def _compare(
    model: nn.Module, content: bytes, pictures: npt.NDArray[np.float32], *, fp16: bool
) -> Agreement | None:
    """Run torch and onnxruntime on the same pictures. Raises ToolError where they differ."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = pictures.astype(np.float16) if fp16 else pictures
    found = session.run(["output"], {"input": given})[0].astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(pictures)).numpy()
    agreement = Agreement(
        pictures=len(pictures),
        largest_difference=float(np.abs(found - wanted).max()),
        largest_logit=float(np.abs(wanted).max()),
        same_top1=int((found.argmax(1) == wanted.argmax(1)).sum()),
    )
    tolerance = _FP16_TOLERANCE if fp16 else _FP32_TOLERANCE
    if not agreement.largest_difference <= tolerance * max(agreement.largest_logit, 1.0):
        raise ToolError(
            f"the exported network differs from the checkpoint by {agreement.largest_difference} "
            f"(largest logit {agreement.largest_logit}) and was not written"
            + ("; export without --fp16" if fp16 else "; report this")
        )
    return agreement


def _pictures(count: int, size: int) -> npt.NDArray[np.float32]:
    """Normalised noise: float32 (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((count, 3, size, size), generator=generator).numpy()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _extra(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their deprecations are not our user's business
            return importlib.import_module(name)
    except ImportError as error:
        raise ToolError(
            f"export needs {name.partition('.')[0]}: pip install 'imagenet-resnet[export]'"
        ) from error
