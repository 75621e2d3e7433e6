"""Libraries that only some commands need, and what to say where one is missing."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from shards.errors import ToolError


def load_extra(module: str, *, needed_by: str, extra: str) -> Any:
    """Import a module of an extra. Raises ToolError, with what to install, where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their deprecations are not our user's business
            return importlib.import_module(module)
    except ImportError as error:
        raise ToolError(
            f"{needed_by} needs {module.partition('.')[0]}: pip install 'imagenet-resnet[{extra}]'"
        ) from error
