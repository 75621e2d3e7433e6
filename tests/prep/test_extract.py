"""Extraction: the right tree, whole or absent images, and nothing outside the folder."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import Tree, run_extract, tree

from prep.devkit import read_devkit
from shards.durable import RECORDS, TEMPORARY_PREFIX, folder_lock
from shards.errors import DamagedData, ToolError

WriteTrainTar = Callable[..., Path]


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if RECORDS not in path.parts}


@pytest.fixture(scope="module")
def expected(archives: Any) -> Tree:
    """The tree as tarfile and the devkit have it."""
    found: Tree = {}
    with tarfile.open(archives.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:
                for image in inner:
                    name = f"train/{member.name[:-4]}/{image.name}"
                    found[name] = inner.extractfile(image).read()
    wnids = read_devkit(archives.devkit).validation_wnids()
    with tarfile.open(archives.val) as archive:
        for image in archive:
            number = int(image.name[-13:-5])
            found[f"val/{wnids[number - 1]}/{image.name}"] = archive.extractfile(image).read()
    return found


# --- the right tree ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
def test_the_tree_is_what_tar_and_the_labels_say(
    workers: int, archives: Any, expected: Tree, tmp_path: Path
) -> None:
    train, val = run_extract(archives.train.parent, out=tmp_path, workers=workers)
    assert tree(tmp_path) == expected
    assert (train.folders, train.files, train.written) == (("train",), 51, 51)
    assert (val.folders, val.files, val.written) == (("val",), 15, 15)
    assert train.bytes + val.bytes == sum(map(len, expected.values()))


def test_flat_leaves_validation_images_in_one_folder(
    archives: Any, expected: Tree, tmp_path: Path
) -> None:
    run_extract(archives.val, out=tmp_path, flat=True)
    flat = {
        f"val/{name.split('/')[-1]}": data
        for name, data in expected.items()
        if name.startswith("val/")
    }
    assert tree(tmp_path) == flat


def test_flat_needs_no_labels(archives: Any, tmp_path: Path) -> None:
    alone = tmp_path / "archives" / archives.val.name
    alone.parent.mkdir()
    alone.symlink_to(archives.val)
    run_extract(alone, out=tmp_path / "out", flat=True)
    with pytest.raises(ToolError, match="pass --labels FILE"):
        run_extract(alone, out=tmp_path / "other")
    assert tree(tmp_path / "other") == {}


def test_the_test_archive_needs_no_labels(
    write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "t.tar", {"test/ILSVRC2012_test_00000001.JPEG": jpeg(1)})
    run_extract(path, out=tmp_path / "out")
    assert tree(tmp_path / "out") == {"test/ILSVRC2012_test_00000001.JPEG": jpeg(1)}


def test_labels_in_any_form_give_the_same_tree(
    archives: Any, expected: Tree, tmp_path: Path
) -> None:
    wnids = read_devkit(archives.devkit).validation_wnids()
    forms = {
        "wnids.txt": "".join(f"{wnid}\n" for wnid in wnids),
        "pairs.txt": "".join(
            f"ILSVRC2012_val_{number:08d}.JPEG {wnid}\n" for number, wnid in enumerate(wnids, 1)
        ),
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "".join(
            f"ILSVRC2012_val_{number:08d},{wnid} 1 2 3 4 \n" for number, wnid in enumerate(wnids, 1)
        ),
    }
    val = {name: data for name, data in expected.items() if name.startswith("val/")}
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        run_extract(archives.val, out=tmp_path / f"{name}.out", labels=tmp_path / name)
        assert tree(tmp_path / f"{name}.out") == val


def test_class_folders_are_no_archive(write_folders: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "train", {"cat": {"a.jpg": b""}})
    with pytest.raises(ToolError, match="class folders need no extraction"):
        run_extract(folder, out=tmp_path / "out")


# --- going on ---------------------------------------------------------------------------------


def test_a_second_run_changes_nothing(archives: Any, tmp_path: Path) -> None:
    run_extract(archives.train.parent, out=tmp_path)
    before = times(tmp_path)
    again = run_extract(archives.train.parent, out=tmp_path)
    assert [each.written for each in again] == [0, 0]
    assert [each.files for each in again] == [51, 15]
    assert times(tmp_path) == before


def test_a_deleted_image_is_put_back(archives: Any, expected: Tree, tmp_path: Path) -> None:
    run_extract(archives.train.parent, out=tmp_path)
    for split in ("train", "val"):
        next((tmp_path / split).rglob("*.JPEG")).unlink()
    run_extract(archives.train.parent, out=tmp_path)
    assert tree(tmp_path) == expected


def test_a_deleted_class_is_put_back_and_the_others_are_left(
    archives: Any, expected: Tree, tmp_path: Path
) -> None:
    run_extract(archives.train, out=tmp_path)
    lost, *others = sorted((tmp_path / "train").iterdir())
    before = {other: times(other) for other in others}
    for image in lost.iterdir():
        image.unlink()
    lost.rmdir()
    (again,) = run_extract(archives.train, out=tmp_path)
    assert again.written == 17
    assert {other: times(other) for other in others} == before
    assert tree(lost) == {
        name.split("/")[-1]: data
        for name, data in expected.items()
        if name.startswith(f"train/{lost.name}/")
    }


def test_a_torn_record_is_passed_over(archives: Any, expected: Tree, tmp_path: Path) -> None:
    run_extract(archives.train.parent, out=tmp_path)
    for journal in (tmp_path / RECORDS).glob("*.jsonl"):
        first, second, *_ = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(first + second[:-20])
    train, val = run_extract(archives.train.parent, out=tmp_path)
    assert (train.written, val.written) == (34, 15)
    assert tree(tmp_path) == expected


@pytest.mark.parametrize("line", ["[]", "5", "null", '{"images": 1}', "\x00\x00", "\ufffd"])
def test_a_damaged_record_is_passed_over(
    line: str, archives: Any, expected: Tree, tmp_path: Path
) -> None:
    (tmp_path / RECORDS).mkdir()
    (tmp_path / RECORDS / "extract.jsonl").write_text(line + "\n", "utf-8")
    run_extract(archives.train.parent, out=tmp_path)
    assert tree(tmp_path) == expected


def test_a_second_writer_is_refused(archives: Any, tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(ToolError, match="another process"):
        run_extract(archives.val, out=tmp_path)


@pytest.fixture(scope="module")
def many(
    tmp_path_factory: pytest.TempPathFactory,
    jpeg: Callable[[int], bytes],
    write_train_tar: WriteTrainTar,
) -> tuple[Path, Tree]:
    """A training archive of 6,000 small images in 20 classes, and its tree."""
    classes = {
        f"n{label:08d}": {f"n{label:08d}_{n}.JPEG": jpeg(n) for n in range(300)}
        for label in range(20)
    }
    path = write_train_tar(tmp_path_factory.mktemp("many") / "train.tar", classes)
    files = {
        f"train/{wnid}/{name}": data
        for wnid, images in classes.items()
        for name, data in images.items()
    }
    return path, files


def test_a_killed_extraction_is_completed_by_the_same_command(
    many: tuple[Path, Tree],
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> None:
    path, expected = many
    folder = tmp_path / "train"
    for classes in (1, 5, 10):
        process = start("imagenet-prep", "extract", path, "--out", tmp_path, "--workers", 1)
        wait_until(process, lambda least=classes: len(list(folder.glob("n*"))) >= least)
        process.kill()
        process.wait()
        there = {name: data for name, data in tree(tmp_path).items() if ".tmp-" not in name}
        assert there.items() <= expected.items()
        assert len(there) < len(expected)
    run_extract(path, out=tmp_path)
    assert tree(tmp_path) == expected
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


def test_an_archive_that_was_fetched_again_is_read_again(
    write_train_tar: WriteTrainTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    """Of the same size, but once with a damaged image: its time alone tells the two apart."""
    images = {f"n00000001_{n}.JPEG": jpeg(n) for n in range(5)}
    path = write_train_tar(tmp_path / "train.tar", {"n00000001": images})
    whole = path.read_bytes()
    place = whole.index(jpeg(3)) + 300
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    run_extract(path, out=tmp_path / "out")
    before = path.stat().st_mtime_ns
    path.write_bytes(whole)
    os.utime(path, ns=(before + 1, before + 1))
    (again,) = run_extract(path, out=tmp_path / "out")
    assert again.written == 1
    assert tree(tmp_path / "out") == {
        f"train/n00000001/{name}": data for name, data in images.items()
    }
    (again,) = run_extract(path, out=tmp_path / "out")
    assert again.written == 0


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", "val"])
def test_a_truncated_archive_is_named_and_what_was_there_stays(
    kind: str, archives: Any, tmp_path: Path
) -> None:
    whole = {"train": archives.train, "val": archives.val}[kind]
    run_extract(whole, out=tmp_path / "out")
    before = tree(tmp_path / "out")
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / archives.devkit.name).symlink_to(archives.devkit)
    with pytest.raises(DamagedData, match=f"{cut}.*truncated.*fetch it again"):
        run_extract(cut, out=tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_a_damaged_inner_tar_is_named_and_goes_on_once_it_is_mended(
    write_train_tar: WriteTrainTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    classes = {
        wnid: {f"{wnid}_{n}.JPEG": jpeg(n) for n in range(3)} for wnid in ("n00000001", "n00000002")
    }
    path = write_train_tar(tmp_path / "train.tar", classes)
    whole = path.read_bytes()
    place = whole.index(b"n00000002_1.JPEG")
    path.write_bytes(whole[:place] + b"damaged header".ljust(512, b"!") + whole[place + 512 :])
    with pytest.raises(DamagedData, match=f"{path}:n00000002.tar is damaged at byte {place}"):
        run_extract(path, out=tmp_path / "out", workers=1)
    before = {f"n00000001/{name}" for name in classes["n00000001"]} | {"n00000002/n00000002_0.JPEG"}
    assert set(tree(tmp_path / "out" / "train")) == before

    path.write_bytes(whole)
    (again,) = run_extract(path, out=tmp_path / "out")
    assert (again.files, again.written) == (6, 3)
    assert tree(tmp_path / "out") == {
        f"train/{wnid}/{name}": data
        for wnid, images in classes.items()
        for name, data in images.items()
    }


def test_an_inner_tar_that_is_cut_short_is_named(
    write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    inner = write_tar(tmp_path / "inner", {f"n00000002_{n}.JPEG": jpeg(n) for n in range(3)})
    path = write_tar(tmp_path / "train.tar", {"n00000002.tar": inner.read_bytes()[:2500]})
    with pytest.raises(DamagedData, match=f"{path}:n00000002.tar.*truncated"):
        run_extract(path, out=tmp_path / "out", workers=1)
    assert tree(tmp_path / "out") == {"train/n00000002/n00000002_0.JPEG": jpeg(0)}


@pytest.mark.parametrize(
    "name", ["../escaped.JPEG", "/escaped.JPEG", "a/../../escaped.JPEG", "sub/a.JPEG", ".", ""]
)
def test_hostile_names_in_an_inner_tar_write_nothing(
    name: str, write_train_tar: WriteTrainTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    images = {"n00000001_1.JPEG": jpeg(1), name: jpeg(2), "n00000001_3.JPEG": jpeg(3)}
    path = write_train_tar(tmp_path / "train.tar", {"n00000001": images})
    with pytest.raises(DamagedData, match="refused"):
        run_extract(path, out=tmp_path / "deep" / "out")
    assert tree(tmp_path / "deep") == {"out/train/n00000001/n00000001_1.JPEG": jpeg(1)}
    assert {entry.name for entry in tmp_path.iterdir()} == {"train.tar", "deep"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_inner_tar_are_refused(
    kind: bytes, write_tar: Callable[..., Path], tmp_path: Path
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("n00000001_1.JPEG")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    path = write_tar(tmp_path / "train.tar", {"n00000001.tar": file.getvalue()})
    with pytest.raises(DamagedData, match="refused"):
        run_extract(path, out=tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_link_that_lies_in_the_way_is_replaced_and_not_followed(
    write_train_tar: WriteTrainTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    path = write_train_tar(tmp_path / "train.tar", {"n00000001": {"a.JPEG": jpeg(1)}})
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out" / "train" / "n00000001").mkdir(parents=True)
    (tmp_path / "out" / "train" / "n00000001" / "a.JPEG").symlink_to(tmp_path / "precious")
    run_extract(path, out=tmp_path / "out")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert tree(tmp_path / "out") == {"train/n00000001/a.JPEG": jpeg(1)}


def test_a_folder_in_the_way_is_named(
    write_train_tar: WriteTrainTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    path = write_train_tar(tmp_path / "train.tar", {"n00000001": {"a.JPEG": jpeg(1)}})
    obstacle = tmp_path / "out" / "train" / "n00000001" / "a.JPEG"
    obstacle.mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as raised:
        run_extract(path, out=tmp_path / "out")
    assert raised.value.filename == str(obstacle)
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


def test_labels_of_other_images_write_nothing(archives: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")
    with pytest.raises(ToolError, match=f"{labels} has no label for the image"):
        run_extract(archives.val, out=tmp_path / "out", labels=labels)
    assert tree(tmp_path / "out") == {}


def test_labels_that_are_paths_write_nothing(archives: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    lines = [f"ILSVRC2012_val_{number:08d}.JPEG ../x\n" for number in range(1, 16)]
    labels.write_text("".join(lines))
    with pytest.raises(DamagedData, match=r"'../x' cannot be a class"):
        run_extract(archives.val, out=tmp_path / "deep" / "out", labels=labels)
    assert tree(tmp_path / "deep") == {}


def test_other_labels_do_not_leave_two_trees_in_one(archives: Any, tmp_path: Path) -> None:
    """Images that lay in another class before must not be there twice."""
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("n01440764\n" * 15)
    run_extract(archives.val, out=tmp_path / "out", labels=wrong)
    try:
        run_extract(archives.val, out=tmp_path / "out")
    except ToolError:
        return
    assert len(tree(tmp_path / "out")) == 15


def test_other_names_for_the_same_classes_are_another_extraction(
    archives: Any, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("n01440764\n" * 15)
    run_extract(archives.val, out=tmp_path / "out", labels=labels)
    labels.write_text("n01443537\n" * 15)
    try:
        (again,) = run_extract(archives.val, out=tmp_path / "out", labels=labels)
    except ToolError:
        return
    assert again.files == 15
    assert len(tree(tmp_path / "out")) == 15


def test_too_little_space_is_said_before_anything_is_written(
    archives: Any, small_disk: Callable[[str], Any]
) -> None:
    disk = small_disk("size=64k")
    with pytest.raises(ToolError, match=f"{disk.path}/out has .* free and the extraction needs"):
        run_extract(archives.train, out=disk.path / "out")
    assert tree(disk.path) == {}
