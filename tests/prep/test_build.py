"""From sources to shards: the same bytes from archives and folders, and after any kill."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.extraction.extract import extract
from prep.extraction.extraction import Options
from shards.dataset import Dataset
from shards.durable import TEMPORARY_PREFIX
from shards.errors import ToolError
from shards.manifest import MANIFEST_NAME
from shards.progress import Silent
from shards.verify import verify_shards

Build = Callable[..., Any]
Sums = Callable[[Path], dict[str, str]]


def test_archives_and_the_folders_extracted_from_them_give_equal_bytes(
    archives: Any, shards: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    extract([archives.train.parent], tmp_path / "tree", Options(), workers=2, progress=Silent())
    build(tmp_path / "tree", out=tmp_path / "out")
    assert sums(tmp_path / "out") == sums(shards)


def test_hugging_face_s_names_give_the_same_content(
    archives: Any, shards: Path, build: Build, tmp_path: Path
) -> None:
    extract([archives.train.parent], tmp_path / "tree", Options(), workers=2, progress=Silent())
    for image in list((tmp_path / "tree").rglob("*.JPEG")):
        image.rename(image.with_name(f"{image.stem}_{image.parent.name}.JPEG"))
    build(tmp_path / "tree", out=tmp_path / "out")
    for split in ("train", "val"):
        with Dataset.open(shards / split) as one, Dataset.open(tmp_path / "out" / split) as other:
            assert one.digest == other.digest
            assert one.keys.tolist() == other.keys.tolist()


def test_one_split_alone_has_the_same_bytes_where_its_classes_are_the_same(
    archives: Any, shards: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    build(archives.train.parent, out=tmp_path, split="val")
    assert sums(tmp_path / "val") == sums(shards / "val")


@pytest.fixture(scope="module")
def many(
    tmp_path_factory: pytest.TempPathFactory,
    jpeg: Callable[[int], bytes],
    write_train_tar: Callable[..., Path],
) -> Path:
    """A training archive of 300 small images."""
    classes = {
        f"n0000000{label}": {f"n0000000{label}_{n}.JPEG": jpeg(n * 3 + label) for n in range(100)}
        for label in range(3)
    }
    return write_train_tar(tmp_path_factory.mktemp("many") / "train.tar", classes)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_build_killed_again_and_again_ends_as_one_that_was_not(
    workers: int,
    many: Path,
    build: Build,
    sums: Sums,
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    folder = out / "train"
    command = ("shard", many, "--out", out, "--samples-per-shard", 2, "--workers", workers)
    for share in (1, 40, 110):
        process = start("imagenet-prep", *command)
        wait_until(process, lambda share=share: len(list(folder.glob("imagenet-*.tar"))) >= share)
        process.kill()
        process.wait()
        assert not (folder / MANIFEST_NAME).exists()
        with pytest.raises(ToolError, match="unfinished"):
            Dataset.open(folder)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("imagenet-*.tar")}
    (written,) = build(many, out=out, samples_per_shard=2)
    # At most one shard a worker was whole and not yet recorded when the kill came.
    assert 150 - len(kept) <= written.written <= 150 - len(kept) + workers
    changed = [name for name in kept if (folder / name).stat().st_mtime_ns != kept[name]]
    assert len(changed) <= workers
    assert not list(folder.rglob(f"{TEMPORARY_PREFIX}*"))
    build(many, out=tmp_path / "uninterrupted", samples_per_shard=2)
    assert sums(out) == sums(tmp_path / "uninterrupted")
    assert not verify_shards(folder, workers=2, progress=Silent()).findings


def test_a_kill_between_the_splits_leaves_the_first_one_whole(
    many: Path,
    archives: Any,
    build: Build,
    sums: Sums,
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("n00000001\n" * archives.val_images)
    out, options = tmp_path / "out", {"labels": labels, "samples_per_shard": 2}
    process = start("imagenet-prep", "shard", archives.val, many, "--out", out,
                    "--labels", labels, "--samples-per-shard", 2)  # fmt: skip
    wait_until(process, lambda: any((out / "train").glob("imagenet-*.tar")))
    process.kill()
    process.wait()
    assert (out / "val" / MANIFEST_NAME).exists()
    assert not (out / "train" / MANIFEST_NAME).exists()
    val, train = build(archives.val, many, out=out, **options)
    assert val.written == 0
    assert train.written > 0
    build(archives.val, many, out=tmp_path / "uninterrupted", **options)
    assert sums(out) == sums(tmp_path / "uninterrupted")
