"""Options of commands that run a saved model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from shards.console import Function
from training.commands.options import amp_option, device_option, loader_threads_option

if TYPE_CHECKING:
    from training.results.evaluation import How

engine_option = click.option(
    "--engine",
    "engines",
    type=click.Choice(["auto", "torch", "onnxruntime", "teco"]),
    multiple=True,
    help="What computes: auto is onnxruntime for .onnx and torch for all else; teco is the "
    "vendor's inference engine. Of two models each may have its own: give it twice.",
)


def model_options(function: Function) -> Function:
    """How a saved model is asked, and on what; None is as it was trained."""
    options = (
        click.option(
            "--image-size", "--crop", type=int, help="Crop in pixels.  [default: its own]"
        ),
        click.option(
            "--resize",
            type=int,
            help="Short side before the crop.  [default: its own, as 256 of 224]",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(["bilinear", "bicubic"]),
            help="Of the resize, antialiased.  [default: its own, else bilinear]",
        ),
        click.option(
            "--ema/--no-ema",
            default=None,
            help="Averaged weights of a checkpoint, or not.  [default: where it has any]",
        ),
        click.option(
            "--model", "network", help="Network of weights that do not tell it: resnet50."
        ),
        device_option,
        amp_option,
        loader_threads_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


def how_to_evaluate(threads: int, batch_size: int | None, options: Mapping[str, Any]) -> How:
    """What `model_options` took."""
    from training.results.evaluation import How
    from training.results.saved import View

    names = ("image_size", "resize", "interpolation")
    return How(
        threads=threads,
        device=options["device"],
        batch_size=batch_size,
        amp=options["amp"],
        view=View(**{name: options[name] for name in names}),
        ema=options["ema"],
        model=options["network"],
    )


def finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None
