"""Command lines of the vendor's launcher, run_resnet.py, in our words.

Tecorigin's published commands (teco-modelzoo, PyTorch/contrib/Classification/ResNet, README 2.4
and run_scripts/argument.py) can be given to `resnet train` as they are. `RULES` is the whole
translation. Each rule that applies says one sentence. What would train something else than was
asked for is refused; what only concerns speed or tools is said and left out. An option that both
have under one name (--lr, --device, --resume, --optimizer) passes as it is; --compile too, without
a value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.errors import ToolError, UsageError
from training.vendor_words import (
    Line,
    Read,
    Reading,
    Rule,
    number,
    only,
    refuse_other,
    spelt,
    switch,
    take_apart,
    whole,
)

_MARK: Final = "--dataset_path"  # required there and unknown here: the command is the vendor's
_DATASETS: Final = ("imagenet", "cifar10", "flowers")


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A command line in our words, and what to tell of the translation, a sentence each."""

    argv: list[str]
    notices: list[str]


def translate(argv: Sequence[str]) -> Translated:
    """The vendor's options among the words of a command line in our words, before all others.

    Raises UsageError for a value that makes no sense, for what cannot be had here, and for two
    options that contradict each other.
    """
    line = take_apart(argv, {name: rule.bare for rule in RULES for name in rule.spellings})
    ours: list[str] = []
    notices: list[str] = []
    for reading in [*_readings(line), *_defaults(line)]:
        notices.append(reading.notice)
        ours += [word for option in reading.ours for word in option]
    return Translated(argv=[*ours, *line.rest], notices=notices)


def _readings(line: Line) -> list[Reading]:
    readings = []
    for rule in RULES:
        given = {name: line.vendors[name] for name in rule.spellings if name in line.vendors}
        if not given:
            continue
        reading = rule.read(given, line)
        for option, *value in reading.ours:
            for other in line.ours(option) if value else []:
                refuse_other(spelt(given), value[0], f"{option} {other}", other)
        readings.append(reading)
    return readings


def _defaults(line: Line) -> list[Reading]:
    """What the vendor's launcher does unasked, and `resnet train` does not.

    Its learning rate has to be given; its 2 loading processes change nothing but the speed.
    """
    if _MARK not in line.vendors:
        return []
    return [
        Reading(
            ours=((option, value),),
            notice=f"without {spellings[0]} run_resnet.py {does}: {option} {value} here too",
        )
        for spellings, option, value, does in (
            (("--epoch", "--epochs"), "--epochs", "1", "trains one epoch"),
            (("--nproc_per_node", "--nproc", "--cards"), "--nproc", "1", "is one process"),
            (("--autocast", "--grad_scale", "--amp"), "--amp", "off", "computes in float32"),
        )
        if line.says(*spellings) is None
    ]


# --- values -----------------------------------------------------------------------------------


def _is_here(given: Mapping[str, str], option: str, value: str, more: str = "") -> Reading:
    return Reading(ours=((option, value),), notice=f"{spelt(given)} is {option} {value} here{more}")


def _count(option: str, least: int = 1) -> Read:
    """A whole number that has another name here."""

    def read(given: Mapping[str, str], _: Line) -> Reading:
        value = only(given)
        return _is_here(given, option, str(whole(next(iter(given)), value, least)))

    return read


def _rate(given: Mapping[str, str], _: Line) -> Reading:
    value = only(given)
    rate = number(value)
    if not (isinstance(rate, float) and math.isfinite(rate) and rate > 0):
        raise UsageError(f"{spelt(given)}: it must be a positive number")
    return _is_here(given, "--lr", value)


def _model(given: Mapping[str, str], _: Line) -> Reading:
    from training.config import MODELS  # NumPy comes with it, and --help does without

    name = only(given)
    if name == "fused_resnet50":
        return _is_here(given, "--model", "resnet50", ": the same network, layer by layer")
    if name == "resnet50_v10":
        raise UsageError(
            f"{spelt(given)}: the strides of ResNet-50 v1.0 are not to be had here; choose "
            "resnet50, which is v1.5"
        )
    if name not in MODELS:
        raise UsageError(f"{spelt(given)}: choose one of {', '.join(MODELS)}")
    return _is_here(given, "--model", name)


def _steps(given: Mapping[str, str], _: Line) -> Reading:
    steps = whole("--step", only(given), -1)
    if steps < 1:
        return Reading(notice=f"{spelt(given)}: no limit, as without it")
    return _is_here(given, "--max-steps", str(steps))


def _threads(given: Mapping[str, str], _: Line) -> Reading:
    threads = max(whole("--num_workers", only(given), 0), 1)
    return _is_here(given, "--workers", str(threads), ", threads that decode in each process")


def _master(given: Mapping[str, str], line: Line) -> Reading:
    port = whole("--master_port", given.get("--master_port", "29500"), 1)  # as there
    if port >= 2**16:
        raise UsageError(f"--master_port {port}: the highest port is 65535")
    if line.says("--nnode", "--nodes") in (None, "1"):
        return Reading(notice=f"{spelt(given)}: not needed on one machine, a free port is found")
    address = given.get("--master_addr")
    if not address:
        raise UsageError(f"{spelt(given)}: give machine 0's address too, with --master_addr")
    return _is_here(given, "--master", f"{address}:{port}")


def _precision(given: Mapping[str, str], line: Line) -> Reading:
    """Mixed precision: on cards fp16, which has its scaler always; on the CPU bf16 without one."""
    switches = {name: switch(name, value) for name, value in given.items()}
    if not switches.get("--autocast", False):
        why = ": float32 needs no gradient scaler" if switches.get("--grad_scale") else ""
        return _is_here(given, "--amp", "off", why)
    device = line.says("--device") or "auto"
    if device == "cpu":
        why = ": on the CPU mixed precision is bf16, and the gradient scaler is off"
        return _is_here(given, "--amp", "bf16", why)
    if device == "auto":
        why = ": fp16 with a gradient scaler on a card, off on the CPU; --device cpu makes it bf16"
        return _is_here(given, "--amp", "auto", why)
    return _is_here(given, "--amp", "fp16", ", which has a gradient scaler always")


# --- data -------------------------------------------------------------------------------------


def _dataset_path(given: Mapping[str, str], _: Line) -> Reading:
    """A folder of shards, or class folders: trained from, or from their shards beside them."""
    value = only(given)
    shards = _shards_for(value)
    if shards != value:
        return _is_here(given, "--shards", shards, ", the shards beside the class folders")
    if _has_folders(Path(value)):
        beside = _beside(value)
        return _is_here(given, "--shards", value, f": class folders, without shards in {beside}")
    return _is_here(given, "--shards", value)


def _shards_for(value: str) -> str:
    """The folder itself, or the finished shards that class folders have beside them."""
    from shards.manifest import MANIFEST_NAME

    beside = _beside(value)
    finished = all((Path(beside) / split / MANIFEST_NAME).exists() for split in ("train", "val"))
    return beside if _has_folders(Path(value)) and finished else value


def _beside(value: str) -> str:
    return f"{os.path.abspath(value)}-shards"  # noqa: PTH100 - a link stays the link it is


def _has_folders(place: Path) -> bool:
    """Whether class folders are in its train/, not shards; records of ours begin with a dot."""
    from shards.manifest import MANIFEST_NAME

    folder = place / "train"
    if (folder / MANIFEST_NAME).exists():
        return False
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
    except OSError:  # told with its remedy when it is opened as shards
        return False


def _dataset(given: Mapping[str, str], _: Line) -> Reading:
    if only(given) not in _DATASETS:
        raise UsageError(f"{spelt(given)}: choose one of {', '.join(_DATASETS)}, or leave it out")
    return Reading(notice=f"{spelt(given)}: not needed, the shards say what their classes are")


# --- how it is trained ------------------------------------------------------------------------


def _warm_up(given: Mapping[str, str], _: Line) -> Reading:
    epochs = whole("--warm_up", only(given), -1)
    if epochs >= 0:
        return _is_here(given, "--warmup-epochs", str(epochs))
    return Reading(notice=f"{spelt(given)}: 2 x (global batch // 256) epochs, as without it")


def _early_stop(given: Mapping[str, str], line: Line) -> Reading:
    """Epochs after which the vendor's trainer ends, with the learning rate of all of them."""
    epochs = whole("--early_stop", only(given), -1)
    if epochs < 0:
        return Reading(notice=f"{spelt(given)}: off, as without it")
    if epochs == 0:
        raise UsageError(f"{spelt(given)}: that is no training at all; leave it out")
    if line.says("--step", "--max-steps") not in (None, "-1"):
        return Reading(notice=f"{spelt(given)}: not needed, the number of steps ends it")
    steps = _steps_per_epoch(line)
    if steps is None:
        raise UsageError(
            f"{spelt(given)}: how many steps that is can only be told with --dataset_path a folder "
            "of shards and with --nproc_per_node; give --max-steps STEPS instead"
        )
    why = f": {epochs} of {steps} steps; the learning rate stays that of all epochs"
    return _is_here(given, "--max-steps", str(epochs * steps), why)


def _steps_per_epoch(line: Line) -> int | None:
    """Whole global batches in the shards that a line names; None where it does not say enough."""
    from shards.manifest import Manifest  # as above

    folder = line.says(_MARK, "--shards") or ""
    counts = [line.says("--bs", "--batch_size", "--batch-size")]
    counts.append(
        line.says("--nproc_per_node", "--nproc") or ("1" if _MARK in line.vendors else None)
    )
    counts.append(line.says("--nnode", "--nodes") or "1")
    try:
        samples = Manifest.read(Path(_shards_for(folder)) / "train").samples
    except ToolError:
        return None
    batch = math.prod(int(each) for each in counts if each is not None and each.isdigit())
    return samples // batch or None if None not in counts and batch else None


def _mlperf_mode(given: Mapping[str, str], _: Line) -> Reading:
    if not switch("--mlperf_mode", only(given)):
        return Reading(notice=f"{spelt(given)}: off, as without it")
    why = (
        ": LARS and a polynomial decay; its warm-up is of 2 epochs unless --warm_up says otherwise"
    )
    return _is_here(given, "--recipe", "mlperf", why)


# --- tools ------------------------------------------------------------------------------------


def _compile(given: Mapping[str, str], _: Line) -> Reading:
    if not switch("--compile", only(given)):
        return Reading(notice=f"{spelt(given)}: off, as without it")
    return Reading(
        ours=(("--compile",),),
        notice=f"{spelt(given)} is --compile here; where that fails training goes on without",
    )


def _profiler(given: Mapping[str, str], _: Line) -> Reading:
    if not switch("--profiler", given.get("--profiler", "False")):
        return Reading(notice=f"{spelt(given)}: off, as without it")
    folder = given.get("--profiler_path", "./profiler_log")  # as there
    return _is_here(given, "--profile", folder, ", a folder for the trace")


def _precision_align(given: Mapping[str, str], _: Line) -> Reading:
    if not switch("--precision_align", given.get("--precision_align", "False")):
        return Reading(notice=f"{spelt(given)}: off, as without it")
    raise UsageError(
        f"{spelt(given)}: layers are not compared here; train 20 steps on each device with "
        "--max-steps 20 --log-every 1, and compare the losses in RUN/log.jsonl"
    )


# --- the table --------------------------------------------------------------------------------

RULES: Final = (
    Rule(("--model_name",), _model),
    Rule(("--dataset_path",), _dataset_path),
    Rule(("--epoch",), _count("--epochs")),
    Rule(("--step",), _steps),
    Rule(("--bs", "--batch_size"), _count("--batch-size")),
    Rule(("--learning-rate",), _rate),
    Rule(("--nproc_per_node",), _count("--nproc")),
    Rule(("--nnode",), _count("--nodes")),
    Rule(("--node_rank",), _count("--node-rank", least=0)),
    Rule(("--master_addr", "--master_port"), _master),
    Rule(("--autocast", "--grad_scale"), _precision),
    Rule(("--num_workers",), _threads),
    Rule(("--warm_up",), _warm_up),
    Rule(("--early_stop",), _early_stop),
    Rule(("--dataset",), _dataset),
    Rule(("--mlperf_mode",), _mlperf_mode),
    Rule(("--compile",), _compile, bare=True),
    Rule(("--profiler", "--profiler_path"), _profiler),
    Rule(
        ("--precision_align", "--precision_align_cuda_path", "--precision_align_log_path"),
        _precision_align,
    ),
)
