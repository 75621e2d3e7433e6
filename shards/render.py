"""One encoded image becomes one picture of a batch: decoded, cropped, resized, mirrored.

What is random about it is chosen before, for a whole batch at once, as a pure function of (seed,
epoch, sample); so whoever makes the picture makes the same one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from shards.augment import FIRST_PICTURE_DRAW, flips, random_resized_crops
from shards.cutting import Box
from shards.decode import Decoder, Way
from shards.errors import DamagedData
from shards.image import LARGEST_PIXELS, ImageInfo
from shards.order import draws
from shards.parallel import PerThread
from shards.transform import EvalTransform, Interpolation, TrainTransform

# What torch.nn.functional.interpolate(antialias=True) calls: interpolate itself allocates its
# result, which takes twice the time. By torch.ops they hold the interpreter 4 us longer.
_RESIZE: Final[dict[str, Callable[..., torch.Tensor]]] = {
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,  # noqa: SLF001
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,  # noqa: SLF001
}
_PILLOW_RESIZE: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Pixels of the smaller of source and result to each side that a resized one is made of.
_REACH: Final = {"bilinear": 1, "bicubic": 2}
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


def targets_of(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The pictures of a batch, (n, S, S, 3), one by one as torch wants them for resizing.

    Views of shape (1, 3, S, S); channels last, so nothing is ever transposed.
    """
    return torch.split(images.permute(0, 3, 1, 2), 1)


class Renderer:
    """Makes pictures as a transform says; safe to use from any number of threads."""

    def __init__(self, transform: TrainTransform | EvalTransform) -> None:
        self.transform = transform
        self._own = PerThread(self._start)

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
        """Make the picture of an encoded image into `target`, one of `targets_of` a batch.

        It may have any size, whatever the transform's is. `data` must be writable and is as
        before at the end. Raises DamagedData, with the reason alone.
        """
        decoder, tally = self._own.mine()
        started = time.perf_counter()
        if choice is None:
            box = self._seen(info, target.shape[2])
            pixels = decoder.decode_around(data, info, box)
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

    def _seen(self, info: ImageInfo, size: int) -> Box:
        """The part of an image that evaluation's picture is made of."""
        transform = self.transform
        assert isinstance(transform, EvalTransform)
        resized = _short_side(info.height, info.width, transform.resize)
        reach = _REACH[transform.interpolation]
        top, height = _seen_along(info.height, resized[0], size, reach)
        left, width = _seen_along(info.width, resized[1], size, reach)
        return Box(top, left, height, width)

    def _start(self) -> tuple[Decoder, Tally]:
        return Decoder(reference=self.transform.decoder == "pil"), Tally()

    def tally(self) -> Tally:
        """The sums over all threads up to now."""
        total = Tally()
        for _, each in self._own.all():
            total.add(each)
        return total

    def _shrink(self, box: Box, target: torch.Tensor) -> int:
        """At which part of its size a crop is decoded so that it is no smaller than its target."""
        transform = self.transform
        if not (isinstance(transform, TrainTransform) and transform.dct_scaling):
            return 1
        smaller = min(box.height, box.width) // target.shape[2]
        return next((shrink for shrink in _SHRINKS if shrink <= smaller), 1)

    def _fit(
        self, pixels: npt.NDArray[np.uint8], target: torch.Tensor, choice: Choice | None
    ) -> None:
        """Resize, and mirror or take the centre."""
        if choice is None:
            self.centre(pixels, target)
            return
        self._resize(pixels, target)
        if choice.mirrored:
            target.copy_(target.flip(3))

    def centre(self, pixels: npt.NDArray[np.uint8], target: torch.Tensor) -> None:
        """Make evaluation's picture of what is decoded already: uint8 RGB, (height, width, 3).

        Raises DamagedData, with the reason alone.
        """
        transform = self.transform
        assert isinstance(transform, EvalTransform)
        height, width = _short_side(pixels.shape[0], pixels.shape[1], transform.resize)
        if height * width > LARGEST_PIXELS:  # 65,535 x 1 would take 13 GB
            shape = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise DamagedData(f"it has {shape} pixels, which is too thin to be resized")
        (resized,) = targets_of(torch.empty((1, height, width, 3), dtype=torch.uint8))
        self._resize(pixels, resized)
        size = target.shape[2]
        top, left = _centre_of(height, size), _centre_of(width, size)
        target.copy_(resized[:, :, top : top + size, left : left + size])

    def _resize(self, pixels: npt.NDArray[np.uint8], target: torch.Tensor) -> None:
        """Antialiased, from uint8 (h, w, 3) straight into the target."""
        interpolation = self.transform.interpolation
        if self.transform.decoder == "pil":
            _resize_with_pillow(pixels, target, interpolation)
            return
        source = torch.from_numpy(pixels.transpose(2, 0, 1)[None])
        _RESIZE[interpolation](source, target.shape[2:], False, None, None, out=target)

    def _augment(self, target: torch.Tensor, choice: Choice) -> None:
        assert isinstance(self.transform, TrainTransform)
        pixels: npt.NDArray[np.uint8] = target[0].permute(1, 2, 0).numpy()
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
    height, width = target.shape[2:]
    resized = Image.fromarray(pixels).resize((width, height), _PILLOW_RESIZE[interpolation])
    target.copy_(torch.from_numpy(np.array(resized)).permute(2, 0, 1))


def _short_side(height: int, width: int, resize: int) -> tuple[int, int]:
    """torchvision's Resize(resize): the short side exactly, the long one rounded down."""
    short = min(height, width)
    return int(resize * height / short), int(resize * width / short)


def _centre_of(length: int, size: int) -> int:
    """Where the central `size` of `length` pixels begin, rounded as torchvision's CenterCrop."""
    return round((length - size) / 2.0)


def _seen_along(length: int, resized: int, size: int, reach: int) -> tuple[int, int]:
    """(first, count) of `length` pixels that decide the central `size` when they are `resized`.

    One more is taken on each side, so that no rounding in a library's weights matters.
    """
    scale = length / resized
    first = _centre_of(resized, size)
    support = reach * max(scale, 1.0)
    begin = max(math.floor((first + 0.5) * scale - support) - 1, 0)
    end = min(math.ceil((first + size - 0.5) * scale + support) + 1, length)
    return begin, end - begin
