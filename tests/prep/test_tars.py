"""Which tars are meant: folders, patterns, lists; shards or archives; of which split."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.tars import expand, find_tars
from shards.errors import DamagedData, ToolError, UsageError

Shard = Callable[[str], Path]


@pytest.fixture
def shard(write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path) -> Shard:
    """Write a shard of one sample under that name."""
    return lambda name: write_tar(tmp_path / name, {"a.jpg": jpeg(0), "a.cls": b"0"})


def found(*paths: Path, split: str | None = None) -> dict[str, list[str]]:
    """Names of the shards by split; there are no archives among them."""
    shards, archives = find_tars(paths, split)
    assert archives == []
    return {split: [path.name for path in paths] for split, paths in shards.items()}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x.tar", ["x.tar"]),
        ("x-{8..11}.tar", ["x-8.tar", "x-9.tar", "x-10.tar", "x-11.tar"]),
        ("x-{008..010}.tar", ["x-008.tar", "x-009.tar", "x-010.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{a,b{1..2}}", ["xa", "xb1", "xa", "xb2"]),
        ("x-{2..1}.tar", []),
    ],
)
def test_patterns_name_what_shells_and_webdataset_make_of_them(
    pattern: str, names: list[str]
) -> None:
    assert list(expand(pattern)) == names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet-train-000000.tar", "train"),
        ("imagenet1k-validation-00.tar", "val"),
        ("VAL_3.tar", "val"),
        ("test/0.tar", "test"),
        ("Validation/00000.tar", "val"),
        ("train/val-0.tar", "val"),
    ],
)
def test_names_say_the_split(name: str, split: str, shard: Shard) -> None:
    path = shard(name)
    assert found(path) == {split: [path.name]}
    assert found(path, split=split) == {split: [path.name]}
    other = "train" if split != "train" else "val"
    with pytest.raises(ToolError, match=rf"no shards of the split '{other}' .*found: {split}"):
        find_tars([path], other)


@pytest.mark.parametrize("name", ["00000.tar", "train-val-0.tar", "my_val_data/interval-0.tar"])
def test_where_no_name_says_it_the_user_must(name: str, shard: Shard) -> None:
    path = shard(name)
    with pytest.raises(UsageError, match="--split train"):
        find_tars([path], None)
    assert found(path, split="val") == {"val": [path.name]}


def test_folders_lists_and_patterns_give_the_same(shard: Shard, tmp_path: Path) -> None:
    paths = [shard(f"wds/s-{split}-{n}.tar") for split in ("train", "val") for n in range(2)]
    (tmp_path / "wds" / ".hidden-train.tar").write_bytes(b"")
    (tmp_path / "wds" / "notes.txt").write_bytes(b"")
    expected = {"train": ["s-train-0.tar", "s-train-1.tar"], "val": ["s-val-0.tar", "s-val-1.tar"]}
    assert found(*paths) == expected
    assert found(tmp_path / "wds") == expected
    assert found(tmp_path / "wds" / "s-{train,val}-{0..1}.tar") == expected
    assert found(tmp_path / "wds", split="val") == {"val": expected["val"]}


def test_a_folder_of_splits_is_looked_into(shard: Shard, tmp_path: Path) -> None:
    for name in ("wds/train/0.tar", "wds/train/1.tar", "wds/validation/0.tar", "wds/more/0.tar"):
        shard(name)
    assert found(tmp_path / "wds") == {"train": ["0.tar", "1.tar"], "val": ["0.tar"]}


def test_archives_are_told_from_shards(archives: Any, shards: Path, shard: Shard) -> None:
    by_split, found_archives = find_tars([archives.train.parent], None)
    assert by_split == {}
    assert [(each.split, each.path) for each in found_archives] == [
        ("train", archives.train), ("val", archives.val),
    ]  # fmt: skip
    # Shards of ILSVRC2012's images have its names, as its archives have, and labels beside them.
    assert list(found(shards)) == ["train", "val"]
    by_split, found_archives = find_tars([archives.val, shard("train-0.tar")], None)
    assert list(by_split) == ["train"]
    assert [each.split for each in found_archives] == ["val"]


def test_images_with_json_and_without_labels_are_shards(
    write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    with_json = write_tar(tmp_path / "train-0.tar", {"000.jpg": jpeg(0), "000.json": b"{}"})
    bare = write_tar(tmp_path / "test-0.tar", {"000.jpg": jpeg(0), "001.jpg": jpeg(1)})
    assert found(with_json, bare) == {"train": ["train-0.tar"], "test": ["test-0.tar"]}


def test_the_same_split_twice_is_refused(archives: Any, shard: Shard) -> None:
    with pytest.raises(UsageError, match=r"both .*train-0.tar and .*train.tar are the split"):
        find_tars([shard("train-0.tar"), archives.train], None)


@pytest.mark.parametrize("name", ["x.tar", "x-{0..9}.tar", "x-{2..1}.tar", "{}"])
def test_what_does_not_exist_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="exist"):
        find_tars([tmp_path / name], "train")


def test_the_first_missing_tar_of_a_pattern_is_named(shard: Shard, tmp_path: Path) -> None:
    shard("train-0.tar")
    with pytest.raises(ToolError, match=r"3 tars, of which 2 do not exist, .*train-1.tar first"):
        find_tars([tmp_path / "train-{0..2}.tar"], None)


@pytest.mark.usefixtures("deadline")
def test_a_pattern_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names more than 100,000 tars"):
        find_tars([tmp_path / "{0..999999999}{0..999999999}.tar"], None)


def test_what_no_index_can_be_made_of_is_refused(shard: Shard, tmp_path: Path) -> None:
    packed = tmp_path / "train.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(shard("train-0.tar"), "train-0.tar")
    with pytest.raises(UsageError, match=r"is compressed.*decompress it"):
        find_tars([packed], None)
    (tmp_path / "text.tar").write_text("no tar" * 1000)
    with pytest.raises(DamagedData, match=r"text.tar is not a tar archive"):
        find_tars([tmp_path / "text.tar"], "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ToolError, match="was not recognised"):
        find_tars([tmp_path / "empty"], None)
