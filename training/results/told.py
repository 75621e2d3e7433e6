"""What an exported model says of itself, believed only where it is sound.

Texts by key, of which some are JSON: ONNX has them in its metadata, safetensors in its header.
training/metadata.py writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from shards.errors import DamagedData
from shards.transform import Interpolation
from training.batches import MEAN, STD

LARGEST_SIDE: Final = 4096  # pixels of a picture that is asked about
_MOST_EPOCHS: Final = 1 << 31
_LARGEST_COLOUR: Final = 1000  # of a channel's mean and deviation, which are of 0..1


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a file says; None is what it does not. Colours and interpolation have defaults."""

    model: str | None
    epochs: int | None
    classes: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int | None  # side of the central square in pixels
    resize: int | None  # the short side before it
    interpolation: Interpolation


def read_told(path: Path, values: Mapping[str, str], outputs: int | None) -> Told:
    """What the texts of `path` mean, whose network gives `outputs` logits (None: it is open).

    Raises DamagedData, in one sentence, for a text that is not what its key must be.
    """
    texts = _Texts(path, values)
    crop = texts.number("center_crop", LARGEST_SIDE)
    return Told(
        model=values.get("model"),
        epochs=texts.number("epochs", _MOST_EPOCHS, least=0),
        classes=texts.listed("classes", outputs),
        class_names=texts.listed("class_names", outputs),
        mean=texts.colour("mean", MEAN),
        std=texts.colour("std", STD),
        crop=crop,
        resize=texts.number("resize_short_side", 2 * LARGEST_SIDE, least=crop or 1),
        interpolation=texts.interpolation(),
    )


@dataclass(frozen=True)
class _Texts:
    """The texts of a file by key."""

    path: Path
    values: Mapping[str, str]

    def number(self, key: str, largest: int, *, least: int = 1) -> int | None:
        value = self._json(key)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= largest:  # true is an int too
            raise self._wrong(key, f"a whole number from {least} to {largest}")
        return value

    def listed(self, key: str, outputs: int | None) -> tuple[str, ...] | None:
        value = self._json(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(key, "a list of texts")
        if outputs not in (None, len(value)):
            raise DamagedData(
                f"{self.path} gives {outputs} logits and its metadata name {len(value)} classes; "
                "export it again"
            )
        return tuple(value)

    def colour(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self._json(key)
        if value is None:
            return default
        if not (
            isinstance(value, list)
            and len(value) == 3
            and all(type(each) in (int, float) for each in value)
            and all(-_LARGEST_COLOUR <= each <= _LARGEST_COLOUR for each in value)
            and (key != "std" or min(value) > 0)
        ):
            raise self._wrong(key, "three numbers, one a channel")
        return tuple(float(each) for each in value)

    def interpolation(self) -> Interpolation:
        """Older files say it in a sentence about the resize alone."""
        said = self.values.get("interpolation", self.values.get("resize", "bilinear"))
        known: Interpolation
        for known in get_args(Interpolation):
            if said.startswith(known):
                return known
        raise self._wrong("interpolation", "bilinear or bicubic")

    def _json(self, key: str) -> Any:
        text = self.values.get(key)
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):  # the latter for brackets in brackets
            raise self._wrong(key, "JSON") from None

    def _wrong(self, key: str, expected: str) -> DamagedData:
        said = self.values.get(key, "")
        return DamagedData(
            f"{self.path}: its metadata say {said[:40]!r} for {key}, which must be {expected}; "
            "export it again"
        )
