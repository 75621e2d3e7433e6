"""What a split holds, in numbers: classes, sizes, formats, bytes, oddities."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from prep import ilsvrc
from prep.inspection.headers import UNREADABLE, Headers
from prep.inspection.plan import ShardPlan
from prep.oddities import Oddity, oddity
from shards.image import Format
from shards.sample import UNLABELLED, Class, Layout, Samples

BINS: Final = 16  # of a distribution
_FORMATS: Final = {Format.JPEG: "JPEG", Format.JPEG_OTHER: "progressive JPEG", Format.PNG: "PNG"}
_CHANNELS: Final = ((1, "grey"), (2, "grey and alpha"), (3, "colour"))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a quantity is spread over images or classes.

    `counts` has how many lie in each of `BINS` intervals of equal ratio; `edges`, one longer,
    has where they begin and end, the last one included.
    """

    min: float
    median: float
    mean: float
    max: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """A class and how many images it has."""

    id: str
    name: str
    images: int


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An image without a sound header."""

    image: str
    reason: str

    def __str__(self) -> str:
        return f"{self.image}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one split of a path holds.

    `split` is None where nothing says which it is. `classes` is empty where no labels are known;
    `labels_missing` says why `unlabelled` images have none. A spread is None where there is
    nothing to measure, `plan` where these are no shards.
    """

    path: Path
    split: str | None
    form: str
    archive: str | None  # the published archive that it is shaped like
    images: int
    bytes: int
    classes: tuple[ClassCount, ...]
    unlabelled: int
    labels_missing: str | None
    images_a_class: Spread | None
    width: Spread | None
    height: Spread | None
    megapixels: Spread | None
    image_bytes: Spread | None
    formats: dict[str, int]
    channels: dict[str, int]
    oddities: tuple[Oddity, ...]
    unreadable: tuple[Unreadable, ...]
    plan: ShardPlan | None


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A split image by image: where each lies, what its header says. Else as in Contents."""

    path: Path
    split: str | None
    form: str
    archive: str | None
    samples: Samples
    classes: tuple[Class, ...]
    labels_missing: str | None
    headers: Headers
    plan: ShardPlan | None

    @functools.cached_property
    def contents(self) -> Contents:
        """The same in numbers."""
        return _summarise(self)


def _summarise(found: Inspected) -> Contents:
    samples, headers = found.samples, found.headers
    read = headers.format != UNREADABLE
    pixels = headers.width[read].astype(np.float64) * headers.height[read]
    labels = samples.labels[samples.labels != UNLABELLED]
    counts = np.bincount(labels, minlength=len(found.classes))
    return Contents(
        path=found.path,
        split=found.split,
        form=found.form,
        archive=found.archive,
        images=len(samples),
        bytes=int(samples.sizes.sum()),
        classes=tuple(
            ClassCount(id=each.id, name=each.name, images=int(count))
            for each, count in zip(found.classes, counts, strict=True)
        ),
        unlabelled=len(samples) - len(labels),
        labels_missing=found.labels_missing,
        images_a_class=_spread(counts),
        width=_spread(headers.width[read]),
        height=_spread(headers.height[read]),
        megapixels=_spread(pixels / 1e6),
        image_bytes=_spread(samples.sizes),
        formats=_count_formats(headers),
        channels=_count_channels(headers),
        oddities=tuple(_oddities(samples, headers, found.path)),
        unreadable=tuple(
            Unreadable(image=_place(samples, number), reason=reason)
            for number, reason in headers.unreadable
        ),
        plan=found.plan,
    )


def _spread(values: npt.NDArray[Any]) -> Spread | None:
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    space = np.geomspace if low > 0 else np.linspace
    edges = space(low, high, BINS + 1) if high > low else np.array([low, high])
    return Spread(
        min=low,
        median=float(np.median(values)),
        mean=float(values.mean(dtype=np.float64)),
        max=high,
        edges=tuple(float(f"{edge:.6g}") for edge in edges),
        counts=tuple(np.histogram(values, edges)[0].tolist()),
    )


def _count_formats(headers: Headers) -> dict[str, int]:
    counts = {name: int((headers.format == kind).sum()) for kind, name in _FORMATS.items()}
    return {name: count for name, count in counts.items() if count}


def _count_channels(headers: Headers) -> dict[str, int]:
    counts = {name: int((headers.components == number).sum()) for number, name in _CHANNELS}
    four, png = headers.components == 4, headers.format == Format.PNG
    counts |= {"CMYK": int((four & ~png).sum()), "colour and alpha": int((four & png).sum())}
    return {name: count for name, count in counts.items() if count}


def _oddities(samples: Samples, headers: Headers, root: Path) -> Iterator[Oddity]:
    """What of ILSVRC2012's known oddities is there, and what else contradicts a name."""
    named_png = np.array([name[-4:].lower() == b".png" for name in samples.names.tolist()], bool)
    png = headers.format == Format.PNG
    jpeg = (headers.format == Format.JPEG) | (headers.format == Format.JPEG_OTHER)
    known = _are(samples, [ilsvrc.PNG_IMAGE, ilsvrc.BROKEN_EXIF_IMAGE, *ilsvrc.CMYK_IMAGES])
    perhaps = (png & ~named_png) | (jpeg & (named_png | (headers.components == 4) | known))
    found: defaultdict[tuple[str, bool], list[str]] = defaultdict(list)
    for number in np.flatnonzero(perhaps).tolist():
        odd = oddity(samples[number].name, headers.info(number))
        if odd is not None:
            found[odd].append(_short_name(samples, number, root))
    for (what, is_known), images in found.items():
        yield Oddity(what=what, known=is_known, images=tuple(images))


def _are(samples: Samples, keys: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which of the samples, that are in the order of their keys, have one of these."""
    are = np.zeros(len(samples), bool)
    for key in (each.encode() for each in keys):
        number = int(np.searchsorted(samples.keys, key))
        if number < len(samples) and samples.keys[number] == key:
            are[number] = True
    return are


def _short_name(samples: Samples, number: int, root: Path) -> str:
    """The name of an image within what was inspected."""
    sample = samples[number]
    return sample.name if samples.layout is Layout.TAR else str(sample.path.relative_to(root))


def _place(samples: Samples, number: int) -> str:
    """Where an image lies, for messages."""
    sample = samples[number]
    return f"{sample.path}: {sample.name}" if samples.layout is Layout.TAR else str(sample.path)
