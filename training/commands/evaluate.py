"""`resnet eval`: exact results of one model, or of two side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.console import PATH, command, counted, emit, showing_progress, speed, table_lines
from training.commands.base import RankCommand
from training.commands.models import engine_option, finite, how_to_evaluate, model_options
from training.commands.options import (
    affinity_option,
    cards_option,
    join_timeout_option,
    nproc_option,
    shards_option,
)
from training.commands.processes import launch_if_several, take_place, with_index

if TYPE_CHECKING:
    from training.affinity import Affinity
    from training.engines import EngineRequest
    from training.results.agreement import Agreement
    from training.results.by_class import ClassResult
    from training.results.evaluation import Result, Results

_WORST = 10  # classes shown by `resnet eval --per-class`

_DIFFERING = 20  # images shown where two models differ


@command("eval", RankCommand)
@click.argument("models", metavar="MODEL [OTHER]", type=PATH, nargs=-1, required=True)
@shards_option
@engine_option
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Samples a process.  [default: as trained, 64]"
)
@model_options
@cards_option
@nproc_option
@join_timeout_option
@affinity_option
@click.option(
    "--per-class", is_flag=True, help="Show the worst classes and what they are taken for."
)
@click.option(
    "--save-predictions",
    type=PATH,
    metavar="FILE",
    help="Write key, label and the best five classes of every image, a JSON line each.",
)
def evaluate(
    models: tuple[Path, ...],
    shards: Path,
    engines: tuple[EngineRequest, ...],
    batch_size: int | None,
    cards: int | None,
    nproc: int | None,
    join_timeout: float,
    affinity: Affinity,
    per_class: bool,
    save_predictions: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate MODEL on every image of DIR/val, exactly; or compare it with OTHER.

    \b
      resnet eval runs/r50/best.pt --shards /data/shards
      resnet eval resnet50.pth --shards /data/shards --per-class
      resnet eval r50.onnx runs/r50/best.pt --shards /data/shards

    MODEL is a checkpoint of `resnet train`, a state dict of torchvision, timm or the vendor's
    trainer (.pt, .pth, .safetensors), or an ONNX file. Each image is counted once at any number of
    processes: nothing is padded, nothing dropped.

    Two models are asked about the same pictures. Exits with 1 where their top-1 differs by more
    than the vendor accepts: 1 % of it, or 0.1 % between its engine and onnxruntime.
    """
    from shards.errors import UsageError
    from training.processes import processes_here

    share = take_place(affinity, join_timeout)
    if len(models) > 2 or len(engines) > len(models):
        raise UsageError(
            "eval takes one model, or two to compare, and at most one --engine for each"
        )
    if save_predictions is not None and len(models) > 1:
        raise UsageError("--save-predictions is for one model; evaluate each by itself")
    processes = processes_here(options["device"], cards, nproc or (None if cards else 1))
    shards = with_index(shards, ("val",))
    launch_if_several(processes, join_seconds=join_timeout)
    from shards.durable import check_writable
    from training.results.evaluation import evaluate_saved
    from training.results.predictions import write_predictions

    if save_predictions is not None:
        check_writable(save_predictions, besides=[*models, shards / "val"])
    auto: EngineRequest = "auto"
    requests = [*engines, *[auto] * len(models)]
    with showing_progress() as progress:
        results = evaluate_saved(
            list(zip(models, requests, strict=False)),
            shards / "val",
            how_to_evaluate(options["workers"] or share, batch_size, options),
            keep_answers=per_class or save_predictions is not None,
            progress=progress,
        )
    if not results.world.is_main:
        return
    if save_predictions is not None:
        write_predictions(save_predictions, results, results.models[0])
    _show_results(results, save_predictions, per_class=per_class, as_json=as_json)


def _show_results(
    results: Results, predictions: Path | None, *, per_class: bool, as_json: bool
) -> None:
    """What an evaluation found; exits with 1 where two models do not agree."""
    from training.results.agreement import agreement_of
    from training.results.by_class import by_class

    first = results.models[0]
    data: dict[str, object] = {
        **_result_data(first),
        "image_size": results.transform.image_size,
        "short_side": results.transform.resize,
        "interpolation": results.transform.interpolation,
        "device": str(results.device.torch_device),
        "device_reason": results.device.reason,
        "world": results.world.size,
        **_spent_data(results),
    }
    lines = [line for each in results.models for line in _result_lines(each)]
    lines.append(_spent_line(results))
    if per_class and first.answers is not None:
        found = by_class(first.answers, results.labels, results.classes, results.class_names)
        data["per_class"] = [{**vars(each), "top1": each.top1, "top5": each.top5} for each in found]
        lines += ["", *_class_lines(found, results.class_names)]
    if predictions is not None:
        data["predictions"] = predictions
        lines.append(f"{predictions}: the answers, a JSON line an image")
    agreement = agreement_of(results) if len(results.models) > 1 else None
    if agreement is not None:
        data["other"] = _result_data(results.models[1])
        data["agreement"] = {
            **vars(agreement),
            "error": finite(agreement.error),
            "within": agreement.within,
        }
        lines += ["", *_agreement_lines(results, agreement)]
    emit(as_json, data, lines)
    if agreement is not None and not agreement.within:
        click.get_current_context().exit(1)


def _result_data(result: Result) -> dict[str, object]:
    """One model's evaluation, and what it is, for JSON."""
    saved, found = result.saved, result.evaluation
    return {
        "evaluation": {
            **vars(found),
            "loss": finite(found.loss),
            "top1": found.top1,
            "top5": found.top5,
        },
        "path": saved.path,
        "form": saved.form,
        "what": saved.said,
        "model": saved.model,
        "epoch": saved.epoch,
        "engine": result.engine,
        "precision": result.precision,
    }


def _result_lines(result: Result) -> Iterator[str]:
    found = result.evaluation
    yield (
        f"{result.saved.path}: top-1 {found.top1:.2f} % ({found.top1_count} of {found.samples}), "
        f"top-5 {found.top5:.2f} %, loss {found.loss:.4f}"
    )
    yield f"  {result.saved.said}; {result.engine}, {result.precision}"


def _spent_data(results: Results) -> dict[str, object]:
    spent = results.spent
    return {
        **vars(spent),
        "device_seconds": spent.device_seconds,
        "images_per_second": len(results.labels) / spent.seconds,
    }


def _spent_line(results: Results) -> str:
    """Where the time went: of this process, where there are several."""
    spent, transform = results.spent, results.transform
    return (
        f"  {transform.image_size} px of {transform.resize} px ({transform.interpolation}) on "
        f"{results.device.torch_device}; {speed(len(results.labels), spent.seconds)}: "
        f"{spent.device_seconds:.1f} s computing, {spent.wait_seconds:.1f} s waiting for pictures "
        f"({spent.decode_seconds:.1f} s of decoding by {counted(spent.threads, 'thread')})"
    )


def _class_lines(found: Sequence[ClassResult], names: Sequence[str]) -> list[str]:
    """The worst classes and what each is taken for most."""
    rows = [
        (
            each.name,
            f"{each.top1:.1f} %",
            f"{each.top5:.1f} %",
            each.samples,
            ", ".join(f"{names[other]} {times}" for other, times in each.confused[:3]),
        )
        for each in found[:_WORST]
    ]
    title = f"the worst {len(rows)} of {len(found):,} classes (--json has all):"
    return [title, *table_lines(("class", "top-1", "top-5", "images", "taken for"), rows)]


def _agreement_lines(results: Results, agreement: Agreement) -> list[str]:
    reference = results.models[agreement.reference]
    other = results.models[1 - agreement.reference]
    names = results.class_names
    rows = [
        (
            each.key,
            *(names[index] for index in (each.label, each.first, each.second)),
            _difference(each.logit),
        )
        for each in agreement.differing[:_DIFFERING]
    ]
    kept = "within" if agreement.within else "OUT OF"
    share = 100 * agreement.same_top1 / agreement.samples
    largest = _difference(agreement.largest_difference)
    lines = [
        (
            f"equal top-1: {agreement.same_top1} of {agreement.samples} images ({share:.2f} %), "
            f"largest difference of a logit {largest}"
        ),
        (
            f"{other.engine} against {reference.engine}: top-1 differs by {agreement.error:.3%} of "
            f"it, {kept} the {agreement.allowed:.1%} that the vendor accepts"
        ),
    ]
    if rows:
        lines += ["", *table_lines(("differs", "is", "first", "second", "by"), rows)]
    if len(agreement.differing) > len(rows):
        lines.append(f"and {len(agreement.differing) - len(rows)} more (--json has all)")
    return lines


def _difference(logits: float | None) -> str:
    return "not finite" if logits is None else f"{logits:.2g}"
