"""What a checkpoint says, held against what `resnet train` writes, before anything is made of it.

A whole file may still be anybody's. Networks, pictures and lists are made by what it says, so kinds
and sizes are looked at here, once for all who read one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, get_args

import torch
from torch import Tensor

from shards.transform import Interpolation
from training.config import MODELS, Stem
from training.device import AmpRequest
from training.results.told import LARGEST_SIDE

# Values of a configuration and the like: a pickle of a kilobyte can unfold into any number.
_MOST_VALUES: Final = 100_000
_LARGEST_NUMBER: Final = 1 << 64
_MOST_CLASSES: Final = 1 << 20
_LARGEST_BATCH: Final = 1 << 32  # pixels that are evaluated at once: 13 GB of bytes

_Rule: TypeAlias = tuple[str, Callable[[Any], bool]]


def _whole(least: int, most: int | None = None) -> _Rule:
    largest = _LARGEST_NUMBER if most is None else most
    return (
        f"a whole number of at least {least}" + ("" if most is None else f", at most {most}"),
        lambda value: type(value) is int and least <= value <= largest,  # True is an int too
    )


def _one_of(known: tuple[str, ...]) -> _Rule:
    return f"one of {', '.join(known)}", lambda value: value in known


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_windows(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list | tuple) and [type(number) for number in each] == [int, int, int]
        for each in value
    )


_TEXT: Final[_Rule] = "a text", lambda value: isinstance(value, str)
_CONFIG: Final[Mapping[str, _Rule]] = {
    "model": _one_of(MODELS),
    "stem": _one_of(get_args(Stem)),
    "amp": _one_of(get_args(AmpRequest)),
    "shards": _TEXT,
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "global_batch": _whole(1),
    "image_size": _whole(1),
    "seed": _whole(0),
    "lr": ("a number above 0", lambda value: _is_number(value) and 0 < value < math.inf),
}
_RECIPE: Final[Mapping[str, _Rule]] = {
    "name": _TEXT,
    "interpolation": _one_of(get_args(Interpolation)),
    "eval_size": _whole(1, LARGEST_SIDE),
    "eval_resize": (
        f"a number from 1 to {LARGEST_SIDE}",
        lambda value: _is_number(value) and 1 <= value <= LARGEST_SIDE,
    ),
}
_POSITION: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(("epoch", "step", "samples"), _whole(0)),
    "order": _TEXT,
}
_BEST: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(("epoch", "top1_count", "top5_count"), _whole(0)),
    "samples": _whole(1),
    "loss": ("a number", _is_number),
    "weights": _one_of(("model", "ema")),
}
_DATA: Final[Mapping[str, _Rule]] = dict.fromkeys(("train", "val"), _TEXT)
_RNG: Final[Mapping[str, _Rule]] = {
    "torch": (
        "a tensor of bytes",
        lambda value: isinstance(value, Tensor) and value.dtype == torch.uint8,
    )
}


def check_content(content: Mapping[str, Any]) -> None:
    """Raise ValueError, with the first thing that `resnet train` does not write so."""
    for name in ("position", "best", "left_out", "config", "data", "versions"):
        _check_plain(name, content[name])
    for name, rules in (
        ("position", _POSITION),
        ("config", _CONFIG),
        ("data", _DATA),
        ("rng", _RNG),
        ("versions", {}),
        ("scaler", {}),
    ):
        _check_part(name, content[name], rules)
    if content["best"] is not None:
        _check_part("best", content["best"], _BEST)
    if not _is_windows(content["left_out"]):
        raise ValueError("left_out must be (epoch, first, last + 1) of the steps, whole numbers")
    _check_classes(content["classes"], content["class_names"])
    _check_recipe(content["config"])
    for name, kind in (("model", Tensor), ("ema", Tensor), ("optimizer", dict)):
        _check_named(name, content[name], kind)


def _check_plain(name: str, value: object) -> None:
    """Refuse what is no plain data of a sane size."""
    waiting: list[object] = [value]
    seen = 0
    while waiting:
        item = waiting.pop()
        seen += 1
        sound = item is None or isinstance(item, str | float | int)
        if isinstance(item, int):
            sound = abs(item) < _LARGEST_NUMBER
        elif isinstance(item, dict):
            sound = all(isinstance(key, str) for key in item)
            waiting += item.values()
        elif isinstance(item, list | tuple):
            sound = True
            waiting += item
        if not sound or seen + len(waiting) > _MOST_VALUES:
            raise ValueError(f"{name} is not plain values, at most {_MOST_VALUES}")


def _check_part(name: str, part: object, rules: Mapping[str, _Rule]) -> None:
    if not isinstance(part, dict):
        raise ValueError(f"{name} must be a dict")  # noqa: TRY004 - of what was read, not of a call
    for key, (expected, holds) in rules.items():
        if key not in part:
            raise ValueError(f"{name} lacks {key!r}")
        if not holds(part[key]):
            raise ValueError(f"{key!r} of {name} is {_shown(part[key])} and must be {expected}")


def _check_classes(classes: object, names: object) -> None:
    for name, listed in (("classes", classes), ("class_names", names)):
        if not (
            isinstance(listed, list)
            and 1 <= len(listed) <= _MOST_CLASSES
            and all(isinstance(each, str) for each in listed)
        ):
            raise ValueError(f"{name} must be a list of 1 to {_MOST_CLASSES} texts")
    assert isinstance(classes, list)
    assert isinstance(names, list)
    if len(classes) != len(names):
        raise ValueError(f"classes are {len(classes)} and class_names {len(names)}")


def _check_recipe(config: Mapping[str, Any]) -> None:
    recipe = config.get("recipe")
    _check_part("recipe", recipe, _RECIPE)
    assert isinstance(recipe, dict)
    size, batch = recipe["eval_size"], config["batch_size"]
    if round(size * recipe["eval_resize"]) > 2 * LARGEST_SIDE:
        raise ValueError(f"pictures of {size} px are cut out of {recipe['eval_resize']} times that")
    if batch * size**2 > _LARGEST_BATCH:
        raise ValueError(f"{batch} pictures of {size} px are no batch that a machine could hold")


def _check_named(name: str, part: object, kind: type) -> None:
    """Refuse what is not a dict of such things by text."""
    if not isinstance(part, dict) or not all(
        isinstance(key, str) and isinstance(each, kind) for key, each in part.items()
    ):
        raise ValueError(f"{name} must be {kind.__name__}s by name")


def _shown(value: object) -> str:
    """A value of the file, where it is short; else its kind."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(value)[:40] if plain else f"a {type(value).__name__}"
