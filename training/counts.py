"""How many samples were right."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Right answers among samples, each counted once."""

    samples: int
    top1_count: int
    top5_count: int  # top-k with k = classes where there are fewer than 5

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * self.top1_count / self.samples

    @property
    def top5(self) -> float:
        """Per cent."""
        return 100 * self.top5_count / self.samples
