"""Images in folders: each fault is found and named, known oddities are none, parts are notes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.devkit import read_devkit
from prep.extraction.extract import extract
from prep.extraction.extraction import Options
from prep.ilsvrc import classes
from prep.verification.folders import FolderReport, check_folders
from prep.verification.tree import find_places
from shards.durable import TEMPORARY_PREFIX
from shards.errors import DamagedData, ToolError
from shards.progress import Silent

Jpeg = Callable[[int], bytes]
WriteFolders = Callable[..., Path]
FISH, DOG = "n01440764", "n02105855"


def check(path: Path, *, labels: Path | None = None, decode: bool = False) -> list[FolderReport]:
    return check_folders(
        find_places(path), labels=labels, decode=decode, workers=2, progress=Silent()
    )


def check_one(path: Path, **options: Any) -> FolderReport:
    (report,) = check(path, **options)
    return report


@pytest.fixture(scope="module")
def extracted(archives: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample archives as class folders, the devkit beside them."""
    out = tmp_path_factory.mktemp("images")
    extract([archives.train.parent], out, Options(), workers=2, progress=Silent())
    shutil.copy(archives.devkit, out)
    return out


@pytest.fixture
def tree(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "images"))


def images_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.JPEG"))


# --- whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [False, True])
def test_what_was_extracted_is_whole(decode: bool, extracted: Path) -> None:
    train, val = check(extracted, decode=decode)
    for report in (train, val):
        assert (report.findings, report.notes, report.oddities) == ((), (), ())
        assert (report.form, report.classes, report.part) == ("class folders", 3, False)
        assert report.bytes == sum(path.stat().st_size for path in images_in(report.path))
        assert "devkit" in str(report.compared)
        assert report.decoded is decode
    assert (train.split, train.images, train.labels) == ("train", 51, None)
    assert (val.split, val.images) == ("val", 15)
    assert "devkit" in str(val.labels)


def test_without_a_devkit_a_small_set_is_a_part(tree: Path) -> None:
    next(tree.glob("*devkit*")).unlink()
    train, val = check(tree)
    assert (train.findings, val.findings) == ((), ())
    assert (train.part, train.compared) == (True, "ILSVRC2012")
    assert "has 51 of 1,281,167 images in 3 of 1,000 classes" in train.notes[0]
    assert "not compared with labels" in val.notes[0]
    assert val.labels is None


def test_other_sets_are_counted_alone(
    write_folders: WriteFolders, jpeg: Jpeg, tmp_path: Path
) -> None:
    images = {"cat": {"1.jpg": jpeg(1), "2.jpg": jpeg(2)}, "dog": {"1.jpg": jpeg(3)}}
    report = check_one(write_folders(tmp_path / "pictures", images))
    assert (report.split, report.classes, report.images) == (None, 2, 3)
    assert (report.findings, report.notes, report.compared) == ((), (), None)


def test_kaggles_tree_is_found_from_any_of_its_folders(
    write_folders: WriteFolders, jpeg: Jpeg, tmp_path: Path
) -> None:
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write_folders(data / "train", {FISH: {f"{FISH}_1.JPEG": jpeg(1)}})
    flat = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(n) for n in (1, 2)}
    write_folders(data, {"val": flat, "test": {"ILSVRC2012_test_00000001.JPEG": jpeg(3)}})
    rows = "".join(f"ILSVRC2012_val_{n:08d},{FISH} 1 2 3 4 \n" for n in (1, 2))
    (tmp_path / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")
    for path in (tmp_path, tmp_path / "ILSVRC", tmp_path / "ILSVRC" / "Data", data):
        train, val, test = check(path)
        assert [each.findings for each in (train, val, test)] == [(), (), ()]
        assert (val.form, val.images, val.classes) == ("flat folder", 2, 0)
        assert "LOC_val_solution.csv" in str(val.labels)
        assert (test.split, test.images) == ("test", 1)


# --- missing and misplaced --------------------------------------------------------------------


def test_a_missing_image_is_found_by_its_class(tree: Path) -> None:
    lost = images_in(tree / "train")[20]
    lost.unlink()
    train, val = check(tree)
    found = "\n".join(train.findings)
    assert f"16 images of {lost.parent.name}" in found
    assert "1 are missing" in found
    assert val.findings == ()


def test_a_missing_validation_image_is_named(tree: Path) -> None:
    lost = images_in(tree / "val")[7]
    lost.unlink()
    train, val = check(tree)
    assert train.findings == ()
    assert any(f"lacks 1 images of {tree}" in each and lost.stem in each for each in val.findings)


def test_a_missing_class_is_named_by_both_splits(tree: Path) -> None:
    wnid = sorted(each.name for each in (tree / "train").iterdir())[1]
    shutil.rmtree(tree / "train" / wnid)
    train, _ = check(tree)
    assert f"{tree}/train lacks 1 of 3 classes of {tree}" in train.findings[0]
    next(tree.glob("*devkit*")).unlink()
    train, _ = check(tree)
    assert train.findings == (f"{tree}/train lacks 1 classes that {tree}/val has: {wnid}",)


def test_an_image_in_a_wrong_class_is_named_with_the_right_one(tree: Path) -> None:
    for split in ("train", "val"):
        first, *_, last = images_in(tree / split)
        moved = last.parent / first.name
        first.rename(moved)
        report = next(each for each in check(tree) if each.split == split)
        right = first.parent.name
        assert f"{moved} is an image of {right} and lies in {last.parent.name}" in report.findings


def test_images_that_changed_places_are_found_though_the_counts_are_right(tree: Path) -> None:
    first, *_, last = images_in(tree / "val")
    first.rename(last.parent / first.name)
    last.rename(first.parent / last.name)
    _, val = check(tree)
    assert len(val.findings) == 2
    assert all("is an image of" in each for each in val.findings)


def test_labels_of_another_set_are_one_finding(tree: Path, tmp_path: Path) -> None:
    wnids = read_devkit(next(tree.glob("*devkit*"))).validation_wnids()
    turned = dict(
        zip(sorted(set(wnids)), sorted(set(wnids))[1:] + sorted(set(wnids))[:1], strict=True)
    )
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{turned[wnid]}\n" for wnid in wnids))
    val = check_one(tree / "val", labels=labels)
    (finding,) = val.findings
    assert f"15 of the 15 images in {tree}/val lie in folders of other classes" in finding
    assert str(labels) in finding


def test_an_image_that_the_labels_do_not_know_is_named(tree: Path, jpeg: Jpeg) -> None:
    folder = next((tree / "val").iterdir())
    (folder / "ILSVRC2012_val_00000016.JPEG").write_bytes(jpeg(1))
    _, val = check(tree)
    assert any("00000016.JPEG is not among the images of" in each for each in val.findings)


def test_an_image_that_is_there_twice_is_named(tree: Path) -> None:
    train, val = images_in(tree / "train")[0], images_in(tree / "val")[0]
    shutil.copy(train, train.with_suffix(".jpg"))
    shutil.copy(val, images_in(tree / "val")[-1].parent)
    of_train, of_val = check(tree)
    (twice,) = [each for each in of_train.findings if "is there twice" in each]
    assert str(train) in twice
    assert str(train.with_suffix(".jpg")) in twice
    assert any("is there twice" in each and str(val) in each for each in of_val.findings)


def test_images_beside_the_class_folders_are_named(tree: Path) -> None:
    image = images_in(tree / "val")[0]
    flat = tree / "val" / image.name
    image.rename(flat)
    _, val = check(tree)
    assert f"{flat} lies beside the class folders, in none of them" in val.findings


def test_folders_that_are_not_called_by_wnid_are_not_compared_with_names(
    write_folders: WriteFolders, jpeg: Jpeg, tmp_path: Path
) -> None:
    images = {"tench": {f"{FISH}_1.JPEG": jpeg(1)}, "0": {f"{DOG}_1.JPEG": jpeg(2)}}
    assert check_one(write_folders(tmp_path / "train", images)).findings == ()


def test_a_name_with_two_classes_is_a_finding(
    write_folders: WriteFolders, jpeg: Jpeg, tmp_path: Path
) -> None:
    name = f"{FISH}_1_{DOG}.JPEG"
    folder = write_folders(tmp_path / "train", {FISH: {name: jpeg(1)}})
    assert f"{folder}/{FISH}/{name}: the name" in check_one(folder).findings[0]


# --- what else lies there ---------------------------------------------------------------------


def test_strays_and_leftovers_are_notes(tree: Path) -> None:
    folder = next((tree / "val").iterdir())
    (tree / "val" / "valprep.sh").write_text("mkdir")
    (folder / "notes.txt").touch()
    (folder / f"{TEMPORARY_PREFIX}1").touch()
    (folder / ".DS_Store").touch()
    _, val = check(tree)
    assert val.findings == ()
    assert set(val.strays) == {f"{tree}/val/valprep.sh", f"{folder}/notes.txt"}
    strays, leftovers = val.notes
    assert "valprep.sh" in strays
    assert "1 temporary files" in leftovers


def test_what_is_called_an_image_and_is_none_is_named(tree: Path, tmp_path: Path) -> None:
    folder = next((tree / "train").iterdir())
    (folder / "a.JPEG").mkdir()
    (folder / "b.JPEG").symlink_to(tmp_path / "absent")
    os.mkfifo(folder / "c.JPEG")
    (folder / os.fsdecode(b"d\xff.JPEG")).touch()
    (tree / "train" / "n02119789").mkdir()
    train, _ = check(tree)
    found = "\n".join(train.findings)
    for words in (
        f"{folder}/a.JPEG is a folder, no image",
        f"{folder}/b.JPEG is a link that leads nowhere, no image",
        f"{folder}/c.JPEG is no regular file, no image",
        f"{folder} holds a file whose name is no printable UTF-8, b'd\\xff.JPEG'",
        f"{tree}/train/n02119789 holds no images",
    ):
        assert words in found
    assert found.isprintable() or "\n" in found


def test_an_empty_split_beside_a_whole_one_is_found(tree: Path) -> None:
    shutil.rmtree(tree / "train")
    (tree / "train").mkdir()
    train, _ = check(tree)
    assert train.images == 0
    assert train.findings[0] == f"{tree}/train holds no images"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_finding(tree: Path) -> None:
    folder = next((tree / "train").iterdir())
    folder.chmod(0)
    train, _ = check(tree)
    folder.chmod(0o755)
    assert f"{folder} cannot be listed (Permission denied)" in train.findings


# --- bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [False, True])
def test_truncated_empty_and_foreign_files_are_named(decode: bool, tree: Path) -> None:
    one, two, three, four, *_ = images_in(tree / "train")
    one.write_bytes(one.read_bytes()[:-100])
    two.write_bytes(b"")
    three.write_bytes(b"<html>404</html>")
    four.write_bytes(bytes(four.stat().st_size))
    train, val = check(tree, decode=decode)
    assert len(train.findings) == 4
    for path, words, finding in zip(
        (one, two, three, four),
        ("truncated", "it is empty", "neither a JPEG nor a PNG", "neither"),
        train.findings,
        strict=True,
    ):
        assert finding.startswith(f"{path}: ")
        assert words in finding
    assert val.findings == ()


def test_corrupt_pixels_are_found_by_decoding(tree: Path) -> None:
    image = images_in(tree / "val")[3]
    data = image.read_bytes()
    place = len(data) * 3 // 4
    image.write_bytes(data[:place] + bytes(200) + data[place + 200 :])
    assert check(tree)[1].findings == ()
    (finding,) = check(tree, decode=True)[1].findings
    assert finding.startswith(f"{image}: it does not decode")


def test_known_oddities_are_no_damage(
    write_folders: WriteFolders, picture: Callable[[str], bytes], jpeg: Jpeg, tmp_path: Path
) -> None:
    images = {
        DOG: {f"{DOG}_2933.JPEG": picture("picture.png"), f"{DOG}_1.JPEG": picture("picture.png")},
        "n01739381": {"n01739381_1309.JPEG": picture("cmyk.jpg"), "n01739381_1.jpg": jpeg(1)},
        "n04152593": {"n04152593_17460.JPEG": jpeg(2), "n04152593_1.png": jpeg(3)},
    }
    folder = write_folders(tmp_path / "train", images)
    for decode in (False, True):
        report = check_one(folder, decode=decode)
        assert report.findings == ()
        assert {(odd.what, odd.known): odd.images for odd in report.oddities} == {
            ("PNG under the name of a JPEG", True): (f"{folder}/{DOG}/{DOG}_2933.JPEG",),
            ("PNG under the name of a JPEG", False): (f"{folder}/{DOG}/{DOG}_1.JPEG",),
            ("JPEG under the name of a PNG", False): (f"{folder}/n04152593/n04152593_1.png",),
            ("CMYK", True): (f"{folder}/n01739381/n01739381_1309.JPEG",),
            ("damaged EXIF block, sound pixels", True): (
                f"{folder}/n04152593/n04152593_17460.JPEG",
            ),
        }


# --- labels -----------------------------------------------------------------------------------


def test_labels_given_by_hand_must_be_labels(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="does not exist"):
        check(tree / "val", labels=tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(DamagedData, match="holds no labels"):
        check(tree / "val", labels=tmp_path / "empty")


def test_a_damaged_devkit_beside_the_images_is_a_note(tree: Path) -> None:
    devkit = next(tree.glob("*devkit*"))
    devkit.write_bytes(devkit.read_bytes()[:500])
    for report in check(tree):
        assert report.findings == ()
        assert str(devkit) in report.notes[0]


def test_a_flat_validation_folder_with_most_images_claims_to_be_whole(
    picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    """30,000 of 50,000 images, as a tar that was interrupted leaves them."""
    val = tmp_path / "val"
    val.mkdir()
    source = tmp_path / "image"
    source.write_bytes(picture("grey.jpg"))
    for number in range(1, 30_001):
        os.link(source, val / f"ILSVRC2012_val_{number:08d}.JPEG")
    report = check_one(val)
    assert report.findings == (
        f"{val} has 30,000 images, ILSVRC2012 has 50,000: 20,000 are missing",
    )
    for number in range(24_001, 30_001):
        (val / f"ILSVRC2012_val_{number:08d}.JPEG").unlink()
    report = check_one(val)
    assert report.findings == ()
    assert "has 24,000 of 50,000 images" in report.notes[1]


def test_a_whole_split_makes_the_other_claim_to_be_whole(
    picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    """All of validation, and training cut off after its first class."""
    source = tmp_path / "image"
    source.write_bytes(picture("grey.jpg"))
    number = 0
    for each in classes():
        (tmp_path / "val" / each.wnid).mkdir(parents=True)
        for _ in range(30):
            number += 1
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            os.link(source, tmp_path / "val" / each.wnid / name)
    train = tmp_path / "train" / FISH
    train.mkdir(parents=True)
    os.link(source, train / f"{FISH}_1.JPEG")
    of_train, of_val = check(tmp_path)
    assert any(f"1 images of {FISH}" in each for each in of_train.findings)
    assert any("lacks 999 of 1,000 classes" in each for each in of_train.findings)
    assert sum("has 30 images of" in each for each in of_val.findings) == 1000
