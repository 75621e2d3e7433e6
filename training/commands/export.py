"""`resnet export`: models as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import threads_or_cores
from shards.console import PATH, command, emit, first_ten
from training.commands.processes import with_index

if TYPE_CHECKING:
    from training.export import ExportReport


@command("export")
@click.argument("model", type=PATH)
@click.option("--out", type=PATH, required=True, help="The file to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "state-dict", "safetensors"]),
    help="[default: by --out: .pt and .pth are a state dict, .safetensors, else onnx]",
)
@click.option("--opset", type=int, default=12, show_default=True, help="ONNX: 9 to 20.")
@click.option("--batch", type=int, default=1, show_default=True, help="ONNX: fixed batch size.")
@click.option("--dynamic-batch", is_flag=True, help="ONNX: leave the batch size open.")
@click.option("--fp16", is_flag=True, help="ONNX: float16 weights, input and output.")
@click.option("--keep-io-types", is_flag=True, help="With --fp16: float32 input and output.")
@click.option("--input-name", default="input", show_default=True, help="ONNX: name of the input.")
@click.option(
    "--ema/--no-ema",
    default=None,
    help="Averaged weights, or those that were trained.  [default: what the best result was "
    "measured with]",
)
@click.option("--model", "network", help="Network of weights that do not tell it: resnet50, ...")
@click.option("--image-size", type=int, help="Side of the pictures.  [default: as evaluated]")
@click.option(
    "--shards", type=PATH, help="ONNX: compare with torch on images of DIR/val, not on noise."
)
@click.option(
    "--images", type=click.IntRange(min=1), default=64, show_default=True, help="So many of them."
)
def export(
    model: Path,
    out: Path,
    form: str | None,
    opset: int,
    batch: int,
    dynamic_batch: bool,
    fp16: bool,
    keep_io_types: bool,
    input_name: str,
    ema: bool | None,
    network: str | None,
    image_size: int | None,
    shards: Path | None,
    images: int,
    as_json: bool,
) -> None:
    """Write MODEL for other programs: as ONNX, a state dict of torch, or safetensors.

    \b
      resnet export runs/r50/best.pt --out r50.onnx --shards /data/shards
      resnet export runs/r50/best.pt --out r50.onnx --fp16 --dynamic-batch
      resnet export runs/r50/best.pt --out r50.safetensors

    MODEL is a checkpoint, or weights of torchvision, timm or the vendor's trainer. ONNX takes
    normalised RGB (batch, 3, S, S) as `input` and gives logits as `output`, batch norm folded in,
    in one file that the vendor's engine reads; before it appears onnxruntime and torch must agree.
    Weights have torchvision's names. Class names, normalisation, resize and crop are in the
    metadata of ONNX and safetensors. Needs the extra `export`.
    """
    from shards.durable import check_writable
    from shards.errors import UsageError
    from training.export import OnnxOptions, export_onnx
    from training.export_weights import export_weights, format_of
    from training.results.saved import View, open_saved

    chosen = format_of(out) if form is None else form
    options = OnnxOptions(
        opset=opset,
        batch=batch,
        dynamic_batch=dynamic_batch,
        fp16=fp16,
        keep_io_types=keep_io_types,
        input_name=input_name,
    )
    if chosen == "onnx":
        options.check(image_size)
    elif options != OnnxOptions() or shards is not None:
        raise UsageError(
            "--opset, --batch, --dynamic-batch, --fp16, --keep-io-types, --input-name and --shards "
            f"are for ONNX, not for {chosen}; leave them out, or give --format onnx"
        )
    check_writable(out, besides=[model] if shards is None else [model, shards / "val"])
    if shards is not None:
        shards = with_index(shards, ("val",))
    saved = open_saved(model, view=View(image_size=image_size), ema=ema, model=network)
    if saved.onnx is not None:
        raise UsageError(f"{model} is ONNX already; give the checkpoint that it was made from")
    if chosen == "onnx":
        written = export_onnx(
            saved,
            out,
            options=options,
            split=None if shards is None else shards / "val",
            images=images,
            threads=threads_or_cores(None),
        )
        emit(as_json, vars(written), _export_lines(written))
        return
    weights = export_weights(saved, out, "safetensors" if chosen == "safetensors" else "state-dict")
    line = f"{out}: {weights.said}, {weights.tensors} tensors, {weights.bytes / 1e6:.1f} MB"
    emit(as_json, vars(weights), [line])


def _export_lines(written: ExportReport) -> list[str]:
    batch = "any batch" if written.batch is None else f"batch {written.batch}"
    lines = [
        f"{written.out}: {written.said}, {written.image_size} px, {batch}, {written.input_type} in",
        f"opset {written.opset}, IR version {written.ir_version}, {written.bytes / 1e6:.1f} MB",
    ]
    found = written.agreement
    if found is None:
        return [*lines, "not compared with torch: onnxruntime is not installed"]
    what = "images" if found.real else "pictures of noise (give --shards for real ones)"
    lines.append(
        f"onnxruntime against torch: {found.same_top1} of {found.pictures} {what} with equal "
        f"top-1, largest difference of a logit {found.largest_difference:.2g} of "
        f"{found.largest_logit:.3g}"
    )
    return lines + first_ten("with another top-1", found.different)
