"""The official archives are told apart by what is in them, and hostile ones are refused."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.archives import archive_bytes, class_images, class_tars, flat_images, recognise
from prep.ilsvrc import ArchiveKind
from shards.errors import DamagedData, ToolError

WriteTar = Callable[..., Path]


def test_the_three_archives_are_told_apart(archives: Any) -> None:
    assert recognise(archives.train).kind is ArchiveKind.TRAIN
    assert recognise(archives.val).kind is ArchiveKind.VALIDATION
    assert recognise(archives.devkit).kind is ArchiveKind.DEVKIT


@pytest.mark.parametrize("prefix", ["", "test/"])
def test_the_test_archive_is_known_in_both_its_forms(
    prefix: str, write_tar: WriteTar, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "t.tar", {f"{prefix}ILSVRC2012_test_00000001.JPEG": b"x"})
    assert recognise(path).kind is ArchiveKind.TEST
    with archive_bytes(path) as source:
        names = [member.name for member in flat_images(source, path)]
    assert names == ["ILSVRC2012_test_00000001.JPEG"]


def test_the_name_of_an_archive_says_nothing(archives: Any, tmp_path: Path) -> None:
    other = tmp_path / "ILSVRC2012_img_val.tar"
    other.symlink_to(archives.train)
    assert recognise(other).kind is ArchiveKind.TRAIN


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<html>404</html>" * 100, "is not a tar archive"),
        (bytes(1024), "begins with ''"),
        (b"PK\x03\x04" + bytes(2000), "is not a tar archive"),
        (b"x" * 100, "truncated"),
    ],
)
def test_what_is_no_archive_is_refused_by_name(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(data)
    with pytest.raises(DamagedData, match=reason) as raised:
        recognise(path)
    assert str(raised.value).startswith(str(path))


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=re.escape(f"{tmp_path}/absent.tar does not exist")):
        recognise(tmp_path / "absent.tar")


def test_another_tar_is_said_to_begin_with_what_it_does(
    write_tar: WriteTar, tmp_path: Path
) -> None:
    with pytest.raises(DamagedData, match=r"begins with 'cats\.jpg'"):
        recognise(write_tar(tmp_path / "cats.tar", {"cats.jpg": b""}))


def listed(path: Path) -> dict[str, list[str]]:
    with archive_bytes(path) as source:
        return {
            tar.wnid: [image.name for image in class_images(source, path, tar)]
            for tar in class_tars(source, path)
        }


def test_the_inner_tars_are_listed_as_tarfile_lists_them(archives: Any) -> None:
    expected = {}
    with tarfile.open(archives.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:
                expected[member.name[:-4]] = inner.getnames()
    assert listed(archives.train) == expected
    assert sum(map(len, expected.values())) == archives.train_images


@pytest.mark.parametrize("name", ["readme.txt", "n1.tar", "n01440764.tar.gz", "x/n01440764.tar"])
def test_a_stranger_among_the_class_tars_is_refused(
    name: str, write_tar: WriteTar, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "train.tar", {"n01440764.tar": bytes(1024), name: b""})
    with pytest.raises(DamagedData, match=f"member '{name}' is no class archive"):
        listed(path)


def test_a_class_tar_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    empty = bytes(1024)
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            member = tarfile.TarInfo("n01440764.tar")
            member.size = len(empty)
            archive.addfile(member, io.BytesIO(empty))
    with pytest.raises(DamagedData, match=r"'n01440764\.tar' is there twice"):
        listed(path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.JPEG", "a.JPEG"], "'a.JPEG' is there twice"),
        (["sub/a.JPEG"], "lies in a folder"),
        (["../a.JPEG"], "outside its folder"),
        (["/a.JPEG"], "outside its folder"),
        (["a\n.JPEG"], "control characters"),
    ],
)
def test_images_that_cannot_lie_in_one_folder_are_refused(
    names: list[str], reason: str, tmp_path: Path
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("n01440764.tar")
        info.size = len(file.getvalue())
        archive.addfile(info, io.BytesIO(file.getvalue()))
    with pytest.raises(DamagedData, match=reason) as raised:
        listed(path)
    assert str(raised.value).startswith(f"{path}:n01440764.tar")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_training_archive_is_named(share: float, archives: Any, tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    path.write_bytes(archives.train.read_bytes())
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DamagedData, match=f"{path}.*truncated"):
        listed(path)


def test_a_truncated_inner_tar_is_named(
    write_tar: WriteTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    inner = write_tar(tmp_path / "inner.tar", {"a.JPEG": jpeg(0), "b.JPEG": jpeg(1)})
    whole = inner.read_bytes()
    for cut in (1024, len(jpeg(0)) + 1024, 2000):
        path = write_tar(tmp_path / "train.tar", {"n01440764.tar": whole[:cut]})
        with pytest.raises(DamagedData, match="truncated") as raised:
            listed(path)
        assert str(raised.value).startswith(f"{path}:n01440764.tar")


def test_no_descriptor_stays_open(archives: Any) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    recognise(archives.train)
    listed(archives.train)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
