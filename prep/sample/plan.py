"""Which images the sample archives hold, under which names and labels, before one is drawn.

Two plans: a small one of any number of classes and images, and one of ILSVRC2012's true counts.
Both are pure functions of their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from prep import ilsvrc
from prep.sample.pictures import Draws, Purpose
from prep.sample.quirks import Quirk
from shards.errors import UsageError

_GAP: Final = 40  # numbers in a class's names are up to this far apart

# "Most synsets have 1300": 895 of them, by a public list of their class indices.
FULL_CLASSES: Final = 895

_TRUE_NAMES: Final = {
    Quirk.PNG: (ilsvrc.PNG_IMAGE,),
    Quirk.CMYK: tuple(sorted(ilsvrc.CMYK_IMAGES)),
    Quirk.BROKEN_EXIF: (ilsvrc.BROKEN_EXIF_IMAGE,),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the bytes depend on, besides the JPEG encoder.

    `parameters` are what was asked for, `train_counts` the training images of each class by class
    index, `val_classes` the class index of each validation image in order of image number,
    `quirks` the odd training images by name. `tiny` pictures have a few hundred bytes.
    """

    parameters: Mapping[str, int]
    seed: int
    train_counts: Mapping[int, int]
    val_classes: npt.NDArray[np.int64]
    quirks: Mapping[str, Quirk]
    tiny: bool

    @property
    def train_images(self) -> int:
        """Training images of all classes."""
        return sum(self.train_counts.values())

    @property
    def val_images(self) -> int:
        """Validation images of all classes."""
        return len(self.val_classes)

    def train_numbers(self, class_index: int) -> npt.NDArray[np.int64]:
        """Numbers in the names of a class's training images: ascending, with gaps."""
        numbers = _numbers(self.seed, class_index, self.train_counts[class_index])
        # A true name takes the place of the first that is not below it.
        for name in self.quirks:
            wnid, _, rest = name.partition("_")
            if wnid == ilsvrc.classes()[class_index].wnid:
                number = int(rest.removesuffix(".JPEG"))
                place = int(np.searchsorted(numbers, number))
                numbers[min(place, len(numbers) - 1)] = number
        return numbers

    def val_order(self) -> npt.NDArray[np.int64]:
        """Numbers of the validation images as they lie in their archive: not in order."""
        return Draws(self.seed, Purpose.ORDER).permutation(self.val_images) + 1


def train_name(class_index: int, number: int) -> str:
    """The name of a training image."""
    return f"{ilsvrc.classes()[class_index].wnid}_{number}.JPEG"


def small_plan(
    *, classes: int, train_per_class: int, val_per_class: int, seed: int, quirks: bool
) -> Plan:
    """As many classes as asked for, taken evenly over the 1000, all of the same size.

    Raises UsageError for counts that no archive can have.
    """
    if not 1 <= classes <= ilsvrc.CLASSES:
        raise UsageError(f"classes must be 1 to {ilsvrc.CLASSES}, not {classes}")
    if train_per_class < 1 or val_per_class < 1:
        raise UsageError("every class needs at least one training and one validation image")
    if classes * val_per_class > 99_999_999:
        raise UsageError("validation image numbers have eight digits: ask for fewer images")
    if quirks and classes * train_per_class < len(Quirk):
        raise UsageError(
            f"{len(Quirk)} kinds of quirks need as many training images, "
            f"not {classes * train_per_class}: ask for more of them"
        )
    _check_seed(seed)
    indices = [rank * ilsvrc.CLASSES // classes for rank in range(classes)]
    labels = np.repeat(np.array(indices), val_per_class)
    return Plan(
        parameters={
            "classes": classes,
            "train_per_class": train_per_class,
            "val_per_class": val_per_class,
            "seed": seed,
        }
        | ({"quirks": True} if quirks else {}),
        seed=seed,
        train_counts=dict.fromkeys(indices, train_per_class),
        val_classes=labels[Draws(seed, Purpose.LABELS).permutation(len(labels))],
        quirks=_spread(tuple(Quirk), indices, seed) if quirks else {},
        tiny=False,
    )


def full_scale_plan(*, seed: int, quirks: bool) -> Plan:
    """ILSVRC2012's classes, counts and validation labels; which classes are short is drawn.

    Quirks of the real training set lie under their true names, the other kinds once each.
    Raises UsageError for a negative seed.
    """
    _check_seed(seed)
    counts = dict.fromkeys(range(ilsvrc.CLASSES), ilsvrc.TRAIN_IMAGES_A_CLASS[1])
    short = _short_counts()
    drawn = Draws(seed, Purpose.COUNTS).permutation(ilsvrc.CLASSES)[: len(short)]
    counts.update(zip(drawn.tolist(), short, strict=True))
    known = {f"{name}.JPEG": quirk for quirk, names in _TRUE_NAMES.items() for name in names}
    others = [quirk for quirk in Quirk if quirk not in _TRUE_NAMES]
    return Plan(
        parameters={"full_scale": True, "seed": seed} | ({"quirks": True} if quirks else {}),
        seed=seed,
        train_counts=counts,
        val_classes=ilsvrc.validation_labels().astype(np.int64),
        quirks=_spread(others, range(ilsvrc.CLASSES), seed) | known if quirks else {},
        tiny=True,
    )


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"seed must not be negative, but is {seed}")


def _short_counts() -> list[int]:
    """Images of the classes that have less than 1300, such that the sum is ILSVRC2012's.

    Only their number, their sum and the smallest are known: one class is that small, and what
    the others lack rises evenly.
    """
    least, most = ilsvrc.TRAIN_IMAGES_A_CLASS
    others = ilsvrc.CLASSES - FULL_CLASSES - 1
    # Each lacks one image, and the rest is shared out in proportion to 0, 1, 2, ...
    lacking = ilsvrc.CLASSES * most - ilsvrc.TRAIN_IMAGES - (most - least) - others
    weights = list(accumulate(range(others)))
    bounds = [lacking * weight // weights[-1] for weight in chain((0,), weights)]
    shares = (after - before for before, after in pairwise(bounds))
    return [least, *(most - 1 - share for share in shares)]


def _spread(quirks: Sequence[Quirk], indices: Sequence[int], seed: int) -> dict[str, Quirk]:
    """One image a quirk, by name: the first images of the first classes, then their second."""
    named = {}
    for turn, quirk in enumerate(quirks):
        place, rank = divmod(turn, len(indices))
        numbers = _numbers(seed, indices[rank], place + 1)
        named[train_name(indices[rank], int(numbers[-1]))] = quirk
    return named


def _numbers(seed: int, class_index: int, count: int) -> npt.NDArray[np.int64]:
    """The first `count` numbers of a class's training images."""
    draws = Draws(seed, Purpose.NUMBERS, class_index)
    return np.cumsum(draws.integers(count, _GAP) + 1)
