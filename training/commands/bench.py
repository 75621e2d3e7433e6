"""`resnet bench`: what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import threads_or_cores
from shards.console import command, counted, emit, showing_progress, table_lines
from training.commands.options import (
    amp_option,
    batch_size_option,
    device_option,
    image_size_option,
    loader_threads_option,
    shards_option,
)
from training.commands.processes import with_index

if TYPE_CHECKING:
    from shards.bench import LoaderBench
    from training.device import AmpRequest, DeviceRequest


@command("loader")
@shards_option
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    default=224,
    show_default=True,
    help="Side of the crop in pixels.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Images a batch.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="To measure each number of threads for.",
)
@click.option(
    "--cards",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Cards of this machine that are to be fed.",
)
@click.option(
    "--images-per-second",
    type=click.FloatRange(min=0, min_open=True),
    default=1125.0,
    show_default=True,
    help="What one card trains on; the default is ResNet-50 with mixed precision on an SDAA card, "
    "as its vendor publishes it.",
)
def bench_loader(
    shards: Path,
    image_size: int,
    batch_size: int,
    seconds: float,
    cards: int,
    images_per_second: float,
    as_json: bool,
) -> None:
    """Say how many images a second this machine can load, and whether that feeds your cards.

    \b
      resnet bench loader --shards /data/shards
      resnet bench loader --shards /data/shards --cards 4 --images-per-second 2500

    Reads the training split as training does (random crops, mirrored, antialiased) and throws the
    batches away: with 1, 2, 4, ... threads, up to one for each core, then by decoding alone. Only
    reads, and needs no card; takes --seconds for each line.

    \b
    Too slow? In the order of what it usually brings:
      smaller pictures   imagenet-prep shard --jpeg reencode --short-side 256
      restart markers    imagenet-prep shard --jpeg restart (the same pixels)
      more cores, or fewer cards a machine
    Far below the decode limit with all threads: other work on this machine, or a disk that is
    slower than the processors. Run it twice: the second time finds the data in memory.
    """
    from shards import bench as benches

    shards = with_index(shards, ("train",))
    options = benches.BenchOptions(image_size=image_size, batch_size=batch_size, seconds=seconds)
    with showing_progress() as progress:
        found = benches.bench_loader(shards / "train", options, progress)
    wanted = cards * images_per_second
    cores = found.cores_for(wanted)
    demand = {
        "cards": cards,
        "images_per_second_a_card": images_per_second,
        "images_per_second": wanted,
        "cores": cores,
        "enough": found.images_per_second >= wanted,
    }
    data = {**vars(found), "images_per_second": found.images_per_second, "wanted": demand}
    emit(as_json, data, [*_bench_lines(found), _demand_line(found, cards, images_per_second)])


def _bench_lines(found: LoaderBench) -> list[str]:
    one = found.points[0].images_per_second
    rows = [
        (each.threads, round(each.images_per_second), f"{each.images_per_second / one:.2f}x")
        for each in found.points
    ]
    total = sum(found.ways.values())
    shares = (f"{count / total:.1%} {_WAYS[way]}" for way, count in found.ways.items() if count)
    what = (
        f"{found.split}: {found.images:,} images; crops of {found.image_size} pixels in batches "
        f"of {found.batch_size}; {counted(found.cores, 'core')}"
    )
    limit = (
        f"decode limit: {found.decode_limit:,.0f} images/s with {counted(found.cores, 'thread')} "
        "that read and decode what the crops need, without resizing and batches"
    )
    table = table_lines(["threads", "images/s", "of one thread"], rows)
    return [what, *table, limit, f"pictures: {', '.join(shares)}"]


_WAYS = {
    "cut": "cut at restart markers",
    "shortened": "decoded down to the crop's last row",
    "whole": "decoded whole",
    "pillow": "decoded by Pillow",
}


def _demand_line(found: LoaderBench, cards: int, a_card: float) -> str:
    wanted = cards * a_card
    cores, here = found.cores_for(wanted), counted(found.cores, "core")
    if found.images_per_second >= wanted:
        verdict = f"this machine has that: {cores:,} of its {here} would do"
    else:
        verdict = (
            f"this machine's {here} load {found.images_per_second / wanted:.0%} of it; "
            f"it takes {counted(cores, 'core')} like these"
        )
    return (
        f"{counted(cards, 'card')} at {a_card:,.0f} images/s "
        f"{'wants' if cards == 1 else 'want'} {wanted:,.0f} images/s: {verdict}"
    )


_bench_model = click.option(
    "--model", default="resnet50", show_default=True, help="resnet18, 34, 50, 101, 152."
)


@command("model")
@_bench_model
@click.option(
    "--batch-sizes",
    default="16,32,64,128",
    show_default=True,
    help="Images a step of one device, separated by commas.",
)
@click.option(
    "--image-size", type=click.IntRange(min=32), default=224, show_default=True, help="Pixels."
)
@click.option(
    "--amp",
    type=click.Choice(["off", "fp16", "bf16"]),
    help="Precision.  [default: each that the device computes in]",
)
@device_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="To measure each line for.",
)
def bench_model(
    model: str,
    batch_sizes: str,
    image_size: int,
    amp: AmpRequest | None,
    device: DeviceRequest,
    seconds: float,
    as_json: bool,
) -> None:
    """Say how many images a second one device trains on when nothing has to be loaded.

    Whole training steps on made-up pictures that lie on the device, by batch size, precision and
    memory format: what to give as --batch-size and --amp to `resnet train`, and the most that it
    can reach. On SDAA a card has four devices.
    """
    from training.bench import bench_model as run

    with showing_progress() as progress:
        found = run(
            model,
            batch_sizes=_sizes(batch_sizes),
            image_size=image_size,
            amp=amp,
            device=device,
            seconds=seconds,
            progress=progress,
        )
    rows = [
        (
            point.kind.precision,
            "channels last" if point.kind.channels_last else "channels first",
            point.kind.batch_size,
            _or(point.images_per_second, "out of memory"),
            "" if point.peak_memory is None else f"{point.peak_memory / 1e9:.2f} GB",
        )
        for point in found.points
    ]
    what = f"{model} at {image_size} pixels on {found.device} ({found.device_name})"
    table = table_lines(["precision", "memory format", "batch", "images/s", "peak memory"], rows)
    points = [{**vars(point), "kind": vars(point.kind)} for point in found.points]
    emit(as_json, {**vars(found), "points": points}, [what, *table])


def _sizes(text: str) -> list[int]:
    """Batch sizes of an option."""
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is not a list of numbers as 32,64,128")
    return sizes


def _or(rate: float | None, otherwise: str) -> str:
    return otherwise if rate is None else f"{rate:,.1f}"


@command("train")
@shards_option
@_bench_model
@click.option("--recipe", default="seed", show_default=True, help="Hyperparameters to start from.")
@batch_size_option
@image_size_option
@device_option
@amp_option
@loader_threads_option
@click.option(
    "--steps", type=click.IntRange(min=10), default=60, show_default=True, help="To train, twice."
)
def bench_train(
    shards: Path,
    model: str,
    recipe: str,
    batch_size: int | None,
    image_size: int | None,
    device: DeviceRequest,
    amp: AmpRequest | None,
    workers: int | None,
    steps: int,
    as_json: bool,
) -> None:
    """Say what limits training on one device of this machine: the device or the loader.

    Trains on made-up pictures, then on yours, then only loads yours, with one process and all
    cores, and says how many cores a card would need. Nothing is kept.
    """
    from training.bench import bench_train as run

    indexed = with_index(shards, ("train", "val"))
    with showing_progress() as progress:
        found = run(
            indexed,
            model=model,
            recipe=recipe,
            batch_size=batch_size,
            image_size=image_size,
            amp=amp or "auto",
            device=device,
            threads=threads_or_cores(workers),
            steps=steps,
            progress=progress,
        )
    rows = [
        ("training on made-up pictures", f"{found.synthetic:,.1f}"),
        (f"loading with {counted(found.cores, 'core')}", f"{found.loader:,.1f}"),
        ("training on yours", f"{found.whole:,.1f}"),
    ]
    what = (
        f"{model}, batch {found.batch_size}, {found.image_size} pixels, {found.precision} on "
        f"{found.device} ({found.device_name})"
    )
    verdict = (
        f"the {found.bound} is the limit; training waited for the loader {found.wait_share:.1%} of "
        f"the time; a card's {counted(found.processes_per_card, 'device')} would take "
        f"{counted(found.cores_a_card, 'core')} like these to load"
    )
    data = {**vars(found), "bound": found.bound, "cores_a_card": found.cores_a_card}
    emit(as_json, data, [what, *table_lines(["", "images/s"], rows), verdict])


@click.group("bench", commands=(bench_loader, bench_model, bench_train))
def bench() -> None:
    """Measure this machine, on your own data."""
