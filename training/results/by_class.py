"""What an evaluation says of each class: how often it is found, and what it is taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.counts import Counts
from training.evaluate import Answers


@dataclass(frozen=True, kw_only=True)
class ClassResult(Counts):
    """One class of the split."""

    index: int
    id: str
    name: str
    confused: tuple[tuple[int, int], ...]  # (class it was taken for, times), the most often first


def by_class(
    answers: Answers,
    labels: npt.NDArray[np.int32],
    classes: Sequence[str],
    names: Sequence[str],
) -> list[ClassResult]:
    """The classes that have samples, the worst first; equally bad ones in their order."""
    found = []
    for index in np.unique(labels).tolist():
        answered = answers.classes[labels == index]
        wrong = answered[answered[:, 0] != index, 0]
        taken, times = np.unique(wrong, return_counts=True)
        often = np.argsort(-times, kind="stable")
        found.append(
            ClassResult(
                index=index,
                id=classes[index],
                name=names[index],
                samples=len(answered),
                top1_count=len(answered) - len(wrong),
                top5_count=int((answered == index).sum()),
                confused=tuple(zip(taken[often].tolist(), times[often].tolist(), strict=True)),
            )
        )
    return sorted(found, key=lambda each: (each.top1, each.top5, each.index))
