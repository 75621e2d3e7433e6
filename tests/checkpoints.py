"""Small checkpoints and what lies in a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from training.checkpoint import Best, Checkpoint, Position, current_versions
from training.config import config_values, resolve


def checkpoint(epoch: int = 1, step: int = 0, best: int | None = None) -> Checkpoint:
    """A small one; `best` is the epoch of its best evaluation."""
    return Checkpoint(
        model={"weight": torch.arange(5000, dtype=torch.float32), "count": torch.tensor(3)},
        optimizer={"weight": {"momentum_buffer": torch.ones(5000), "step": 3}},
        scaler={"scale": 65536.0, "_growth_tracker": 7},
        ema={"weight": torch.zeros(5000)},
        rng={"torch": torch.get_rng_state()},
        position=Position(epoch=epoch, step=step, samples=99, order="00ff00ff00ff00ff"),
        best=None
        if best is None
        else Best(epoch=best, top1_count=3, top5_count=5, samples=6, loss=0.5, weights="ema"),
        left_out=[(0, 3, 5)],
        config=config_values(
            resolve(shards=Path("S"), out=Path("R"), world=1, threads=1, model="resnet18")
        ),
        data={"train": "ab", "val": "cd", "train_samples": 9, "val_samples": 3},
        classes=["n01", "n02"],
        class_names=["tench", "Ente, grün"],
        versions=current_versions(),
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
