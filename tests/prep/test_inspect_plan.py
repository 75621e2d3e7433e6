"""Of shards it is said how they were made: by this tool or by others, from what, with what left."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prep.inspection.plan import read_plan
from shards.errors import DamagedData
from shards.manifest import Manifest

Run = Callable[..., subprocess.CompletedProcess[str]]

_CLASSES = "3 of ILSVRC2012's 1,000 classes"


def plans(run: Run, path: Path) -> list[dict[str, Any]]:
    """What `--json` has of the plan of each split."""
    done = run("imagenet-prep", "inspect", path, "--json")
    assert done.returncode == 0, done.stderr
    return [each["plan"] for each in json.loads(done.stdout)["splits"]]


def lines_of(run: Run, path: Path) -> list[str]:
    done = run("imagenet-prep", "inspect", path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_command_prints_the_plan_of_each_split(run: Run, shards: Path) -> None:
    train, val = plans(run, shards)
    manifest = json.loads((shards / "train" / "manifest.json").read_bytes())
    sizes = [each["bytes"] for each in manifest["shards"]]
    assert train == {
        "layout": "shards",
        "fingerprint": manifest["plan"]["fingerprint"],
        "seed": 0,
        "samples_per_shard": 16,
        "shard_size": None,
        "classes": 3,
        "known_classes": 3,
        "per_class": None,
        "jpeg": "keep",
        "original_bytes": True,
        "encoder": {},
        "shards": 4,
        "shard_samples": {"min": 3, "max": 16},
        "shard_bytes": {"min": min(sizes), "max": max(sizes)},
        "skipped": [],
        "kept": None,
        "for_readers": ["dali", "timm"],
    }
    assert (val["shards"], val["shard_samples"]) == (1, {"min": 15, "max": 15})
    lines = lines_of(run, shards)
    least, most = (f"{size / 1e6:.3g}" for size in (min(sizes), max(sizes)))
    assert lines.count("  jpeg: keep, the original bytes") == 2
    for line in (
        f"plan: shards of this tool, seed 0, 16 images a shard; all images of {_CLASSES}",
        f"shards: 4, each of 3 to 16 images and {least} to {most} MB",
        "left out: 0 images",
        "files for other readers: dali, timm",
        f"fingerprint: {train['fingerprint']}",
    ):
        assert f"  {line}" in lines


def test_reencoded_shards_are_said_not_to_hold_the_original_bytes(
    run: Run, archives: Any, tmp_path: Path
) -> None:
    options = ["--jpeg", "reencode", "--short-side", "32", "--quality", "80", "--per-class", "4"]
    options += ["--shard-size", "1", "--seed", "7", "--for", "wids"]
    done = run("imagenet-prep", "shard", archives.val, "--out", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    (plan,) = plans(run, tmp_path)
    assert (plan["jpeg"], plan["original_bytes"], plan["kept"]) == ("reencode", False, 0)
    assert (plan["encoder"]["short_side"], plan["encoder"]["quality"]) == (32, 80)
    assert (plan["per_class"], plan["seed"], plan["for_readers"]) == (4, 7, ["wids"])
    assert (plan["samples_per_shard"], plan["shard_size"]) == (None, 1_000_000)
    lines = lines_of(run, tmp_path)
    (jpeg,) = (line for line in lines if line.startswith("  jpeg: "))
    assert jpeg.startswith("  jpeg: reencode, not the original bytes: ")
    assert f"encoder {plan['encoder']['encoder']}; quality 80; short side 32" in jpeg
    assert "  kept as they were: 0 images" in lines
    said = "shards of this tool, seed 7, up to 1.0 MB a shard; at most 4 images each"
    assert f"  plan: {said} of {_CLASSES}" in lines


def test_what_was_kept_and_left_out_is_counted(
    run: Run,
    write_folders: Callable[..., Path],
    jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> None:
    """A picture that is small enough is kept where its encoding would be no smaller."""
    tiny = io.BytesIO()
    Image.new("L", (1, 1)).save(tiny, "JPEG", quality=1, optimize=True)
    images = {"a.jpg": jpeg(1), "b.jpg": tiny.getvalue(), "c.jpg": b"no image"}
    source = write_folders(tmp_path / "in" / "train", {"cat": images})
    options = ["--jpeg", "reencode", "--max-side", "8", "--on-bad", "skip", "--for", "none"]
    done = run("imagenet-prep", "shard", source, "--out", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    (plan,) = plans(run, tmp_path / "out" / "train")
    assert plan["kept"] == 1
    assert [each["name"] for each in plan["skipped"]] == ["c.jpg"]
    assert (plan["classes"], plan["known_classes"], plan["for_readers"]) == (1, 0, [])
    lines = lines_of(run, tmp_path / "out")
    assert "  kept as they were: 1 image" in lines
    assert "  left out: 1 image (c.jpg)" in lines
    assert "  files for other readers: none" in lines


def test_an_index_of_tars_as_they_lie_is_said_to_be_one(
    run: Run, archives: Any, tmp_path: Path
) -> None:
    done = run("imagenet-prep", "index", archives.train.parent, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    train, val = plans(run, tmp_path)
    assert {train["layout"], val["layout"]} == {"foreign"}
    unknown = ("seed", "samples_per_shard", "shard_size", "per_class", "jpeg", "original_bytes")
    assert {train[name] for name in unknown} == {None}
    size = archives.train.stat().st_size
    assert (train["shards"], train["shard_bytes"]) == (1, {"min": size, "max": size})
    lines = lines_of(run, tmp_path / "val")
    assert f"  plan: foreign tars, linked as they lie; {_CLASSES}" in lines
    assert "  jpeg: as they came, this tool did not write them" in lines
    assert f"  fingerprint: {val['fingerprint']}" in lines


def test_what_is_no_shards_has_no_plan(run: Run, archives: Any) -> None:
    assert plans(run, archives.train) == [None]
    assert not any(line.startswith("  plan: ") for line in lines_of(run, archives.train))


def test_an_index_that_was_stopped_is_to_be_completed_by_index(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train" / ".imagenet-prep" / "index").mkdir(parents=True)
    done = run("imagenet-prep", "inspect", tmp_path / "train")
    assert done.returncode == 1
    assert "unfinished; run the `imagenet-prep index` command that began it again" in done.stderr


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"fingerprint": "0", "seed": "many", "jpeg": "keep", "samples_per_shard": 1},
        {"fingerprint": "0", "seed": 0, "jpeg": 1, "samples_per_shard": 1},
        {"fingerprint": "0", "seed": 0, "jpeg": {}, "samples_per_shard": 1},
        {"fingerprint": "0", "seed": 0, "jpeg": "keep"},
        {"fingerprint": "0", "seed": 0, "jpeg": "keep", "shard_size": "large"},
    ],
)
def test_a_plan_that_is_none_is_damage(shards: Path, plan: dict[str, Any]) -> None:
    manifest = replace(Manifest.read(shards / "train"), plan=plan)
    with pytest.raises(DamagedData, match="the plan in its manifest is damaged"):
        read_plan(shards / "train", manifest)
