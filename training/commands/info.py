"""`resnet info`: what a checkpoint, a run or a model holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shards.console import PATH, command, emit


@command("info")
@click.argument("path", type=PATH)
def info(path: Path, as_json: bool) -> None:
    """Say what a checkpoint, a run's folder, weights or an ONNX file holds.

    Model, epochs, best result, data, configuration and versions; for a run also its history.
    Made for files of any origin: nothing in them is executed, and no device is used.
    """
    from training.info import describe

    found = describe(path)
    lines = {"weights": _weights_lines, "onnx": _onnx_lines}.get(found["kind"], _checkpoint_lines)
    emit(as_json, found, lines(found))


def _checkpoint_lines(found: dict[str, Any]) -> list[str]:
    best, position, config = found["best"], found["position"], found["config"]
    averaged = ", averaged weights too" if found["averaged_weights"] else ""
    step = f" and {position['step']} steps" if position["step"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    digests = ", ".join(
        f"{split} {str(found['data'].get(split))[:12]}" for split in ("train", "val")
    )
    lines = [
        f"checkpoint  {found['checkpoint']} ({found['bytes'] / 1e6:.1f} MB)",
        f"model       {found['model']}, {found['parameters']:,} parameters{averaged}",
        f"trained     {position['epoch']} of {config['epochs']} epochs{step}",
        f"recipe      {found['recipe']}, {config['image_size']} px, lr {config['lr']}",
        f"batch       {config['global_batch']}",
        f"data        {config['shards']}, {found['classes']} classes ({digests})",
        f"versions    {versions}",
    ]
    if best is not None:
        lines.append(
            f"best        top-1 {best['top1']:.2f} % ({best['top1_count']} of {best['samples']}) "
            f"after epoch {best['epoch']}"
            + (", averaged weights" if best["weights"] == "ema" else "")
        )
    if found["kind"] == "run":
        lines.append(f"best file   {found['best_checkpoint']}")
        lines.append(f"metrics     {found['log']}")
        lines.append(f"state       {found['state']}, {found['hours']:.2f} hours")
        if found["images_per_second"] is not None:
            lines.append(f"rate        {found['images_per_second']:,.0f} images/s in training")
    return lines


def _weights_lines(found: dict[str, Any]) -> list[str]:
    return [
        f"weights     {found['file']} ({found['bytes'] / 1e6:.1f} MB), no checkpoint of ours",
        f"layout      {found['layout']}, {found['tensors']} tensors, {', '.join(found['types'])}",
        f"model       {found['model'] or 'unknown'}, {found['parameters']:,} parameters",
        f"classes     {found['classes']}",
    ]


def _onnx_lines(found: dict[str, Any]) -> list[str]:
    batch = "any batch" if found["batch"] is None else f"batch {found['batch']}"
    size = "any size" if found["image_size"] is None else f"{found['image_size']} px"
    return [
        f"ONNX        {found['file']} ({found['bytes'] / 1e6:.1f} MB), by {found['producer']}",
        f"format      opset {found['opset']}, IR version {found['ir_version']}",
        f"input       {found['input']}: {found['type']}, {batch}, {size}",
        f"output      {found['output']}: {found['classes'] or 'any number of'} logits",
        f"model       {found['model'] or 'unknown'}, "
        + (f"{found['class_names']} class names" if found["class_names"] else "no class names"),
        f"resize      short side {found['resize'] or 'unknown'}, {found['interpolation']}",
        f"normalise   mean {found['mean']}, std {found['std']}",
    ]
