"""What a checkpoint or a run's folder holds, without a device and without running anything."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shards.errors import ToolError
from training.checkpoint import load_checkpoint
from training.run_folder import RunFolder

# What batch norm counts beside its parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def describe(path: Path) -> dict[str, Any]:
    """Model, position, best result, configuration, data and versions of a checkpoint.

    For a run's folder that is its last checkpoint, with the history of its log: one object an
    epoch, and the images per second over all processes of each log interval's median.
    Raises ToolError where there is neither.
    """
    if not path.is_dir():
        return _checkpoint(path)
    folder = RunFolder(path)
    if not folder.last.exists():
        raise ToolError(f"{path} holds no run: it has no {folder.last.name}")
    lines = [json.loads(line) for line in folder.log.read_bytes().splitlines()]
    rates = sorted(line["images_per_second"] for line in lines if line["kind"] == "step")
    return {
        **_checkpoint(folder.last),
        "best_checkpoint": folder.best if folder.best.exists() else None,
        "log": folder.log,
        "history": [
            {key: line[key] for key in ("epoch", "top1", "top5", "loss")}
            for line in lines
            if line["kind"] == "eval"
        ],
        "images_per_second": rates[len(rates) // 2] if rates else None,
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    found = load_checkpoint(path)
    best = found.best
    return {
        "checkpoint": path,
        "bytes": path.stat().st_size,
        "model": found.config["model"],
        "parameters": sum(
            tensor.numel() for name, tensor in found.model.items() if not name.endswith(_STATISTICS)
        ),
        "classes": len(found.classes),
        "position": asdict(found.position),
        "best": None if best is None else {**asdict(best), "top1": best.top1},
        "config": found.config,
        "data": found.data,
        "versions": found.versions,
    }
