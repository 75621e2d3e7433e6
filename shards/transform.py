"""What is to become of a decoded image: the transforms of training and of evaluation, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from shards.errors import UsageError

if TYPE_CHECKING:
    from shards.image_augment import PictureAugment

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]  # antialiased both
DecoderName: TypeAlias = Literal["fast", "pil"]


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """RandomResizedCrop to image_size x image_size pixels (antialiased), mirroring, augmentation.

    `scale` bounds the crop's share of the area, `ratio` its width / height; `flip` is the
    probability of mirroring left to right. `decoder` "pil" makes every picture as torchvision does
    from PIL images. With `dct_scaling` a crop of at least twice the target is decoded at 1/2, 1/4
    or 1/8 of its size, which is faster and not the same pixels. `augment` is applied to the
    finished picture, one after the other.
    """

    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: Interpolation = "bilinear"
    decoder: DecoderName = "fast"
    dct_scaling: bool = False
    augment: tuple[PictureAugment, ...] = ()

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UsageError(f"--image-size must be at least 1, not {self.image_size}")


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Short side to `resize` pixels (antialiased), then the central square."""

    image_size: int
    resize: int
    interpolation: Interpolation = "bilinear"
    decoder: DecoderName = "fast"

    def __post_init__(self) -> None:
        if not 0 < self.image_size <= self.resize:
            raise UsageError(
                f"evaluation crops {self.image_size} pixels out of a short side of {self.resize}"
            )
