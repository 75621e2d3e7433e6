from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, names_in

from shards.errors import DamagedData, ToolError
from training.checkpoint import (
    FORMAT,
    Checkpoint,
    ForeignFile,
    load_checkpoint,
    save_checkpoint,
)
from training.run_folder import RunFolder
from training.start import latest_whole, settle


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return bool(torch.equal(first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    return bool(first == second)


def equal(first: Checkpoint, second: Checkpoint) -> bool:
    return all(
        same(getattr(first, field.name), getattr(second, field.name))
        for field in dataclasses.fields(Checkpoint)
    )


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.pt"
    made = checkpoint(best=1)
    save_checkpoint(path, made)
    assert equal(load_checkpoint(path), made)
    assert names_in(path.parent) == ["a.pt"]


def test_its_container_is_what_the_readme_says(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint())
    content = torch.load(path, weights_only=True)
    assert (content["format"], content["schema"]) == (FORMAT, 2)
    assert set(content) == {
        "format",
        "schema",
        "model",
        "optimizer",
        "scaler",
        "ema",
        "rng",
        "position",
        "best",
        "left_out",
        "config",
        "data",
        "classes",
        "class_names",
        "versions",
    }


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint())
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DamagedData, match=r"a\.pt is truncated or damaged"):
        load_checkpoint(path)


def test_a_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint())
    data = bytearray(path.read_bytes())
    place = data.find(torch.arange(100, 140, dtype=torch.float32).numpy().tobytes())
    assert place > 0
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedData, match="checksum of its part"):
        load_checkpoint(path)


class Hostile:
    """Makes a file when unpickled by a careless reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "was here"
    torch.save({"format": FORMAT, "schema": 1, "model": Hostile(target)}, tmp_path / "a.pt")
    with pytest.raises(DamagedData, match="could run code"):
        load_checkpoint(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Hostile(target)))
    with pytest.raises(DamagedData, match="not a checkpoint"):
        load_checkpoint(tmp_path / "b.pt")
    assert not target.exists()


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "theirs.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    (tmp_path / "text.pt").write_text("weights")
    for name in ("theirs.pt", "list.pt", "zip.pt", "text.pt"):
        with pytest.raises(DamagedData, match=rf"{name} is not a checkpoint of imagenet-resnet"):
            load_checkpoint(tmp_path / name)


def test_other_schemas_missing_keys_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint())
    content = torch.load(path, weights_only=True)
    torch.save(content | {"schema": 1}, path)
    with pytest.raises(DamagedData, match="schema 1, and this version reads 2"):
        load_checkpoint(path)
    torch.save(content | {"schema": [2]}, path)
    with pytest.raises(DamagedData, match="is not a checkpoint of imagenet-resnet"):
        load_checkpoint(path)
    del content["optimizer"]
    torch.save(content, path)
    with pytest.raises(DamagedData, match=r"lacks .*'optimizer'"):
        load_checkpoint(path)
    with pytest.raises(ToolError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ToolError, match="is not a file"):
        load_checkpoint(tmp_path)


def config_with(**changed: Any) -> dict[str, Any]:
    return {"config": checkpoint().config | changed}


def recipe_with(**changed: Any) -> dict[str, Any]:
    return config_with(recipe=checkpoint().config["recipe"] | changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": [1]}, "model must be Tensors by name"),
        ({"ema": {3: torch.zeros(1)}}, "ema must be Tensors by name"),
        ({"optimizer": {"weight": 3}}, "optimizer must be dicts by name"),
        ({"rng": {"torch": torch.zeros(3)}}, "'torch' of rng is a Tensor and must be a tensor of"),
        ({"best": [1]}, "best must be a dict"),
        ({"best": {}}, "best lacks 'epoch'"),
        ({"left_out": [1, 2]}, "left_out must be"),
        ({"position": {}}, "position lacks 'epoch'"),
        ({"position": {"epoch": 1, "step": -1}}, "'step' of position is -1 and must be a whole"),
        ({"data": {}}, "data lacks 'train'"),
        ({"classes": 5}, "classes must be a list of 1 to 1048576 texts"),
        ({"class_names": None}, "class_names must be a list of"),
        ({"class_names": ["tench"]}, "classes are 2 and class_names 1"),
        ({"versions": {"torch": torch.zeros(1)}}, "versions is not plain values"),
        ({"config": {}}, "config lacks 'model'"),
        (config_with(model="vgg"), "'model' of config is 'vgg' and must be one of resnet18, "),
        (config_with(stem=3), "'stem' of config is 3 and must be one of imagenet, small"),
        (config_with(batch_size="x"), "'batch_size' of config is 'x' and must be a whole number"),
        (config_with(batch_size=True), "'batch_size' of config is True"),
        (config_with(batch_size=10**9), "1000000000 pictures of 224 px are no batch"),
        (config_with(lr=float("nan")), "'lr' of config is nan and must be a number above 0"),
        (config_with(recipe=None), "recipe must be a dict"),
        (recipe_with(eval_size=10**9), "'eval_size' of recipe is 1000000000 and must be a whole"),
        (recipe_with(eval_resize=0.5), "'eval_resize' of recipe is 0.5 and must be a number from"),
        (recipe_with(eval_resize=4000), "224 px are cut out of 4000 times that"),
        (recipe_with(interpolation="lanczos"), "must be one of bilinear, bicubic"),
    ],
)
def test_what_no_run_writes_is_refused_in_a_sentence(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, checkpoint(best=1))
    torch.save(torch.load(path, weights_only=True) | changed, path)
    with pytest.raises(DamagedData, match="is no checkpoint of schema 2 as") as refused:
        load_checkpoint(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_pickles_of_others_are_refused_without_another_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "theirs.pt"
    torch.save({"state_dict": {}}, path, pickle_protocol=4)
    with pytest.raises(ForeignFile):
        load_checkpoint(path)
    assert not recwarn.list


def test_a_full_disk_leaves_the_last_one_whole(small_disk: Callable[[str], Any]) -> None:
    disk = small_disk("size=100k")
    path = disk.path / "a.pt"
    save_checkpoint(path, checkpoint(epoch=1))
    big = dataclasses.replace(checkpoint(epoch=2), model={"weight": torch.ones(100_000)})
    with pytest.raises(ToolError, match=r"a\.pt could not be written"):
        save_checkpoint(path, big)
    assert names_in(disk.path) == ["a.pt"]
    assert load_checkpoint(path).position.epoch == 1


# --- the run's folder -------------------------------------------------------------------------


def names(run: RunFolder) -> list[str]:
    return [path.name for path in run.saved()]


def test_the_last_ones_stay_and_the_best(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for place, best in (((0, 40), None), ((1, 0), 1), ((1, 40), 1), ((2, 0), 1), ((10, 0), 1)):
        run.save(checkpoint(*place, best=best), keep=2)
    assert names(run) == ["epoch-0002.pt", "epoch-0010.pt"]
    assert load_checkpoint(run.best).position.place == (1, 0)
    assert load_checkpoint(run.last).position.place == (10, 0)
    assert names_in(tmp_path) == ["best.pt", "checkpoints", "last.pt"]


def test_the_latest_whole_one_is_taken_and_the_others_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert latest_whole(run) is None
    for place in ((1, 0), (1, 40), (2, 0)):
        run.save(checkpoint(*place), keep=9)
    (run.checkpoints / ".tmp-1-epoch-0003.pt").write_bytes(b"half")
    (run.checkpoints / "notes.txt").write_text("hello")
    os.truncate(run.path_at((2, 0)), 100)
    found = latest_whole(run)
    assert found is not None
    place = found.checkpoint.position.place
    assert (found.path.name, place) == ("epoch-0001-step-000040.pt", (1, 40))
    ((path, why),) = found.passed_over
    assert path == run.path_at((2, 0))
    assert "epoch-0002.pt is truncated" in why


def test_a_run_of_damaged_checkpoints_is_not_started_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    run.path_at((1, 0)).write_bytes(b"PK\x03\x04")
    with pytest.raises(DamagedData, match="none of the 1 checkpoints"):
        latest_whole(run)


def test_links_are_made_good_after_a_kill_between(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save(checkpoint(1, 0, best=1), keep=3)
    save_checkpoint(run.path_at((2, 0)), checkpoint(2, 0, best=2))
    start = latest_whole(run) or pytest.fail("there is one")
    for _ in range(2):
        assert settle(run, start) == (start.checkpoint.best, [])
    assert load_checkpoint(run.best).position.place == (2, 0)
    assert run.best.samefile(start.path)
    assert run.last.samefile(start.path)
    assert names_in(tmp_path) == ["best.pt", "checkpoints", "last.pt"]


def test_two_runs_cannot_share_a_folder_and_leftovers_go(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / ".tmp-99-epoch-0001.pt").write_bytes(b"half")
    with run.locked():
        assert not list(run.checkpoints.iterdir())
        with pytest.raises(ToolError, match="another process"), RunFolder(run.path).locked():
            pytest.fail("locked twice")
