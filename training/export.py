"""ONNX files from saved models, checked against the network they came from before they appear.

The classic exporter with opset 12 gives files that the vendor's inference engine can take
(onnx 1.12: IR version 8 at most, real inputs only, names "input" and "output", one file).
What a user of the file must know to prepare a picture travels in its metadata; the check reads
it from there, as `resnet eval` and `resnet predict` do.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.durable import atomic_write_bytes
from shards.errors import ToolError, UsageError
from shards.image import LARGEST_PIXELS
from training.export_check import Agreement, compare
from training.metadata import metadata_of
from training.results.onnx_file import runtime_library
from training.results.saved import Saved
from training.results.told import LARGEST_SIDE

_OPSETS = range(9, 21)  # what torch's classic exporter writes
# The newest opset of IR version 8, which onnx 1.12 reads; newer ones need a newer onnx anyway.
_OLD_OPSET, _OLD_IR = 17, 8
_OUTPUT = "output"
# Largest difference to torch that is still rounding, as a share of the largest logit.
_FP32_TOLERANCE = 1e-3
_FP16_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """How an ONNX file is to be."""

    opset: int = 12
    batch: int = 1
    dynamic_batch: bool = False
    fp16: bool = False
    keep_io_types: bool = False  # with fp16: float32 in and out all the same
    input_name: str = "input"

    def check(self, image_size: int | None = None) -> None:
        """Raise UsageError for what cannot be, with pictures of `image_size` if that is known.

        Pictures and batches are bounded as `read_onnx` bounds them.
        """
        if self.opset not in _OPSETS:
            raise UsageError(f"--opset {self.opset}: it must be {_OPSETS[0]} to {_OPSETS[-1]}")
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: it must be at least 1")
        if image_size is not None:
            check_side(image_size)
        most = LARGEST_PIXELS // (image_size or 1) ** 2
        if self.batch > most:
            raise UsageError(
                f"--batch {self.batch}: at most {most} pictures of {image_size or 1} px are one "
                "batch; give fewer"
            )
        if self.dynamic_batch and self.batch != 1:
            raise UsageError("--batch fixes the batch and --dynamic-batch leaves it open; give one")
        if self.keep_io_types and not self.fp16:
            raise UsageError("--keep-io-types is for --fp16; without it all is float32 anyway")
        if not self.input_name.isprintable() or self.input_name in ("", _OUTPUT):
            raise UsageError(
                f"--input-name {self.input_name!r}: give a name other than {_OUTPUT!r}, which the "
                "logits have"
            )


def check_side(image_size: int) -> None:
    """Raise UsageError for pictures of a size that no reader of an exported file takes."""
    if not 1 <= image_size <= LARGEST_SIDE:
        raise UsageError(f"--image-size {image_size}: it must be from 1 to {LARGEST_SIDE}")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    out: Path
    bytes: int
    format: str
    said: str  # what it is, for people
    model: str
    classes: int
    image_size: int
    opset: int
    ir_version: int
    batch: int | None  # None: any
    fp16: bool
    input_type: str
    agreement: Agreement | None  # None where onnxruntime is not installed


def export_onnx(
    saved: Saved,
    out: Path,
    *,
    options: OnnxOptions,
    split: Path | None = None,
    images: int = 64,
    threads: int = 1,
) -> ExportReport:
    """Write a saved model's network as ONNX: normalised pictures (N, 3, S, S) in, logits out.

    It is compared with torch on `images` pictures of the folder `split` (DIR/val), or on a few
    of noise. Raises UsageError for options that cannot be, ToolError where an extra is missing or
    the file does not agree with torch; nothing is written then.
    """
    options.check(saved.transform.image_size)
    assert saved.network is not None
    assert saved.model is not None
    assert saved.outputs is not None
    onnx = runtime_library("onnx")
    graph = _exported(saved.network, saved.transform.image_size, options)
    if options.fp16:
        graph = _halved(graph, keep_io_types=options.keep_io_types)
    if options.opset <= _OLD_OPSET:
        graph.ir_version = min(graph.ir_version, _OLD_IR)
    onnx.helper.set_model_props(graph, metadata_of(saved))
    onnx.checker.check_model(graph, full_check=True)
    content = graph.SerializeToString()
    agreement = None
    if importlib.util.find_spec("onnxruntime") is not None:
        agreement = compare(saved, content, split, images=images, threads=threads)
        _refuse_differences(agreement, fp16=options.fp16)
    atomic_write_bytes(out, content)
    return ExportReport(
        out=out,
        bytes=len(content),
        format="onnx",
        said=saved.said,
        model=saved.model,
        classes=saved.outputs,
        image_size=saved.transform.image_size,
        opset=options.opset,
        ir_version=graph.ir_version,
        batch=None if options.dynamic_batch else options.batch,
        fp16=options.fp16,
        input_type="float16" if options.fp16 and not options.keep_io_types else "float32",
        agreement=agreement,
    )


def _exported(model: nn.Module, size: int, options: OnnxOptions) -> Any:
    """The network as an ONNX graph in memory."""
    axes = None
    if options.dynamic_batch:
        axes = {options.input_name: {0: "batch"}, _OUTPUT: {0: "batch"}}
    with tempfile.TemporaryDirectory(prefix="imagenet-resnet-") as folder:
        path = Path(folder) / "model.onnx"
        with warnings.catch_warnings():
            # torch announces that its other exporter is the default now; that one needs
            # opset 18, which the inference engine's onnx does not read.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.zeros((options.batch, 3, size, size)),),
                str(path),
                opset_version=options.opset,
                input_names=[options.input_name],
                output_names=[_OUTPUT],
                do_constant_folding=True,
                dynamic_axes=axes,
                dynamo=False,
            )
        return runtime_library("onnx").load(path)


def _halved(graph: Any, *, keep_io_types: bool) -> Any:
    """The graph with float16 weights, and float16 input and output unless they are to stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights too small for float16 become 0: expected
        return runtime_library("onnxconverter_common.float16").convert_float_to_float16(
            graph, keep_io_types=keep_io_types
        )


def _refuse_differences(agreement: Agreement, *, fp16: bool) -> None:
    tolerance = _FP16_TOLERANCE if fp16 else _FP32_TOLERANCE
    if not agreement.largest_difference <= tolerance * max(agreement.largest_logit, 1.0):
        raise ToolError(
            f"the exported network differs from the checkpoint by {agreement.largest_difference} "
            f"(largest logit {agreement.largest_logit}) and was not written"
            + ("; export without --fp16" if fp16 else "; report this")
        )
