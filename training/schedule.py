"""The learning rate as a pure function of the epoch.

It is constant within an epoch, as in the vendor's trainer: linear warm-up in whole epochs
that starts at peak / warmup (not near 0) and reaches the peak in the last warm-up epoch, then
a cosine to 0 over the rest. The last epoch is one cosine step above 0.
"""

from __future__ import annotations

import math


def lr_at(epoch: int, *, peak: float, warmup: int, epochs: int) -> float:
    """The learning rate of `epoch` (from 0) in a run of `epochs`, of which `warmup` warm up.

    Source: NVIDIA DeepLearningExamples' lr_cosine_policy with end_lr 0, which the vendor uses.
    """
    if epoch < warmup:
        return peak * (epoch + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def lr_corners(*, peak: float, warmup: int, epochs: int) -> list[tuple[int, float]]:
    """(epoch, learning rate) where the curve starts, peaks, is half-way down, and ends."""
    middle = warmup + (epochs - warmup) // 2
    points = sorted({0, max(warmup - 1, 0), middle, epochs - 1})
    return [
        (epoch, lr_at(epoch, peak=peak, warmup=warmup, epochs=epochs))
        for epoch in points
        if epoch < epochs
    ]
