"""From where a run goes on when some of its checkpoints are damaged, lost or somebody else's."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, names_in

from training import checkpoint as container
from training.checkpoint import OtherSchema, load_checkpoint, save_checkpoint
from training.distributed import World
from training.log import RunLog
from training.run_folder import RunFolder
from training.saving import Saver
from training.start import Start, latest_whole, settle

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Three epochs, the first and then the third the best."""
    folder = RunFolder(tmp_path / "run")
    for epoch, best in ((1, 1), (2, 1), (3, 3)):
        folder.save(checkpoint(epoch, best=best), keep=9)
    return folder


def damage(path: Path) -> None:
    os.truncate(path, 1000)


def going_on(folder: RunFolder) -> Start:
    return latest_whole(folder) or pytest.fail("there is a checkpoint")


def test_a_damaged_checkpoint_takes_up_no_place_of_those_that_are_kept(run: RunFolder) -> None:
    damage(run.path_at((3, 0)))
    _, notes = settle(run, going_on(run))
    assert "epoch-0003.pt is truncated" in notes[0]
    assert "it is epoch-0003.pt.aside now, going back to epoch-0002.pt" in notes[0]
    run.save(checkpoint(2, 7, best=1), keep=1)
    assert names_in(run.checkpoints) == ["epoch-0002-step-000007.pt", "epoch-0003.pt.aside"]
    assert going_on(run).path == run.path_at((2, 7))
    assert load_checkpoint(run.last).position.place == (2, 7)


def test_the_checkpoint_that_was_just_written_is_never_dropped(run: RunFolder) -> None:
    """Not even where later ones lie in the folder."""
    run.save(checkpoint(1, 5), keep=1)
    assert names_in(run.checkpoints) == [
        "epoch-0001-step-000005.pt",
        "epoch-0002.pt",
        "epoch-0003.pt",
    ]


def test_best_is_what_the_checkpoint_that_is_gone_on_with_says(run: RunFolder) -> None:
    damage(run.path_at((3, 0)))  # and so best.pt, which is the same file
    start = going_on(run)
    best, _ = settle(run, start)
    assert best == start.checkpoint.best
    assert load_checkpoint(run.best).position.place == (1, 0)


def test_a_best_without_a_file_is_none(run: RunFolder) -> None:
    damage(run.path_at((3, 0)))
    run.path_at((1, 0)).unlink()
    best, notes = settle(run, going_on(run))
    assert best is None
    assert "after epoch 1) has no file any more" in notes[1]
    assert "best.pt.aside" in notes[2]
    assert names_in(run.path) == ["best.pt.aside", "checkpoints", "last.pt"]


@pytest.mark.parametrize("name", ["checkpoints/epoch-0002.pt", "checkpoints/epoch-0003.pt"])
def test_a_run_that_begins_with_another_one_s_checkpoint_has_its_best(
    run: RunFolder, tmp_path: Path, name: str
) -> None:
    path = run.path / name
    other = RunFolder(tmp_path / "other")
    other.checkpoints.mkdir(parents=True)
    start = Start(path=path, checkpoint=load_checkpoint(path))
    best, notes = settle(other, start)
    assert best == start.checkpoint.best
    assert best is not None
    assert load_checkpoint(other.best).position.place == best.place
    assert not notes
    assert len(names_in(run.path)) == 3


def test_a_copy_of_the_last_one_serves_where_no_other_is_whole(run: RunFolder) -> None:
    run.last.unlink()
    shutil.copy(run.path_at((3, 0)), run.last)  # as on a disk without hard links
    for path in run.saved():
        damage(path)
    start = going_on(run)
    assert start.path == run.last
    settle(run, start)
    assert not run.saved()
    assert load_checkpoint(run.last).position.place == (3, 0)


def test_a_checkpoint_of_another_version_is_not_taken_for_a_damaged_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "SCHEMA", container.SCHEMA + 1)
    save_checkpoint(run.path_at((4, 0)), checkpoint(4))
    monkeypatch.undo()
    with pytest.raises(OtherSchema, match=r"epoch-0004.pt .* use the version"):
        latest_whole(run)


def test_a_folder_of_a_checkpoint_s_name_is_none(run: RunFolder) -> None:
    run.path_at((4, 0)).mkdir()
    assert going_on(run).path == run.path_at((3, 0))


def test_a_best_that_a_full_disk_did_not_take_is_not_claimed(
    small_disk: Callable[[str], Any],
) -> None:
    folder = RunFolder(small_disk("size=400k").path)
    log = RunLog(folder.path / "log.jsonl", (0, 0))
    saver = Saver(folder, log, ALONE, keep=2, latest=None, best=None, note=lambda _text: None)
    first, second = checkpoint(1, best=1), checkpoint(2, best=2)
    saver.save(lambda: first)
    assert saver.best() == first.best
    saver.save(lambda: dataclasses.replace(second, model={"weight": torch.zeros(200_000)}))
    assert saver.best() == first.best
    assert load_checkpoint(folder.best).position.place == (1, 0)
    log.close()
