"""What a file or a run's folder holds, without a device and without running anything.

Made for files of any origin: sizes are bounded by the file's own, no object of a pickle is made,
and what a header claims is checked before it is believed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from shards.errors import ToolError
from training.checkpoint import ForeignFile, load_checkpoint
from training.report.history import Point, number, read_runs
from training.results.onnx_file import read_onnx, runtime_library
from training.results.saved import is_onnx
from training.run_folder import RunFolder
from training.weights import read_weights

# What batch norm counts beside its parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def describe(path: Path) -> dict[str, Any]:
    """What the file at `path` is (`kind`) and holds; of a run's folder, its last checkpoint.

    `kind` is "run", "checkpoint", "weights" (a plain state dict or safetensors) or "onnx". A run
    comes with the history of its log: one object an epoch, and the median of the log's images
    per second. Raises ToolError where there is nothing, DamagedData where it cannot be told.
    """
    if path.is_dir():
        return _run(path)
    if not path.exists():
        raise ToolError(
            f"{path} does not exist; give a checkpoint, a run's folder or an .onnx file"
        )
    if is_onnx(path):
        return _onnx(path)
    try:
        return _checkpoint(path)
    except ForeignFile:
        return _weights(path)


def _run(path: Path) -> dict[str, Any]:
    folder = RunFolder(path)
    if not folder.last.exists():
        raise ToolError(f"{path} holds no run: it has no {folder.last.name}")
    (run,) = read_runs([path])
    rates = [number(point.line, "images_per_second") for point in run.steps]
    known = [rate for rate in rates if rate is not None]
    return {
        **_checkpoint(folder.last),
        "kind": "run",
        "best_checkpoint": folder.best if folder.best.exists() else None,
        "log": folder.log,
        "state": run.state,
        "hours": run.hours,
        "history": [_evaluation(point) for point in run.evals],
        "images_per_second": statistics.median(known) if known else None,
    }


def _evaluation(point: Point) -> dict[str, Any]:
    return {key: number(point.line, key) for key in ("epoch", "top1", "top5", "loss")}


def _checkpoint(path: Path) -> dict[str, Any]:
    found = load_checkpoint(path)
    best = found.best
    return {
        "kind": "checkpoint",
        "checkpoint": path,
        "bytes": path.stat().st_size,
        "model": found.config["model"],
        "parameters": _parameters(found.model),
        "classes": len(found.classes),
        "averaged_weights": bool(found.ema),
        "position": asdict(found.position),
        "best": None if best is None else {**asdict(best), "top1": best.top1},
        "recipe": found.config["recipe"]["name"],
        "config": found.config,
        "data": found.data,
        "versions": found.versions,
    }


def _weights(path: Path) -> dict[str, Any]:
    found = read_weights(path)
    return {
        "kind": "weights",
        "file": path,
        "bytes": path.stat().st_size,
        "layout": found.layout,
        "model": found.model,
        "classes": found.classes,
        "parameters": _parameters(found.state),
        "tensors": len(found.state),
        "types": sorted({str(each.dtype).removeprefix("torch.") for each in found.state.values()}),
    }


def _onnx(path: Path) -> dict[str, Any]:
    found = read_onnx(path)
    graph = runtime_library("onnx").load(path, load_external_data=False)
    return {
        "kind": "onnx",
        "file": path,
        "bytes": path.stat().st_size,
        "opset": max(
            (each.version for each in graph.opset_import if not each.domain), default=None
        ),
        "ir_version": graph.ir_version,
        "producer": f"{graph.producer_name} {graph.producer_version}".strip(),
        "nodes": len(graph.graph.node),
        "input": found.input,
        "output": found.output,
        "type": "float16" if found.half else "float32",
        "weights": "float16" if found.half_weights else "float32",
        "batch": found.batch,
        "image_size": found.image_size,
        "resize": found.resize,
        "interpolation": found.interpolation,
        "mean": found.mean,
        "std": found.std,
        "model": found.model,
        "epochs": found.epochs,
        "classes": found.outputs,
        "class_names": None if found.class_names is None else len(found.class_names),
    }


def _parameters(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for name, tensor in state.items() if not name.endswith(_STATISTICS))
