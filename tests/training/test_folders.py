"""Trained from class folders by the command: the run that shards of them give, and one with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from trees import run_extract

import cli
from training.checkpoint import load_checkpoint

# 51 training samples: 4 steps
SMALL = ("--model", "resnet18", "--image-size", "32", "--batch-size", "12", "--epochs", "1",
         "--lr", "0.01", "--device", "cpu", "--nproc", "1", "--workers", "1")  # fmt: skip


@pytest.fixture
def images(archives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The class folders of `archives`, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_extract(archives.train.parent, out=tmp_path / "images")
    return tmp_path / "images"


def resnet(*arguments: object) -> Result:
    return CliRunner().invoke(cli.resnet, [str(each) for each in arguments])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt").model


def test_a_run_begun_on_folders_goes_on_with_shards_as_if_nothing_were(
    images: Path, shards: Path, tmp_path: Path
) -> None:
    mixed, plain = tmp_path / "mixed", tmp_path / "plain"
    done = resnet("train", *SMALL, "--shards", images, "--out", mixed, "--max-steps", 2)
    assert done.exit_code == 0, done.output
    assert "holds 66 images in class folders" in done.stderr
    assert f"{tmp_path / 'cache' / 'imagenet-resnet'}" in done.stderr
    assert f"`imagenet-prep shard {images} --out {images}-shards`" in done.stderr
    done = resnet("train", *SMALL, "--shards", shards, "--out", mixed)
    assert done.exit_code == 0, done.output
    assert resnet("train", *SMALL, "--shards", shards, "--out", plain).exit_code == 0
    assert all(torch.equal(each, weights(plain)[name]) for name, each in weights(mixed).items())
    found = [
        json.loads(resnet("eval", mixed / "last.pt", "--shards", where, "--device", "cpu",
                          "--json").stdout)["evaluation"]
        for where in (shards, images / "val")
    ]  # fmt: skip
    assert found[0] == found[1]


def test_folders_without_validation_are_refused_before_anything_is_read(
    images: Path, tmp_path: Path
) -> None:
    shutil.rmtree(images / "val")
    done = resnet("train", *SMALL, "--shards", images, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert f"none in {images / 'val'}, which is needed too" in done.stderr
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


def test_an_image_that_cannot_be_used_is_one_sentence(images: Path, tmp_path: Path) -> None:
    path = next((images / "train").glob("*/*"))
    path.write_bytes(b"<html>")
    done = resnet("train", *SMALL, "--shards", images, "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert f"{path.name}: it is neither a JPEG nor a PNG" in done.stderr
