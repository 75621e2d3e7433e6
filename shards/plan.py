"""A plan decides once which sample goes where; a shard is then a pure function of it.

The plan's fingerprint covers content alone (keys, labels, sizes, options), never paths, dates
or machines: the same images from archives or from folders have the same plan and give the same
bytes, whoever writes which shard with however many workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shards.errors import UsageError
from shards.order import Stream, permutation
from shards.sample import Class, Samples

FORMAT_VERSION = 1
DEFAULT_SAMPLES_PER_SHARD = 1000


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What besides the samples decides the bytes of the shards."""

    split: str
    seed: int = 0
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UsageError(
                f"--samples-per-shard must be at least 1, not {self.samples_per_shard}"
            )
        if not self.split.isidentifier():
            raise UsageError(f"a split is a plain word such as train, not {self.split!r}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Samples in canonical order, and their places in shards."""

    samples: Samples
    classes: tuple[Class, ...]
    options: PlanOptions

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Canonical numbers of the samples in the order in which they stand in the shards."""
        return permutation(self.options.seed, Stream.PLAN, 0, len(self.samples))

    @property
    def shards(self) -> int:
        """How many shards there are; all but the last are full."""
        return -(-len(self.samples) // self.options.samples_per_shard)

    def shard_name(self, shard: int) -> str:
        """The file name of a shard."""
        return f"imagenet-{self.options.split}-{shard:06d}.tar"

    def members(self, shard: int) -> npt.NDArray[np.int64]:
        """Canonical numbers of the samples of a shard, in order."""
        first = shard * self.options.samples_per_shard
        return self.order[first : first + self.options.samples_per_shard]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all that decides the shards' bytes but the pixels themselves."""
        return fingerprint(
            self.describe(), self.samples.keys, self.samples.labels, self.samples.sizes
        )

    def describe(self) -> dict[str, object]:
        """The options as they stand in manifest and index."""
        return {
            "version": FORMAT_VERSION,
            "split": self.options.split,
            "samples": len(self.samples),
            "seed": self.options.seed,
            "samples_per_shard": self.options.samples_per_shard,
            "jpeg": "keep",
            "classes": [each.id for each in self.classes],
        }


def fingerprint(
    options: dict[str, object],
    keys: npt.NDArray[np.bytes_],
    labels: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.uint64],
) -> str:
    """SHA-256 (hex) of canonical JSON, keys each with a newline, labels `<i4`, sizes `<u8`."""
    digest = hashlib.sha256(canonical_json(options) + b"\n")
    digest.update(join_lines(keys))
    digest.update(labels.astype("<i4").tobytes())
    digest.update(sizes.astype("<u8").tobytes())
    return digest.hexdigest()


def join_lines(keys: Sequence[bytes] | npt.NDArray[np.bytes_]) -> bytes:
    """Keys as text, each one followed by a newline."""
    return b"".join(key + b"\n" for key in keys)
