"""The command takes whatever a path holds, checks all of it, and ends as it should."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import open_files

from prep.extraction.extract import extract
from prep.extraction.extraction import Options
from prep.ilsvrc import ARCHIVES
from prep.verification.md5sums import NO_SUMS, Sums
from prep.verification.verify import Verified, find_targets, verify
from shards.errors import ToolError
from shards.progress import Silent

Run = Callable[..., subprocess.CompletedProcess[str]]
TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def check(*paths: Path, **options: Any) -> Verified:
    chosen: dict[str, Any] = {"sums": NO_SUMS, "labels": None, "decode": False}
    return verify(paths, **(chosen | options), workers=2, progress=Silent())


@pytest.fixture
def data(archives: Any, shards: Path, tmp_path: Path) -> Path:
    """A folder as people have it: archives, what was extracted from them, shards."""
    path = tmp_path / "data"
    shutil.copytree(archives.train.parent, path)
    extract([path], path, Options(), workers=2, progress=Silent())
    shutil.copytree(shards, path / "shards")
    return path


# --- what a path is ---------------------------------------------------------------------------


def test_archives_and_what_was_extracted_from_them_are_both_checked(data: Path) -> None:
    found = check(data)
    assert [report.path.name for report in found.archives] == [
        "ILSVRC2012_devkit_t12.tar.gz", TRAIN, VAL
    ]  # fmt: skip
    assert [(report.split, report.images) for report in found.folders] == [
        ("train", 51), ("val", 15)
    ]  # fmt: skip
    assert found.splits == ()
    assert found.findings == ()


def test_a_folder_of_folders_is_looked_into(data: Path, archives: Any, tmp_path: Path) -> None:
    found = check(data / "shards", data / "train", archives.val)
    assert [report.split for report in found.splits] == ["train", "val"]
    assert [report.path for report in found.folders] == [data / "train"]
    assert [report.path for report in found.archives] == [archives.val]
    for name in ("train", "val"):
        (data / name).rename(tmp_path / name)
    for path in data.glob("*.tar*"):
        path.rename(tmp_path / path.name)
    assert [report.folder.name for report in check(data).splits] == ["train", "val"]
    outer = tmp_path / "outer"
    (outer / "images").mkdir(parents=True)
    shutil.move(data / "shards", outer / "shards")
    for name in ("train", "val"):
        (tmp_path / name).rename(outer / "images" / name)
    found = check(outer)
    assert (len(found.folders), len(found.splits)) == (2, 2)


def test_a_path_that_is_given_twice_is_checked_once(data: Path) -> None:
    targets = find_targets([data, data / TRAIN, data / "train", data / ".", data / "val"], NO_SUMS)
    assert [path.name for path in targets.archives].count(TRAIN) == 1
    assert [place.path.name for place in targets.places] == ["train", "val"]


def test_archives_inside_a_split_s_folder_are_found(
    write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "train" / "part_0.tar", {"n01440764_1.JPEG": jpeg(1)})
    assert find_targets([tmp_path], NO_SUMS).archives == [path]
    assert find_targets([tmp_path / "train"], NO_SUMS).archives == [path]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("hello")])
def test_what_is_nothing_known_is_refused_with_what_was_looked_for(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path / "x")
    with pytest.raises(ToolError, match="looked for archives") as raised:
        find_targets([tmp_path / "x"], NO_SUMS)
    for words in (str(tmp_path / "x"), "*.tar.gz", "Kaggle", "class folders", "manifest.json"):
        assert words in str(raised.value)


def test_one_strange_path_beside_a_good_one_is_refused(archives: Any, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=f"{tmp_path} was not recognised"):
        find_targets([archives.val, tmp_path], NO_SUMS)


def test_a_file_that_has_a_sum_is_an_archive_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "pictures.bin"
    path.write_bytes(b"hello")
    digest = hashlib.md5(b"hello", usedforsecurity=False).hexdigest()
    sums = Sums(origin="SUMS", by_name={path.name: digest, "lost.tar": digest})
    assert check(path, sums=sums).findings == ()
    found = check(tmp_path, sums=sums)
    assert [report.md5 for report in found.archives] == [digest]
    assert found.findings == (f"lost.tar is listed in SUMS and missing in {tmp_path}",)


# --- shards -----------------------------------------------------------------------------------


def test_the_images_of_shards_are_decoded(shards: Path) -> None:
    assert check(shards, decode=True).findings == ()


def test_an_image_that_was_damaged_before_it_was_sharded_is_found(
    build: Callable[..., Any], write_folders: Callable[..., Path], jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> None:  # fmt: skip
    images = {f"{number}.jpg": jpeg(number) for number in range(5)}
    images["3.jpg"] = images["3.jpg"][:-80]
    write_folders(tmp_path / "train", {"cat": images})
    build(tmp_path / "train", out=tmp_path / "out")
    assert check(tmp_path / "out").findings == ()
    (finding,) = check(tmp_path / "out", decode=True).findings
    assert "imagenet-train-000000.tar: sample 00000_0000003 at byte" in finding
    assert finding.endswith("it is truncated (Premature end of JPEG file)")


def test_damaged_shards_are_not_decoded(shards_copy: Path) -> None:
    shard = next((shards_copy / "train").glob("*.tar"))
    os.truncate(shard, 5000)
    report, _ = check(shards_copy, decode=True).splits
    assert len(report.findings) == 1


# --- the command ------------------------------------------------------------------------------


def test_whole_data_ends_with_0_a_table_and_every_key(run: Run, data: Path) -> None:
    done = run("imagenet-prep", "verify", data, data / "shards", "--decode")
    assert done.returncode == 0
    for words in (
        TRAIN,
        VAL,
        str(data / "train"),
        str(data / "shards" / "val"),
        "whole, by",
        "MB/s",
    ):
        assert words in done.stdout
    assert "damaged" not in done.stderr
    answer = json.loads(run("imagenet-prep", "verify", data, data / "shards", "--json").stdout)
    assert set(answer) == {"archives", "folders", "splits", "missing", "ok", "seconds"}
    assert answer["ok"] is True
    assert [each["images"] for each in answer["folders"]] == [51, 15]
    assert set(answer["archives"][0]) == {
        "path", "kind", "bytes", "images", "md5", "checked_by", "decoded", "oddities", "findings",
        "notes",
    }  # fmt: skip
    assert set(answer["folders"][0]) == {
        "path", "split", "form", "classes", "images", "bytes", "compared", "part", "labels",
        "decoded", "oddities", "strays", "findings", "notes",
    }  # fmt: skip


def test_every_kind_of_damage_is_named_in_one_run(run: Run, data: Path) -> None:
    train = data / TRAIN
    os.truncate(train, train.stat().st_size // 2)
    image, *_, last = sorted((data / "val").rglob("*.JPEG"))
    image.write_bytes(image.read_bytes()[:-100])
    moved = image.parent / last.name
    last.rename(moved)
    shard = next((data / "shards" / "val").glob("*.tar"))
    shard.unlink()
    done = run("imagenet-prep", "verify", data, data / "shards")
    assert done.returncode == 1
    damaged = [line for line in done.stderr.splitlines() if line.startswith("damaged: ")]
    for words in (f"{train} is not whole", f"{image}: it is truncated", f"{moved} is an image of",
                  f"{shard} is missing"):  # fmt: skip
        assert sum(words in line for line in damaged) == 1, words
    assert "Traceback" not in done.stderr
    assert "finding" in done.stdout
    done = run("imagenet-prep", "verify", data, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"]) == (1, False)
    assert [bool(each["findings"]) for each in answer["archives"]] == [False, True, False]


def test_sums_are_given_as_a_file_or_as_digits(run: Run, archives: Any, tmp_path: Path) -> None:
    digest = hashlib.md5(archives.val.read_bytes(), usedforsecurity=False).hexdigest()
    sums = tmp_path / "MD5SUMS"
    sums.write_text(f"{digest}  {VAL}\nMD5 ({TRAIN}) = {digest}\n")
    for given in (digest, sums):
        done = run("imagenet-prep", "verify", archives.val, "--md5", given)
        assert (done.returncode, done.stderr) == (0, "")
        assert digest in done.stdout
    done = run("imagenet-prep", "verify", archives.train.parent, "--md5", sums)
    assert done.returncode == 1
    assert f"instead of {digest} (by {sums})" in done.stderr
    done = run("imagenet-prep", "verify", archives.train.parent, "--md5", digest)
    assert done.returncode == 2
    done = run("imagenet-prep", "verify", archives.val, "--md5", tmp_path / "absent")
    assert (done.returncode, "does not exist" in done.stderr) == (1, True)


def test_a_known_oddity_is_listed_and_no_damage(
    run: Run, write_folders: Callable[..., Path], picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    images = {"n02105855": {"n02105855_2933.JPEG": picture("picture.png")}}
    done = run("imagenet-prep", "verify", write_folders(tmp_path / "train", images), "--decode")
    assert done.returncode == 0
    assert "known of ILSVRC2012: PNG under the name of a JPEG: 1 image" in done.stdout


def test_ctrl_c_while_an_archive_is_digested(
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    """An archive of 64 GiB, all of it a hole, whose MD5 takes two minutes."""
    path = tmp_path / "mine.tar"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    process = start("imagenet-prep", "verify", path, "--md5", "0" * 32)
    wait_until(process, lambda: path in open_files(process.pid))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err


def test_a_published_archive_by_another_name_is_known_by_its_size(run: Run, tmp_path: Path) -> None:
    val = next(each for each in ARCHIVES if each.name == VAL)
    path = tmp_path / "validation-images.tar"
    with path.open("wb") as file:
        file.truncate(val.bytes)
    done = run("imagenet-prep", "verify", path)
    assert done.returncode == 1
    assert "were never written" in done.stderr
    assert "val" in done.stdout


def test_real_pictures_verify(real_data: Path) -> None:
    """250 photographs of ILSVRC2012, in their tar, decoded in place."""
    path = real_data / "imagenet-sample-250.tar"
    report = check(path, decode=True).archives[0]
    with tarfile.open(path) as archive:
        assert report.images == sum(member.isfile() for member in archive)
    assert report.findings == ()
