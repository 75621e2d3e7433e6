"""What a run has around it, fixed while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from shards.dataset import Dataset
from shards.progress import Progress
from training.config import TrainConfig
from training.device import Device, Precision
from training.distributed import World
from training.run_folder import RunFolder
from training.train_set import TrainSet, samples_of_epoch

Record: TypeAlias = dict[str, object]  # a line of the log


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run's configuration, processes, data, folder and listeners."""

    config: TrainConfig
    device: Device
    precision: Precision
    world: World
    train_set: TrainSet
    val_set: Dataset
    folder: RunFolder
    progress: Progress  # silent on all ranks but 0
    on_record: Callable[[Record], None]

    @property
    def data(self) -> dict[str, Any]:
        """What tells this data from other data; part of every checkpoint."""
        return {
            "train": self.train_set.digest,
            "val": self.val_set.digest,
            "train_samples": self.train_samples,
            "val_samples": len(self.val_set),
        }

    @property
    def train_samples(self) -> int:
        """Samples of an epoch."""
        return samples_of_epoch(self.train_set, self.config.global_batch)
