"""The two commands, imagenet-prep and resnet: options in, one call, the result out.

Only this module knows click and rich. Every command imports its work inside the function, so
`--help` needs neither torch nor NumPy. The result goes to stdout (`--json`: one object), all
else to stderr. Exit codes: 0 done, 1 a failure or a failed check, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from prep.doctor import Finding
    from shards.errors import ToolError
    from shards.progress import Progress
    from training.device import AmpRequest, DeviceRequest

_REFRESH_SECONDS = 0.1
_INTERRUPTED = 130

Function = TypeVar("Function", bound=Callable[..., Any])


# --- how commands end -------------------------------------------------------------------------


class _Command(click.Command):
    """A command whose foreseeable failures are one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        _refuse_strangers()
        # Broken EXIF makes Pillow warn for images that it reads well.
        warnings.filterwarnings("ignore", module="PIL")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if not _joined_a_launch():
                _say("interrupted; the same command goes on from here")
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            failure = _foreseen(error)
            if failure is None or ctx.meta.get("traceback"):
                raise
            _report(failure)
            ctx.exit(failure.exit_code)


def _refuse_strangers() -> None:
    """Our packages have common names: say so where another distribution's would be imported."""
    ours = Path(__file__).resolve().parent
    for name in ("prep", "shards", "training"):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or [])
        if [Path(place).resolve() for place in places] != [ours / name]:
            _say(
                f"error: the package {name!r} is found at {places[0] if places else 'no place'} "
                f"instead of {ours / name}; install imagenet-resnet into a virtual environment "
                "of its own, without PYTHONPATH"
            )
            sys.exit(1)


def _foreseen(error: Exception) -> ToolError | None:
    """A failure as a sentence and an exit code; None for a programming error."""
    from shards.errors import ToolError

    if isinstance(error, ToolError):
        return error
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        return ToolError(f"{error.filename}: {os.strerror(error.errno)}{_remedy(error.errno)}")
    return None


def _joined_a_launch() -> bool:
    """Whether this process is one of several, whose launcher speaks for them."""
    from training.launch import inside_launch

    return inside_launch()


def _report(failure: ToolError) -> None:
    """Say a failure once: one of several processes hands it to their launcher."""
    from training.launch import report_failure

    if not report_failure(failure):
        _say(f"error: {failure}")


def _remedy(code: int) -> str:
    remedies = {
        errno.ENOSPC: "; make room and run the same command again, what is whole stays",
        errno.EDQUOT: "; make room in your quota and run the same command again",
        errno.EACCES: "; check its owner and permissions",
        errno.EPERM: "; check its owner and permissions",
        errno.EROFS: "; choose a folder that can be written",
        errno.EIO: "; the disk or its connection is failing, what is whole stays",
    }
    return remedies.get(code, "")


def _say(message: str) -> None:
    click.echo(message, err=True)


def _emit(as_json: bool, data: Mapping[str, object], lines: list[str]) -> None:
    """Print a result: one JSON object, or lines for people."""
    click.echo(json.dumps(data, default=_primitive) if as_json else "\n".join(lines))


def _primitive(value: object) -> object:
    """What JSON has in the place of a value: an object for a result's parts, else its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def _set_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["traceback"] = value


def _command(group: click.Group, name: str) -> Callable[[Function], click.Command]:
    """Add a command to a group, with the options that every command has."""

    def add(function: Function) -> click.Command:
        json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        traceback_option = click.option(
            "--traceback",
            is_flag=True,
            expose_value=False,
            callback=_set_traceback,
            help="Show the whole traceback of a failure.",
        )
        return group.command(name, cls=_Command)(json_option(traceback_option(function)))

    return add


# --- progress ---------------------------------------------------------------------------------


class _LiveProgress:
    """Progress as one live line on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._unit = ""
        self._done = 0
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> _LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a phase."""
        with self._lock:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(what, total=total, rate="")
            self._unit, self._done = unit, 0
            self._started = self._shown = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count work as done; the display follows ten times a second."""
        from shards.progress import quantity

        with self._lock:
            self._done += amount
            now = time.monotonic()
            if self._task is not None and now - self._shown >= _REFRESH_SECONDS:
                self._shown = now
                rate = quantity(self._done / (now - self._started), self._unit)
                self._live.update(self._task, completed=self._done, rate=f"{rate}/s")

    def note(self, message: str) -> None:
        """Say a line; rich puts what is written to stderr above the display."""
        _say(f"note: {message}")


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Progress for people on a terminal, and for logs elsewhere."""
    from shards.progress import LineProgress

    if not sys.stderr.isatty():
        yield LineProgress(_say)
        return
    with _LiveProgress() as live:
        yield live


def _rate(images: int, seconds: float) -> str:
    return f"{seconds:.1f} s, {images / seconds:,.0f} images/s"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# --- options shared by several commands -------------------------------------------------------

_PATH = click.Path(path_type=Path)
_workers = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that work side by side.  [default: all cores]",
)
_labels = click.option(
    "--labels",
    type=_PATH,
    help="Labels of the validation images: a devkit archive, Kaggle's LOC_val_solution.csv, lines "
    "of `IMAGE-NAME WNID`, or one wnid a line in order of image number.  [default: a devkit "
    "beside the archive, else the built-in list for the official archive]",
)


def _threads(workers: int | None) -> int:
    from shards.parallel import available_cores

    return workers or available_cores()


# --- imagenet-prep ----------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="imagenet-resnet")
def imagenet_prep() -> None:
    """Prepare ImageNet: from the ILSVRC2012 archives to checked WebDataset shards.

    \b
    The usual way, straight from the archives (extraction is optional):
      imagenet-prep shard /data/archives --out /data/shards
      imagenet-prep verify /data/shards
      resnet train --shards /data/shards --model resnet50 --cards 1

    Every command can be stopped at any time; the same command goes on where it ended.
    """


@_command(imagenet_prep, "sample-data")
@click.option("--out", type=_PATH, required=True, help="Folder for the archives.")
@click.option(
    "--classes", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many."
)
@click.option(
    "--train-per-class",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Training images of each class.",
)
@click.option(
    "--val-per-class",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Validation images of each class.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the pictures."
)
def sample_data(
    out: Path, classes: int, train_per_class: int, val_per_class: int, seed: int, as_json: bool
) -> None:
    """Write small archives shaped and named like ILSVRC2012's.

    Train, validation and devkit, with drawn pictures that a network can learn to tell apart:
    enough to try every other command on. The same options give the same bytes.
    """
    from prep.sample_data import write_sample_data

    started = time.perf_counter()
    with _progress() as progress:
        made = write_sample_data(
            out,
            classes=classes,
            train_per_class=train_per_class,
            val_per_class=val_per_class,
            seed=seed,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    images = made.train_images + made.val_images
    rate = _rate(images, seconds) if made.written else "were whole already"
    _emit(
        as_json,
        {"out": out, "images": images, "written": made.written, "seconds": seconds},
        [f"{out}: {images} images in {classes} classes ({rate})"],
    )


@_command(imagenet_prep, "extract")
@click.argument("archives", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help="Folder for train/, val/ and test/.")
@_labels
@click.option("--flat", is_flag=True, help="Leave validation images in one folder.")
@_workers
def extract(
    archives: tuple[Path, ...],
    out: Path,
    labels: Path | None,
    flat: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Extract ILSVRC2012 archives into class folders.

    ARCHIVES are the train, val and test tars, or a folder that holds them. Training images go
    to OUT/train/WNID/, validation images straight to OUT/val/WNID/. The training archive's
    inner tars are read in place: no intermediate files.

    You do not need this to train: `imagenet-prep shard` reads the archives as they are.
    """
    from prep.extract import extract as run
    from prep.sources import find_sources

    with _progress() as progress:
        sources = find_sources(archives, None)
        results = run(
            sources, out, labels=labels, flat=flat, workers=_threads(workers), progress=progress
        )
    lines = []
    for each in results:
        new = each.images - each.images_done_before
        rate = _rate(new, each.seconds) if new else "was whole already"
        lines.append(f"{each.folder}: {each.images} images, {each.bytes / 1e6:,.1f} MB ({rate})")
    _emit(as_json, {"splits": [vars(each) for each in results]}, lines)


@_command(imagenet_prep, "shard")
@click.argument("sources", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help="Folder for train/ and val/.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="This split alone.")
@_labels
@click.option(
    "--classes",
    type=_PATH,
    help="File with one class id a line, in the order of labels.  [default: sorted class names]",
)
@click.option(
    "--samples-per-shard",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Images of a shard.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the shuffle."
)
@_workers
def shard(
    sources: tuple[Path, ...],
    out: Path,
    split: str | None,
    labels: Path | None,
    classes: Path | None,
    samples_per_shard: int,
    seed: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Write WebDataset shards straight from archives or class folders.

    SOURCES are ILSVRC2012's tars, a folder that holds them, or folders of class folders
    (DIR/train/CLASS/*.jpg). Makes OUT/train/ and OUT/val/, each with its shards, an index, a
    manifest and SHA256SUMS. The same images and options give the same bytes, whatever they lie
    in and however many workers write them.
    """
    from prep.build import build_shards
    from prep.sources import find_sources

    with _progress() as progress:
        written = build_shards(
            find_sources(sources, split),
            out,
            labels=labels,
            classes=classes,
            seed=seed,
            samples_per_shard=samples_per_shard,
            workers=_threads(workers),
            progress=progress,
        )
    lines = []
    for each in written:
        rate = _rate(each.images, each.seconds) if each.written else "was whole already"
        lines.append(
            f"{each.folder}: {each.manifest.samples} images in "
            f"{_count(len(each.manifest.shards), 'shard')}, "
            f"{len(each.manifest.classes)} classes ({rate})"
        )
    _emit(
        as_json,
        {
            "splits": [
                {
                    "folder": each.folder,
                    "samples": each.manifest.samples,
                    "shards": len(each.manifest.shards),
                    "written": each.written,
                    "fingerprint": each.manifest.plan["fingerprint"],
                    "content": each.manifest.content,
                    "seconds": each.seconds,
                }
                for each in written
            ],
        },
        lines,
    )


@_command(imagenet_prep, "verify")
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@_workers
def verify(paths: tuple[Path, ...], workers: int | None, as_json: bool) -> None:
    """Check shard folders: every file's size and SHA-256, the index and the sums.

    PATHS are folders that `imagenet-prep shard` made: OUT, or OUT/train. Exits with 1 when
    anything is missing, damaged or altered, and names it.
    """
    from shards.verify import find_splits, verify_shards

    started = time.perf_counter()
    with _progress() as progress:
        reports = [
            verify_shards(folder, workers=_threads(workers), progress=progress)
            for path in paths
            for folder in find_splits(path)
        ]
    findings = [finding for report in reports for finding in report.findings]
    for finding in findings:
        _say(f"damaged: {finding}")
    size = sum(report.bytes for report in reports)
    seconds = time.perf_counter() - started
    rate = f"{seconds:.1f} s, {size / 1e6 / seconds:,.0f} MB/s"
    _emit(
        as_json,
        {
            "splits": [vars(report) for report in reports],
            "ok": not findings,
            "seconds": seconds,
        },
        [
            f"{each.folder}: {each.files} files, {each.samples} samples, "
            + ("all whole" if not each.findings else f"{len(each.findings)} findings")
            for each in reports
        ]
        + [f"{size / 1e6:,.1f} MB in {rate}"],
    )
    if findings:
        sys.exit(1)


@_command(imagenet_prep, "doctor")
@click.argument("path", type=_PATH, required=False)
def prep_doctor(path: Path | None, as_json: bool) -> None:
    """Say what this machine has and lacks, and what PATH's disk has free.

    Every line is ok, a note or a problem, with a remedy. Exits with 1 when there is a problem.
    """
    from prep.doctor import Status, examine

    findings = examine(path)
    _emit(
        as_json,
        {"findings": [{**vars(each), "status": each.status.value} for each in findings]},
        [_finding_line(each) for each in findings],
    )
    if any(each.status is Status.PROBLEM for each in findings):
        sys.exit(1)


def _finding_line(finding: Finding) -> str:
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{finding.status.value:8}{finding.what}: {finding.found}{remedy}"


# --- resnet -----------------------------------------------------------------------------------

_device = click.option(
    "--device",
    type=click.Choice(["auto", "sdaa", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto tries them in that order and says why.",
)
_amp = click.option(
    "--amp",
    type=click.Choice(["auto", "off", "fp16", "bf16"]),
    help="Mixed precision. auto: fp16 with a gradient scaler on sdaa and cuda, off on the CPU.",
)
_image_size = click.option(
    "--image-size", type=int, help="Side of the crop in pixels.  [default: the recipe's, 224]"
)
_batch_size = click.option(
    "--batch-size", type=int, help="Samples a process and step.  [default: the recipe's, 64]"
)
_loader_threads = click.option(
    "--workers", type=int, help="Decoding threads a process.  [default: its share of the cores]"
)
_shards = click.option(
    "--shards", type=_PATH, required=True, help="Folder of `imagenet-prep shard`: train/ and val/."
)
_nproc = click.option(
    "--nproc", type=click.IntRange(min=1), help="Processes on this machine (instead of --cards)."
)
_cards = click.option(
    "--cards",
    type=click.IntRange(min=1),
    help="Cards of this machine: 4 processes each on sdaa, 1 on cuda.  [default: one]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="imagenet-resnet")
def resnet() -> None:
    """Train and evaluate ResNets from shards, on SDAA cards, CUDA GPUs or the CPU.

    \b
      resnet train --shards /data/shards --model resnet50 --cards 4 --out runs/r50
      resnet eval runs/r50/best.pt --shards /data/shards
      resnet export runs/r50/best.pt --out r50.onnx

    A run that was stopped, killed or finished is gone on with by the same command.
    """


@_command(resnet, "train")
@_shards
@click.option("--out", type=_PATH, help="The run's folder.  [default: runs/MODEL]")
@click.option("--model", default="resnet50", show_default=True, help="resnet18, 34, 50, 101, 152.")
@click.option("--recipe", default="seed", show_default=True, help="Hyperparameters to start from.")
@click.option("--epochs", type=int, help="[default: the recipe's, 50]")
@_batch_size
@click.option(
    "--lr",
    type=float,
    help="Peak learning rate for the global batch, never rescaled.  [default: the recipe's, 0.256 "
    "x global batch / 256]",
)
@_image_size
@_device
@_amp
@_cards
@_nproc
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Machines.")
@click.option("--node-rank", type=int, default=0, show_default=True, help="Number of this machine.")
@click.option("--master", help="HOST:PORT of machine 0, for --nodes above 1.")
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    help="auto goes on from the run's last whole checkpoint; never; or a checkpoint's path.",
)
@click.option("--seed", type=int, default=1234, show_default=True, help="Of order and weights.")
@_loader_threads
@click.option("--max-steps", type=int, help="Stop, saved, after so many steps of the run.")
@click.option("--save-steps", type=int, help="Also save every so many steps.  [default: epochs]")
@click.option("--keep", type=int, default=3, show_default=True, help="Checkpoints to keep.")
@click.option("--log-every", type=int, default=20, show_default=True, help="Steps a log line.")
def train(
    shards: Path,
    out: Path | None,
    model: str,
    recipe: str,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    image_size: int | None,
    device: DeviceRequest,
    amp: AmpRequest | None,
    cards: int | None,
    nproc: int | None,
    nodes: int,
    node_rank: int,
    master: str | None,
    resume: str,
    seed: int,
    workers: int | None,
    max_steps: int | None,
    save_steps: int | None,
    keep: int,
    log_every: int,
    as_json: bool,
) -> None:
    """Train a ResNet from shards; evaluate exactly after every epoch.

    \b
    One card (4 SPAs: 4 processes)   resnet train --shards DIR --cards 1
    Four, eight cards                resnet train --shards DIR --cards 4
    Two machines                     on each, with its own number K:
        resnet train --shards DIR --cards 4 --nodes 2 --node-rank K --master HOST:29500

    The run's folder gets checkpoints, best.pt, last.pt and log.jsonl (one object a line). Killed
    or stopped, the same command goes on with exactly the samples that are left.
    """
    from shards.parallel import cores_each
    from training.config import resolve
    from training.processes import processes_here, world_size

    processes = processes_here(device, cards, nproc)
    config = resolve(
        shards=shards,
        out=out or Path("runs") / model,
        world=world_size(processes, nodes),
        threads=workers or cores_each(processes),
        model=model,
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        image_size=image_size,
        amp=amp or "auto",
        seed=seed,
        device=device,
        max_steps=max_steps,
        log_every=log_every,
        save_steps=save_steps,
        keep=keep,
        resume="auto" if resume == "auto" else "never" if resume == "never" else Path(resume),
    )
    _require_splits(shards, "train", "val")
    _launch_if_several(processes, nodes, node_rank, master)
    from training.trainer import train as run

    with _progress() as progress:
        result = run(config, progress=progress, on_record=_show)
    if not result.is_main:
        return
    lines = [f"{result.last_checkpoint}: {result.epoch} of {config.epochs} epochs, {result.reason}"]
    if result.best is not None:
        lines.append(
            f"{result.best_checkpoint}: top-1 {result.best.top1:.2f} % (epoch {result.best.epoch})"
        )
    _emit(as_json, vars(result), [*lines, f"{result.log}: metrics, one JSON object a line"])


def _require_splits(shards: Path, *splits: str) -> None:
    """Refuse what is no finished shard folder before processes are started."""
    from shards.manifest import Manifest

    for split in splits:
        Manifest.read(shards / split)


def _launch_if_several(processes: int, nodes: int, node_rank: int, master: str | None) -> None:
    """Start this command once for each process and exit, unless this is one of them already."""
    from training.device import prepare_environment
    from training.launch import inside_launch, launch

    prepare_environment()
    if inside_launch() or processes * nodes == 1:
        return
    code = launch(sys.argv[1:], nproc=processes, nodes=nodes, node_rank=node_rank, master=master)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    click.get_current_context().exit(code)


def _show(record: dict[str, Any]) -> None:
    """Tell what a reader of the log would look for: the plan, and each epoch's result."""
    if record["kind"] == "start":
        _say(f"device: {record['device']} ({record['device_reason']}), {record['precision']}")
        if record["resumed_from"] is not None:
            _say(f"goes on from: {record['resumed_from']}")
        for name, value in record["plan"].items():
            _say(f"{name.replace('_', ' ')}: {_plain(value)}")
    if record["kind"] == "eval":
        _say(
            f"epoch {record['epoch']}: top-1 {record['top1']:.2f} %, top-5 {record['top5']:.2f} %, "
            f"loss {record['loss']:.4f}" + (", the best so far" if record["best"] else "")
        )


def _plain(value: object) -> str:
    """A value of the plan: the corners of the learning rate as `epoch 6: 0.032`."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return ", ".join(f"epoch {epoch}: {lr:.4g}" for epoch, lr in value)
    return str(value)


@_command(resnet, "eval")
@click.argument("model", type=_PATH)
@_shards
@_batch_size
@_image_size
@_device
@_amp
@_cards
@_nproc
@_loader_threads
def evaluate(
    model: Path,
    shards: Path,
    batch_size: int | None,
    image_size: int | None,
    device: DeviceRequest,
    amp: AmpRequest | None,
    cards: int | None,
    nproc: int | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Evaluate the checkpoint MODEL on every image of DIR/val, exactly.

    Each image is counted once at any number of processes: nothing is padded, nothing dropped.
    Batch size, image size and precision are the training run's unless given.
    """
    from shards.parallel import cores_each
    from training.processes import processes_here

    processes = processes_here(device, cards, nproc or (None if cards else 1))
    _require_splits(shards, "val")
    _launch_if_several(processes, 1, 0, None)
    from training.evaluate import evaluate_checkpoint

    started = time.perf_counter()
    with _progress() as progress:
        result = evaluate_checkpoint(
            model,
            shards / "val",
            threads=workers or cores_each(processes),
            device=device,
            batch_size=batch_size,
            image_size=image_size,
            amp=amp,
            progress=progress,
        )
    if not result.is_main:
        return
    seconds = time.perf_counter() - started
    found = result.evaluation
    rate = _rate(found.samples, seconds)
    _emit(
        as_json,
        {
            **vars(result),
            "evaluation": {**vars(found), "top1": found.top1, "top5": found.top5},
            "seconds": seconds,
        },
        [
            (
                f"{model}: top-1 {found.top1:.2f} % ({found.top1_count} of {found.samples}), "
                f"top-5 {found.top5:.2f} %, loss {found.loss:.4f} ({rate})"
            )
        ],
    )


@_command(resnet, "export")
@click.argument("checkpoint", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="The ONNX file to write.")
@click.option("--opset", type=int, default=12, show_default=True, help="ONNX operator set.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Fixed batch size."
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open.")
@click.option("--fp16", is_flag=True, help="float16 weights, input and output.")
def export(
    checkpoint: Path,
    out: Path,
    opset: int,
    batch: int,
    dynamic_batch: bool,
    fp16: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT as ONNX and check it against torch.

    Input `input` (batch, 3, S, S), normalised RGB; output `output`, logits. Class names,
    normalisation, resize and crop are in the file's metadata. Needs the extra `export`.
    """
    from training.export import export_onnx

    report = export_onnx(
        checkpoint, out, opset=opset, batch=batch, dynamic_batch=dynamic_batch, fp16=fp16
    )
    agreement = report.agreement
    lines = [f"{out}: {report.model}, opset {opset}, {report.bytes / 1e6:.1f} MB"]
    if agreement is not None:
        lines.append(
            f"onnxruntime against torch: {agreement.same_top1} of {agreement.pictures} equal "
            f"top-1, largest difference of a logit {agreement.largest_difference:.2g}"
        )
    _emit(
        as_json,
        vars(report),
        lines,
    )


@_command(resnet, "info")
@click.argument("path", type=_PATH)
def info(path: Path, as_json: bool) -> None:
    """Say what a checkpoint, or a run's folder, holds.

    Model, epochs, best result, data and configuration; for a run also its history. Nothing in
    the file is executed.
    """
    from training.info import describe

    found = describe(path)
    best, position, config = found["best"], found["position"], found["config"]
    recipe = config["recipe"]["name"]
    lines = [
        f"checkpoint  {found['checkpoint']} ({found['bytes'] / 1e6:.1f} MB)",
        f"model       {found['model']}, {found['parameters']:,} parameters",
        f"trained     {position['epoch']} of {config['epochs']} epochs, {config['image_size']} px",
        f"recipe      {recipe}, batch {config['global_batch']}, lr {config['lr']}",
        f"data        {config['shards']}, {found['classes']} classes",
    ]
    if best is not None:
        lines.append(
            f"best        top-1 {best['top1']:.2f} % ({best['top1_count']} of {best['samples']}) "
            f"after epoch {best['epoch']}"
        )
    if "log" in found:
        lines.append(f"best file   {found['best_checkpoint']}")
        lines.append(f"metrics     {found['log']}")
        if found["images_per_second"] is not None:
            lines.append(f"rate        {found['images_per_second']:,.0f} images/s in training")
    _emit(as_json, found, lines)
