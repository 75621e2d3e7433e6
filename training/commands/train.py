"""`resnet train`, with the command lines of the vendor's launcher as well."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from shards.console import (
    PATH,
    LiveProgress,
    command,
    counted,
    emit,
    refuse_strangers,
    say,
    showing_progress,
)
from training.commands.base import StoppableCommand, speaks_first
from training.commands.options import (
    affinity_option,
    amp_option,
    batch_size_option,
    cards_option,
    device_option,
    image_size_option,
    join_timeout_option,
    loader_threads_option,
    master_option,
    node_rank_option,
    nodes_option,
    nproc_option,
)
from training.commands.processes import launch_if_several, take_place, with_index
from training.commands.settings import settings_options

if TYPE_CHECKING:
    from shards.progress import Progress
    from training.affinity import Affinity
    from training.config import OnNonfinite, Stem
    from training.device import AmpRequest, DeviceRequest


class _TrainCommand(StoppableCommand):
    """`resnet train`, which takes the command lines of the vendor's launcher as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell completes a line that is not whole yet
            return super().parse_args(ctx, args)
        refuse_strangers()
        from shards.errors import UsageError
        from training.vendor import translate

        try:
            translated, speaks = translate(args), speaks_first()
        except UsageError as error:
            self.report(error)
            ctx.exit(error.exit_code)
        if translated.notices and speaks:
            for notice in translated.notices:
                say(f"note: {notice}")
        return super().parse_args(ctx, translated.argv)


@command("train", _TrainCommand)
@click.option(
    "--shards",
    required=True,
    help="Folder of `imagenet-prep shard` or `imagenet-prep index`: train/ and val/; or one with "
    "class folders, which are indexed once. With --steps-per-epoch shards without an index: "
    "'DIR/x-{000..099}.tar', 'pipe:COMMAND', -.",
)
@click.option(
    "--steps-per-epoch",
    type=int,
    help="Train from shards without an index, inexactly: they are drawn with replacement, and so "
    "many steps are an epoch.",
)
@click.option(
    "--val",
    type=PATH,
    help="With --steps-per-epoch: the folder that has val/, for evaluation and the classes.",
)
@click.option(
    "--label-field",
    help="With --steps-per-epoch: the label's field in each sample's .json.  [default: .cls]",
)
@click.option("--out", type=PATH, help="The run's folder.  [default: runs/MODEL]")
@click.option("--model", default="resnet50", show_default=True, help="resnet18, 34, 50, 101, 152.")
@click.option(
    "--stem",
    type=click.Choice(["imagenet", "small"]),
    default="imagenet",
    show_default=True,
    help="How the network begins; small is for pictures of about 32 pixels.",
)
@click.option(
    "--init-weights",
    type=PATH,
    metavar="FILE",
    help="Begin with weights of torchvision, timm, the vendor's trainer or another run.",
)
@click.option(
    "--recipe",
    default="seed",
    show_default=True,
    help="Values to start from; `resnet recipes` shows them.",
)
@settings_options
@click.option("--epochs", type=int, help="[default: the recipe's, 50 in seed]")
@batch_size_option
@click.option(
    "--global-batch",
    type=int,
    help="Samples a step over all processes, however many; instead of --batch-size.",
)
@click.option(
    "--lr",
    type=float,
    help="Peak learning rate for the global batch, never rescaled.  [default: the recipe's, 0.256 "
    "x global batch / 256 in seed]",
)
@image_size_option
@device_option
@amp_option
@cards_option
@nproc_option
@nodes_option
@node_rank_option
@master_option
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    help="When a process is killed or crashes, start all of them again from the last checkpoint, "
    "so many times.  [default: 3 with several processes]",
)
@join_timeout_option
@click.option(
    "--grace",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=120.0,
    show_default=True,
    help="Time that several processes have to save and end after SIGTERM, SIGUSR1 or SIGHUP.",
)
@affinity_option
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    help="auto goes on from the run's last whole checkpoint; never; or a checkpoint's path.",
)
@click.option("--seed", type=int, default=1234, show_default=True, help="Of order and weights.")
@loader_threads_option
@click.option("--max-steps", type=int, help="Stop, saved, after so many steps of the run.")
@click.option("--save-steps", type=int, help="Also save every so many steps.  [default: epochs]")
@click.option("--save-minutes", type=float, help="Also save whenever so many are over.")
@click.option("--keep", type=int, default=3, show_default=True, help="Checkpoints to keep.")
@click.option("--log-every", type=int, default=20, show_default=True, help="Steps a log line.")
@click.option(
    "--max-time",
    metavar="MINUTES|HH:MM:SS",
    help="Stop, saved, after that long, with exit code 75; the same command goes on.",
)
@click.option("--patience", type=int, help="End after so many epochs without a better top-1.")
@click.option(
    "--accumulate",
    type=int,
    default=1,
    show_default=True,
    help="Compute each process's share of a step in so many parts, to need less memory.",
)
@click.option("--compile", is_flag=True, help="Compile the network (torch.compile).")
@click.option(
    "--deterministic", is_flag=True, help="The same bits again on the same device; slower."
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["abort", "skip", "rollback"]),
    default="abort",
    show_default=True,
    help="When the loss is no number: stop; skip such steps (waits for the device in each step); "
    "or go back to the last checkpoint and leave out the steps since the last log line.",
)
@click.option("--tensorboard", is_flag=True, help="Write OUT/tensorboard too (extra tensorboard).")
@click.option("--profile", type=PATH, metavar="DIR", help="Write a torch.profiler trace there.")
def train(
    shards: str,
    steps_per_epoch: int | None,
    val: Path | None,
    label_field: str | None,
    out: Path | None,
    model: str,
    stem: Stem,
    init_weights: Path | None,
    recipe: str,
    config_file: dict[str, object],
    epochs: int | None,
    batch_size: int | None,
    global_batch: int | None,
    lr: float | None,
    image_size: int | None,
    device: DeviceRequest,
    amp: AmpRequest | None,
    cards: int | None,
    nproc: int | None,
    nodes: int,
    node_rank: int,
    master: str | None,
    max_restarts: int | None,
    join_timeout: float,
    grace: float,
    affinity: Affinity,
    resume: str,
    seed: int,
    workers: int | None,
    max_steps: int | None,
    save_steps: int | None,
    save_minutes: float | None,
    keep: int,
    log_every: int,
    max_time: str | None,
    patience: int | None,
    accumulate: int,
    compile: bool,  # noqa: A002 - as the option is called
    deterministic: bool,
    on_nonfinite: OnNonfinite,
    tensorboard: bool,
    profile: Path | None,
    as_json: bool,
    **settings: object,
) -> None:
    """Train a ResNet from shards; evaluate exactly after every epoch.

    \b
    One card (4 SPAs: 4 processes)   resnet train --shards DIR --cards 1
    Four, eight cards                resnet train --shards DIR --cards 4
    Two machines                     on each, with its own number K:
        resnet train --shards DIR --cards 4 --nodes 2 --node-rank K --master HOST:29500

    The run's folder gets checkpoints, best.pt, last.pt and log.jsonl (one object a line). Killed
    or stopped, the same command goes on with exactly the samples that are left. SIGTERM,
    SIGUSR1 and SIGHUP stop it after a step, saved, with exit code 75; a second one ends it at once.

    Options of the vendor's run_resnet.py (--model_name, --dataset_path, ...) are taken as well.
    """
    from training.config import minutes_of, resolve
    from training.place import inside_launch
    from training.processes import processes_here, world_size

    signals = click.get_current_context().obj
    share = take_place(affinity, join_timeout)
    processes = processes_here(device, cards, nproc)
    folder = _folder_to_train_on(shards, steps_per_epoch, val, label_field)
    config = resolve(
        shards=folder,
        stream=None if steps_per_epoch is None else shards,
        steps_per_epoch=steps_per_epoch,
        label_field=label_field,
        out=out or Path("runs") / model,
        world=world_size(processes, nodes),
        threads=workers or share,
        model=model,
        stem=stem,
        init_weights=init_weights,
        recipe=recipe,
        settings=config_file | {name: each for name, each in settings.items() if each is not None},
        epochs=epochs,
        **_one_batch(batch_size=batch_size, global_batch=global_batch),
        lr=lr,
        image_size=image_size,
        amp=amp or "auto",
        seed=seed,
        device=device,
        max_steps=max_steps,
        log_every=log_every,
        save_steps=save_steps,
        save_minutes=save_minutes,
        max_minutes=None if max_time is None else minutes_of(max_time),
        patience=patience,
        accumulate=accumulate,
        compile=compile,
        deterministic=deterministic,
        on_nonfinite=on_nonfinite,
        tensorboard=tensorboard,
        profile=profile,
        keep=keep,
        resume="auto" if resume == "auto" else "never" if resume == "never" else Path(resume),
    )
    splits = ("train", "val") if steps_per_epoch is None else ("val",)
    with contextlib.nullcontext() if inside_launch() else signals.ending_at_once():
        config = dataclasses.replace(config, shards=with_index(folder, splits))
    launch_if_several(
        processes,
        nodes=nodes,
        node_rank=node_rank,
        master=master,
        max_restarts=max_restarts,
        join_seconds=join_timeout,
        grace=grace,
        signals=signals,
    )
    from training.trainer import train as run

    with showing_progress() as progress:
        record = partial(_show, progress)
        result = run(config, progress=progress, on_record=record, signals=signals)
    if not result.is_main:
        return
    lines = [f"{result.last_checkpoint}: {result.epoch} of {config.epochs} epochs, {result.reason}"]
    if result.best is not None:
        lines.append(
            f"{result.best_checkpoint}: top-1 {result.best.top1:.2f} % (epoch {result.best.epoch})"
        )
    emit(as_json, vars(result), [*lines, f"{result.log}: metrics, one JSON object a line"])


def _one_batch(**sizes: int | None) -> dict[str, int | None]:
    """The batch's size as the command line says it, before another one in the file of --config."""
    source_of = click.get_current_context().get_parameter_source
    typed = {name for name in sizes if source_of(name) is ParameterSource.COMMANDLINE}
    return {name: size for name, size in sizes.items() if not typed or name in typed}


def _folder_to_train_on(
    shards: str, steps_per_epoch: int | None, val: Path | None, label_field: str | None
) -> Path:
    """The folder of the splits that have an index; of shards without one, that of val/."""
    from shards.errors import UsageError

    if steps_per_epoch is not None:
        if val is None:
            raise UsageError(
                "shards without an index need --val DIR, a folder of `imagenet-prep shard` or "
                "`imagenet-prep index` with val/: it names the classes, and evaluation is exact"
            )
        return val
    if val is not None or label_field is not None:
        raise UsageError(
            "--val and --label-field are for --steps-per-epoch; a folder of shards has its val/ "
            "and its labels"
        )
    if not Path(shards).is_dir() and (shards == "-" or shards.endswith(".tar") or ":" in shards):
        raise UsageError(
            f"{shards} has no index: `imagenet-prep index '{shards}' --out DIR` makes one, for "
            "--shards DIR, or give --steps-per-epoch and --val to train without, inexactly"
        )
    return Path(shards)


def _show(progress: Progress, record: dict[str, Any]) -> None:
    """Tell what a reader of the log would look for: the plan, and each epoch's result."""
    if record["kind"] == "step" and isinstance(progress, LiveProgress):
        progress.beside = f", loss {record['loss']:.4f}, lr {record['lr']:.4g}"
    if record["kind"] == "start":
        say(
            f"device: {record['device']} ({record['device_reason']}), {record['precision']}; "
            f"{record['device_name']} of {record['host']}, {counted(record['cores'], 'core')} "
            "a process"
        )
        if record["resumed_from"] is not None:
            say(f"goes on from: {record['resumed_from']}")
        for name, value in record["plan"].items():
            if value is not None:
                say(f"{name.replace('_', ' ')}: {_plain(value)}")
    if record["kind"] == "eval":
        averaged = record["ema"]
        say(
            f"epoch {record['epoch']}: top-1 {record['top1']:.2f} %, top-5 {record['top5']:.2f} %, "
            f"loss {record['loss']:.4f}"
            + (f"; of the averaged weights {averaged['top1']:.2f} %" if averaged else "")
            + (", the best so far" if record["best"] else "")
        )


def _plain(value: object) -> str:
    """A value of the plan: the corners of the learning rate as `epoch 6: 0.032`."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return ", ".join(f"epoch {epoch}: {lr:.4g}" for epoch, lr in value)
    return str(value)
