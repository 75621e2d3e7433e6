"""A 64-bit proof of which samples an epoch consumed, and at which position of its order.

    order = sum over consumed samples of mix64(position ^ mix64(sample))   modulo 2**64

It is a sum, so it does not depend on how many processes share the samples, in which order
they come in, or whether the epoch was interrupted: the log of a run that was killed and
resumed shows the value of the undisturbed run, and anyone can recompute it from the pure
order function of shards/order.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shards.order import epoch_order, mix64

MASK = (1 << 64) - 1


def digest_of(positions: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> int:
    """The digest of these samples consumed at these positions of an epoch's order."""
    mixed = mix64(positions.astype(np.uint64) ^ mix64(samples.astype(np.uint64)))
    return int(mixed.sum(dtype=np.uint64))


def expected_digest(*, seed: int, epoch: int, samples: int, used: int) -> int:
    """The digest of a whole training epoch over `samples`, of which the first `used` are taken."""
    order = epoch_order(seed, epoch, samples, shuffle="full")[:used]
    return digest_of(np.arange(used), order)


def digest_text(digest: int) -> str:
    """16 hexadecimal digits, as the log and the checkpoint hold it."""
    return f"{digest & MASK:016x}"
