"""What people do with an extraction: again, elsewhere, with other options, on half a tree."""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import Tree, run_extract, tar, tree

from prep.extraction.extract import plan
from prep.extraction.extraction import Options
from prep.extraction.plan import Planned
from shards.durable import RECORDS
from shards.errors import DamagedData, ToolError, UsageError
from shards.progress import Silent

Run = Callable[..., subprocess.CompletedProcess[str]]
JOURNAL = f"{RECORDS}/extract.jsonl"


def run_plan(*paths: Path, out: Path, **options: Any) -> list[Planned]:
    return plan(paths, out, Options(**options), Silent())


WNIDS = ("n00000001", "n00000002", "n00000003")
CLASSES = {
    wnid: {f"{wnid}_{n}.JPEG": f"{wnid}-{n}".encode() * (200 + n) for n in range(5)}
    for wnid in WNIDS
}
FLAT = {name: data for images in CLASSES.values() for name, data in images.items()}
TRAIN = {f"train/{name[:9]}/{name}": data for name, data in FLAT.items()}
VAL_FLAT = {f"ILSVRC2012_val_{n:08d}.JPEG": b"val-%d" % n * (200 + n) for n in range(1, 7)}
VAL = {f"val/{WNIDS[n % 3]}/{name}": data for n, (name, data) in enumerate(VAL_FLAT.items())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with train.tar, val.tar and labels.txt."""
    place = tmp_path / "archives"
    place.mkdir()
    inner = {f"{wnid}.tar": tar(images) for wnid, images in CLASSES.items()}
    (place / "train.tar").write_bytes(tar(inner))
    (place / "val.tar").write_bytes(tar(VAL_FLAT))
    labels = "".join(f"{name} {WNIDS[n % 3]}\n" for n, name in enumerate(VAL_FLAT))
    (place / "labels.txt").write_text(labels)
    return place


# --- places -----------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["images", ".", "../archives/images"])
def test_out_may_lie_where_the_archives_do(below: str, folder: Path) -> None:
    out, labels = folder / below, folder / "labels.txt"
    run_extract(folder, out=out, labels=labels)
    again = run_extract(folder, out=out, labels=labels)
    assert [each.written for each in again] == [0, 0]
    found = {name: data for name, data in tree(out).items() if name.startswith(("train", "val/"))}
    found.pop("train.tar", None)
    assert found == TRAIN | VAL


@pytest.mark.parametrize("name", [b"two words.tar", b"two\nlines.tar", b"\xff\xfe.tar"])
def test_any_path_will_do(
    name: bytes, folder: Path, script: Callable[[str], str], tmp_path: Path
) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/" + name))
    (folder / "train.tar").rename(path)
    out = Path(os.fsdecode(bytes(tmp_path) + b"/out-" + name))
    for more in (["--dry-run"], ["--remove-archive"], ["--json"]):
        command = [script("imagenet-prep"), "extract", path, "--out", out, *more]
        done = subprocess.run(command, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    assert tree(out) == TRAIN
    assert not path.exists()


def test_a_split_may_be_a_link_to_another_disk(
    folder: Path, small_disk: Callable[[str], Any], tmp_path: Path
) -> None:
    """OUT's own disk is too small for the images."""
    disk = small_disk("size=32k")
    out, elsewhere = disk.path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "train").symlink_to(elsewhere)
    run_extract(folder / "train.tar", out=out)
    assert tree(elsewhere) == {name.removeprefix("train/"): data for name, data in TRAIN.items()}
    (again,) = run_extract(folder / "train.tar", out=out)
    assert again.written == 0


def test_nothing_is_written_through_a_class_folder_that_is_a_link(
    folder: Path, tmp_path: Path
) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious"
    precious.mkdir()
    (out / "train").mkdir(parents=True)
    (out / "train" / WNIDS[1]).symlink_to(precious)
    with pytest.raises(ToolError, match=f"train/{WNIDS[1]} is a symbolic link.*remove the link"):
        run_extract(folder / "train.tar", out=out)
    assert tree(precious) == {}
    (out / "train" / WNIDS[1]).unlink()
    run_extract(folder / "train.tar", out=out)
    assert tree(out) == TRAIN


def test_a_finished_tree_may_be_moved(folder: Path, tmp_path: Path) -> None:
    run_extract(folder / "train.tar", out=tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    folder.rename(tmp_path / "other")
    (again,) = run_extract(tmp_path / "other" / "train.tar", out=tmp_path / "moved")
    assert again.written == 0


def test_a_disk_that_cannot_be_written_is_named(
    folder: Path, small_disk: Callable[[str], Any], run: Run
) -> None:
    disk = small_disk("size=1m")
    disk.resize("ro")
    out = disk.path / "out"
    done = run("imagenet-prep", "extract", folder / "train.tar", "--out", out)
    assert done.returncode == 1
    assert (
        done.stderr == f"error: {out}: Read-only file system; choose a folder that can be written\n"
    )


# --- archives ---------------------------------------------------------------------------------


def test_an_archive_that_is_given_twice_is_taken_once(folder: Path, tmp_path: Path) -> None:
    path, link = folder / "train.tar", tmp_path / "link.tar"
    link.symlink_to(path)
    (only,) = run_extract(path, folder / "../archives/train.tar", link, out=tmp_path / "out")
    assert only.written == len(TRAIN)
    assert tree(tmp_path / "out") == TRAIN


@pytest.mark.parametrize("how", ["a copy", "a hard link", "another training archive"])
def test_two_archives_for_one_place_are_refused(how: str, folder: Path, tmp_path: Path) -> None:
    path, other = folder / "train.tar", folder / "train-2.tar"
    if how == "a copy":
        shutil.copy(path, other)
    elif how == "a hard link":
        other.hardlink_to(path)
    else:
        other.write_bytes(tar({"n00000007.tar": tar({"n00000007_1.JPEG": b"x" * 2000})}))
    for act in (run_extract, run_plan):
        with pytest.raises(UsageError, match=f"both {other} and {path} .*give one of them"):
            act(folder, out=tmp_path / "out", labels=folder / "labels.txt")
    assert tree(tmp_path / "out") == {}


def test_another_archive_may_take_a_place_once_that_is_removed(
    folder: Path, tmp_path: Path
) -> None:
    other, out = tmp_path / "other.tar", tmp_path / "out"
    other.write_bytes(tar({"n00000007.tar": tar({"n00000007_1.JPEG": b"x" * 2000})}))
    run_extract(folder / "train.tar", out=out)
    for act in (run_extract, run_plan):
        with pytest.raises(ToolError, match=r"was extracted from another archive.*remove it"):
            act(other, out=out)
    shutil.rmtree(out / "train")
    assert run_plan(other, out=out)[0].missing.files == 1
    run_extract(other, out=out)
    assert set(tree(out)) == {"train/n00000007/n00000007_1.JPEG"}
    assert run_extract(other, out=out)[0].written == 0
    with pytest.raises(ToolError, match="was extracted from another archive"):
        run_extract(folder / "train.tar", out=out)


def test_flat_is_for_a_new_val_alone(folder: Path, tmp_path: Path) -> None:
    out, labels = tmp_path / "out", folder / "labels.txt"
    run_extract(folder, out=out, flat=True)
    with pytest.raises(ToolError, match=f"{out / 'val'} was extracted .*other labels or options"):
        run_extract(folder, out=out, labels=labels)
    shutil.rmtree(out / "val")
    train, val = run_extract(folder, out=out, labels=labels)
    assert (train.written, val.written) == (0, len(VAL))
    assert tree(out) == TRAIN | VAL


def test_archives_that_share_their_class_folders_are_each_completed(tmp_path: Path) -> None:
    """As Hugging Face's do. What was deleted is noticed although the others' files are there."""
    names = list(FLAT)
    paths = []
    for number in range(3):
        path = tmp_path / f"train_images_{number}.tar.gz"
        part = {f"{name[:-5]}_{name[:9]}.JPEG": FLAT[name] for name in names[number::3]}
        path.write_bytes(gzip.compress(tar(part)))
        paths.append(path)
    out = tmp_path / "out"
    run_extract(*paths[:2], out=out)
    run_extract(*paths, out=out)
    assert tree(out) == TRAIN
    assert [each.written for each in run_extract(*paths, out=out)] == [0, 0, 0]
    (out / f"train/{WNIDS[0]}/{names[0]}").unlink()
    assert sum(each.written for each in run_extract(*paths, out=out)) == 1
    assert tree(out) == TRAIN


def test_archives_with_files_of_the_same_name_leave_whole_ones(tmp_path: Path) -> None:
    trees: list[Tree] = []
    for number in range(2):
        trees.append({f"train/cat/{n}.jpg": b"%d" % number * 50_000 for n in range(200)})
        (tmp_path / f"{number}.tar").write_bytes(tar(trees[number]))
    run_extract(tmp_path / "0.tar", tmp_path / "1.tar", out=tmp_path / "out", workers=4)
    found = tree(tmp_path / "out")
    assert set(found) == set(trees[0])
    assert all(data in {trees[0][name], trees[1][name]} for name, data in found.items())


# --- many or few workers ----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 64])
def test_any_number_of_workers_needs_few_open_files(workers: int, run: Run, tmp_path: Path) -> None:
    """400 classes in one part, and room for 100 open files."""
    images = {f"n{n:08d}_1.JPEG": b"%d" % n for n in range(400)}
    path = tmp_path / "flat.tar"
    path.write_bytes(tar(images))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))
    try:
        done = run("imagenet-prep", "extract", path, "--out", tmp_path / "out",
                   "--workers", workers)  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert done.returncode == 0, done.stderr
    assert len(tree(tmp_path / "out")) == 400


# --- sums -------------------------------------------------------------------------------------

ARCHIVES = {
    "class tars": tar({f"{wnid}.tar": tar(images) for wnid, images in CLASSES.items()}),
    "one class tar": tar({"n00000001.tar": tar(CLASSES[WNIDS[0]])}),
    "empty class tars": tar(
        {"n00000001.tar": tar({}), "n00000002.tar": bytes(1024), "n00000003.tar": tar({})}
    ),
    "flat": tar(FLAT),
    "class folders": tar(TRAIN),
    "compressed": gzip.compress(tar(FLAT)),
    "with empty images": tar({f"n00000001_{n}.JPEG": b"" for n in range(9)}),
    "padded by a tape": tar(FLAT) + bytes(512 * 1024),
}


@pytest.mark.parametrize("form", ARCHIVES)
def test_the_sum_is_that_of_the_whole_archive_however_it_was_reached(
    form: str, tmp_path: Path
) -> None:
    data = ARCHIVES[form]
    expected = hashlib.md5(data, usedforsecurity=False).hexdigest()
    path = tmp_path / "archive.tar"
    path.write_bytes(data)
    for workers in (1, 8):
        (first,) = run_extract(path, out=tmp_path / f"{workers}", md5=True, workers=workers)
        (again,) = run_extract(path, out=tmp_path / f"{workers}", md5=True)
        assert first.md5 == again.md5 == expected

    out = tmp_path / "goes on"
    path.write_bytes(data[: len(data.rstrip(b"\0")) * 2 // 3])
    with pytest.raises(DamagedData):
        run_extract(path, out=out, md5=True)
    path.write_bytes(data)
    assert run_extract(path, out=out, md5=True)[0].md5 == expected
    later = tmp_path / "later"
    assert run_extract(path, out=later)[0].md5 in {None, expected}
    assert run_extract(path, out=later, md5=True)[0].md5 == expected


# --- removing ---------------------------------------------------------------------------------

TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
@pytest.mark.parametrize("form", ["class tars", "flat", "compressed"])
def test_an_archive_is_not_removed_while_the_tree_is_not_what_it_holds(
    form: str, tampering: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "archive.tar", tmp_path / "out"
    path.write_bytes(ARCHIVES[form])
    run_extract(path, out=out)
    image = out / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    TAMPERINGS[tampering](image)
    with pytest.raises(DamagedData, match=f"{image} is not what {path} holds; remove it and run"):
        run_extract(path, out=out, remove_archives=True)
    assert path.read_bytes() == ARCHIVES[form]
    image.unlink()
    (done,) = run_extract(path, out=out, remove_archives=True)
    assert done.removed
    assert not path.exists()
    assert tree(out) == TRAIN


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
@pytest.mark.usefixtures("deadline")
def test_what_lies_in_the_place_of_an_image_is_no_image(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    path, out = folder / "train.tar", tmp_path / "out"
    run_extract(path, out=out)
    image = out / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    image.rename(tmp_path / "kept")
    if kind == "link":  # as long as the image
        path_to_kept = str(tmp_path / "kept")
        image.symlink_to(path_to_kept.rjust((tmp_path / "kept").stat().st_size, "/"))
        assert image.lstat().st_size == image.stat().st_size
    elif kind == "FIFO":
        os.mkfifo(image)
    else:
        image.mkdir()
        with pytest.raises(OSError, match="directory") as raised:
            run_extract(path, out=out, remove_archives=True)
        assert raised.value.filename == str(image)
        image.rmdir()
    (done,) = run_extract(path, out=out, remove_archives=True)
    assert done.removed
    assert image.is_file()
    assert not image.is_symlink()
    assert tree(out) == TRAIN


def test_a_removed_archive_s_tree_is_still_whole_and_still_noticed(
    folder: Path, tmp_path: Path
) -> None:
    path, out = folder / "train.tar", tmp_path / "out"
    whole = path.read_bytes()
    run_extract(path, out=out, remove_archives=True)
    assert run_plan(path, out=out) == []
    (again,) = run_extract(path, out=out)
    assert (again.removed, again.written, again.files) == (True, 0, len(TRAIN))
    path.write_bytes(whole)
    (back,) = run_extract(path, out=out)
    assert (back.removed, back.written) == (False, 0)


# --- records and strays -----------------------------------------------------------------------


def test_records_of_another_machine_do_not_stand_for_images(folder: Path, tmp_path: Path) -> None:
    run_extract(folder / "train.tar", out=tmp_path / "there")
    here = tmp_path / "here"
    shutil.copytree(tmp_path / "there" / RECORDS, here / RECORDS)
    (here / "train" / WNIDS[0]).mkdir(parents=True)
    (done,) = run_extract(folder / "train.tar", out=here)
    assert done.written == len(TRAIN)
    assert tree(here) == TRAIN


@pytest.mark.parametrize("data", [None, b"", b"\xff" * 1000, os.urandom(5000)])
def test_without_its_records_an_extraction_is_made_anew(
    data: bytes | None, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_extract(folder / "train.tar", out=out)
    (out / JOURNAL).unlink()
    if data is not None:
        (out / JOURNAL).write_bytes(data)
    (done,) = run_extract(folder / "train.tar", out=out)
    assert done.written == len(TRAIN)
    assert tree(out) == TRAIN
    assert run_extract(folder / "train.tar", out=out)[0].written == 0


def test_a_file_of_which_no_record_speaks_is_not_trusted(tmp_path: Path) -> None:
    """After a power cut it may have its size and not its bytes, and stand behind recorded ones."""
    path, out = tmp_path / "archive.tar", tmp_path / "out"
    data = ARCHIVES["flat"]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedData):
        run_extract(path, out=out)
    lost = next(name for name in TRAIN if name not in tree(out))
    (out / lost).parent.mkdir(exist_ok=True)
    (out / lost).write_bytes(bytes(len(TRAIN[lost])))
    path.write_bytes(data)
    run_extract(path, out=out)
    assert tree(out) == TRAIN


def test_strays_in_class_folders_are_left_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_extract(folder, out=out, labels=folder / "labels.txt")
    strays = {f"train/{WNIDS[0]}/Thumbs.db": b"x", f"val/{WNIDS[1]}/.hidden": b"y", "val/z": b"z"}
    for name, data in strays.items():
        (out / name).write_bytes(data)
    (out / f"train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG").unlink()
    train, val = run_extract(folder, out=out, labels=folder / "labels.txt")
    assert (train.written, val.written) == (1, 0)
    assert tree(out) == TRAIN | VAL | strays


# --- dry runs ---------------------------------------------------------------------------------


def entries(out: Path) -> dict[str, int]:
    """Everything beneath a folder and when it was changed."""
    return {str(path): path.lstat().st_mtime_ns for path in [out, *out.rglob("*")] if out.exists()}


def inodes(out: Path) -> int:
    return sum(RECORDS not in path.parts for path in out.rglob("*"))


@pytest.mark.parametrize("form", ["class tars", "flat", "class folders", "compressed"])
@pytest.mark.parametrize("state", ["nothing", "half", "finished", "lacking", "tampered"])
def test_a_dry_run_tells_what_then_happens_and_writes_nothing(
    form: str, state: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "archive.tar", tmp_path / "out"
    data = ARCHIVES[form]
    if state == "half":
        path.write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(DamagedData):
            run_extract(path, out=out)
    path.write_bytes(data)
    if state in {"finished", "lacking", "tampered"}:
        run_extract(path, out=out)
    if state == "lacking":
        (out / "train" / WNIDS[0] / f"{WNIDS[0]}_3.JPEG").unlink()
        shutil.rmtree(out / "train" / WNIDS[2])
    if state == "tampered":
        (out / "train" / WNIDS[0] / f"{WNIDS[0]}_3.JPEG").write_bytes(b"")
    before, there = entries(tmp_path), inodes(out)
    (planned,) = run_plan(path, out=out)
    assert entries(tmp_path) == before
    assert out.exists() == (state != "nothing")

    (done,) = run_extract(path, out=out)
    assert (planned.files, planned.bytes) == (done.files, done.bytes)
    assert planned.missing.files == done.written
    assert planned.folders == done.folders
    if form != "compressed" or state != "half":  # which writes over files that are there
        assert planned.inodes == inodes(out) - there
