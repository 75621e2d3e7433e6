"""Whether two models are the same in effect, by the rules that the cards' vendor accepts by.

The metric, top-1, of its engine may differ from onnxruntime's by 0.1 % of it, and onnxruntime's
from torch's by 1 % (Tecorigin, teco-inference-model-zoo, the guide to adapting models); anything
else is held to the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from training.engines import EngineName
from training.results.evaluation import Result, Results

_FROM_TORCH: Final[tuple[EngineName, ...]] = ("torch", "onnxruntime", "teco")
_RULES: Final = {frozenset(("teco", "onnxruntime")): 0.001}  # others: _OTHERWISE
_OTHERWISE: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A sample whose best class is not the same."""

    key: str
    label: int
    first: int  # best class of the first model
    second: int
    logit: float | None  # the largest difference of its logits; None where it is not finite


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two models' answers compare."""

    samples: int
    same_top1: int
    largest_difference: float | None  # of a logit of any sample; None where it is not finite
    differing: tuple[Difference, ...]  # in the order of keys
    reference: int  # 0 or 1: the model that the other is measured by
    allowed: float  # relative error of top-1
    error: float  # infinite where the reference is never right and the other is

    @property
    def within(self) -> bool:
        """Whether the rule is kept."""
        return self.error <= self.allowed


def agreement_of(results: Results) -> Agreement:
    """Compare the two models of an evaluation; pure."""
    first, second = results.models
    assert first.answers is not None
    assert second.answers is not None
    assert results.differences is not None
    ones, others = first.answers.classes[:, 0], second.answers.classes[:, 0]
    apart = np.flatnonzero(ones != others).tolist()
    reference = min((0, 1), key=lambda each: _FROM_TORCH.index(results.models[each].engine))
    return Agreement(
        samples=len(ones),
        same_top1=len(ones) - len(apart),
        largest_difference=_largest(results.differences),
        differing=tuple(
            Difference(
                key=results.keys[number],
                label=int(results.labels[number]),
                first=int(ones[number]),
                second=int(others[number]),
                logit=_largest(results.differences[number : number + 1]),
            )
            for number in apart
        ),
        reference=reference,
        allowed=_RULES.get(frozenset((first.engine, second.engine)), _OTHERWISE),
        error=_error(results.models[reference], results.models[1 - reference]),
    )


def _error(reference: Result, other: Result) -> float:
    """Of top-1, relative to the reference's."""
    wanted, found = reference.evaluation.top1_count, other.evaluation.top1_count
    if wanted == found:
        return 0.0
    return abs(found - wanted) / wanted if wanted else math.inf


def _largest(differences: npt.NDArray[np.float32]) -> float | None:
    largest = float(differences.max())
    return largest if math.isfinite(largest) else None
