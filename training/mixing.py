"""Mixup and CutMix of whole batches: torchvision's, with draws of their own.

What is drawn follows from (seed, epoch, step, first position of the slice), so a resumed run mixes
as the undisturbed one, and the generators of torch are left as they were. Samples are mixed with
the one before them in their slice: other numbers of processes mix other pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from shards.order import Stream, stream_key
from training.objective import shares
from training.recipes import Recipe


class Mixer:
    """Mixes pictures with each other, and their labels alike, as a recipe says."""

    def __init__(self, recipe: Recipe, classes: int, seed: int) -> None:
        self._classes = classes
        self._seed = seed
        ways = [v2.MixUp(alpha=recipe.mixup)] if recipe.mixup else []
        ways += [v2.CutMix(alpha=recipe.cutmix)] if recipe.cutmix else []
        self._mix = v2.RandomChoice(ways) if len(ways) > 1 else ways[0] if ways else None

    def __call__(
        self, images: Tensor, labels: Tensor, *, epoch: int, step: int, first: int
    ) -> tuple[Tensor, Tensor]:
        """Images float (n, 3, S, S) and labels int64 (n,), mixed: labels become (n, classes).

        Both come back as they are where the recipe mixes nothing.
        """
        if self._mix is None:
            return images, labels
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the devices too.
            torch.default_generator.manual_seed(self._key(epoch, step, first))
            mixed, targets = self._mix(images, shares(labels, self._classes))
        if images.is_contiguous(memory_format=torch.channels_last):
            mixed = mixed.contiguous(memory_format=torch.channels_last)
        return mixed, targets

    def _key(self, epoch: int, step: int, first: int) -> int:
        """A 64-bit number for this slice of this step."""
        key = self._seed
        for number in (epoch, step, first):
            key = stream_key(key, Stream.MIXING, number)
        return key
