"""What lies in a folder is told without reading it: whole, torn, odd and other people's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.doctor.holdings import HeldArchive, Holdings, State, find_holdings
from prep.ilsvrc import ARCHIVES, ArchiveKind
from prep.sample.data import SampleData
from shards.durable import RECORDS

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
SIZES = {each.name: each.bytes for each in ARCHIVES}


def only(holdings: Holdings) -> HeldArchive:
    assert len(holdings.archives) == 1
    return holdings.archives[0]


def pretend(path: Path, start: Path, size: int) -> Path:
    """A file of any size that begins like `start` and has written bytes in every MiB."""
    with path.open("wb") as file:
        file.write(start.read_bytes()[: 1 << 20])
        for place in range(1 << 20, size, 1 << 20):
            file.seek(place)
            file.write(bytes(4096))
        file.truncate(size)
    return path


# --- archives ---------------------------------------------------------------------------------


def test_the_archives_of_a_folder_are_told_by_what_is_in_them(
    archives: SampleData, tmp_path: Path
) -> None:
    shutil.copy(archives.train, tmp_path / "one.tar")
    shutil.copy(archives.val, tmp_path / "two.tar")
    shutil.copy(archives.devkit, tmp_path)
    found = find_holdings(tmp_path).archives
    assert [(each.path.name, each.kind, each.split, each.state) for each in found] == [
        (archives.devkit.name, ArchiveKind.DEVKIT, None, State.WHOLE),
        ("one.tar", ArchiveKind.TRAIN, "train", State.OTHER),
        ("two.tar", ArchiveKind.VALIDATION, "val", State.OTHER),
    ]
    assert [each.usable for each in found] == [False, True, True]


def test_an_archive_of_the_published_size_has_it(archives: SampleData, tmp_path: Path) -> None:
    size = SIZES[VAL]
    assert size is not None
    pretend(tmp_path / VAL, archives.val, size)
    found = only(find_holdings(tmp_path))
    assert (found.state, found.bytes, found.published) == (State.PUBLISHED, size, size)
    assert found.usable


@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_room_that_was_reserved_and_not_filled_is_no_archive(
    archives: SampleData, tmp_path: Path, name: str
) -> None:
    """As torrent clients leave an unfinished download: the right size, and holes in it."""
    size = SIZES[name]
    assert size is not None
    shutil.copy(archives.train.with_name(name), tmp_path)
    begun = (tmp_path / name).stat().st_size
    os.truncate(tmp_path / name, size)
    found = only(find_holdings(tmp_path))
    assert (found.state, found.bytes) == (State.UNFINISHED, size)
    first, last = (int(word.replace(",", "")) for word in found.why.split()[2:5:2])
    assert begun <= first <= begun + 4096 << 4
    assert last == size
    assert not found.usable


def test_holes_where_a_copy_skipped_the_padding_do_no_harm(
    archives: SampleData, tmp_path: Path
) -> None:
    """`cp --sparse=always` makes a hole of every run of zeros, as inner tars end with."""
    data = archives.train.read_bytes()
    with (tmp_path / TRAIN).open("wb") as file:
        for place in range(0, len(data), 512):
            block = data[place : place + 512]
            if any(block):
                file.seek(place)
                file.write(block)
        file.truncate(len(data))
    assert (tmp_path / TRAIN).read_bytes() == data
    assert only(find_holdings(tmp_path)).state is State.OTHER


@pytest.mark.parametrize("keep", [0, 100, 512, 5_000, 10_240, -10_240, -1_024, -512, -1])
def test_a_truncated_archive_is_not_whole(archives: SampleData, tmp_path: Path, keep: int) -> None:
    """Also where a number of bytes is left that a whole tar could have."""
    data = archives.train.read_bytes()
    end = len(data.rstrip(b"\0"))
    (tmp_path / TRAIN).write_bytes(data[:keep] if keep >= 0 else data[: end + 512 + keep])
    found = only(find_holdings(tmp_path))
    assert found.state in (State.UNFINISHED, State.STRANGE)
    assert found.kind is ArchiveKind.TRAIN
    assert found.why
    assert not found.usable


def test_a_download_that_aria2_has_not_finished_is_not_whole(
    archives: SampleData, tmp_path: Path
) -> None:
    shutil.copy(archives.val, tmp_path)
    (tmp_path / f"{VAL}.aria2").touch()
    found = only(find_holdings(tmp_path))
    assert found.state is State.UNFINISHED
    assert "aria2 has not finished" in found.why


def test_a_web_page_under_an_archive_s_name_is_strange(tmp_path: Path) -> None:
    (tmp_path / TRAIN).write_text("<!DOCTYPE html><title>Log in</title>\n" * 100)
    found = only(find_holdings(tmp_path))
    assert (found.state, found.kind) == (State.STRANGE, ArchiveKind.TRAIN)
    assert "not a tar archive" in found.why


def test_an_archive_among_all_that_came_out_of_it_is_found(
    archives: SampleData, tmp_path: Path
) -> None:
    """`tar -xf` in place leaves 50,000 images beside the archive."""
    shutil.copy(archives.val, tmp_path)
    for number in range(20_000):
        (tmp_path / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
    assert only(find_holdings(tmp_path)).usable


def test_an_archive_that_cannot_be_read_is_one(archives: SampleData, tmp_path: Path) -> None:
    """By a user who may not: a permission that root, too, does not have."""
    shutil.copy(archives.val, tmp_path)
    (tmp_path / VAL).chmod(0)
    code = (
        "import os; from pathlib import Path; from prep.doctor.holdings import held_archive; "
        f"path = Path({str(tmp_path / VAL)!r}); "
        "held = held_archive(path); print(held.state.name, held.why)"
    )
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("setpriv(1) is needed to give up root's rights")
    done = subprocess.run(
        [*drop, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "UNREADABLE Permission denied\n"


def test_archives_of_others_are_named_where_they_were_asked_for_alone(
    write_tar: Callable[..., Path], archives: SampleData, tmp_path: Path
) -> None:
    for folder in (tmp_path, tmp_path / "folder"):
        write_tar(folder / "backup.tar", {"notes.txt": b"text"})
        (folder / "images.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
        shutil.copy(archives.val, folder)
    found = find_holdings(tmp_path).archives
    assert [(str(each.path.relative_to(tmp_path)), each.state) for each in found] == [
        (VAL, State.OTHER),
        ("backup.tar", State.STRANGE),
        ("images.tar.gz", State.COMPRESSED),
        (f"folder/{VAL}", State.OTHER),
    ]


def test_a_file_is_one_archive_whatever_its_name(archives: SampleData, tmp_path: Path) -> None:
    shutil.copy(archives.val, tmp_path / "download")
    assert only(find_holdings(tmp_path / "download")).kind is ArchiveKind.VALIDATION
    assert only(find_holdings(archives.train)).path == archives.train


def test_nothing_yet_is_nothing(tmp_path: Path) -> None:
    assert find_holdings(tmp_path / "not" / "yet") == Holdings()


# --- folders ----------------------------------------------------------------------------------


def test_class_folders_are_counted(write_folders: Callable[..., Path], tmp_path: Path) -> None:
    for split, classes in (("train", 3), ("validation", 2)):
        images = {f"n0000000{each}": {"a.JPEG": b""} for each in range(classes)}
        write_folders(tmp_path / "set" / split, images)
    (tmp_path / "set" / "logs").mkdir()
    for path in (tmp_path, tmp_path / "set"):
        trees = find_holdings(path).trees
        assert [(each.split, each.path.name, each.classes) for each in trees] == [
            ("train", "train", 3),
            ("val", "validation", 2),
        ]


def test_flat_and_kaggle_s_folders_are_known(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write_folders(root / "train", {"n01440764": {"n01440764_1.JPEG": b""}})
    write_folders(root, {"val": {"ILSVRC2012_val_00000001.JPEG": b""}})
    for path in (tmp_path, tmp_path / "ILSVRC", root):
        trees = find_holdings(path).trees
        assert [(each.split, each.classes) for each in trees] == [("train", 1), ("val", None)]


def test_folders_of_other_things_are_no_classes(tmp_path: Path) -> None:
    for name in ("train/run-1", "train/run-2", "val/logs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "log.txt").touch()
    assert find_holdings(tmp_path) == Holdings()


def test_two_folders_of_one_split_are_refused_with_the_reason(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("val", "validation"):
        write_folders(tmp_path / name, {"cat": {"1.jpg": b""}})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    found = find_holdings(tmp_path)
    assert found.refused.endswith("are the split 'val'; give one of them")
    assert (found.unnamed, found.trees) == (None, ())


def test_class_folders_that_do_not_say_their_split_are_told_apart(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    write_folders(tmp_path / "mine", {"cat": {"1.jpg": b""}, "dog": {"1.jpg": b""}})
    found = find_holdings(tmp_path / "mine")
    assert (found.unnamed, found.refused, found.trees) == (tmp_path / "mine", "", ())


# --- shards -----------------------------------------------------------------------------------


def test_finished_shards_are_found_from_anywhere_near(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shards)
    for path in (shards, shards / "train", shards / "val", tmp_path):
        found = find_holdings(path)
        assert [(each.split, each.samples, each.shards) for each in found.shards] == [
            ("train", 51, 4),
            ("val", 15, 1),
        ], path
        assert all(each.finished and not each.damage for each in found.shards)
        assert not found.archives


def test_shards_that_are_missing_or_short_are_damage(shards_copy: Path) -> None:
    (shards_copy / "train" / "imagenet-train-000001.tar").unlink()
    os.truncate(shards_copy / "train" / "imagenet-train-000002.tar", 1_000)
    train, val = find_holdings(shards_copy).shards
    assert "imagenet-train-000001.tar is missing (2 such files)" in train.damage
    assert not val.damage


def test_an_altered_manifest_is_damage(shards_copy: Path) -> None:
    manifest = shards_copy / "val" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"samples": 15', '"samples": 16', 1))
    assert "altered" in find_holdings(shards_copy).shards[1].damage


def test_shards_without_a_manifest_are_unfinished(shards_copy: Path) -> None:
    (shards_copy / "train" / "manifest.json").unlink()
    (shards_copy / "train" / RECORDS / "shards").mkdir(parents=True)
    train = find_holdings(shards_copy).shards[0]
    assert (train.split, train.shards, train.finished) == ("train", 4, False)
    assert train.bytes == sum(path.stat().st_size for path in train.path.glob("*.tar"))
