"""What a run tells of itself while it is under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.progress import Silent
from training.config import resolve
from training.trainer import train


def test_the_duration_is_told_after_20_steps_however_rare_log_lines_are(
    shards: Path, tmp_path: Path
) -> None:
    records: list[dict[str, Any]] = []
    notes: list[str] = []

    class Listener(Silent):
        def note(self, message: str) -> None:
            notes.append(message)

    config = resolve(
        shards=shards,
        out=tmp_path,
        world=1,
        threads=1,
        model="resnet18",
        epochs=2,
        batch_size=2,  # of 51 samples: 25 steps an epoch
        image_size=32,
        device="cpu",
        log_every=1000,
        max_steps=22,
    )
    train(config, progress=Listener(), on_record=records.append)
    lines = [(each["kind"], each["step"]) for each in records]
    assert lines == [("start", 0), ("step", 20), ("forecast", 20), ("step", 22), ("end", 22)]
    assert records[2]["steps_left"] == 2
    assert any(each.startswith("2 steps are left, which take about 0:00:0") for each in notes)
