"""The same images in everybody's layout: one tree when extracted, one content as samples."""

from __future__ import annotations

import csv
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.archives import Form, recognise
from prep.devkit import read_devkit
from prep.extraction.extract import extract
from prep.extraction.extraction import Options
from prep.ilsvrc import ArchiveKind
from prep.sources import collect, find_sources
from shards.errors import DamagedData, ToolError, UsageError
from shards.progress import Silent
from shards.sample import Samples

Tree = dict[str, bytes]
WriteTar = Callable[..., Path]


def extracted(*paths: Path, out: Path, **options: Any) -> Tree:
    """The tree that an extraction of the paths makes; the hidden records left out."""
    extract(paths, out, Options(**options), workers=2, progress=Silent())
    return {
        str(path.relative_to(out)): path.read_bytes()
        for split in out.iterdir()
        if not split.name.startswith(".")
        for path in split.rglob("*")
        if path.is_file()
    }


def samples_of(*paths: Path, split: str | None = None, labels: Path | None = None) -> Any:
    sources = find_sources(paths, split)
    return collect(sources, labels=labels, classes=None, progress=Silent())[0]


def table(samples: Samples) -> list[tuple[bytes, int, int]]:
    """What must not depend on where the images lie."""
    return list(
        zip(samples.keys.tolist(), samples.labels.tolist(), samples.sizes.tolist(), strict=True)
    )


@pytest.fixture(scope="module")
def tree(archives: Any, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The images of the sample archives by train/WNID/NAME and val/WNID/NAME."""
    return extracted(archives.train.parent, out=tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def expected(archives: Any) -> dict[str, list[tuple[bytes, int, int]]]:
    return {split: table(each) for split, each in samples_of(archives.train.parent).items()}


@pytest.fixture
def kaggle(tree: Tree, tmp_path: Path) -> Path:
    """Kaggle's folders: validation flat, its labels in a table whose rows are in no order."""
    root = tmp_path / "kaggle"
    rows = []
    for name, data in tree.items():
        split, wnid, image = name.split("/")
        below = f"train/{wnid}" if split == "train" else "val"
        path = root / "ILSVRC" / "Data" / "CLS-LOC" / below / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if split == "val":
            rows.append((image.split(".")[0], f"{wnid} 1 2 30 40 {wnid} 5 6 70 80 "))
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ImageId", "PredictionString"), *sorted(rows, reverse=True)])
    (root / "ILSVRC" / "Annotations").mkdir()
    return root


def suffixed(tree: Tree, split: str) -> Tree:
    """Hugging Face's flat names of a split."""
    return {
        f"{name.split('/')[2][:-5]}_{name.split('/')[1]}.JPEG": data
        for name, data in tree.items()
        if name.startswith(split)
    }


@pytest.fixture
def hugging_face(tree: Tree, tmp_path: Path) -> Path:
    """Hugging Face's compressed archives: training in two, validation in one."""
    root = tmp_path / "data"
    root.mkdir()
    train = list(suffixed(tree, "train").items())
    parts = {"train_images_0": train[:20], "train_images_1": train[20:]}
    parts["val_images"] = list(suffixed(tree, "val").items())
    for name, members in parts.items():
        with tarfile.open(root / f"{name}.tar.gz", "w:gz") as archive:
            for image, data in members:
                info = tarfile.TarInfo(image)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return root


# --- Kaggle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggle_s_folders_are_understood_from_any_level(
    below: str, kaggle: Path, expected: Any
) -> None:
    found = samples_of(kaggle / below)
    assert {split: table(each) for split, each in found.items()} == expected


def test_kaggle_s_validation_folder_alone_finds_its_labels(kaggle: Path, expected: Any) -> None:
    found = samples_of(kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    assert table(found["val"]) == expected["val"]


def test_a_flat_folder_without_labels_is_refused(kaggle: Path) -> None:
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(ToolError, match=r"CLS-LOC/val does not hold the official .* pass --labels"):
        samples_of(kaggle)


def test_a_half_organised_folder_is_refused(kaggle: Path) -> None:
    val = kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    first = min(val.iterdir())
    (val / "n01440764").mkdir()
    first.rename(val / "n01440764" / first.name)
    with pytest.raises(ToolError, match=f"{val} holds class folders and images.*organize-val"):
        samples_of(kaggle)


def test_kaggle_s_tar_is_extracted_into_class_folders(
    kaggle: Path, tree: Tree, tmp_path: Path
) -> None:
    path = tmp_path / "imagenet_object_localization.tar.gz"
    (kaggle / "ILSVRC" / "Annotations" / "a.xml").write_text("<annotation/>")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(kaggle / "ILSVRC", "ILSVRC")
    labels = kaggle / "LOC_val_solution.csv"
    assert extracted(path, out=tmp_path / "out", labels=labels) == tree


# --- Hugging Face -----------------------------------------------------------------------------


def test_hugging_face_s_archives_give_the_official_tree(
    hugging_face: Path, tree: Tree, tmp_path: Path
) -> None:
    assert extracted(hugging_face, out=tmp_path / "out") == tree


def test_an_extraction_of_compressed_archives_goes_on(
    hugging_face: Path, tree: Tree, tmp_path: Path
) -> None:
    first = hugging_face / "train_images_0.tar.gz"
    assert len(extracted(first, out=tmp_path / "out")) == 20
    assert extracted(hugging_face, out=tmp_path / "out") == tree
    lost = next((tmp_path / "out" / "val").rglob("*.JPEG"))
    lost.unlink()
    assert extracted(hugging_face, out=tmp_path / "out") == tree


def test_a_truncated_compressed_archive_keeps_what_was_whole(
    hugging_face: Path, tree: Tree, tmp_path: Path
) -> None:
    path = hugging_face / "train_images_1.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedData, match=r"train_images_1.*truncated") as raised:
        extracted(hugging_face, out=tmp_path / "out")
    assert "files that were whole are extracted and stay" in str(raised.value)
    path.write_bytes(whole)
    assert extracted(hugging_face, out=tmp_path / "out") == tree


def test_compressed_archives_are_extracted_before_they_are_sources(hugging_face: Path) -> None:
    with pytest.raises(UsageError, match=r"is compressed.*imagenet-prep extract"):
        samples_of(hugging_face)


def test_a_flat_folder_of_hugging_face_s_names_needs_no_labels(
    tree: Tree, expected: Any, tmp_path: Path
) -> None:
    (tmp_path / "val").mkdir()
    for name, data in suffixed(tree, "val").items():
        (tmp_path / "val" / name).write_bytes(data)
    assert table(samples_of(tmp_path / "val")["val"]) == expected["val"]


def test_a_name_that_carries_two_classes_is_refused(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"n01440764_1_n01443537.JPEG": b"x"})
    with pytest.raises(DamagedData, match="carries two classes, n01440764 and n01443537"):
        recognise(path)


# --- tars of class folders --------------------------------------------------------------------


@pytest.mark.parametrize("above", ["", "./", "cifar10/", "a/b/"])
def test_a_tar_of_class_folders_is_read_in_place(
    above: str, tree: Tree, expected: Any, write_tar: WriteTar, tmp_path: Path
) -> None:
    members = {f"{above}{name}": data for name, data in tree.items()}
    path = write_tar(tmp_path / "set.tar", {**members, f"{above}labels.txt": b"cat"})
    found = samples_of(path)
    assert {split: table(each) for split, each in found.items()} == expected
    assert extracted(path, out=tmp_path / "out") == tree


def test_a_tar_of_classes_alone_needs_the_name_of_its_split(
    write_tar: WriteTar, tmp_path: Path
) -> None:
    members = {f"flowers/{name}/{n}.jpg": b"%d" % n for name in ("rose", "tulip") for n in range(3)}
    path = write_tar(tmp_path / "flowers.tar", members)
    with pytest.raises(UsageError, match="--split"):
        samples_of(path)
    with pytest.raises(UsageError, match="--split"):
        extracted(path, out=tmp_path / "out")
    assert table(samples_of(path, split="train")["train"])[3:] == [
        (b"00001_%07d" % n, 1, 1) for n in range(3)
    ]
    found = extracted(path, out=tmp_path / "out", split="train")
    assert found == {name.replace("flowers", "train"): data for name, data in members.items()}


def test_an_image_outside_all_class_folders_is_refused_by_name(
    write_tar: WriteTar, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "t.tar", {"train/cat/1.jpg": b"x", "train/cat/more/2.jpg": b"x"})
    with pytest.raises(DamagedData, match=r"'train/cat/more/2\.jpg' lies in no class folder"):
        samples_of(path)


def test_names_that_differ_by_case_alone_are_refused(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"cat/a.jpg": b"x", "cat/A.JPG": b"x"})
    with pytest.raises(DamagedData, match="differ by case"):
        extracted(path, out=tmp_path / "out", split="train")


def test_cifar_in_its_compressed_tar_is_extracted(real_data: Path, tmp_path: Path) -> None:
    """1,500 pictures of the real set, its own bytes in its own form."""
    path = tmp_path / "cifar.tar.xz"
    with lzma.open(real_data / "cifar10-jpeg.tar.xz") as packed:
        head = packed.read(3 << 20)
    end = head.rindex(b"train/", 0, len(head) - 4096)
    path.write_bytes(lzma.compress(head[: end - end % 512] + bytes(1024), preset=0))
    with tarfile.open(path) as archive:
        expected = {each.name: archive.extractfile(each).read() for each in archive if each.isreg()}
    assert len(expected) > 1000
    assert extracted(path, out=tmp_path / "out") == expected


def test_the_250_real_pictures_are_a_flat_tar(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "imagenet-sample-250.tar"
    assert recognise(path).form is Form.FLAT_TAR
    assert len(samples_of(path, split="val")["val"]) == 250
    assert len(extracted(path, out=tmp_path / "out", split="val")) == 250


# --- the other archives -----------------------------------------------------------------------


def test_bounding_boxes_go_beside_the_images(tmp_path: Path) -> None:
    boxes = {
        "train.tar.gz": {f"n01440764/n01440764_{n}.xml": b"<a>%d</a>" % n for n in range(3)},
        "val.tgz": {f"val/ILSVRC2012_val_0000000{n}.xml": b"<b>%d</b>" % n for n in range(3)},
    }
    expected = {}
    for name, members in boxes.items():
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                above = "annotations/train" if name == "train.tar.gz" else "annotations"
                expected[f"{above}/{member}"] = data
    paths = [tmp_path / name for name in boxes]
    assert [recognise(path).kind for path in paths] == [
        ArchiveKind.TRAIN_BOXES,
        ArchiveKind.VALIDATION_BOXES,
    ]
    assert extracted(*paths, out=tmp_path / "out") == expected


def test_the_devkit_keeps_its_own_folder(archives: Any, tmp_path: Path) -> None:
    found = extracted(archives.devkit, out=tmp_path / "out")
    assert "ILSVRC2012_devkit_t12/data/meta.mat" in found
    assert len(read_devkit(archives.devkit).synsets) == 1000


def test_the_dogs_of_task_3_are_told_from_the_training_archive(
    write_tar: WriteTar, tmp_path: Path
) -> None:
    breeds = [f"n020{number}" for number in range(85620, 85740)]
    inner = write_tar(tmp_path / "inner", {"dog.JPEG": b"x"}).read_bytes()
    path = write_tar(tmp_path / "t3.tar", {f"{wnid}.tar": inner for wnid in breeds})
    fewer = write_tar(tmp_path / "subset.tar", {f"{wnid}.tar": inner for wnid in breeds[:-1]})
    assert recognise(path).kind is ArchiveKind.TRAIN_DOGS
    assert recognise(fewer).kind is ArchiveKind.TRAIN
    assert set(extracted(path, out=tmp_path / "out")) == {
        f"train_t3/{wnid}/dog.JPEG" for wnid in breeds
    }
