"""A plan decides once which sample goes where; a shard is then a pure function of it.

The plan's fingerprint covers content alone (keys, labels, sizes, options), never paths, dates
or machines: the same images from archives or from folders have the same plan and give the same
bytes, whoever writes which shard with however many workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shards.errors import UsageError
from shards.order import Stream, permutation
from shards.sample import UNLABELLED, Class, Samples
from shards.tar import BLOCK, RECORD, trailer

FORMAT_VERSION = 1
DEFAULT_SAMPLES_PER_SHARD = 1000


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What besides the samples decides the bytes of the shards.

    A shard holds `samples_per_shard` images, or, where `shard_size` is given, as many as fit into
    so many bytes. `per_class` says that the samples are a drawn subset; `jpeg` how images are
    stored: "keep", or an encoder's description of itself.
    """

    split: str
    seed: int = 0
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD
    shard_size: int | None = None
    per_class: int | None = None
    jpeg: str | Mapping[str, object] = "keep"

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UsageError(
                f"--samples-per-shard must be at least 1, not {self.samples_per_shard}"
            )
        if self.shard_size is not None and self.shard_size < RECORD:
            raise UsageError(f"--shard-size must be at least {RECORD} bytes, not {self.shard_size}")
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

    @cached_property
    def bounds(self) -> npt.NDArray[np.int64]:
        """Positions in `order` at which shards begin, and the end: shape (shards + 1,)."""
        count, size = len(self.samples), self.options.shard_size
        if size is None:
            step = self.options.samples_per_shard
            return np.append(np.arange(0, count, step, dtype=np.int64), count)
        ends = np.cumsum(self._stored_sizes()[self.order])
        bounds = [0]
        while bounds[-1] < count:
            filled = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
            following = int(np.searchsorted(ends, filled + size - RECORD, side="right"))
            bounds.append(max(following, bounds[-1] + 1))
        return np.array(bounds, np.int64)

    def _stored_sizes(self) -> npt.NDArray[np.int64]:
        """Bytes that each sample takes in a shard, by the size of its source."""
        return stored_sizes(self.samples.sizes.astype(np.int64), self.samples.labels)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.bounds) - 1

    @property
    def bytes(self) -> int:
        """Bytes of all shards, if images are stored as they are."""
        ends = np.append(0, np.cumsum(self._stored_sizes()[self.order]))[self.bounds]
        return sum(int(size) + len(trailer(int(size))) for size in np.diff(ends))

    def shard_name(self, shard: int) -> str:
        """The file name of a shard."""
        return f"imagenet-{self.options.split}-{shard:06d}.tar"

    def members(self, shard: int) -> npt.NDArray[np.int64]:
        """Canonical numbers of the samples of a shard, in order."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all that decides the shards' bytes but the pixels themselves."""
        return fingerprint(
            self.describe(), self.samples.keys, self.samples.labels, self.samples.sizes
        )

    def describe(self) -> dict[str, object]:
        """The options as they stand in manifest and index."""
        options = self.options
        described: dict[str, object] = {
            "version": FORMAT_VERSION,
            "split": options.split,
            "samples": len(self.samples),
            "seed": options.seed,
            "jpeg": options.jpeg,
            "classes": [each.id for each in self.classes],
        }
        if options.shard_size is None:
            described["samples_per_shard"] = options.samples_per_shard
        else:
            described["shard_size"] = options.shard_size
        if options.per_class is not None:
            described["per_class"] = options.per_class
        return described


def stored_sizes(
    sizes: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Bytes that samples take in a shard: each one's image and label with headers and padding."""
    label = np.where(labels == UNLABELLED, 0, 2 * BLOCK)
    stored: npt.NDArray[np.int64] = BLOCK + sizes + -sizes % BLOCK + label
    return stored


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
