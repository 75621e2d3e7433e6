"""What a user points at is recognised, and becomes the same samples wherever they lie."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.ilsvrc import ArchiveKind
from prep.sources import collect, find_sources
from shards.errors import DamagedData, ToolError, UsageError
from shards.progress import Silent
from shards.sample import UNLABELLED, Layout, Samples


def found(*paths: Path, split: str | None = None) -> list[tuple[str, Path, ArchiveKind | None]]:
    return [(each.split, each.path, each.kind) for each in find_sources(paths, split)]


def samples_of(*paths: Path, **options: Any) -> dict[str, Samples]:
    sources = find_sources(paths, options.pop("split", None))
    chosen = {"labels": None, "classes": None, "progress": Silent()} | options
    return collect(sources, **chosen)[0]


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


# --- recognising ------------------------------------------------------------------------------


def test_archives_are_found_alone_and_in_their_folder(archives: Any) -> None:
    train = ("train", archives.train, ArchiveKind.TRAIN)
    val = ("val", archives.val, ArchiveKind.VALIDATION)
    assert found(archives.train.parent) == [train, val]
    assert found(archives.val, archives.train) == [val, train]
    assert found(archives.train.parent, split="val") == [val]


def test_class_folders_are_found_beneath_their_split(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    for split in ("train", "validation"):
        write_folders(tmp_path / split, {"cat": {"a.jpg": b""}})
    train, val = ("train", tmp_path / "train", None), ("val", tmp_path / "validation", None)
    assert found(tmp_path) == [train, val]
    assert found(tmp_path / "validation") == [val]
    assert found(tmp_path / "train", split="train") == [train]


def test_class_folders_alone_need_the_name_of_their_split(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_folders(tmp_path / "pictures", {"cat": {"a.jpg": b""}})
    with pytest.raises(UsageError, match="does not say which split"):
        find_sources([folder], None)
    assert found(folder, split="val") == [("val", folder, None)]


def test_a_folder_with_nothing_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=f"{tmp_path} was not recognised; looked for archives"):
        find_sources([tmp_path], None)


def test_one_split_twice_is_refused_by_both_paths(archives: Any) -> None:
    with pytest.raises(UsageError, match="give one of them") as raised:
        find_sources([archives.train.parent, archives.train.parent / "." / archives.val.name], None)
    assert str(raised.value).count("ILSVRC2012_img_val.tar") in (1, 2)


def test_a_split_that_is_not_there_is_said(archives: Any) -> None:
    with pytest.raises(ToolError, match="no split 'test' was found"):
        find_sources([archives.train.parent], "test")


def test_a_devkit_is_no_source_of_images(archives: Any) -> None:
    with pytest.raises(UsageError, match="give it by --labels"):
        find_sources([archives.devkit], None)


def test_other_archives_of_ilsvrc_beside_are_left_alone(archives: Any, tmp_path: Path) -> None:
    (tmp_path / archives.train.name).symlink_to(archives.train)
    (tmp_path / "ILSVRC2012_img_train_t3.tar").write_bytes(b"not looked into")
    assert [each[0] for each in found(tmp_path)] == ["train"]


@pytest.mark.parametrize("prefix", [".tmp-12-", "._"])
def test_half_written_and_hidden_archives_are_left_alone(
    prefix: str, archives: Any, tmp_path: Path
) -> None:
    (tmp_path / archives.train.name).symlink_to(archives.train)
    (tmp_path / f"{prefix}{archives.val.name}").write_bytes(b"half")
    assert [each[0] for each in found(tmp_path)] == ["train"]


# --- collecting -------------------------------------------------------------------------------


def test_the_samples_are_the_bytes_of_the_archives(archives: Any) -> None:
    expected = {}
    with tarfile.open(archives.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:
                for image in inner:
                    expected[image.name] = inner.extractfile(image).read()
    samples = samples_of(archives.train)["train"]
    data = archives.train.read_bytes()
    places = (samples[number] for number in range(len(samples)))
    assert {each.name: data[each.offset :][: each.size] for each in places} == expected


def test_labels_of_both_splits_count_in_one_list(archives: Any) -> None:
    splits = samples_of(archives.train.parent)
    assert sorted(set(splits["train"].labels.tolist())) == [0, 1, 2]
    assert sorted(set(splits["val"].labels.tolist())) == [0, 1, 2]
    for number in range(len(splits["train"])):
        sample = splits["train"][number]
        assert (
            sample.key.split("_")[0]
            == sorted({key.decode().split("_")[0] for key in splits["train"].keys.tolist()})[
                sample.label
            ]
        )


def test_folders_and_archives_give_the_same_keys_labels_and_sizes(
    archives: Any, tmp_path: Path
) -> None:
    in_tar = samples_of(archives.train)["train"]
    data = archives.train.read_bytes()
    for number in range(len(in_tar)):
        sample = in_tar[number]
        folder = tmp_path / "train" / sample.key.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / sample.name).write_bytes(data[sample.offset :][: sample.size])
    in_folders = samples_of(tmp_path)["train"]
    assert (in_tar.layout, in_folders.layout) == (Layout.TAR, Layout.FOLDER)
    for column in ("keys", "names", "labels", "sizes"):
        assert getattr(in_tar, column).tolist() == getattr(in_folders, column).tolist()


def test_the_test_archive_has_no_labels(
    write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    names = [f"test/ILSVRC2012_test_{number:08d}.JPEG" for number in (2, 1)]
    path = write_tar(tmp_path / "t.tar", {name: jpeg(0) for name in names})
    samples = samples_of(path)["test"]
    assert samples.labels.tolist() == [UNLABELLED] * 2
    assert samples.keys.tolist() == [b"ILSVRC2012_test_00000001", b"ILSVRC2012_test_00000002"]


def test_what_is_no_image_is_left_out_and_said(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    files = {"a.jpg": b"1", "b.JPEG": b"2", "c.PNG": b"3", "notes.txt": b"", ".DS_Store": b""}
    folder = write_folders(tmp_path / "train", {"cat": files, ".git": {"d.jpg": b""}})
    (folder / "cat" / "folder.jpg").mkdir()
    (folder / "cat" / "dangling.jpg").symlink_to(tmp_path / "absent")
    os.mkfifo(folder / "cat" / "fifo.jpg")
    notes = Notes()
    samples = samples_of(folder, progress=notes)["train"]
    assert samples.names.tolist() == [b"a.jpg", b"b.JPEG", b"c.PNG"]
    assert any(": 4 entries that are no images were left out" in note for note in notes.notes)


def test_class_folders_without_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ToolError, match=f"{tmp_path}/train holds no images"):
        samples_of(tmp_path / "train")


def test_a_file_name_that_is_not_utf_8_is_refused_by_name(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_folders(tmp_path / "train", {"cat": {"a.jpg": b"x"}})
    (folder / "cat" / os.fsdecode(b"b\xff.jpg")).write_bytes(b"x")
    with pytest.raises(ToolError, match="UTF-8") as raised:
        samples_of(folder)
    assert str(folder) in str(raised.value)
    assert str(raised.value).isprintable()


def test_the_same_image_in_two_classes_is_refused_by_both_places(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    images = {"n01440764_1.JPEG": b"x"}
    folder = write_folders(tmp_path / "train", {"n01440764": images, "n01443537": images})
    with pytest.raises(ToolError, match="would both have the key n01440764_1") as raised:
        samples_of(folder)
    for name in ("n01440764", "n01443537"):
        assert f"{folder}/{name}/n01440764_1.JPEG" in str(raised.value)


def test_labels_that_lack_an_image_are_refused(archives: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")
    with pytest.raises(ToolError, match=f"{labels} has no label for the image ILSVRC2012_val"):
        samples_of(archives.val, labels=labels)


def test_a_hostile_archive_is_refused(write_train_tar: Callable[..., Path], tmp_path: Path) -> None:
    path = write_train_tar(tmp_path / "train.tar", {"n01440764": {"../x.JPEG": b"x"}})
    with pytest.raises(DamagedData, match="outside its folder"):
        samples_of(path)


def test_validation_images_of_a_class_that_training_lacks_are_refused(
    archives: Any, build: Callable[..., Any], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("n00000001\n" * archives.val_images)
    with pytest.raises(ToolError, match="'n00000001', of which there is no training image"):
        build(archives.train, archives.val, out=tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()
