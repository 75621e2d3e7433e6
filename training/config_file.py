"""`--config FILE`: options and a recipe's values in a TOML file, under the names they have anyway.

    recipe = "a3"
    batch-size = 128
    weight_decay = 0.03

A file is flat. Dashes and underscores mean the same. What the command line says goes before it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from shards.errors import DamagedData, ToolError, UsageError
from training.config import TrainConfig, config_values
from training.settings import SETTINGS, checked, fitted, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_config(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a file sets, by names with underscores.

    `options` are the names that a file may set beside `SETTINGS`, and their types; what is among
    both is checked as a setting. Raises UsageError, naming the file, the key and the nearest known
    one, for what is unknown, of another kind or out of a setting's range.
    """
    known = {*SETTINGS, *options}
    values: dict[str, Any] = {}
    for key, value in _parsed(path).items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            raise UsageError(f"{path}: [{key}] is a table; write its keys without one")
        if name not in known:
            raise UsageError(f"{path}: there is no {key}{nearest(name, known)}")
        if name in values:
            raise UsageError(f"{path}: {key} is there twice, with a dash and with an underscore")
        try:
            is_setting = name in SETTINGS
            values[name] = checked(name, value) if is_setting else fitted(key, value, options[name])
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    return values


# What shapes a run beside its data, its processes and its recipe's values.
_OPTIONS: Final = (
    "model",
    "stem",
    "init_weights",
    "epochs",
    "global_batch",
    "lr",
    "image_size",
    "amp",
    "seed",
    "accumulate",
    "on_nonfinite",
    "patience",
    "compile",
    "deterministic",
)


def config_text(config: TrainConfig) -> str:
    """A file that makes `resnet train` train the same again.

    That is on any number of processes, on other data or in another folder. A learning rate that
    follows from the recipe is left to it, so it follows a --batch-size given beside the file.
    """
    values = config_values(config)
    recipe: Any = values["recipe"]
    lines = ["# resnet train --config FILE trains so again, on any number of processes"]
    if config.lr_from_recipe:
        lines += [f"# lr: the recipe's, {config.lr} at this global batch"]
        del values["lr"]
    lines += [
        f"{name} = {json.dumps(values[name], ensure_ascii=False)}"
        for name in _OPTIONS
        if values.get(name) is not None
    ]
    lines += [f"recipe = {json.dumps(config.recipe.name)}"]
    lines += [f"{name} = {json.dumps(recipe[name])}" for name in SETTINGS]
    return "\n".join(lines) + "\n"


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))  # some editors begin with a mark
    except FileNotFoundError:
        raise ToolError(f"{path} does not exist; give --config the path of a TOML file") from None
    except OSError as error:
        raise ToolError(
            f"{path} cannot be read ({error.strerror}); give --config the path of a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DamagedData(f"{path} is not a TOML file: {error}") from None
