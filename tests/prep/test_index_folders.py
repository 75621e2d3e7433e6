"""Class folders as they lie: trained from like the shards that would be made of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import run_extract

from prep.folders import cache_place, find_folders, keep_index
from prep.index_part import Indexed, IndexOptions
from prep.indexing import index_tars
from shards.dataset import Dataset
from shards.durable import RECORDS, folder_lock
from shards.errors import DamagedData, ToolError, UsageError
from shards.manifest import MANIFEST_NAME, Manifest
from shards.progress import Silent
from shards.verify import verify_shards

Jpeg = Callable[[int], bytes]
Run = Callable[..., subprocess.CompletedProcess[str]]
BOTH = ("train", "val")


class Listening(Silent):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def index(*paths: Path, out: Path, progress: Silent | None = None, **options: Any) -> list[Indexed]:
    chosen = IndexOptions(**options)
    return index_tars(paths, out, chosen, workers=2, progress=progress or Silent())


def keep(path: Path, out: Path, *wanted: str, progress: Silent | None = None) -> dict[str, int]:
    wanted = wanted or BOTH
    sources = find_folders(path, wanted)
    return dict(keep_index(sources, wanted, out, workers=2, progress=progress or Silent()))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Label and bytes of every sample of a split, by key."""
    with Dataset.open(folder) as dataset:
        return {
            key.decode(): (int(dataset.labels[number]), bytes(dataset.read(number).data))
            for number, key in enumerate(dataset.keys.tolist())
        }


def records(folder: Path) -> set[str]:
    """What is noted of the class folders of a split: one name each, another after a change."""
    return {path.name for path in (folder / RECORDS / "folders").iterdir()}


def alter(path: Path) -> None:
    """Change a byte in the picture itself, leaving size and times as they were."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def images(write_folders: Callable[..., Path], jpeg: Jpeg, tmp_path: Path) -> Path:
    """train/ and val/ with three classes of names that no manifest could have."""
    names = ("cat", "sea lion", "naïve")
    for first, (split, count) in enumerate((("train", 4), ("val", 2))):
        classes = {
            name: {f"é {n}.JPG": jpeg(100 * first + 10 * label + n) for n in range(count)}
            for label, name in enumerate(names)
        }
        write_folders(tmp_path / "images" / split, classes)
    return tmp_path / "images"


# --- the same as shards -------------------------------------------------------------------------


def test_class_folders_hold_what_shards_of_them_do(
    images: Path, build: Callable[..., Any], tmp_path: Path
) -> None:
    index(images, out=tmp_path / "index")
    build(images, out=tmp_path / "shards")
    for split, count in (("train", 12), ("val", 6)):
        folder = tmp_path / "index" / split
        assert contents(folder) == contents(tmp_path / "shards" / split)
        with Dataset.open(folder) as one, Dataset.open(tmp_path / "shards" / split) as other:
            assert len(one) == count
            assert one.digest == other.digest
            assert one.keys.tolist() == other.keys.tolist()
            assert (one.classes, one.class_names) == (other.classes, other.class_names)
        links = {path.name: path.readlink() for path in folder.glob("*.images")}
        assert links == {
            "cat.images": images / split / "cat",
            "na_ve.images": images / split / "naïve",
            "sea_lion.images": images / split / "sea lion",
        }
        assert not verify_shards(folder, workers=2, decode=True, progress=Silent()).findings


def test_extracted_archives_are_one_with_shards_of_the_archives(
    archives: Any, shards: Path, tmp_path: Path
) -> None:
    run_extract(archives.train.parent, out=tmp_path / "images")
    assert keep(tmp_path / "images", tmp_path / "index") == {"train": 51, "val": 15}
    for split in BOTH:
        manifest, other = (Manifest.read(each / split) for each in (tmp_path / "index", shards))
        assert manifest.content == other.content
        assert manifest.classes == other.classes


def test_flat_validation_images_have_the_labels_that_are_given(
    images: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat" / "val"
    flat.mkdir(parents=True)
    lines = []
    for number, path in enumerate(sorted((images / "val").glob("*/*")), 1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        shutil.copy(path, flat / name)
        lines.append(f"{name} n0000000{number % 2}\n")
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(lines))
    index(flat, out=tmp_path / "index", labels=labels)
    found = contents(tmp_path / "index" / "val")
    assert [label for label, _ in found.values()] == [1, 0, 1, 0, 1, 0]
    assert Manifest.read(tmp_path / "index" / "val").shards[0].name == "val.images"


def test_an_empty_class_folder_is_no_class(images: Path, tmp_path: Path) -> None:
    (images / "train" / "void").mkdir()
    index(images, out=tmp_path)
    manifest = Manifest.read(tmp_path / "train")
    assert [each.id for each in manifest.classes] == ["cat", "naïve", "sea lion"]
    assert len(contents(tmp_path / "train")) == 12


# --- again --------------------------------------------------------------------------------------


def test_an_index_is_known_again_and_only_changed_folders_are_read(
    images: Path, jpeg: Jpeg, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    index(images, out=out)
    assert not any(each.written for each in index(images, out=out))
    before, content = records(out / "train"), Manifest.read(out / "train").content
    (images / "train" / "cat" / "é 2.JPG").write_bytes(jpeg(77))
    train, val = index(images, out=out)
    assert (train.written, val.written) == (True, False)
    assert train.manifest.content != content
    assert len(before) == len(records(out / "train")) == 3
    assert len(before & records(out / "train")) == 2


def test_a_class_that_is_gone_leaves_no_link(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    index(images, out=out)
    for split in BOTH:
        shutil.rmtree(images / split / "cat")
    index(images, out=out)
    assert len(records(out / "train")) == len(list((out / "train").glob("*.images"))) == 2
    assert len(contents(out / "train")) == 8


def test_a_run_that_ended_goes_on_with_the_folders_that_are_left(
    images: Path, jpeg: Jpeg, tmp_path: Path
) -> None:
    bad = images / "train" / "sea lion" / "é 3.JPG"
    bad.write_bytes(b"<html>" * 10_000)  # the largest folder is read first
    with pytest.raises(DamagedData, match=r"sea lion/é 3.JPG: it is neither .*--on-bad skip"):
        index_tars([images], tmp_path / "index", IndexOptions(), workers=1, progress=Silent())
    with pytest.raises(ToolError, match="is unfinished; run the `imagenet-prep index` command"):
        Manifest.read(tmp_path / "index" / "train")
    bad.write_bytes(jpeg(5))
    index(images, out=tmp_path / "index")
    assert len(contents(tmp_path / "index" / "train")) == 12


def test_what_is_no_image_is_left_out_on_request(images: Path, tmp_path: Path) -> None:
    (images / "train" / "cat" / "é 0.JPG").write_bytes(b"")
    listening = Listening()
    index(images, out=tmp_path, on_bad="skip", progress=listening)
    manifest = Manifest.read(tmp_path / "train")
    assert [(each.name, each.reason) for each in manifest.skipped] == [("é 0.JPG", "it is empty")]
    assert len(contents(tmp_path / "train")) == 11
    assert "1 samples were left out" in "".join(listening.notes)
    assert not verify_shards(tmp_path / "train", workers=1, progress=Silent()).findings


# --- the index that is kept ---------------------------------------------------------------------


def test_it_is_made_once_and_again_when_an_image_comes(
    images: Path, jpeg: Jpeg, tmp_path: Path
) -> None:
    out, first, second = tmp_path / "cache", Listening(), Listening()
    assert keep(images, out, progress=first) == {"train": 12, "val": 6}
    assert str(out) in "".join(first.notes)
    assert keep(images, out, progress=second) == {"train": 12, "val": 6}
    assert not second.notes
    (images / "val" / "cat" / "new.jpg").write_bytes(jpeg(99))
    assert keep(images, out) == {"train": 12, "val": 7}


def test_evaluation_reads_its_own_split_and_numbers_classes_as_training_does(
    images: Path, tmp_path: Path
) -> None:
    shutil.rmtree(images / "val" / "cat")
    assert keep(images, tmp_path / "cache", "val") == {"val": 4}
    assert not (tmp_path / "cache" / "train").exists()
    manifest = Manifest.read(tmp_path / "cache" / "val")
    assert [each.id for each in manifest.classes] == ["cat", "naïve", "sea lion"]
    assert keep(images, tmp_path / "cache") == {"train": 12, "val": 4}
    assert Manifest.read(tmp_path / "cache" / "val") == manifest


def test_an_image_that_was_changed_in_its_place_is_named_when_it_is_read(
    images: Path, tmp_path: Path
) -> None:
    """Neither its size nor any time tells; after `index` is run it is a sample like others."""
    out = tmp_path / "cache"
    keep(images, out)
    path = images / "train" / "cat" / "é 1.JPG"
    alter(path)
    keep(images, out)
    with pytest.raises(
        DamagedData, match=rf"its bytes are others.*imagenet-prep index.*--out {out}"
    ):
        contents(out / "train")
    findings = verify_shards(out / "train", workers=1, progress=Silent()).findings
    assert len(findings) == 1
    assert "cat.images is not what the index says" in findings[0]
    assert "é 1.JPG: its bytes are others than when it was indexed" in findings[0]
    path.touch()
    index(images, out=out)
    assert len(contents(out / "train")) == 12
    assert keep(images, out) == {"train": 12, "val": 6}


def test_one_process_makes_it_and_others_wait(images: Path, tmp_path: Path) -> None:
    out, waits = tmp_path / "cache", threading.Event()

    class Waiting(Silent):
        def note(self, message: str) -> None:
            if "another process indexes" in message:
                waits.set()

    found: dict[str, int] = {}
    other = threading.Thread(target=lambda: found.update(keep(images, out, progress=Waiting())))
    with folder_lock(out):
        other.start()
        assert waits.wait(60)
        assert not found
    other.join(60)
    assert found == {"train": 12, "val": 6}


def test_a_place_that_cannot_be_written_is_said_with_another(images: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(ToolError, match=r"cannot be made \(Not a directory\): set XDG_CACHE_HOME"):
        keep(images, tmp_path / "cache" / "index")


def test_it_lies_in_the_user_s_cache_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, other = (cache_place(tmp_path / name / "image net") for name in "ab")
    assert one.parent == other.parent == tmp_path / "cache" / "imagenet-resnet"
    assert one.name.startswith("image-net-")
    assert one != other
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification has ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_place(tmp_path).parent == tmp_path / ".cache" / "imagenet-resnet"


# --- what is given ------------------------------------------------------------------------------


def test_folders_are_told_from_shards_and_from_nothing(
    images: Path, shards: Path, tmp_path: Path
) -> None:
    assert [each.split for each in find_folders(images, BOTH)] == ["train", "val"]
    (images / "ILSVRC2012_img_train.tar").write_bytes(b"")  # beside what was extracted of it
    assert [each.split for each in find_folders(images, BOTH)] == ["train", "val"]
    index(images / "train", images / "val", out=tmp_path / "index")
    for other in (shards, tmp_path / "index", tmp_path, tmp_path / "absent"):
        assert find_folders(other, BOTH) == []
    assert [each.split for each in find_folders(images / "val", ["val"])] == ["val"]
    assert [each.split for each in find_folders(images / "train", ["val"])] == ["val"]


def test_kaggle_s_tree_is_found(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    root.parent.mkdir(parents=True)
    images.rename(root)
    assert [each.path for each in find_folders(tmp_path / "kaggle", BOTH)] == [
        root / "train",
        root / "val",
    ]


def test_a_split_that_is_missing_is_said(images: Path) -> None:
    with pytest.raises(UsageError, match=r"no train and no val: give the folder that has train/"):
        find_folders(images / "train", BOTH)
    shutil.rmtree(images / "val")
    with pytest.raises(UsageError, match=r"for train/ alone and none in .*/images/val"):
        find_folders(images, BOTH)


@pytest.mark.parametrize("out", ["", "train", "train/cat/index"])
def test_an_index_among_the_images_is_refused(out: str, images: Path) -> None:
    with pytest.raises(UsageError, match="lies among the images"):
        index(images, out=images / out)
    assert not list(images.rglob(MANIFEST_NAME))


def test_tars_and_folders_do_not_share_a_place(images: Path, archives: Any, tmp_path: Path) -> None:
    index(archives.train.parent, out=tmp_path / "index")
    index(images, out=tmp_path / "index")  # its links are taken away, and nothing else
    assert len(list((tmp_path / "index" / "train").iterdir())) == 7
    assert archives.train.exists()
    shutil.copy(archives.val, tmp_path / "index" / "train" / "mine.tar")
    with pytest.raises(ToolError, match=r"holds mine.tar, which is not among"):
        index(images, out=tmp_path / "index")


def test_shards_are_made_of_the_folders_and_not_of_their_index(
    images: Path, build: Callable[..., Any], tmp_path: Path
) -> None:
    index(images, out=tmp_path / "index")
    with pytest.raises(ToolError, match=r"is an index of class folders .*give those themselves"):
        build(tmp_path / "index", out=tmp_path / "shards")


# --- the commands -------------------------------------------------------------------------------


def test_the_commands_say_what_it_is(images: Path, run: Run, tmp_path: Path) -> None:
    done = run("imagenet-prep", "index", images, "--out", tmp_path / "index")
    assert done.returncode == 0, done.stderr
    assert "train: 12 images in 3 folders, 3 classes" in done.stdout
    done = run("imagenet-prep", "inspect", tmp_path / "index", "--preview", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "train, index of class folders, 12 images" in done.stdout
    assert "plan: class folders, linked as they lie" in done.stdout
    done = run("imagenet-prep", "verify", tmp_path / "index", "--decode", "--deep")
    assert done.returncode == 0, done.stderr
    (images / "train" / "cat" / "é 1.JPG").unlink()
    (images / "train" / "naïve").rename(tmp_path / "moved")
    done = run("imagenet-prep", "verify", tmp_path / "index", "--repair")
    assert done.returncode == 1
    assert "é 1.JPG: it is not there any more" in done.stderr
    assert "na_ve.images leads to" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_knows_it(images: Path, run: Run, tmp_path: Path) -> None:
    index(images, out=tmp_path / "index")
    done = run("imagenet-prep", "doctor", tmp_path / "index")
    assert "Traceback" not in done.stderr
    assert "12 train images in 3 class folders as they lie, indexed" in done.stdout
    (images / "train" / "cat").rename(tmp_path / "moved")
    done = run("imagenet-prep", "doctor", tmp_path / "index")
    assert "cat.images leads to" in done.stdout
