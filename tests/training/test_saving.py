"""Checkpoints written behind the training, and disks that are full."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch

from shards.errors import ToolError
from training.checkpoint import Checkpoint, load_checkpoint
from training.distributed import World
from training.log import RunLog
from training.run_folder import RunFolder
from training.saving import Saver

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def checkpoint(epoch: int, *, floats: int = 100) -> Checkpoint:
    model = {"weight": torch.full((floats,), float(epoch))}
    return dataclasses.replace(checkpoints.checkpoint(epoch), model=model, optimizer={}, ema={})


class Run:
    """A saver with what belongs to it, in a folder."""

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self.folder = RunFolder(path)
        self.log = RunLog(path / "log.jsonl", (0, 0))
        self.saver = Saver(
            self.folder, self.log, ALONE, keep=2, latest=None, best=None, note=self.notes.append
        )

    def save(self, epoch: int, **options: int) -> None:
        self.log.write("epoch", {"epoch": epoch, "step": 0})
        self.saver.save(lambda: checkpoint(epoch, **options))


def test_each_is_whole_in_its_turn_and_the_last_ones_stay(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for epoch in range(1, 6):
        run.save(epoch, floats=50_000)
        run.saver.look()
    assert run.saver.finish() == run.folder.path_at((5, 0))
    assert [path.name for path in run.folder.saved()] == ["epoch-0004.pt", "epoch-0005.pt"]
    assert all(load_checkpoint(path).model["weight"].shape for path in run.folder.saved())
    assert load_checkpoint(run.folder.last).position.epoch == 5
    assert not run.notes
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    run.log.close()


def test_a_full_disk_is_told_and_the_next_one_is_saved(
    small_disk: Callable[[str], Any],
) -> None:
    run = Run(small_disk("size=400k").path)
    run.save(1)
    run.save(2, floats=200_000)
    run.save(3)
    assert run.saver.finish() == run.folder.path_at((3, 0))
    (note,) = run.notes
    assert "epoch-0002.pt could not be written (No space left on device); make room" in note
    assert "training goes on, and the last whole checkpoint is epoch-0001.pt" in note
    assert [path.name for path in run.folder.saved()] == ["epoch-0001.pt", "epoch-0003.pt"]
    run.log.close()


def test_a_run_whose_last_one_is_missing_fails_at_its_end(small_disk: Callable[[str], Any]) -> None:
    run = Run(small_disk("size=400k").path)
    run.save(1)
    run.save(2, floats=200_000)
    with pytest.raises(ToolError, match=r"epoch-0002.pt could not .* goes on from .*epoch-0001.pt"):
        run.saver.finish()
    assert load_checkpoint(run.folder.last).position.epoch == 1
    run.log.close()


def test_a_mistake_in_writing_is_no_full_disk(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.saver.save(lambda: dataclasses.replace(checkpoint(1), model={"a": lambda: 1}))  # type: ignore[dict-item]
    with pytest.raises(Exception, match="pickle"):
        run.saver.finish()
    run.log.close()


def test_log_lines_wait_for_room_on_a_full_disk(small_disk: Callable[[str], Any]) -> None:
    disk = small_disk("size=64k")
    run = Run(disk.path)
    run.log.write("step", {"epoch": 0, "step": 1})
    filler = disk.path / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    for step in range(2, 200):  # more than what is left of the last page
        run.log.write("step", {"epoch": 0, "step": step})
    assert run.log.failure is not None
    run.save(1)
    with pytest.raises(ToolError, match=r"log.jsonl: No space left"):
        run.saver.finish()
    filler.unlink()
    run.log.write("step", {"epoch": 1, "step": 200})
    assert run.log.failure is None
    run.log.close()
    steps = [json.loads(line)["step"] for line in run.folder.log.read_text().splitlines()]
    assert steps == [*range(1, 200), 0, 200]


def test_what_was_written_beyond_a_place_can_be_taken_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 5):
        run.log.write("step", {"epoch": 0, "step": step})
    run.log.rewind((0, 2))
    run.log.write("rollback", {"epoch": 0, "step": 2})
    run.log.close()
    lines = [json.loads(line) for line in run.folder.log.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("step", 1),
        ("step", 2),
        ("rollback", 2),
    ]
