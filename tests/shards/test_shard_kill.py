"""SIGKILL at any moment of sharding or repair: the same command again ends in the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.index import INDEX_NAME
from shards.manifest import MANIFEST_NAME, SUMS_NAME

Start = Callable[..., "subprocess.Popen[str]"]
Sums = Callable[[Path], dict[str, str]]
KILLS = [4, pytest.param(100, marks=pytest.mark.slow)]
IMAGES, SAMPLES_PER_SHARD = 240, 4


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory,
    jpeg: Callable[[int], bytes],
    write_train_tar: Callable[..., Path],
) -> Path:
    """A training archive of 12 MB, so that writing its shards takes many looks of the tests."""
    images = {f"n01440764_{number}.JPEG": jpeg(number) + bytes(50_000) for number in range(IMAGES)}
    folder = tmp_path_factory.mktemp("archive")
    return write_train_tar(folder / "ILSVRC2012_img_train.tar", {"n01440764": images})


@pytest.fixture(scope="module")
def whole(
    archive: Path, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What all of it must come to."""
    out = tmp_path_factory.mktemp("whole")
    build(archive, out=out, samples_per_shard=SAMPLES_PER_SHARD)
    return out


def size(folder: Path) -> int:
    """Bytes of all files in a folder that may change meanwhile."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total


def is_killed(process: subprocess.Popen[str], folder: Path, bytes_there: int) -> bool:
    """Kill a process as soon as a folder has so many bytes; False where it ended before."""
    while process.poll() is None:
        if size(folder) >= bytes_there:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.001)
    return process.returncode < 0


def kill_until_done(
    run: Callable[[], subprocess.Popen[str]], folder: Path, total: int, generator: random.Random
) -> int:
    """Start a command again and again, killed at random moments, until one run ends; the kills."""
    kills = 0
    while True:
        # From what is there to a little more than there will be, which files on their way add.
        there = size(folder)
        bytes_there = generator.randint(there, max(there, total) + total // 50)
        process = run()
        if not is_killed(process, folder, bytes_there):
            _, said = process.communicate()
            assert process.returncode == 0, said
            return kills
        kills += 1


@pytest.mark.parametrize("count", KILLS)
def test_sharding_killed_at_random_ends_in_the_same_bytes(
    count: int, archive: Path, whole: Path, start: Start, sums: Sums, tmp_path: Path
) -> None:
    expected, total = sums(whole), size(whole / "train")
    generator = random.Random(count)
    kills = 0
    while kills < count:
        out = tmp_path / "out"
        kills += kill_until_done(
            lambda out=out: start(
                "imagenet-prep", "shard", archive, "--out", out, "--samples-per-shard",
                SAMPLES_PER_SHARD,
            ),
            out / "train",
            total,
            generator,
        )  # fmt: skip
        assert sums(out) == expected
        shutil.rmtree(out)


@pytest.mark.parametrize("count", KILLS)
def test_repair_killed_at_random_ends_in_the_same_bytes(
    count: int, archive: Path, whole: Path, start: Start, sums: Sums, tmp_path: Path
) -> None:
    """Half of the files are lost, so that there is something to be killed at."""
    expected, total = sums(whole), size(whole / "train")
    generator = random.Random(count)
    kills = 0
    while kills < count:
        out = Path(shutil.copytree(whole, tmp_path / "out"))
        files = sorted(path for path in (out / "train").iterdir() if path.is_file())
        for path in generator.sample(files, len(files) // 2):
            path.unlink()
        if not (out / "train" / MANIFEST_NAME).exists():  # then the others have to prove it
            for name in (INDEX_NAME, SUMS_NAME):
                shutil.copy(whole / "train" / name, out / "train" / name)
        kills += kill_until_done(
            lambda out=out: start("imagenet-prep", "verify", out, "--repair", "--source", archive),
            out / "train",
            total,
            generator,
        )
        assert sums(out) == expected
        shutil.rmtree(out)
