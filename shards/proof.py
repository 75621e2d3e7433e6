"""What lets a shard that is written again take the place of the one that was there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from shards.columns import Column
from shards.errors import DamagedData
from shards.manifest import Manifest

# Told a shard's number, SHA-256 and columns before it is put in its place; raises against it.
Prove: TypeAlias = Callable[[int, str, Mapping[str, Column]], None]


def prove_by(manifest: Manifest, folder: Path) -> Prove:
    """A proof by the SHA-256 that the manifest has of a shard."""

    def prove(shard: int, sha256: str, _: Mapping[str, Column]) -> None:
        if sha256 != manifest.shards[shard].sha256:
            raise came_out_different(folder / manifest.shards[shard].name)

    return prove


def came_out_different(path: Path) -> DamagedData:
    """Why a shard that was written again is not taken."""
    return DamagedData(
        f"{path} would come out different from what it was: the source has changed since the "
        "shards were written; give the one that they were made of"
    )
