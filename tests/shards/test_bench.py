"""`resnet bench loader`: what it says, on real shards, and what it refuses. No speeds here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.bench import LoaderBench, Point, thread_counts
from shards.transcode import make_encoder

QUICK = ("--seconds", "0.05", "--batch-size", "16", "--image-size", "32")
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def measured(shards: Path, run: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """The JSON of a quick measurement."""

    def measure(*options: object, folder: Path = shards) -> dict[str, Any]:
        done = run("resnet", "bench", "loader", "--shards", folder, *QUICK, *options, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return measure


@pytest.fixture(scope="module")
def usual(measured: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return measured()


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
)
def test_threads_are_the_powers_of_two_and_the_cores(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


@pytest.mark.parametrize(
    ("rate", "cores"), [(1.0, 1), (100.0, 1), (101.0, 2), (400.0, 4), (1600.0, 16), (1601.0, 17)]
)
def test_cores_that_a_rate_takes(rate: float, cores: int) -> None:
    points = (Point(threads=1, images_per_second=150.0), Point(threads=4, images_per_second=400.0))
    found = LoaderBench(
        split="train", images=10, image_size=224, batch_size=256, cores=4, points=points,
        decode_limit=500.0, ways={"whole": 10},
    )  # fmt: skip
    assert found.cores_for(rate) == cores


def test_json_has_every_figure(usual: dict[str, Any]) -> None:
    assert set(usual) == {
        "split", "images", "image_size", "batch_size", "cores", "points", "decode_limit", "ways",
        "images_per_second", "wanted",
    }  # fmt: skip
    assert (usual["split"], usual["images"], usual["cores"]) == ("train", 51, CORES)
    assert (usual["image_size"], usual["batch_size"]) == (32, 16)
    assert [point["threads"] for point in usual["points"]] == thread_counts(CORES)
    assert all(point["images_per_second"] > 0 for point in usual["points"])
    assert usual["images_per_second"] == usual["points"][-1]["images_per_second"]
    assert usual["decode_limit"] > 0


def test_ways_are_counted_for_every_picture(usual: dict[str, Any]) -> None:
    ways = usual["ways"]
    assert set(ways) == {"cut", "shortened", "whole", "pillow"}
    assert ways["cut"] == ways["pillow"] == 0  # ordinary JPEGs, without restart markers
    assert ways["shortened"] > 0
    assert sum(ways.values()) >= 2 * 16 * len(usual["points"])


def test_cards_of_the_vendor_are_the_default(usual: dict[str, Any]) -> None:
    wanted = usual["wanted"]
    assert (wanted["cards"], wanted["images_per_second_a_card"]) == (8, 1125.0)
    assert wanted["images_per_second"] == 9000.0
    assert wanted["enough"] is (usual["images_per_second"] >= 9000.0)


def test_cards_that_are_asked_for(measured: Callable[..., dict[str, Any]]) -> None:
    wanted = measured("--cards", 3, "--images-per-second", "1e9")["wanted"]
    assert (wanted["images_per_second"], wanted["enough"]) == (3e9, False)
    assert wanted["cores"] > CORES
    wanted = measured("--cards", 1, "--images-per-second", "0.001")["wanted"]
    assert (wanted["enough"], wanted["cores"]) == (True, 1)


def test_shards_with_restart_markers_are_cut(
    archives: Any,
    build: Callable[..., Any],
    measured: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    build(
        archives.train.parent,
        out=tmp_path,
        write={"encoder": make_encoder("reencode", max_side=4096, restart=True)},
    )
    assert measured(folder=tmp_path)["ways"]["cut"] > 0


def test_lines_for_people(shards: Path, run: Callable[..., Any]) -> None:
    done = run("resnet", "bench", "loader", "--shards", shards, *QUICK, "--cards", 1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    cores = f"{CORES} core{'' if CORES == 1 else 's'}"
    assert lines[0] == f"train: 51 images; crops of 32 pixels in batches of 16; {cores}"
    assert lines[1].split() == ["threads", "images/s", "of", "one", "thread"]
    counts = [int(line.split()[0]) for line in lines[2 : 2 + len(thread_counts(CORES))]]
    assert counts == thread_counts(CORES)
    limit, pictures, demand = lines[2 + len(counts) :]
    assert limit.startswith("decode limit: ")
    assert "% decoded down to the crop's last row" in pictures
    assert demand.startswith("1 card at 1,125 images/s wants 1,125 images/s: this machine")


def test_nothing_is_written(
    shards_copy: Path, measured: Callable[..., dict[str, Any]], sums: Callable[..., Any]
) -> None:
    before = sums(shards_copy)
    measured(folder=shards_copy)
    assert sums(shards_copy) == before


# --- what it refuses --------------------------------------------------------------------------


def test_a_folder_without_shards_is_named(tmp_path: Path, run: Callable[..., Any]) -> None:
    done = run("resnet", "bench", "loader", "--shards", tmp_path, *QUICK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/train is no folder of shards" in done.stderr


def test_a_damaged_sample_is_named(shards_copy: Path, run: Callable[..., Any]) -> None:
    for shard in (shards_copy / "train").glob("*.tar"):
        data = bytearray(shard.read_bytes())
        for start in range(0, len(data), 512):
            if data[start : start + 2] == b"\xff\xd8":
                data[start + 2 : start + 512] = bytes(510)
        shard.write_bytes(data)
    done = run("resnet", "bench", "loader", "--shards", shards_copy, *QUICK)
    assert (done.returncode, done.stdout) == (1, "")
    assert "sample n" in done.stderr
    assert f"{shards_copy}/train/" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("--seconds", "0"),
        ("--seconds", "-1"),
        ("--image-size", "0"),
        ("--batch-size", "0"),
        ("--cards", "0"),
        ("--images-per-second", "0"),
        ("--images-per-second", "many"),
    ],
)
def test_senseless_options_are_wrong_usage(
    wrong: tuple[str, str], shards: Path, run: Callable[..., Any]
) -> None:
    done = run("resnet", "bench", "loader", "--shards", shards, *wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert wrong[0] in done.stderr


def test_the_folder_has_to_be_named(run: Callable[..., Any]) -> None:
    done = run("resnet", "bench", "loader")
    assert done.returncode == 2
    assert "--shards" in done.stderr


def test_help_teaches(run: Callable[..., Any]) -> None:
    done = run("resnet", "bench", "loader", "--help")
    assert done.returncode == 0
    assert "resnet bench loader --shards /data/shards" in done.stdout
    assert "--jpeg reencode --short-side 256" in done.stdout
