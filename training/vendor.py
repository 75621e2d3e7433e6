"""Command lines of the vendor's launcher, run_resnet.py, in our words.

Tecorigin's published commands (teco-modelzoo, PyTorch/contrib/Classification/ResNet, README 2.4
and run_scripts/argument.py) can be given to `resnet train` as they are. `RULES` is the whole
translation. Each rule that applies says one sentence. What would train something else than was
asked for is refused; what only concerns speed or tools is said and left out. An option that both
have under one name (--lr, --device, --resume) passes as it is.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from shards.errors import UsageError

_MARK: Final = "--dataset_path"  # required there and unknown here: the command is the vendor's
_TRUE: Final = ("yes", "true", "t", "y", "1")  # as the vendor's str2bool has them, in any case
_FALSE: Final = ("no", "false", "f", "n", "0")
_DATASETS: Final = ("imagenet", "cifar10", "flowers")


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A command line in our words, and what to tell of the translation, a sentence each."""

    argv: list[str]
    notices: list[str]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A command line taken apart: the vendor's options with their values, and the other words."""

    vendors: Mapping[str, str]
    rest: Sequence[str]

    def ours(self, option: str) -> list[str]:
        """The values that an option of ours has among the other words."""
        behind = zip(self.rest, [*self.rest[1:], ""], strict=True)
        return [
            word.partition("=")[2] if "=" in word else following
            for word, following in behind
            if word.partition("=")[0] == option
        ]

    def says(self, *options: str) -> str | None:
        """The value of the first of the options that is given, whoever it belongs to."""
        for option in options:
            if option in self.vendors:
                return self.vendors[option]
            if values := self.ours(option):
                return values[-1]
        return None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What options of the vendor's come to: an option of ours, or none; and the notice."""

    ours: tuple[str, str] | None = None
    notice: str


Read = Callable[[Mapping[str, str], Line], Reading]


class Rule(NamedTuple):
    """How options of the vendor's that say one thing together are understood."""

    spellings: tuple[str, ...]
    read: Read  # of those that are given, with their values; raises UsageError


def translate(argv: Sequence[str]) -> Translated:
    """The vendor's options among the words of a command line in our words, before all others.

    Raises UsageError for a value that makes no sense, for what cannot be had here, and for two
    options that contradict each other.
    """
    line = _take_apart(argv)
    ours: list[str] = []
    notices: list[str] = []
    for reading in [*_readings(line), *_defaults(line)]:
        notices.append(reading.notice)
        if reading.ours is not None:
            ours += reading.ours
    return Translated(argv=[*ours, *line.rest], notices=notices)


def _readings(line: Line) -> list[Reading]:
    readings = []
    for rule in RULES:
        given = {name: line.vendors[name] for name in rule.spellings if name in line.vendors}
        if not given:
            continue
        reading = rule.read(given, line)
        if reading.ours is not None:
            option, value = reading.ours
            for other in line.ours(option):
                _refuse_other(_spelt(given), value, f"{option} {other}", other)
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
            ours=(option, value),
            notice=f"without {spellings[0]} run_resnet.py {does}: {option} {value} here too",
        )
        for spellings, option, value, does in (
            (("--epoch", "--epochs"), "--epochs", "1", "trains one epoch"),
            (("--nproc_per_node", "--nproc", "--cards"), "--nproc", "1", "is one process"),
            (("--autocast", "--grad_scale", "--amp"), "--amp", "off", "computes in float32"),
        )
        if line.says(*spellings) is None
    ]


# --- the words of a command line --------------------------------------------------------------


def _take_apart(argv: Sequence[str]) -> Line:
    known = {name for rule in RULES for name in rule.spellings}
    vendors: dict[str, str] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name not in known:
            rest.append(word)
            if word == "--":
                rest += words
                break
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise UsageError(f"{name} needs a value")
            value = words.pop(0)
        if name in vendors:
            _refuse_other(f"{name} {vendors[name]}", vendors[name], f"{name} {value}", value)
        vendors[name] = value
    return Line(vendors=vendors, rest=rest)


def _refuse_other(one: str, value: str, other: str, other_value: str) -> None:
    if value != other_value and _number(value) != _number(other_value):
        raise UsageError(f"{one} and {other} contradict each other; give one of them")


def _number(value: str) -> object:
    """A number of that value; of what is none, something that equals nothing."""
    try:
        return float(value)
    except ValueError:
        return object()


def _spelt(given: Mapping[str, str]) -> str:
    return " ".join(f"{name} {value}" for name, value in given.items())


def _only(given: Mapping[str, str]) -> str:
    """The value of spellings that mean the same."""
    (first, value), *others = given.items()
    for name, other in others:
        _refuse_other(f"{first} {value}", value, f"{name} {other}", other)
    return value


# --- values -----------------------------------------------------------------------------------


def _whole(name: str, value: str, least: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise UsageError(f"{name} {value}: it must be a whole number, at least {least}")
    return number


def _switch(name: str, value: str) -> bool:
    if value.lower() not in (*_TRUE, *_FALSE):
        raise UsageError(f"{name} {value}: say True or False")
    return value.lower() in _TRUE


def _is_here(given: Mapping[str, str], option: str, value: str, more: str = "") -> Reading:
    return Reading(ours=(option, value), notice=f"{_spelt(given)} is {option} {value} here{more}")


def _count(option: str, least: int = 1) -> Read:
    """A whole number that has another name here."""

    def read(given: Mapping[str, str], _: Line) -> Reading:
        value = _only(given)
        return _is_here(given, option, str(_whole(next(iter(given)), value, least)))

    return read


def _rate(given: Mapping[str, str], _: Line) -> Reading:
    value = _only(given)
    rate = _number(value)
    if not (isinstance(rate, float) and math.isfinite(rate) and rate > 0):
        raise UsageError(f"{_spelt(given)}: it must be a positive number")
    return _is_here(given, "--lr", value)


def _model(given: Mapping[str, str], _: Line) -> Reading:
    from training.config import MODELS  # NumPy comes with it, and --help does without

    name = _only(given)
    if name == "fused_resnet50":
        return _is_here(given, "--model", "resnet50", ": the same network, layer by layer")
    if name == "resnet50_v10":
        raise UsageError(
            f"{_spelt(given)}: the strides of ResNet-50 v1.0 are not to be had here; choose "
            "resnet50, which is v1.5"
        )
    if name not in MODELS:
        raise UsageError(f"{_spelt(given)}: choose one of {', '.join(MODELS)}")
    return _is_here(given, "--model", name)


def _steps(given: Mapping[str, str], _: Line) -> Reading:
    steps = _whole("--step", _only(given), -1)
    if steps < 1:
        return Reading(notice=f"{_spelt(given)}: no limit, as without it")
    return _is_here(given, "--max-steps", str(steps))


def _threads(given: Mapping[str, str], _: Line) -> Reading:
    threads = max(_whole("--num_workers", _only(given), 0), 1)
    return _is_here(given, "--workers", str(threads), ", threads that decode in each process")


def _master(given: Mapping[str, str], line: Line) -> Reading:
    port = _whole("--master_port", given.get("--master_port", "29500"), 1)  # as there
    if port >= 2**16:
        raise UsageError(f"--master_port {port}: the highest port is 65535")
    if line.says("--nnode", "--nodes") in (None, "1"):
        return Reading(notice=f"{_spelt(given)}: not needed on one machine, a free port is found")
    address = given.get("--master_addr")
    if not address:
        raise UsageError(f"{_spelt(given)}: give machine 0's address too, with --master_addr")
    return _is_here(given, "--master", f"{address}:{port}")


def _precision(given: Mapping[str, str], line: Line) -> Reading:
    """Mixed precision: on cards fp16, which has its scaler always; on the CPU bf16 without one."""
    switches = {name: _switch(name, value) for name, value in given.items()}
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
    """A folder of shards, or class folders that have their shards beside them."""
    from shards.manifest import MANIFEST_NAME  # as above

    value = _only(given)
    place = Path(value)
    train = place / "train"
    if (train / MANIFEST_NAME).exists() or not _has_folders(train):
        return _is_here(given, "--shards", value)
    shards = f"{os.path.abspath(place)}-shards"  # noqa: PTH100 - a link stays the link it is
    if not all((Path(shards) / split / MANIFEST_NAME).exists() for split in ("train", "val")):
        command = shlex.join(["imagenet-prep", "shard", str(place), "--out", shards])
        raise UsageError(
            f"{place} holds class folders, and training reads shards: run `{command}` once, then "
            f"this same command, which finds them there; or give {_MARK} a folder of shards"
        )
    return _is_here(given, "--shards", shards, ", the shards beside the class folders")


def _has_folders(folder: Path) -> bool:
    """Whether there are class folders in it; records of ours begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
    except OSError:  # told with its remedy when it is opened as shards
        return False


def _dataset(given: Mapping[str, str], _: Line) -> Reading:
    if _only(given) not in _DATASETS:
        raise UsageError(f"{_spelt(given)}: choose one of {', '.join(_DATASETS)}, or leave it out")
    return Reading(notice=f"{_spelt(given)}: not needed, the shards say what their classes are")


# --- what is not to be had --------------------------------------------------------------------


def _warm_up(given: Mapping[str, str], _: Line) -> Reading:
    if _whole("--warm_up", _only(given), -1) >= 0:
        raise UsageError(
            f"{_spelt(given)}: the warm-up follows from the global batch, 2 x (global batch // "
            "256) epochs; leave it out"
        )
    return Reading(notice=f"{_spelt(given)}: 2 x (global batch // 256) epochs, as without it")


def _early_stop(given: Mapping[str, str], _: Line) -> Reading:
    if _whole("--early_stop", _only(given), -1) > 0:
        raise UsageError(
            f"{_spelt(given)}: a run ends early with --max-steps STEPS, and goes on with more of "
            "them; give that instead"
        )
    return Reading(notice=f"{_spelt(given)}: off, as without it")


def _optimizer(given: Mapping[str, str], _: Line) -> Reading:
    if _only(given) != "sgd":
        raise UsageError(f"{_spelt(given)}: only sgd is to be had here, leave it out")
    return Reading(notice=f"{_spelt(given)}: the recipe's, as without it")


_NOT_COMPILED: Final = "not compiled here, which only concerns the speed"
_NO_TRACE: Final = (
    "no trace is written; RUN/log.jsonl has the images a second and the share of time that waits "
    "for data, and `resnet bench loader` measures loading"
)
_NO_LARS: Final = (
    "its LARS recipe is not to be had here; leave it out, the published accuracies were made "
    "without it"
)
_NO_LAYERS: Final = (
    "layers are not compared here; train 20 steps on each device with --max-steps 20 "
    "--log-every 1, and compare the losses in RUN/log.jsonl"
)


def _switched(name: str, what: str, *, refused: bool) -> Read:
    """A switch that is off here: `what` is said where it is to be on."""

    def read(given: Mapping[str, str], _: Line) -> Reading:
        if not _switch(name, given.get(name, "False")):
            return Reading(notice=f"{_spelt(given)}: off, as without it")
        if refused:
            raise UsageError(f"{_spelt(given)}: {what}")
        return Reading(notice=f"{_spelt(given)}: {what}")

    return read


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
    Rule(("--optimizer",), _optimizer),
    Rule(("--warm_up",), _warm_up),
    Rule(("--early_stop",), _early_stop),
    Rule(("--dataset",), _dataset),
    Rule(("--compile",), _switched("--compile", _NOT_COMPILED, refused=False)),
    Rule(("--profiler", "--profiler_path"), _switched("--profiler", _NO_TRACE, refused=False)),
    Rule(("--mlperf_mode",), _switched("--mlperf_mode", _NO_LARS, refused=True)),
    Rule(
        ("--precision_align", "--precision_align_cuda_path", "--precision_align_log_path"),
        _switched("--precision_align", _NO_LAYERS, refused=True),
    ),
)
