"""How shards were made, as their manifest tells it: what was drawn, stored and left out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep import ilsvrc
from shards.errors import DamagedData
from shards.index import SHARDS_LAYOUT
from shards.manifest import Manifest
from shards.rebuild import readers_of
from shards.sidecars import TIMM_NAME, ForReader


@dataclass(frozen=True, kw_only=True)
class Range:
    """The least and the most of something."""

    min: int
    max: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What a split of shards was made by, and what came of it.

    `layout` is "shards" for our own, "foreign" for tars and "folders" for class folders that are
    indexed as they lie: of those nobody knows seed, size of a shard, or what was done to the
    images, and each is None. Of ours one of `samples_per_shard` and `shard_size` (bytes) is given,
    and `per_class` where so many images of each class were drawn. `jpeg` is "keep", "restart" or
    "reencode", `encoder` the rest of the encoder's description. `known_classes` counts those of the
    classes that are ILSVRC2012's. `kept` images have their original bytes although an encoder was
    asked for others.
    """

    layout: str
    fingerprint: str
    seed: int | None
    samples_per_shard: int | None
    shard_size: int | None
    classes: int
    known_classes: int
    per_class: int | None
    jpeg: str | None
    original_bytes: bool | None
    encoder: dict[str, object]
    shards: int
    shard_samples: Range
    shard_bytes: Range
    skipped: tuple[dict[str, str], ...]
    kept: int | None
    for_readers: tuple[ForReader, ...]


def read_plan(folder: Path, manifest: Manifest) -> ShardPlan:
    """The plan in the manifest of a folder. Raises DamagedData where that is none."""
    try:
        return _read(folder, manifest, manifest.plan)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(
            f"{folder}: the plan in its manifest is damaged ({error!r}); write the shards again"
        ) from None


def _read(folder: Path, manifest: Manifest, plan: Mapping[str, Any]) -> ShardPlan:
    layout = manifest.layout
    ours = layout == SHARDS_LAYOUT
    jpeg, encoder = None, {}
    if ours and plan["jpeg"] == "keep":
        jpeg = "keep"
    elif ours:
        encoder = dict(plan["jpeg"])
        jpeg = str(encoder.pop("mode"))
    size = _number(plan, "shard_size")
    known = {each.wnid for each in ilsvrc.classes()}
    return ShardPlan(
        layout=layout,
        fingerprint=str(plan["fingerprint"]),
        seed=int(plan["seed"]) if ours else None,
        samples_per_shard=int(plan["samples_per_shard"]) if ours and size is None else None,
        shard_size=size,
        classes=len(manifest.classes),
        known_classes=sum(each.id in known for each in manifest.classes),
        per_class=_number(plan, "per_class"),
        jpeg=jpeg,
        original_bytes=jpeg == "keep" if ours else None,
        encoder=encoder,
        shards=len(manifest.shards),
        shard_samples=_range(each.samples for each in manifest.shards),
        shard_bytes=_range(each.bytes for each in manifest.shards),
        skipped=tuple(each._asdict() for each in manifest.skipped),
        kept=manifest.kept,
        for_readers=tuple(_readers(folder, manifest)),
    )


def _number(plan: Mapping[str, Any], name: str) -> int | None:
    return None if plan.get(name) is None else int(plan[name])


def _range(values: Iterable[int]) -> Range:
    listed = list(values)
    return Range(min=min(listed), max=max(listed))


def _readers(folder: Path, manifest: Manifest) -> list[ForReader]:
    """Programs that find files of their own beside the shards, or beside the folder."""
    readers = readers_of({each.name for each in manifest.extras})
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError, RecursionError):
        told = json.loads((folder.resolve().parent / TIMM_NAME).read_bytes())
        if manifest.split in told["splits"]:
            readers.add("timm")
    return sorted(readers)
