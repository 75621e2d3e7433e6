"""Augmentation of single pictures: pure functions of the pixels and of uniform numbers.

Whoever calls them draws the numbers for a sample (shards/order.py), so what happens to a picture
follows from (seed, epoch, sample), whichever thread, rank or resumed run works on it. They run in
the loader's threads, after the crop, on uint8 RGB.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards import adjust
from shards.adjust import Pixels
from shards.errors import UsageError

Uniform = npt.NDArray[np.float64]

# ImageNet's mean colour, 255 x (0.485, 0.456, 0.406): black, once normalised.
MEAN_COLOUR = (124, 116, 104)


class PictureAugment(Protocol):
    """A random change of one picture.

    Called with the pixels (uint8, shape (height, width, 3), C order), which it may change, and
    `draws` numbers in [0, 1); returns pixels of the same shape, perhaps the same array.
    """

    @property
    def draws(self) -> int:
        """How many uniform numbers it takes."""
        ...

    def __call__(self, pixels: Pixels, uniform: Uniform) -> Pixels:
        """The changed picture."""
        ...


Space = Literal["torchvision", "increasing"]


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`num_ops` operations, each drawn from all of a space, one after the other.

    Cubuk et al., "RandAugment", 2019 (arXiv 1909.13719). Spaces:
    "torchvision": the 14 operations and ranges of torchvision.transforms.RandAugment, with 31
        magnitudes, 0 to 30; this class's defaults are that class's.
    "increasing": the 15 operations and ranges of timm's `rand-...-inc1`, magnitude 0 to 10; see
        `timm`.

    Attributes:
        num_ops: how many operations a picture gets.
        magnitude: how strong they are, 0 to the space's largest.
        magnitude_std: deviation of the normal distribution around `magnitude` that every
            operation draws its own from, cut off at the space's ends; 0 for none (timm's mstd).
        probability: with which a drawn operation is applied.
        interpolation: of shears, shifts and rotations; "random" is bilinear or bicubic.
        fill: red, green, blue of what these bring in from outside the picture.
    """

    num_ops: int = 2
    magnitude: float = 9
    magnitude_std: float = 0.0
    space: Space = "torchvision"
    probability: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "random"] = "nearest"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        _check(self, "space", self.space in _SPACES, f"one of {', '.join(_SPACES)}")
        most = _SPACES[self.space].most
        _check(self, "num_ops", self.num_ops >= 1, "at least 1")
        _check(self, "magnitude", 0 <= self.magnitude <= most, f"between 0 and {most:g}")
        _check(self, "magnitude_std", 0 <= self.magnitude_std < math.inf, "0 or more, and finite")
        _check_share(self, "probability")
        names = (*_RESAMPLING, "random")
        _check(self, "interpolation", self.interpolation in names, f"one of {', '.join(names)}")
        _check_colour(self, "fill")

    @classmethod
    def timm(cls, *, magnitude: float, magnitude_std: float = 0.5) -> RandAugment:
        """timm's `rand-m{magnitude}-mstd{magnitude_std}-inc1`, as its training script sets it.

        timm/data/auto_augment.py (1.0): two operations, each applied with probability 0.5,
        bilinear or bicubic at random, the mean colour outside.
        """
        return cls(
            magnitude=magnitude,
            magnitude_std=magnitude_std,
            space="increasing",
            probability=0.5,
            interpolation="random",
            fill=MEAN_COLOUR,
        )

    @property
    def draws(self) -> int:
        """Five an operation: which, whether, sign, strength, interpolation."""
        return 5 * self.num_ops

    def __call__(self, pixels: Pixels, uniform: Uniform) -> Pixels:
        """The picture after all operations."""
        space = _SPACES[self.space]
        for which, whether, sign, strength, interpolation in uniform.reshape(-1, 5).tolist():
            if whether >= self.probability:
                continue
            operation = space.operations[int(which * len(space.operations))]
            warp = adjust.Warp(resample=self._resampling(interpolation), fill=self.fill)
            level = self._magnitude(strength, space.most) / space.most
            pixels = operation(pixels, _Strength(level, -1.0 if sign < 0.5 else 1.0, warp))
        return pixels

    def _magnitude(self, uniform: float, most: float) -> float:
        if not self.magnitude_std:
            return self.magnitude
        # The inverse distribution function is infinite at 0; draws are multiples of 2**-53.
        normal = NormalDist(self.magnitude, self.magnitude_std).inv_cdf(max(uniform, 2.0**-54))
        return min(max(normal, 0.0), most)

    def _resampling(self, uniform: float) -> Image.Resampling:
        if self.interpolation == "random":
            return _RESAMPLING["bilinear" if uniform < 0.5 else "bicubic"]
        return _RESAMPLING[self.interpolation]


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue changed in random order.

    As torchvision.transforms.ColorJitter: the first three are multiplied by a factor between
    max(0, 1 - x) and 1 + x, the hue is turned by up to x of the colour circle either way.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _check(self, name, 0 <= getattr(self, name) < math.inf, "0 or more, and finite")
        _check(self, "hue", 0 <= self.hue <= 0.5, "between 0 and 0.5")

    @property
    def draws(self) -> int:
        """The order, then the four amounts."""
        return 5

    def __call__(self, pixels: Pixels, uniform: Uniform) -> Pixels:
        """The picture in other colours."""
        order, *amounts = uniform.tolist()
        for which in _ORDERS[int(order * len(_ORDERS))]:
            name, change, centre = _JITTERS[which]
            most = getattr(self, name)
            if most:
                least = max(0.0, centre - most) if centre else -most
                pixels = change(pixels, least + (centre + most - least) * amounts[which])
        return pixels


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """One rectangle painted over, with a probability.

    Zhong et al., "Random Erasing", 2017 (arXiv 1708.04896); size and place are distributed as in
    torchvision.transforms.RandomErasing: up to ten attempts to place an area of `scale` times the
    picture with an aspect (height / width) log-uniform in `ratio` strictly inside it. `colour`
    stands for that class's `value` before normalising: the mean colour for 0.
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    colour: tuple[int, int, int] = MEAN_COLOUR

    def __post_init__(self) -> None:
        _check_share(self, "probability")
        least, most = self.scale
        _check(self, "scale", 0 <= least <= most <= 1, "two rising numbers between 0 and 1")
        low, high = self.ratio
        _check(self, "ratio", 0 < low <= high < math.inf, "two rising numbers above 0")
        _check_colour(self, "colour")

    @property
    def draws(self) -> int:
        """Whether; then area, aspect, top and left of each attempt."""
        return 1 + 4 * _ERASING_ATTEMPTS

    def __call__(self, pixels: Pixels, uniform: Uniform) -> Pixels:
        """The picture with or without the rectangle, painted into the array given if it can be."""
        whether, *attempts = uniform.tolist()
        box = self._box(pixels.shape[0], pixels.shape[1], attempts)
        if whether >= self.probability or box is None:
            return pixels
        top, left, height, width = box
        if not pixels.flags.writeable:
            pixels = pixels.copy()
        pixels[top : top + height, left : left + width] = self.colour
        return pixels

    def _box(
        self, height: int, width: int, uniform: list[float]
    ) -> tuple[int, int, int, int] | None:
        """Top, left, height and width of what is erased, or None where no attempt fits."""
        least, most = self.scale
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for first in range(0, len(uniform), 4):
            u_area, u_aspect, u_top, u_left = uniform[first : first + 4]
            area = height * width * (least + (most - least) * u_area)
            aspect = math.exp(low + (high - low) * u_aspect)
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall < height and wide < width:
                top, left = int(u_top * (height - tall + 1)), int(u_left * (width - wide + 1))
                return top, left, tall, wide
        return None


@dataclass(frozen=True)
class _Strength:
    """What an operation of RandAugment goes by: a level from 0 to 1, a sign, how to sample."""

    level: float
    sign: float
    warp: adjust.Warp

    def signed(self, most: float) -> float:
        return self.sign * self.level * most


_Operation = Callable[[Pixels, _Strength], Pixels]


@dataclass(frozen=True)
class _Space:
    most: float  # the magnitude that is level 1
    operations: tuple[_Operation, ...]


def _floored(strength: _Strength) -> float:
    """timm's factor of an increasing enhancement, never below 0.1."""
    return max(0.1, 1 + strength.signed(0.9))


# torchvision/transforms/autoaugment.py, RandAugment._augmentation_space, in its order. Shifts are
# whole pixels, 150 of the paper's 331 at most.
_TORCHVISION = _Space(
    30,
    (
        lambda pixels, _: pixels,
        lambda pixels, s: adjust.shear_x(pixels, s.signed(0.3), s.warp),
        lambda pixels, s: adjust.shear_y(pixels, s.signed(0.3), s.warp),
        lambda pixels, s: adjust.translate(
            pixels, int(s.signed(150 / 331 * pixels.shape[1])), 0, s.warp
        ),
        lambda pixels, s: adjust.translate(
            pixels, 0, int(s.signed(150 / 331 * pixels.shape[0])), s.warp
        ),
        lambda pixels, s: adjust.rotate(pixels, s.signed(30), s.warp),
        lambda pixels, s: adjust.brightness(pixels, 1 + s.signed(0.9)),
        lambda pixels, s: adjust.saturation(pixels, 1 + s.signed(0.9)),
        lambda pixels, s: adjust.contrast(pixels, 1 + s.signed(0.9)),
        lambda pixels, s: adjust.sharpness(pixels, 1 + s.signed(0.9)),
        lambda pixels, s: adjust.posterize(pixels, 8 - round(s.level * 4)),
        lambda pixels, s: adjust.solarize(pixels, 255 - s.level * 255),
        lambda pixels, _: adjust.autocontrast(pixels),
        lambda pixels, _: adjust.equalize(pixels),
    ),
)

# timm/data/auto_augment.py 1.0, _RAND_INCREASING_TRANSFORMS, in its order. Shifts of
# positive sign go left and up there.
_INCREASING = _Space(
    10,
    (
        lambda pixels, _: adjust.autocontrast(pixels),
        lambda pixels, _: adjust.equalize(pixels),
        lambda pixels, _: adjust.invert(pixels),
        lambda pixels, s: adjust.rotate(pixels, s.signed(30), s.warp),
        lambda pixels, s: adjust.posterize(pixels, 4 - int(s.level * 4)),
        lambda pixels, s: adjust.solarize(pixels, 256 - int(s.level * 256)),
        lambda pixels, s: adjust.solarize_add(pixels, int(s.level * 110)),
        lambda pixels, s: adjust.saturation(pixels, _floored(s)),
        lambda pixels, s: adjust.contrast(pixels, _floored(s)),
        lambda pixels, s: adjust.brightness(pixels, _floored(s)),
        lambda pixels, s: adjust.sharpness(pixels, _floored(s)),
        lambda pixels, s: adjust.shear_x(pixels, s.signed(0.3), s.warp),
        lambda pixels, s: adjust.shear_y(pixels, s.signed(0.3), s.warp),
        lambda pixels, s: adjust.translate(pixels, s.signed(-0.45 * pixels.shape[1]), 0, s.warp),
        lambda pixels, s: adjust.translate(pixels, 0, s.signed(-0.45 * pixels.shape[0]), s.warp),
    ),
)

_SPACES: dict[str, _Space] = {"torchvision": _TORCHVISION, "increasing": _INCREASING}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_ORDERS = tuple(itertools.permutations(range(4)))
_JITTERS: tuple[tuple[str, Callable[[Pixels, float], Pixels], float], ...] = (
    ("brightness", adjust.brightness, 1.0),
    ("contrast", adjust.contrast, 1.0),
    ("saturation", adjust.saturation, 1.0),
    ("hue", adjust.hue, 0.0),
)
_ERASING_ATTEMPTS = 10  # as torchvision.transforms.RandomErasing.get_params


def _check(owner: object, name: str, good: bool, expected: str) -> None:  # noqa: FBT001
    if not good:
        raise UsageError(
            f"{type(owner).__name__}.{name} must be {expected}, not {getattr(owner, name)!r}"
        )


def _check_share(owner: object, name: str) -> None:
    _check(owner, name, 0 <= getattr(owner, name) <= 1, "between 0 and 1")


def _check_colour(owner: object, name: str) -> None:
    colour = getattr(owner, name)
    good = len(colour) == 3 and all(value in range(256) for value in colour)
    _check(owner, name, good, "three whole numbers between 0 and 255")
