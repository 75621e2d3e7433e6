"""What a device trains and what limits it, and training on pictures that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from shards.progress import Silent
from training.bench import bench_model
from training.synthetic import SyntheticLoader


def test_every_batch_size_precision_and_format_has_a_figure() -> None:
    found = bench_model(
        "resnet18",
        batch_sizes=[2, 4],
        image_size=32,
        amp=None,
        device="cpu",
        seconds=0.01,
        progress=Silent(),
    )
    kinds = {
        (each.kind.batch_size, each.kind.precision, each.kind.channels_last)
        for each in found.points
    }
    assert kinds == {
        (size, precision, last)
        for size in (2, 4)
        for precision in ("fp32", "bf16")
        for last in (True, False)
    }
    assert all(each.images_per_second for each in found.points)
    assert found.best in found.points


@pytest.mark.parametrize("text", ["", "0", "8,x", "8,,16"])
def test_batch_sizes_that_are_none_are_refused(text: str) -> None:
    done = CliRunner().invoke(cli.resnet, ["bench", "model", "--batch-sizes", text])
    assert done.exit_code == 2
    assert "is not a list of numbers" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "resnet99"], "--model resnet99: choose one of resnet18, "),
        (["--model", "resnet18", "--batch-sizes", "1"], "cannot be normalised"),
        (["--amp", "fp16"], "--amp fp16 is for accelerators"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words: list[str], said: str) -> None:
    command = ["bench", "model", "--image-size", "32", "--device", "cpu", "--seconds", "0.01"]
    done = CliRunner().invoke(cli.resnet, [*command, *words])
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_one_precision_can_be_asked_for() -> None:
    command = ["bench", "model", "--model", "resnet18", "--image-size", "32", "--json"]
    given = ["--device", "cpu", "--seconds", "0.01", "--batch-sizes", "2", "--amp", "off"]
    done = CliRunner().invoke(cli.resnet, [*command, *given])
    points = json.loads(done.stdout)["points"]
    assert [each["kind"]["precision"] for each in points] == ["fp32", "fp32"]


def test_the_parts_and_the_whole_are_measured(shards: Path) -> None:
    command = ["bench", "train", "--shards", str(shards), "--model", "resnet18", "--device", "cpu"]
    sizes = ["--image-size", "32", "--batch-size", "4", "--steps", "12", "--json"]
    done = CliRunner().invoke(cli.resnet, [*command, *sizes])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert min(found["synthetic"], found["loader"], found["whole"]) > 0
    assert found["bound"] == ("loader" if found["loader"] < found["synthetic"] else "device")
    assert found["cores_a_card"] >= 1


def test_made_up_pictures_make_whole_epochs(shards: Path, tmp_path: Path) -> None:
    """Order digest, evaluation and checkpoints are as ever."""
    command = ["train", "--shards", "synthetic:", "--steps-per-epoch", "3", "--val", str(shards)]
    sizes = ["--model", "resnet18", "--image-size", "32", "--batch-size", "4", "--epochs", "2"]
    run = tmp_path / "run"
    done = CliRunner().invoke(cli.resnet, [*command, *sizes, "--device", "cpu", "--out", str(run)])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines if line["kind"] == "eval"] == [15, 15]
    assert (run / "checkpoints" / "epoch-0002.pt").exists()


@pytest.mark.parametrize("world", [1, 3])
def test_ranks_share_every_made_up_batch(world: int) -> None:
    ranks = [
        SyntheticLoader(
            image_size=8,
            global_batch=8,
            steps=3,
            classes=5,
            rank=rank,
            world=world,
            pin_memory=False,
        )
        for rank in range(world)
    ]
    for step, batches in enumerate(zip(*(loader.epoch(0) for loader in ranks), strict=True)):
        assert sum(len(batch.labels) for batch in batches) == 8
        positions = [int(each) for batch in batches for each in batch.positions]
        assert positions == list(range(8 * step, 8 * step + 8))
        assert all(batch.images.shape == (len(batch.labels), 8, 8, 3) for batch in batches)
    assert len(list(ranks[0].epoch(0, first_step=2))) == 1
