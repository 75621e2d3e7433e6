"""What training minimises: the mean loss over the samples at hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.recipes import Recipe


class Objective:
    """The recipe's loss of logits, float (n, classes), against targets.

    Targets are class indices, int64 (n,), or shares of the classes, float32 (n, classes).
    "cross-entropy" is torch's, smoothed. "bce" asks of every class alone whether it is there
    (timm's BinaryCrossEntropy): indices become smoothed shares, which above `bce_threshold` count
    as 1 and otherwise as 0; its mean is over samples and classes.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        self._bce = recipe.loss == "bce"
        self._smoothing = recipe.label_smoothing
        self._threshold = recipe.bce_threshold
        self._classes = classes

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss, a scalar with a gradient."""
        if not self._bce:
            return functional.cross_entropy(logits, targets, label_smoothing=self._smoothing)
        if targets.ndim == 1:
            low = self._smoothing / self._classes
            targets = shares(targets, self._classes) * (1 - self._smoothing) + low
        if self._threshold:
            targets = (targets > self._threshold).float()
        return functional.binary_cross_entropy_with_logits(logits.float(), targets)


def shares(labels: Tensor, classes: int) -> Tensor:
    """Labels, int64 (n,), as float32 (n, classes): 1 for each one's class, else 0.

    torch's one_hot reads its labels back to the host on devices that it does not know.
    """
    blank = torch.zeros((len(labels), classes), device=labels.device)
    return blank.scatter_(1, labels[:, None], 1.0)
