"""How many images a split should have, class by class, and whether what was found is that.

A set with more than half of the images claims to be the whole one, and then whatever is missing
is damage. With fewer it is taken for a part that somebody chose, and that it is one is a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prep import ilsvrc
from prep.devkit import Devkit

_NAMED_AT_MOST = 20  # in one sentence


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The whole of a split: its images, and the fewest and the most of each class by wnid."""

    origin: str  # what says so
    images: int
    by_class: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs from the whole set: damage if the set claims to be whole, else notes.

    `met`: whether there was anything to compare, that is images of the same classes.
    """

    met: bool
    claims: bool
    findings: tuple[str, ...]
    notes: tuple[str, ...]


def published(split: str | None) -> Expected | None:
    """ILSVRC2012's own counts; of a training class only the range over all classes is published."""
    wnids = [each.wnid for each in ilsvrc.classes()]
    counts = {
        "train": (ilsvrc.TRAIN_IMAGES, ilsvrc.TRAIN_IMAGES_A_CLASS),
        "val": (ilsvrc.VALIDATION_IMAGES, (ilsvrc.VALIDATION_IMAGES_A_CLASS,) * 2),
        "test": (ilsvrc.TEST_IMAGES, None),
    }
    if split not in counts:
        return None
    images, each = counts[split]
    by_class = {} if each is None else dict.fromkeys(wnids, each)
    return Expected(origin="ILSVRC2012", images=images, by_class=by_class)


def from_devkit(devkit: Devkit, origin: str) -> Expected:
    """The training images of each class as a devkit has them: exact."""
    counts = {each.wnid: each.num_train_images for each in devkit.synsets if not each.num_children}
    by_class = {wnid: (count, count) for wnid, count in counts.items() if count}
    return Expected(origin=origin, images=sum(counts.values()), by_class=by_class)


def claims_whole(images: int, expected: Expected) -> bool:
    """Whether so many images of a set's classes claim to be the whole set."""
    return 2 * images > expected.images


def compare(
    found: Mapping[str, int], images: int, expected: Expected, *, whole: bool
) -> Comparison:
    """Compare the images of each class, and of all, with what they should be.

    `found` is empty where classes are not known. `whole`: the set is known to claim so.
    """
    known = {wnid: found[wnid] for wnid in expected.by_class if wnid in found}
    ours = sum(known.values()) if found else images
    if ours == 0:
        return Comparison(met=False, claims=False, findings=(), notes=())
    claims = whole or claims_whole(ours, expected)
    differing = tuple(_differences(found, images, expected))
    if claims or not differing:
        return Comparison(met=True, claims=claims, findings=differing, notes=())
    of_classes = f" in {len(known):,} of {len(expected.by_class):,} classes" if known else ""
    note = (
        f"{ours:,} of {expected.images:,} images{of_classes} ({expected.origin}): taken for a part "
        "that was chosen"
    )
    return Comparison(met=True, claims=False, findings=(), notes=(note,))


def _differences(found: Mapping[str, int], images: int, expected: Expected) -> Iterator[str]:
    if found:
        missing = [wnid for wnid in expected.by_class if wnid not in found]
        if missing:
            number = f"{len(missing):,} of {len(expected.by_class):,} classes"
            yield f"lacks {number} of {expected.origin}: {listed(missing)}"
        strangers = sorted(set(found) - set(expected.by_class)) if expected.by_class else []
        if strangers:
            yield f"has folders that are no class of {expected.origin}: {listed(strangers)}"
        for wnid, (fewest, most) in expected.by_class.items():
            if wnid in found and not fewest <= found[wnid] <= most:
                right = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
                yield f"has {found[wnid]:,} images of {wnid}, {expected.origin} has {right}"
    if images != expected.images:
        difference = expected.images - images
        how = f"{difference:,} are missing" if difference > 0 else f"{-difference:,} too many"
        yield f"has {images:,} images, {expected.origin} has {expected.images:,}: {how}"


def listed(names: Iterable[str]) -> str:
    """Names in a sentence: all of a few, the first of many."""
    names = list(names)
    rest = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {rest:,} more" if rest > 0 else "")
