"""The trainer, step by step, against a plain PyTorch script on the same weights and batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.dataset import Dataset
from shards.loader import Loader
from shards.progress import Silent
from shards.transform import TrainTransform
from training.config import resolve
from training.model import build_model
from training.recipes import find_recipe
from training.trainer import train

PLAIN = Path(__file__).parents[1] / "proof" / "plain.py"
SIZE, SEED, SAMPLES = 64, 5, 51


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "epochs", "batch", "warmup", "drop"),
    [
        ("seed", 17, 17, 0, 30),  # no warm-up, as its rule is below 256, and nothing left out
        ("seed", 17, 16, 2, 30),  # 3 samples of each epoch left out
        ("torchvision-v1", 17, 17, 0, 30),
        ("torchvision-v1", 13, 16, 0, 5),  # a batch of 3 at the end of each epoch
    ],
)
def test_losses_are_those_of_a_plain_script(
    recipe: str, epochs: int, batch: int, warmup: int, drop: int, shards: Path, tmp_path: Path
) -> None:
    losses: list[float] = []
    config = resolve(
        shards=shards,
        out=tmp_path / "run",
        world=1,
        threads=1,
        model="resnet18",
        recipe=recipe,
        epochs=epochs,
        batch_size=batch,
        image_size=SIZE,
        seed=SEED,
        device="cpu",
        log_every=1,
        settings={"warmup_epochs": warmup, "step_epochs": drop},
    )

    def collect(record: dict[str, object]) -> None:
        if record["kind"] == "step":
            losses.append(float(str(record["loss"])))

    train(config, progress=Silent(), on_record=collect)
    weights, pictures = tmp_path / "weights.pt", tmp_path / "pictures.npz"
    model = build_model("resnet18", 3, init=find_recipe(recipe).init, seed=SEED)
    torch.save(model.state_dict(), weights)
    write_pictures(shards, pictures, epochs)
    command = [sys.executable, str(PLAIN), "locked", str(pictures), str(weights), recipe]
    command += map(str, (batch, warmup, drop))
    expected = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert len(losses) == len(expected) >= 51
    assert losses[:50] == pytest.approx(expected[:50], abs=1e-4)
    assert max(losses) - min(losses) > 0.1  # it did train


def write_pictures(shards: Path, path: Path, epochs: int) -> None:
    """All pictures of every epoch as they are trained on, in their order, not cut into batches."""
    transform = TrainTransform(image_size=SIZE)
    options: dict[str, Any] = {"global_batch": SAMPLES, "seed": SEED, "threads": 1}
    with (
        Dataset.open(shards / "train") as dataset,
        Loader(dataset, transform, **options) as loader,
    ):
        whole = [
            (batch.images.numpy().copy(), batch.labels.numpy().copy())
            for epoch in range(epochs)
            for batch in loader.epoch(epoch)
        ]
    images, labels = (np.array([epoch[part] for epoch in whole]) for part in (0, 1))
    assert labels.shape == (epochs, SAMPLES)
    np.savez(path, images=images, labels=labels)
