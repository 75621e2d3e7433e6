"""The whole way, as a user goes it: archives in, a trained and exactly evaluated model out."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import load_checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("--model", "resnet18", "--image-size", 32, "--batch-size", 4, "--device", "cpu")


def log_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def trained(run: Run, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on two processes."""
    out = tmp_path_factory.mktemp("run") / "two"
    done = run(
        "resnet", "train", "--shards", shards, "--out", out, "--nproc", 2, "--epochs", 2, *SMALL
    )
    assert done.returncode == 0, done.stderr
    return out


def test_accuracy_is_the_same_live_and_from_the_checkpoint_with_one_and_two_processes(
    run: Run, shards: Path, trained: Path
) -> None:
    live = log_of(trained, "eval")[-1]
    counts = [(live["samples"], live["top1_count"], live["top5_count"])]
    for processes in (1, 2):
        done = run(
            "resnet",
            "eval",
            trained / "last.pt",
            "--shards",
            shards,
            "--nproc",
            processes,
            "--json",
        )
        found = result_of(done)["evaluation"]
        counts.append((found["samples"], found["top1_count"], found["top5_count"]))
    assert counts == [counts[0]] * 3
    assert live["samples"] == 15


def test_a_training_killed_and_started_again_ends_where_an_undisturbed_one_ends(
    run: Run,
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
    shards: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "killed"
    command = ("resnet", "train", "--shards", shards, "--out", out, "--nproc", 2, "--epochs", 2)
    command += (*SMALL, "--save-steps", 1)
    process = start(*command)
    wait_until(process, (out / "checkpoints" / "epoch-0000-step-000002.pt").exists)
    children = children_of(process.pid)
    for number in (process.pid, *children):
        os.kill(number, signal.SIGKILL)
    process.wait()
    assert run(*command).returncode == 0
    orders = [[line["order"] for line in log_of(folder, "epoch")] for folder in (out, trained)]
    assert orders[0] == orders[1]
    ours, theirs = (load_checkpoint(folder / "last.pt").model for folder in (out, trained))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.slow
def test_one_process_and_three_train_on_the_same_samples(
    run: Run, shards: Path, tmp_path: Path
) -> None:
    """`order` sums up which sample stood where in the epoch, over all processes."""
    orders = []
    for processes, batch in ((1, 9), (3, 3)):
        out = tmp_path / str(processes)
        done = run("resnet", "train", "--shards", shards, "--out", out, "--nproc", processes,
                   "--epochs", 1, *SMALL, "--batch-size", batch)  # fmt: skip
        assert done.returncode == 0, done.stderr
        orders.append([line["order"] for line in log_of(out, "epoch")])
    assert orders[0] == orders[1]
    assert len(orders[0]) == 1


def children_of(parent: int) -> list[int]:
    """Process numbers of a process's children, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(status.rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


def test_ctrl_c_ends_a_training_with_130_and_no_process_left(
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
    shards: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "interrupted"
    process = start(
        "resnet", "train", "--shards", shards, "--out", out, "--nproc", 2, "--epochs", 500, *SMALL
    )
    wait_until(process, (out / "checkpoints" / "epoch-0001.pt").exists)
    children = children_of(process.pid)
    assert len(children) >= 2
    # A terminal sends Ctrl-C to the whole group; the launcher alone must be enough.
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert not [number for number in children if Path(f"/proc/{number}").exists()]


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--cards", 1], "--nproc", 2),
        (["--nproc", 1, "--batch-size", 64], "--batch-size", 2),
        (["--nproc", 2, "--lr", -1], "--lr", 2),
        (["--nproc", 1, "--shards", "/nowhere"], "/nowhere", 1),
        (["--nproc", 1, "--resume", "/nowhere.pt"], "/nowhere.pt", 1),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    run: Run, shards: Path, tmp_path: Path, arguments: list[object], words: str, code: int
) -> None:
    base = ["train", "--shards", shards, "--out", tmp_path, *SMALL]
    done = run("resnet", *base, *arguments)
    assert done.returncode == code
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pt"))


def test_an_exported_model_agrees_with_torch(run: Run, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    found = result_of(run("resnet", "export", trained / "best.pt", "--out", out, "--json"))
    assert found["agreement"]["same_top1"] == found["agreement"]["pictures"]
    assert found["agreement"]["largest_difference"] < 1e-3
    assert out.exists()


def test_info_tells_what_a_run_reached(run: Run, trained: Path) -> None:
    found = result_of(run("resnet", "info", trained, "--json"))
    assert found["model"] == "resnet18"
    assert [line["epoch"] for line in found["history"]] == [1, 2]
    assert found["best"]["samples"] == 15


def test_real_imagenet_pictures_go_the_whole_way(
    run: Run, real_data: Path, write_train_tar: Any, write_tar: Any, tmp_path: Path
) -> None:
    """Into a nested train tar and a flat val tar, through shards, training and evaluation."""
    pictures = dict(members(real_data / "imagenet-sample-250.tar"))
    classes: dict[str, dict[str, bytes]] = {}
    for number, (name, data) in enumerate(pictures.items()):
        wnid = name.split("_")[0]
        classes.setdefault(wnid, {})[f"{wnid}_{number}.JPEG"] = data
    archives = tmp_path / "archives"
    write_train_tar(archives / "train.tar", classes)
    validation = list(pictures.items())[:60]
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 61)]
    write_tar(archives / "val.tar", dict(zip(names, (data for _, data in validation), strict=True)))
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{name.split('_')[0]}\n" for name, _ in validation))
    options = ["--nproc", 2, "--max-steps", 3, "--image-size", 64]
    out = shard_and_train(run, tmp_path, [archives, "--labels", labels], options)
    done = run("resnet", "eval", out / "last.pt", "--shards", tmp_path / "shards", "--json")
    assert result_of(done)["evaluation"]["samples"] == 60


@pytest.mark.slow
def test_real_cifar_pictures_go_the_whole_way(
    run: Run, real_data: Path, write_folders: Any, tmp_path: Path
) -> None:
    """From class folders, train/ and test/: a source whose names are not ILSVRC2012's."""
    taken: Counter[str] = Counter()
    folders: dict[str, dict[str, bytes]] = {}
    for name, data in members(real_data / "cifar10-jpeg.tar.xz", 8):
        folder, _, file = name.rpartition("/")
        taken[folder] += 1
        folders.setdefault(folder, {})[file] = data
    source = write_folders(tmp_path / "cifar", folders)
    (source / "test").rename(source / "val")
    out = shard_and_train(run, tmp_path, [source], ["--nproc", 1, "--epochs", 1])
    assert [line["samples"] for line in log_of(out, "eval")] == [80]


def members(path: Path, per_folder: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Files of a tar, the first few of each folder."""
    taken: Counter[str] = Counter()
    with path.open("rb") as file, tarfile.open(fileobj=io.BufferedReader(file), mode="r|*") as tar:
        for member in tar:
            folder = member.name.rpartition("/")[0]
            if member.isfile() and (per_folder is None or taken[folder] < per_folder):
                taken[folder] += 1
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def shard_and_train(run: Run, folder: Path, sources: list[object], options: list[object]) -> Path:
    """Shards of the sources, checked, and a short training on them; the run's folder."""
    shards, out = folder / "shards", folder / "run"
    for command in (
        ("imagenet-prep", "shard", *sources, "--out", shards, "--samples-per-shard", 100),
        ("imagenet-prep", "verify", shards),
        ("resnet", "train", "--shards", shards, "--out", out, *SMALL, *options),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stderr
    return out
