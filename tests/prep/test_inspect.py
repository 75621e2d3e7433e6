"""What lies at a path is said in full, wherever it lies, whatever is missing or damaged."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prep import ilsvrc
from prep.inspection.contents import BINS, Contents
from prep.inspection.inspect import inspect
from shards.errors import DamagedData, ToolError, UsageError
from shards.progress import Silent

Run = Callable[..., subprocess.CompletedProcess[str]]
Pictures = Callable[[str], bytes]
WriteTar = Callable[..., Path]
WriteFolders = Callable[..., Path]


def contents(*paths: Path, labels: Path | None = None) -> list[Contents]:
    return [each.contents for each in inspect(paths, labels=labels, progress=Silent())]


def only(path: Path, **options: Any) -> Contents:
    (found,) = contents(path, **options)
    return found


def images_of(archive: Path) -> dict[str, bytes]:
    """Every image of an archive of ours by its name; inner tars are opened."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            data = tar.extractfile(member).read()
            if member.name.endswith(".tar"):
                with tarfile.open(fileobj=io.BytesIO(data)) as inner:
                    found |= {each.name: inner.extractfile(each).read() for each in inner}
            else:
                found[member.name] = data
    return found


def odd(found: Contents) -> dict[tuple[str, bool], tuple[str, ...]]:
    return {(each.what, each.known): each.images for each in found.oddities}


# --- what is said -----------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_images(archives: Any) -> None:
    images = images_of(archives.train)
    pictures = [Image.open(io.BytesIO(data)) for data in images.values()]
    found = only(archives.train)
    assert (found.path, found.split, found.form) == (archives.train, "train", "tar of class tars")
    assert found.archive == "train"
    assert (found.images, found.unlabelled, found.labels_missing) == (51, 0, None)
    assert found.bytes == sum(map(len, images.values()))
    for spread, values in (
        (found.width, [each.width for each in pictures]),
        (found.height, [each.height for each in pictures]),
        (found.megapixels, [each.width * each.height / 1e6 for each in pictures]),
        (found.image_bytes, [len(data) for data in images.values()]),
    ):
        assert spread is not None
        assert (spread.min, spread.max) == (min(values), max(values))
        assert (spread.mean, spread.median) == pytest.approx((np.mean(values), np.median(values)))
        assert sum(spread.counts) == 51
    assert found.formats == {"JPEG": 51}
    grey = sum(each.mode == "L" for each in pictures)
    assert found.channels.get("grey", 0) == grey
    assert found.channels["colour"] == 51 - grey
    assert found.oddities == ()
    assert found.unreadable == ()


def test_classes_are_counted_and_named(archives: Any) -> None:
    names = {each.wnid: each.name for each in ilsvrc.classes()}
    for found, images in zip(contents(archives.train.parent), (17, 5), strict=True):
        assert len(found.classes) == 3
        assert [each.id for each in found.classes] == sorted(each.id for each in found.classes)
        assert all(each.name == names[each.id] for each in found.classes)
        assert {each.images for each in found.classes} == {images}
        spread = found.images_a_class
        assert spread is not None
        assert (spread.min, spread.max, spread.counts) == (images, images, (3,))


def test_a_distribution_has_intervals_of_equal_ratio(
    write_folders: WriteFolders, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    sizes = {"a": 1, "b": 2, "c": 4, "d": 100}
    folders = {name: {f"{n}.jpg": jpeg(n) for n in range(size)} for name, size in sizes.items()}
    spread = only(write_folders(tmp_path / "train", folders)).images_a_class
    assert spread is not None
    assert len(spread.edges) == BINS + 1
    assert spread.edges[0] == 1
    assert spread.edges[-1] == 100
    ratios = np.array(spread.edges[1:]) / np.array(spread.edges[:-1])
    assert ratios == pytest.approx(100 ** (1 / BINS), rel=1e-4)
    assert (spread.counts[0], spread.counts[-1], sum(spread.counts)) == (1, 1, 4)
    assert (spread.median, spread.mean) == (3, 26.75)


def test_the_same_images_give_the_same_numbers_wherever_they_lie(
    archives: Any, shards: Path, tmp_path: Path
) -> None:
    expected = only(archives.train)
    for name, data in images_of(archives.train).items():
        place = tmp_path / "folders" / "train" / name.split("_")[0] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "folders" / "train", "train")
    with tarfile.open(tmp_path / "plain.tar", "w") as plain:
        plain.add(tmp_path / "folders" / "train", "train")
    for path, form in (
        (tmp_path / "folders", "class folders"),
        (shards / "train", "shards"),
        (tmp_path / "packed.tar.gz", "compressed tar"),
        (tmp_path / "plain.tar", "tar of class folders"),
    ):
        found = only(path)
        assert found.form == form
        told = replace(found, path=expected.path, form=expected.form, archive="train", plan=None)
        assert told == expected


def test_shards_are_read_from_their_index(shards_copy: Path) -> None:
    """The shards themselves could hold anything of the right length: they are not looked into."""
    for shard in shards_copy.glob("*/*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    train, val = contents(shards_copy)
    assert (train.split, train.images, val.split, val.images) == ("train", 51, "val", 15)


def test_a_class_that_shards_list_and_have_no_image_of_is_counted_as_empty(
    build: Callable[..., Any],
    write_folders: WriteFolders,
    jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> None:
    write_folders(tmp_path / "in" / "train", {"a": {"1.jpg": jpeg(1)}, "b": {"2.jpg": jpeg(2)}})
    write_folders(tmp_path / "in" / "val", {"b": {"3.jpg": jpeg(3)}})
    build(tmp_path / "in", out=tmp_path / "out")
    found = only(tmp_path / "out" / "val")
    assert [(each.id, each.images) for each in found.classes] == [("a", 0), ("b", 1)]
    assert found.images_a_class is not None
    assert (found.images_a_class.min, sum(found.images_a_class.counts)) == (0, 2)


# --- labels and splits that nobody knows ------------------------------------------------------


def test_validation_images_without_labels_are_described_all_the_same(
    archives: Any, tmp_path: Path
) -> None:
    alone = Path(shutil.copy(archives.val, tmp_path))
    expected, found = only(archives.val), only(alone)
    assert found.classes == ()
    assert found.images_a_class is None
    assert found.unlabelled == 15
    assert found.labels_missing is not None
    assert "--labels" in found.labels_missing
    assert (found.width, found.bytes, found.formats) == (
        expected.width,
        expected.bytes,
        expected.formats,
    )
    labelled = only(alone, labels=archives.devkit)
    assert replace(labelled, path=archives.val) == expected


def test_a_flat_folder_without_labels_is_described_all_the_same(
    archives: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "val"
    folder.mkdir()
    for name, data in images_of(archives.val).items():
        (folder / name).write_bytes(data)
    found = only(folder)
    assert (found.split, found.form, found.images) == ("val", "flat folder", 15)
    assert (found.classes, found.unlabelled) == ((), 15)
    assert len(only(folder, labels=archives.devkit).classes) == 3


def test_labels_given_by_hand_must_fit(archives: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("another.JPEG n01440764\n")
    with pytest.raises(ToolError, match=r"labels\.txt has no label for the image ILSVRC2012_val_"):
        only(archives.val, labels=labels)


def test_test_images_have_no_labels(
    write_tar: WriteTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    names = [f"test/ILSVRC2012_test_{n:08d}.JPEG" for n in range(1, 4)]
    found = only(write_tar(tmp_path / "t.tar", {name: jpeg(3) for name in names}))
    assert (found.split, found.images, found.classes) == ("test", 3, ())
    assert found.labels_missing == "test images have none"


def test_class_folders_need_not_say_their_split(
    write_folders: WriteFolders, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    found = only(write_folders(tmp_path / "pictures", {"cat": {"1.jpg": jpeg(1)}}))
    assert (found.split, found.form, found.images) == (None, "class folders", 1)


def test_two_paths_of_one_split_are_both_described(archives: Any, shards: Path) -> None:
    found = contents(archives.train, shards / "train", archives.train)
    assert [each.split for each in found] == ["train"] * 3


def test_a_compressed_archive_with_two_splits_is_described_in_both(
    write_tar: WriteTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    import gzip

    names = ["x/train/cat/b.jpg", "x/test/cat/a.jpg", "x/train/cat/a.jpg", "x/train/dog/a.jpg"]
    tar = write_tar(tmp_path / "a.tar", {name: jpeg(n) for n, name in enumerate(names)})
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar.read_bytes()))
    found = {each.split: each for each in contents(tmp_path / "a.tgz")}
    assert {split: each.images for split, each in found.items()} == {"train": 3, "test": 1}
    assert [each.images for each in found["train"].classes] == [2, 1]


# --- oddities ---------------------------------------------------------------------------------


def test_what_is_odd_about_ilsvrc_is_reported_as_known(
    write_folders: WriteFolders, picture: Pictures, tmp_path: Path
) -> None:
    cmyk = sorted(ilsvrc.CMYK_IMAGES)
    root = write_folders(
        tmp_path / "train",
        {
            "n02105855": {"n02105855_2933.JPEG": picture("picture.png")},
            "n01739381": {f"{cmyk[0]}.JPEG": picture("cmyk.jpg")},
            "n02077923": {f"{cmyk[1]}.JPEG": picture("cmyk.jpg")},
            "n04152593": {"n04152593_17460.JPEG": picture("colour.jpg")},
        },
    )
    found = only(root)
    assert odd(found) == {
        ("PNG under the name of a JPEG", True): ("n02105855/n02105855_2933.JPEG",),
        ("CMYK", True): (f"n01739381/{cmyk[0]}.JPEG", f"n02077923/{cmyk[1]}.JPEG"),
        ("damaged EXIF block, sound pixels", True): ("n04152593/n04152593_17460.JPEG",),
    }
    assert found.unreadable == ()
    assert found.channels == {"colour": 2, "CMYK": 2}
    assert found.formats == {"JPEG": 3, "PNG": 1}


def test_what_only_this_copy_has_is_reported_as_odd(
    write_folders: WriteFolders, picture: Pictures, tmp_path: Path
) -> None:
    known = min(ilsvrc.CMYK_IMAGES)
    root = write_folders(
        tmp_path / "train",
        {
            "n01440764": {
                "n01440764_1.JPEG": picture("picture.png"),
                "n01440764_2.png": picture("grey.jpg"),
                "n01440764_3.JPEG": picture("cmyk.jpg"),
                "n01440764_4.PNG": picture("picture.png"),
                "n01440764_5.JPEG": picture("progressive.jpg"),
            },
            "n01739381": {f"{known}.JPEG": picture("colour.jpg")},
            "n02105855": {"n02105855_2933.JPEG": picture("colour.jpg")},
        },
    )
    found = only(root)
    assert odd(found) == {
        ("PNG under the name of a JPEG", False): ("n01440764/n01440764_1.JPEG",),
        ("JPEG under the name of a PNG", False): ("n01440764/n01440764_2.png",),
        ("CMYK", False): ("n01440764/n01440764_3.JPEG",),
        ("re-encoded: ILSVRC2012 has it as CMYK", False): (f"n01739381/{known}.JPEG",),
        ("re-encoded: ILSVRC2012 has it as a PNG", False): ("n02105855/n02105855_2933.JPEG",),
    }
    assert found.formats == {"JPEG": 4, "progressive JPEG": 1, "PNG": 2}
    assert found.channels == {"grey": 1, "colour": 5, "CMYK": 1}


# --- damage -----------------------------------------------------------------------------------


@pytest.fixture
def damaged(
    write_train_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> Path:
    """A training archive with an empty, a strange and a cut image among three sound ones."""
    sound = {f"n01440764_{n}.JPEG": jpeg(n) for n in range(3)}
    bad = {
        "n01443537_1.JPEG": b"",
        "n01443537_2.JPEG": b"GIF89a" + bytes(100),
        "n01443537_3.JPEG": jpeg(1)[:40],
    }
    return write_train_tar(tmp_path / "train.tar", {"n01440764": sound, "n01443537": bad})


def test_damaged_images_are_named_and_the_rest_is_described(damaged: Path) -> None:
    found = only(damaged)
    assert [each.image for each in found.unreadable] == [
        f"{damaged}: n01443537_{n}.JPEG" for n in (1, 2, 3)
    ]
    reasons = [each.reason for each in found.unreadable]
    assert reasons[0] == "it is empty"
    assert "neither a JPEG nor a PNG" in reasons[1]
    assert "truncated" in reasons[2]
    assert found.images == 6
    assert found.width is not None
    assert (found.width.min, found.width.max, sum(found.width.counts)) == (37, 37, 3)
    assert found.formats == {"JPEG": 3}


def test_where_nothing_can_be_read_there_are_no_sizes(
    write_folders: WriteFolders, tmp_path: Path
) -> None:
    found = only(write_folders(tmp_path / "val", {"cat": {"1.jpg": b"", "2.jpg": b"no"}}))
    assert (found.width, found.height, found.megapixels) == (None, None, None)
    assert len(found.unreadable) == found.images == 2
    assert found.formats == {}


def test_a_truncated_archive_is_refused(archives: Any, tmp_path: Path) -> None:
    cut = Path(shutil.copy(archives.train, tmp_path))
    os.truncate(cut, cut.stat().st_size // 2)
    with pytest.raises(DamagedData, match="truncated"):
        only(cut)


def test_a_truncated_compressed_archive_is_refused(archives: Any, tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "val.tar.gz"
    packed.write_bytes(gzip.compress(archives.val.read_bytes())[:-5000])
    with pytest.raises(DamagedData, match="truncated"):
        only(packed)


def test_shards_that_are_incomplete_are_refused(shards_copy: Path) -> None:
    next((shards_copy / "train").glob("*.tar")).unlink()
    with pytest.raises(DamagedData, match="is missing"):
        contents(shards_copy)
    (shards_copy / "train" / "manifest.json").unlink()
    with pytest.raises(ToolError, match="holds tars but no manifest"):
        contents(shards_copy)


def test_what_is_nothing_of_the_kind_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="looked for"):
        contents(tmp_path)
    with pytest.raises(ToolError, match="does not exist"):
        contents(tmp_path / "none")


def test_a_devkit_holds_no_images(archives: Any) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        contents(archives.devkit)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_a_table(run: Run, archives: Any) -> None:
    done = run("imagenet-prep", "inspect", archives.train.parent)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{archives.train}: train, tar of class tars, 51 images, ")
    assert lines[1].split()[:4] == ["min", "median", "mean", "max"]
    assert lines[2].split() == ["images", "a", "class", "17", "17", "17", "17", "█"]
    assert [line.split()[0] for line in lines[3:7]] == ["width", "height", "megapixels", "bytes"]
    assert "  classes: 3" in lines
    assert any(line.startswith(f"{archives.val}: val, flat tar, 15 images") for line in lines)


def test_the_command_names_the_largest_and_smallest_classes(
    run: Run, write_folders: WriteFolders, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    sizes = {"n01440764": 2, "n01443537": 5, "zebra": 3}
    images = {each: {f"{n}.jpg": jpeg(n) for n in range(size)} for each, size in sizes.items()}
    done = run("imagenet-prep", "inspect", write_folders(tmp_path / "a", images))
    assert done.returncode == 0
    assert done.stdout.startswith(f"{tmp_path / 'a'}: split unknown, class folders, 10 images")
    tench, fish, zebra = "tench (n01440764) 2", "goldfish (n01443537) 5", "zebra (zebra) 3"
    fewest, most = f"{tench}, {zebra}, {fish}", f"{fish}, {zebra}, {tench}"
    assert f"  classes: 3; fewest images: {fewest}; most: {most}\n" in done.stdout
    write_folders(tmp_path / "a", {f"c{n}": {"x.jpg": jpeg(n)} for n in range(4)})
    done = run("imagenet-prep", "inspect", tmp_path / "a")
    assert f"  classes: 7; fewest images: 1 (4 classes); most: {most}\n" in done.stdout


def test_the_command_gives_all_as_json(run: Run, archives: Any, tmp_path: Path) -> None:
    alone = Path(shutil.copy(archives.val, tmp_path))
    done = run("imagenet-prep", "inspect", archives.train, alone, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["preview"]) == (0, True, None)
    train, val = found["splits"]
    assert (train["path"], train["images"]) == (str(archives.train), 51)
    assert [each["images"] for each in train["classes"]] == [17, 17, 17]
    assert len(train["width"]["counts"]) == BINS
    assert (val["classes"], val["unlabelled"]) == ([], 15)
    assert "--labels" in val["labels_missing"]


def test_the_command_ends_with_1_and_names_what_is_unreadable(run: Run, damaged: Path) -> None:
    done = run("imagenet-prep", "inspect", damaged)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"unreadable: {damaged}: n01443537_1.JPEG: it is empty"
    assert len(done.stderr.splitlines()) == 3
    assert "6 images" in done.stdout
    found = json.loads(run("imagenet-prep", "inspect", damaged, "--json").stdout)
    assert not found["ok"]
    assert len(found["splits"][0]["unreadable"]) == 3


def test_the_command_names_oddities(
    run: Run, write_folders: WriteFolders, picture: Pictures, tmp_path: Path
) -> None:
    images = {
        "n02105855": {"n02105855_2933.JPEG": picture("picture.png")},
        "n01440764": {f"n01440764_{n}.JPEG": picture("cmyk.jpg") for n in range(5)},
    }
    done = run("imagenet-prep", "inspect", write_folders(tmp_path / "train", images))
    assert done.returncode == 0
    assert (
        "  known of ILSVRC2012: PNG under the name of a JPEG: 1 image "
        "(n02105855/n02105855_2933.JPEG)\n"
    ) in done.stdout
    assert "  odd: CMYK: 5 images (n01440764/n01440764_0.JPEG, " in done.stdout


def test_the_command_s_table_can_be_printed_where_there_is_no_unicode(
    script: Callable[[str], str], archives: Any
) -> None:
    done = subprocess.run(
        [script("imagenet-prep"), "inspect", archives.train],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert done.stdout.decode("ascii").splitlines()[2].endswith("#")


def test_the_command_names_no_option_that_it_does_not_have(
    run: Run,
    archives: Any,
    shards: Path,
    write_folders: WriteFolders,
    jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> None:
    """Class folders of no split and no ILSVRC2012, unlabelled images, a devkit, nothing at all."""
    has = set(re.findall(r"--[a-z][a-z-]*", run("imagenet-prep", "inspect", "--help").stdout))
    folders = write_folders(tmp_path / "mine", {"cat": {"1.jpg": jpeg(1), "strange.txt": b""}})
    alone = shutil.copy(archives.val, tmp_path)
    said = ""
    for path in (folders, alone, archives.devkit, tmp_path / "none", archives.train, shards):
        done = run("imagenet-prep", "inspect", path)
        said += done.stdout + done.stderr
    assert "1 entries that are no images were left out" in said
    assert "--labels" in said
    assert set(re.findall(r"--[a-z][a-z-]*", said)) <= has
