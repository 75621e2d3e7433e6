"""The trainer, step by step, against a plain PyTorch script on the same weights and batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
EPOCHS, BATCH, SIZE, SEED = 17, 17, 64, 5  # 51 images: 3 steps an epoch, none dropped


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["seed", "torchvision-v1"])
def test_losses_are_those_of_a_plain_script(recipe: str, shards: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    config = resolve(
        shards=shards,
        out=tmp_path / "run",
        world=1,
        threads=1,
        model="resnet18",
        recipe=recipe,
        epochs=EPOCHS,
        batch_size=BATCH,
        image_size=SIZE,
        seed=SEED,
        device="cpu",
        log_every=1,
    )

    def collect(record: dict[str, object]) -> None:
        if record["kind"] == "step":
            losses.append(float(str(record["loss"])))

    train(config, progress=Silent(), on_record=collect)
    weights, batches = tmp_path / "weights.pt", tmp_path / "batches.npz"
    model = build_model("resnet18", 3, init=find_recipe(recipe).init, seed=SEED)
    torch.save(model.state_dict(), weights)
    write_batches(shards, batches)
    command = [sys.executable, str(PLAIN), "locked", str(batches), str(weights), recipe]
    expected = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert len(losses) == len(expected) == 51
    assert losses[:50] == pytest.approx(expected[:50], abs=1e-4)
    assert max(losses) - min(losses) > 0.1  # it did train


def write_batches(shards: Path, path: Path) -> None:
    transform = TrainTransform(image_size=SIZE)
    with (
        Dataset.open(shards / "train") as dataset,
        Loader(dataset, transform, global_batch=BATCH, seed=SEED, threads=1) as loader,
    ):
        batches = [
            [
                (batch.images.numpy().copy(), batch.labels.numpy().copy())
                for batch in loader.epoch(e)
            ]
            for e in range(EPOCHS)
        ]
    images, labels = (
        np.array([[batch[part] for batch in epoch] for epoch in batches]) for part in (0, 1)
    )
    np.savez(path, images=images, labels=labels, epochs=EPOCHS)
