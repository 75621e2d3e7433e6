"""One encoded image becomes one picture of a batch: decoded, cropped, resized, mirrored.

What is random about it is chosen before, for a whole batch at once, as a pure function of (seed,
epoch, sample); so whoever makes the picture makes the same one.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from shards.augment import FIRST_PICTURE_DRAW, flips, random_resized_crops
from shards.cutting import Box
from shards.decode import Decoder, Way
from shards.image import ImageInfo
from shards.order import draws
from shards.transform import EvalTransform, Interpolation, TrainTransform

# The operators behind torch.nn.functional.interpolate(antialias=True): interpolate itself
# allocates its result, which takes twice the time.
_RESIZE: Final = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,  # noqa: SLF001
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,  # noqa: SLF001
}
_PILLOW_RESIZE: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SHRINKS: Final = (8, 4, 2)  # libjpeg's scales that need no more than a smaller inverse DCT


class Choice(NamedTuple):
    """What was drawn for a sample: its crop, whether it is mirrored, numbers for augmentation."""

    box: Box
    mirrored: bool
    uniform: npt.NDArray[np.float64]  # shape (draws of all augmentations,)


@dataclass
class Tally:
    """What threads did: pictures by the way they were decoded, and seconds by stage."""

    ways: list[int] = field(default_factory=lambda: [0] * len(Way))
    decode_seconds: float = 0.0
    resize_seconds: float = 0.0
    augment_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Add another thread's figures."""
        self.ways = [mine + theirs for mine, theirs in zip(self.ways, other.ways, strict=True)]
        self.decode_seconds += other.decode_seconds
        self.resize_seconds += other.resize_seconds
        self.augment_seconds += other.augment_seconds


class Renderer:
    """Makes pictures as a transform says; safe to use from any number of threads."""

    def __init__(self, transform: TrainTransform | EvalTransform) -> None:
        self.transform = transform
        self._own = threading.local()
        self._tallies: list[Tally] = []

    def choices(
        self,
        seed: int,
        epoch: int,
        samples: npt.NDArray[np.int64],
        widths: npt.NDArray[np.integer],
        heights: npt.NDArray[np.integer],
    ) -> list[Choice | None]:
        """What is drawn for samples of an epoch; None for each in evaluation."""
        transform = self.transform
        if isinstance(transform, EvalTransform):
            return [None] * len(samples)
        boxes = random_resized_crops(
            seed, epoch, samples, widths, heights, scale=transform.scale, ratio=transform.ratio
        )
        mirrored = flips(seed, epoch, samples, transform.flip)
        count = sum(each.draws for each in transform.augment)
        uniform = draws(seed, epoch, samples, FIRST_PICTURE_DRAW, count)
        return [
            Choice(Box(*box), mirror, row)
            for box, mirror, row in zip(boxes.tolist(), mirrored.tolist(), uniform, strict=True)
        ]

    def render(
        self, data: memoryview, info: ImageInfo, target: torch.Tensor, choice: Choice | None
    ) -> None:
        """Make the picture of an encoded image into `target`, uint8 of shape (S, S, 3).

        S may be any size, whatever the transform's is. `data` must be writable and is as before
        at the end. Raises DamagedData, with the reason alone.
        """
        decoder, tally = self._mine()
        started = time.perf_counter()
        if choice is None:
            pixels = decoder.decode(data, info)
        else:
            pixels = decoder.decode(data, info, choice.box, self._shrink(choice.box, target))
        decoded = time.perf_counter()
        tally.ways[decoder.way] += 1
        tally.decode_seconds += decoded - started
        self._fit(pixels, target, choice)
        resized = time.perf_counter()
        tally.resize_seconds += resized - decoded
        if choice is not None and len(choice.uniform):
            self._augment(target, choice)
            tally.augment_seconds += time.perf_counter() - resized

    def _mine(self) -> tuple[Decoder, Tally]:
        """This thread's decoder and tally."""
        try:
            return self._own.decoder, self._own.tally
        except AttributeError:
            self._own.decoder = Decoder(reference=self.transform.decoder == "pil")
            self._own.tally = Tally()
            self._tallies.append(self._own.tally)
            return self._own.decoder, self._own.tally

    def tally(self) -> Tally:
        """The sums over all threads up to now."""
        total = Tally()
        for each in list(self._tallies):
            total.add(each)
        return total

    def _shrink(self, box: Box, target: torch.Tensor) -> int:
        """At which part of its size a crop is decoded so that it is no smaller than its target."""
        transform = self.transform
        if not (isinstance(transform, TrainTransform) and transform.dct_scaling):
            return 1
        smaller = min(box.height // target.shape[0], box.width // target.shape[1])
        return next((shrink for shrink in _SHRINKS if shrink <= smaller), 1)

    def _fit(
        self, pixels: npt.NDArray[np.uint8], target: torch.Tensor, choice: Choice | None
    ) -> None:
        """Resize, and mirror or take the centre."""
        transform = self.transform
        size = int(target.shape[0])
        if choice is not None:
            self._resize(pixels, target)
            if choice.mirrored:
                target.copy_(target.flip(1))
            return
        assert isinstance(transform, EvalTransform)
        height, width = _short_side(pixels.shape[0], pixels.shape[1], transform.resize)
        resized = torch.empty((height, width, 3), dtype=torch.uint8)
        self._resize(pixels, resized)
        # torchvision's CenterCrop rounds in this way.
        top, left = round((height - size) / 2.0), round((width - size) / 2.0)
        target.copy_(resized[top : top + size, left : left + size])

    def _resize(self, pixels: npt.NDArray[np.uint8], target: torch.Tensor) -> None:
        """Antialiased, from uint8 (h, w, 3) straight into uint8 (H, W, 3)."""
        interpolation = self.transform.interpolation
        if self.transform.decoder == "pil":
            _resize_with_pillow(pixels, target, interpolation)
            return
        source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        out = target.permute(2, 0, 1)[None]  # channels last: nothing is transposed
        _RESIZE[interpolation](source, list(target.shape[:2]), False, None, None, out=out)

    def _augment(self, target: torch.Tensor, choice: Choice) -> None:
        assert isinstance(self.transform, TrainTransform)
        pixels: npt.NDArray[np.uint8] = target.numpy()
        first = 0
        for augment in self.transform.augment:
            uniform = choice.uniform[first : first + augment.draws]
            result = augment(pixels, uniform)
            if result is not pixels:
                pixels[...] = result
            first += augment.draws


def _resize_with_pillow(
    pixels: npt.NDArray[np.uint8], target: torch.Tensor, interpolation: Interpolation
) -> None:
    size = (int(target.shape[1]), int(target.shape[0]))
    resized = Image.fromarray(pixels).resize(size, _PILLOW_RESIZE[interpolation])
    target.copy_(torch.from_numpy(np.array(resized)))


def _short_side(height: int, width: int, resize: int) -> tuple[int, int]:
    """torchvision's Resize(resize): the short side exactly, the long one rounded down."""
    short = min(height, width)
    return int(resize * height / short), int(resize * width / short)
