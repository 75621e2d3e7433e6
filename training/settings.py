"""Values of a recipe set otherwise, by options or in a file: checked by name, kind and range.

Those that have an option of another meaning (--epochs, --batch-size, --lr, --image-size) are not
among them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Mapping
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from shards.errors import UsageError
from training.recipes import Recipe

_OF_PEAK: Final = ("base_lr", "base_batch", "lr_scaling")  # all three are set by lr
_OF_OPTIONS: Final = ("epochs", "batch_size", "image_size", *_OF_PEAK)
_TEXTS: Final = ("name", "source", "published", "remarks", "notes")
# Name of each value that can be set, and its type as the recipe declares it.
SETTINGS: Final[Mapping[str, Any]] = {
    name: kind
    for name, kind in get_type_hints(Recipe).items()
    if name not in (*_OF_OPTIONS, *_TEXTS)
}

_Rule = tuple[str, Callable[[Any], bool]]
_BELOW_ONE: Final[_Rule] = ("at least 0 and below 1", lambda value: 0 <= value < 1)
_SHARE: Final[_Rule] = ("from 0 to 1", lambda value: 0 <= value <= 1)
_SHARES: Final[_Rule] = (
    "two rising numbers from 0 to 1",
    lambda pair: 0 <= pair[0] <= pair[1] <= 1,
)
_AT_LEAST_ZERO: Final[_Rule] = ("0 or more", lambda value: value >= 0)
_AT_LEAST_ONE: Final[_Rule] = ("1 or more", lambda value: value >= 1)
_RULES: Final[Mapping[str, _Rule]] = {
    **dict.fromkeys(("momentum", "ema_decay", "label_smoothing", "bce_threshold"), _BELOW_ONE),
    **dict.fromkeys(("flip", "erasing", "step_gamma"), _SHARE),
    **dict.fromkeys(("grow", "crop_scale"), _SHARES),
    **dict.fromkeys(("eval_size", "eval_resize", "loss_scale", "step_epochs"), _AT_LEAST_ONE),
    "crop_ratio": ("two rising numbers above 0", lambda pair: 0 < pair[0] <= pair[1]),
    "rand_augment": ("from 0 to 10", lambda value: 0 <= value <= 10),
}


def changed(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with some of its `SETTINGS` set otherwise.

    Raises UsageError, naming the setting, for a name that there is not, a value of another kind,
    one out of range, and values that do not go together.
    """
    for name in changes:
        if name not in SETTINGS:
            raise UsageError(f"a recipe has no {name}{nearest(name, SETTINGS)}")
    values = {name: checked(name, value) for name, value in changes.items()}
    if "warmup_epochs" in values:  # all of them, whatever the global batch
        values.setdefault("warmup_per_256", 0)
    made = dataclasses.replace(recipe, **values)
    if made.nesterov and (made.optimizer == "lamb" or not made.momentum):
        raise UsageError("nesterov needs an optimizer with momentum: sgd or lars")
    return made


def checked(name: str, value: object) -> Any:
    """The value of one of `SETTINGS`. Raises UsageError for another kind and for one out of range.

    What does not go together is seen by `changed`.
    """
    made = fitted(name, value, SETTINGS[name])
    text, holds = _RULES.get(name, _AT_LEAST_ZERO)
    if isinstance(made, int | float | tuple) and not holds(made):
        raise UsageError(f"{name} is {_shown(made)}; it must be {text}")
    return made


def fitted(name: str, value: object, kind: Any) -> Any:
    """`value` as the kind that a type says, which is a whole number, a text, two numbers, ...

    A whole number passes for a number, a list of two for a pair, and a number for its text, as on
    a command line. Raises UsageError otherwise.
    """
    wanted = [each for each in get_args(kind) if each is not NoneType]
    if NoneType in get_args(kind):
        return None if value is None else fitted(name, value, wanted[0])
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and numeric and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    if get_origin(kind) is tuple and isinstance(value, list | tuple) and len(value) == len(wanted):
        return tuple(fitted(name, each, part) for each, part in zip(value, wanted, strict=True))
    if get_origin(kind) is Literal and value in wanted:
        return value
    if kind is str and numeric:
        return str(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise UsageError(f"{name} is {_shown(value)}; it must be {_described(kind)}")


def nearest(name: str, known: Collection[str]) -> str:
    """What to say after an unknown name: the known one that is most like it, or where all are."""
    if name in _OF_PEAK:
        return " to be set; use lr, the peak learning rate for the global batch"
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if found:
        return f"; did you mean {found[0]}?"
    return "; `resnet recipes NAME` and `resnet train --help` show what there is"


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "two numbers, as [0.08, 1.0]"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(
        kind, "a text in quotes"
    )


def _shown(value: object) -> str:
    """A value as a file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
