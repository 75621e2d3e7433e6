"""Repair: every kind of damage ends in the bytes that were there, or in nothing being changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from prep.indexing import IndexOptions, index_tars
from prep.replan import Origin
from shards.dataset import Dataset
from shards.durable import TEMPORARY_PREFIX, folder_lock
from shards.errors import DamagedData, ToolError
from shards.examination import examine
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, Manifest
from shards.plan import canonical_json
from shards.progress import Silent
from shards.repair import Mended, repair_shards
from shards.sidecars import TIMM_NAME, WIDS_NAME

Build = Callable[..., Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Sums = Callable[[Path], dict[str, str]]
SHARD = "imagenet-train-000002.tar"
DALI = "imagenet-train-000002.idx"


def mend(folder: Path, *sources: Path, **options: Any) -> Mended:
    """Repair a folder from these sources, or from none."""
    origin = Origin(
        paths=sources, labels=None, out=folder.parent, workers=2, progress=Silent(), **options
    )
    found = examine(folder, deep=False, workers=2, progress=Silent())
    source = origin.material if sources else None
    return repair_shards(found, source, workers=2, progress=Silent())


def findings(mended: Mended) -> list[str]:
    return [fault.what for fault in mended.found.faults]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object], *,
                  sums: bool = True) -> None:  # fmt: skip
    """Change the manifest by hand; its digest is made to fit, and the sums if that is asked."""
    path = folder / MANIFEST_NAME
    body = json.loads(path.read_bytes())
    change(body)
    del body["sha256"]
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    path.write_text(json.dumps(body, indent=1) + "\n")
    if sums:
        (folder / SUMS_NAME).write_bytes(Manifest.read(folder).sums())


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    jpeg: Callable[[int], bytes],
    write_folders: Callable[..., Path],
) -> Path:
    """Two classes whose images have names that no key tells."""
    classes = {
        name: {f"{name} {number}.jpg": jpeg(number) for number in range(first, first + 12)}
        for name, first in (("cat", 0), ("dog", 50))
    }
    return write_folders(tmp_path_factory.mktemp("folders") / "train", classes)


# --- one file at a time -----------------------------------------------------------------------

FOLLOWS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flip in the manifest": (MANIFEST_NAME, lambda path: flip(path, 300)),
    "a cut manifest": (MANIFEST_NAME, lambda path: os.truncate(path, 100)),
    "an empty manifest": (MANIFEST_NAME, lambda path: os.truncate(path, 0)),
    "a missing manifest": (MANIFEST_NAME, lambda path: path.unlink()),
    "a manifest written in another way": (
        MANIFEST_NAME,
        lambda path: path.write_text(json.dumps(json.loads(path.read_bytes()))),
    ),
    "a flip in the sums": (SUMS_NAME, lambda path: flip(path, 70)),
    "a flip in a sum": (SUMS_NAME, lambda path: flip(path, 0)),
    "missing sums": (SUMS_NAME, lambda path: path.unlink()),
    "a longer list of sums": (SUMS_NAME, lambda path: path.write_text(path.read_text() * 2)),
    "a flip in the index's header": (INDEX_NAME, lambda path: flip(path, 400)),
    "a flip in the index's columns": (INDEX_NAME, lambda path: flip(path, -2000)),
    "a flip in the index's names": (INDEX_NAME, lambda path: flip(path, -40)),
    "a cut index": (INDEX_NAME, lambda path: os.truncate(path, 600)),
    "a missing index": (INDEX_NAME, lambda path: path.unlink()),
    "a flip for DALI": (DALI, lambda path: flip(path, 20)),
    "a missing file for DALI": (DALI, lambda path: path.unlink()),
}


@pytest.mark.parametrize("case", FOLLOWS)
def test_what_follows_from_the_rest_needs_no_source(
    case: str, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    name, damage = FOLLOWS[case]
    folder = shards_copy / "train"
    damage(folder / name)
    mended = mend(folder)
    assert (findings(mended), mended.repaired, mended.notes) == ([], (name,), ())
    assert sums(shards_copy) == sums(shards)


LOST_SHARDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, 5000),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "flipped in a header": lambda path: flip(path, 3),
    "flipped in an image": lambda path: flip(path, 2000),
    "flipped at its end": lambda path: flip(path, -1),
    "another one": lambda path: shutil.copy(path.with_name("imagenet-train-000001.tar"), path),
}


@pytest.mark.parametrize("case", LOST_SHARDS)
def test_a_damaged_shard_comes_back_from_its_source_and_no_other_is_touched(
    case: str, archives: Any, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    LOST_SHARDS[case](folder / SHARD)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != SHARD}
    mended = mend(folder, archives.train)
    assert (findings(mended), mended.repaired) == ([], (SHARD,))
    assert sums(shards_copy) == sums(shards)
    unlocked = {path: time for path, time in before.items() if path.is_file()}
    assert {path: path.stat().st_mtime_ns for path in unlocked} == unlocked


def test_without_a_source_a_damaged_shard_stays_as_it_is_and_it_is_said_why(
    shards_copy: Path, sums: Sums
) -> None:
    flip(shards_copy / "train" / SHARD, 2000)
    (shards_copy / "train" / DALI).unlink()
    before = sums(shards_copy)
    mended = mend(shards_copy / "train")
    (finding,), (note,) = findings(mended), mended.notes
    assert SHARD in finding
    assert "1 of 4 shards" in note
    assert "--source" in note
    assert mended.repaired == (DALI,)
    after = sums(shards_copy)
    del after[f"train/{DALI}"]
    assert after == before


def test_whole_folders_are_left_alone(shards_copy: Path, archives: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards_copy.rglob("*.*")}
    assert mend(shards_copy / "train", archives.train).repaired == ()
    assert {path: path.stat().st_mtime_ns for path in shards_copy.rglob("*.*")} == before


# --- much at a time ---------------------------------------------------------------------------

MANY: dict[str, Callable[[Path], object]] = {
    "all shards missing": lambda folder: [path.unlink() for path in folder.glob("*.tar")],
    "a shard and the index": lambda folder: (
        (folder / SHARD).unlink(),
        (folder / INDEX_NAME).unlink(),
    ),
    "a shard and the manifest": lambda folder: (
        flip(folder / SHARD, 2000),
        flip(folder / MANIFEST_NAME, 300),
    ),
    "a shard, the manifest and the sums": lambda folder: (
        flip(folder / SHARD, 2000),
        (folder / SUMS_NAME).unlink(),
        (folder / MANIFEST_NAME).unlink(),
    ),
    "all that has digests of shards flipped": lambda folder: [
        flip(folder / name, 500) for name in (MANIFEST_NAME, SUMS_NAME, SHARD, DALI)
    ],
    "the index and the sums": lambda folder: [
        flip(folder / name, 10) for name in (INDEX_NAME, SUMS_NAME)
    ],
    "two shards that changed places": lambda folder: (
        (folder / SHARD).rename(folder / "x"),
        (folder / "imagenet-train-000001.tar").rename(folder / SHARD),
        (folder / "x").rename(folder / "imagenet-train-000001.tar"),
    ),
    "one flip in every file but manifest and index": lambda folder: [
        flip(path, 100)
        for path in folder.iterdir()
        if path.is_file() and path.name not in {MANIFEST_NAME, INDEX_NAME}
    ],
    "one flip in every file but the index": lambda folder: [
        flip(path, 100) for path in folder.iterdir() if path.is_file() and path.name != INDEX_NAME
    ],
    "one flip in every file but the manifest": lambda folder: [
        flip(path, 100)
        for path in folder.iterdir()
        if path.is_file() and path.name != MANIFEST_NAME
    ],
}


@pytest.mark.parametrize("case", MANY)
def test_much_damage_at_once_is_mended_from_the_source(
    case: str, archives: Any, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    MANY[case](shards_copy / "train")
    mended = mend(shards_copy / "train", archives.train.parent)
    assert (findings(mended), mended.notes) == ([], ())
    assert sums(shards_copy) == sums(shards)
    Dataset.open(shards_copy / "train").close()


def test_a_source_of_another_kind_does_as_well(
    archives: Any, run: Run, shards: Path, shards_copy: Path, sums: Sums, tmp_path: Path
) -> None:
    run("imagenet-prep", "extract", archives.train, "--out", tmp_path / "images")
    (shards_copy / "train" / SHARD).unlink()
    assert not findings(mend(shards_copy / "train", tmp_path / "images" / "train"))
    assert sums(shards_copy) == sums(shards)


@pytest.mark.parametrize(
    ("options", "write"),
    [
        ({"per_class": 5, "seed": 3}, {}),
        ({"shard_size": 100_000}, {}),
        ({"samples_per_shard": 7}, {"for_readers": ("wids",)}),
        ({}, {"for_readers": ()}),
    ],
)
def test_options_are_those_of_the_manifest(
    options: Mapping[str, Any], write: Mapping[str, Any], archives: Any, build: Build, sums: Sums,
    tmp_path: Path,
) -> None:  # fmt: skip
    (written,) = build(archives.train, out=tmp_path, write=write, **options)
    before = sums(tmp_path)
    for name in (SUMS_NAME, INDEX_NAME, written.manifest.shards[0].name):
        (written.folder / name).unlink()
    for extra in written.manifest.extras:
        (written.folder / extra.name).unlink()
    assert not findings(mend(written.folder, archives.train))
    assert sums(tmp_path) == before
    (written.folder / MANIFEST_NAME).unlink()
    assert not findings(mend(written.folder))
    assert sums(tmp_path) == before


def test_a_list_of_some_classes_is_that_of_the_manifest(
    folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("dog\nbird\n")
    (written,) = build(folders, out=tmp_path / "out", classes=classes)
    before = sums(tmp_path / "out")
    (written.folder / "imagenet-train-000000.tar").unlink()
    assert not findings(mend(written.folder, folders))
    assert sums(tmp_path / "out") == before


def test_images_that_were_left_out_are_left_out_again(
    jpeg: Callable[[int], bytes], build: Build, write_folders: Callable[..., Path], sums: Sums,
    tmp_path: Path,
) -> None:  # fmt: skip
    images = {f"{number}.jpg": jpeg(number) for number in range(8)} | {"3.jpg": b"<html>"}
    source = write_folders(tmp_path / "train", {"cat": images})
    (written,) = build(source, out=tmp_path / "out", samples_per_shard=1, write={"on_bad": "skip"})
    before = sums(tmp_path / "out")
    for lost in ([MANIFEST_NAME], [INDEX_NAME], [file.name for file in written.manifest.shards]):
        for name in lost:
            (written.folder / name).unlink()
        assert not findings(mend(written.folder, source)), lost
        assert sums(tmp_path / "out") == before


# --- names ------------------------------------------------------------------------------------


def test_names_that_no_key_tells_come_from_the_source(
    folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    (written,) = build(folders, out=tmp_path)
    before = sums(tmp_path)
    (written.folder / INDEX_NAME).unlink()
    mended = mend(written.folder)
    assert INDEX_NAME in findings(mended)[0]
    assert "names of the images" in mended.notes[0]
    assert mended.repaired == ()
    assert not findings(mend(written.folder, folders))
    assert sums(tmp_path) == before


def test_a_damaged_name_is_no_witness_of_itself(
    folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    (written,) = build(folders, out=tmp_path)
    before = sums(tmp_path)
    flip(written.folder / INDEX_NAME, -40)
    mended = mend(written.folder)
    assert (mended.repaired, len(mended.notes)) == ((), 1)
    assert not findings(mend(written.folder, folders))
    assert sums(tmp_path) == before


@pytest.mark.parametrize("column", ["label", "xxh3", "width", "offset", "rank"])
def test_names_are_taken_from_what_is_left_of_the_index(
    column: str, folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    (written,) = build(folders, out=tmp_path)
    before = sums(tmp_path)
    index = Index.read(written.folder / INDEX_NAME)
    values = index[column].copy()
    values[9] ^= values.dtype.type(1)
    with (tmp_path / "damaged").open("wb") as file:
        Index(header=index.header, columns=index.columns | {column: values}).write(file)
    (tmp_path / "damaged").replace(written.folder / INDEX_NAME)
    assert not findings(mend(written.folder))
    assert sums(tmp_path) == before


def test_names_of_hugging_face_are_guessed(
    jpeg: Callable[[int], bytes], build: Build, write_folders: Callable[..., Path], sums: Sums,
    tmp_path: Path,
) -> None:  # fmt: skip
    classes = {
        wnid: {f"{wnid}_{number}_{wnid}.JPEG": jpeg(number) for number in range(5)}
        for wnid in ("n01440764", "n01443537")
    }
    (written,) = build(write_folders(tmp_path / "train", classes), out=tmp_path / "out")
    before = sums(tmp_path / "out")
    (written.folder / INDEX_NAME).unlink()
    assert not findings(mend(written.folder))
    assert sums(tmp_path / "out") == before


# --- nothing damaged is ever blessed ----------------------------------------------------------


def test_a_lost_manifest_does_not_come_back_with_a_damaged_shard(
    archives: Any, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    flip(folder / SHARD, 2000)
    flip(folder / SUMS_NAME, -20)  # in the sum of the manifest
    (folder / MANIFEST_NAME).unlink()
    before = sums(shards_copy)
    mended = mend(folder)
    assert SHARD in "".join(findings(mended))
    assert "byte 512" in "".join(findings(mended))
    assert mended.repaired == ()
    assert sums(shards_copy) == before
    assert not findings(mend(folder, archives.train))
    assert sums(shards_copy) == sums(shards)


def test_a_lost_manifest_comes_back_beside_a_damaged_shard_where_the_sums_prove_it(
    shards: Path, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    flip(folder / SHARD, 2000)
    (folder / MANIFEST_NAME).unlink()
    mended = mend(folder)
    assert mended.repaired == (MANIFEST_NAME,)
    assert len(findings(mended)) == 1
    assert sums(shards_copy)["train/manifest.json"] == sums(shards)["train/manifest.json"]


def test_an_index_that_nothing_vouches_for_is_proven_by_the_source_or_not_believed(
    archives: Any, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    for name in (MANIFEST_NAME, SUMS_NAME):
        (folder / name).unlink()
    before = sums(shards_copy)
    mended = mend(folder)
    assert "nothing proves that" in mended.notes[0]
    assert sums(shards_copy) == before
    assert not findings(mend(folder, archives.train))
    assert sums(shards_copy) == sums(shards)


def test_a_damaged_index_that_nothing_vouches_for_is_not_believed(
    archives: Any, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    for name in (MANIFEST_NAME, SUMS_NAME):
        (folder / name).unlink()
    flip(folder / INDEX_NAME, -40)  # in a name
    before = sums(shards_copy)
    mended = mend(folder, archives.train)
    assert "imagenet-prep shard" in mended.notes[0]
    assert findings(mended)
    assert sums(shards_copy) == before


def test_without_manifest_and_index_only_writing_again_helps(
    archives: Any, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    for name in (MANIFEST_NAME, INDEX_NAME):
        (folder / name).unlink()
    before = sums(shards_copy)
    mended = mend(folder, archives.train)
    assert "both lost" in mended.notes[0]
    assert "imagenet-prep shard" in mended.notes[0]
    assert [MANIFEST_NAME in findings(mended)[0], INDEX_NAME in findings(mended)[1]] == [True, True]
    assert sums(shards_copy) == before


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another seed": lambda body: body["plan"].update(seed=1),
    "fewer samples": lambda body: body.update(samples=50),
    "a class renamed": lambda body: body["classes"][0].update(name="x"),
    "other content": lambda body: body.update(content="0" * 64),
    "a shard less": lambda body: body["shards"].pop(),
    "a shard of other bytes": lambda body: body["shards"][1].update(bytes=10240),
    "a shard with other samples": lambda body: body["shards"][1].update(samples=1),
    "a shard of another sum": lambda body: body["shards"][1].update(sha256="0" * 64),
    "shards that changed places": lambda body: body["shards"].reverse(),
    "an index of another sum": lambda body: body["index"].update(sha256="0" * 64),
    "images said to be kept": lambda body: body.update(kept=7),
    "another split": lambda body: body.update(split="val"),
}


@pytest.mark.parametrize("with_sums", [True, False])
@pytest.mark.parametrize("case", FORGERIES)
def test_a_manifest_edited_by_hand_is_found_and_put_right(
    case: str, with_sums: bool, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    edit_manifest(folder, FORGERIES[case], sums=with_sums)
    mended = mend(folder)
    assert MANIFEST_NAME in mended.repaired
    assert (findings(mended), mended.notes) == ([], ())
    assert sums(shards_copy) == sums(shards)


def test_hostile_names_open_nothing_outside(shards: Path, shards_copy: Path, sums: Sums) -> None:
    folder = shards_copy / "train"
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace(SHARD, "../val/imagenet-val-000000.tar"))
    assert not findings(mend(folder))
    assert sums(shards_copy) == sums(shards)


def test_the_index_of_another_build_is_replaced(
    archives: Any, build: Build, shards: Path, shards_copy: Path, sums: Sums, tmp_path: Path
) -> None:
    build(archives.train, out=tmp_path / "other", seed=5)
    folder = shards_copy / "train"
    shutil.copy(tmp_path / "other" / "train" / INDEX_NAME, folder / INDEX_NAME)
    assert not findings(mend(folder))
    assert sums(shards_copy) == sums(shards)


@pytest.mark.parametrize(
    "names", [(INDEX_NAME, SUMS_NAME), (MANIFEST_NAME, SUMS_NAME), (MANIFEST_NAME,)]
)
def test_what_another_build_left_is_told_by_the_shards(
    names: tuple[str, ...], archives: Any, build: Build, shards: Path, shards_copy: Path,
    sums: Sums, tmp_path: Path,
) -> None:  # fmt: skip
    build(archives.train, out=tmp_path / "other", seed=5)
    folder = shards_copy / "train"
    for name in names:
        shutil.copy(tmp_path / "other" / "train" / name, folder / name)
    mended = mend(folder, archives.train)
    assert sorted(mended.repaired) == sorted(names)
    assert not findings(mended)
    assert sums(shards_copy) == sums(shards)


def test_a_folder_is_not_mended_into_another_split(
    archives: Any, shards_copy: Path, sums: Sums
) -> None:
    for name in (MANIFEST_NAME, SUMS_NAME):
        shutil.copy(shards_copy / "train" / name, shards_copy / "val" / name)
    (shards_copy / "val" / INDEX_NAME).unlink()
    before = sums(shards_copy)
    mended = mend(shards_copy / "val", archives.train.parent)
    assert "holds the split 'train'" in "".join(findings(mended))
    assert "another split" in mended.notes[0]
    assert sums(shards_copy) == before


def test_an_index_of_another_split_brings_none_of_its_shards(
    archives: Any, shards_copy: Path, sums: Sums
) -> None:
    (shards_copy / "train").rename(shards_copy / "mine")
    for name in (MANIFEST_NAME, SUMS_NAME):
        (shards_copy / "mine" / name).unlink()
    shutil.copy(shards_copy / "val" / INDEX_NAME, shards_copy / "mine" / INDEX_NAME)
    before = sums(shards_copy)
    mended = mend(shards_copy / "mine", archives.train.parent)
    assert "no shard here is as" in mended.notes[0]
    assert sums(shards_copy) == before


def test_a_label_changed_with_every_sum_is_put_right_by_index_and_source(
    archives: Any, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    folder = shards_copy / "train"
    index = Index.read(folder / INDEX_NAME)
    flip(folder / SHARD, int(index["offset"][36]) - 400)
    sha256 = hashlib.sha256((folder / SHARD).read_bytes()).hexdigest()
    edit_manifest(folder, lambda body: body["shards"][2].update(sha256=sha256))
    assert not findings(mend(folder, archives.train))
    assert sums(shards_copy) == sums(shards)


def test_sharding_again_blesses_no_damage_either(
    archives: Any, build: Build, sums: Sums, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"out": tmp_path, "write": {"for_readers": ("dali", "wids")}}
    (written,) = build(archives.train, **options)
    for name in (INDEX_NAME, SHARD):
        flip(written.folder / name, -2000)
        before = sums(tmp_path)
        with pytest.raises(DamagedData, match="--repair"):
            build(archives.train, **options)
        assert sums(tmp_path) == before
        assert not findings(mend(written.folder, archives.train))
    build(archives.train, **options)


# --- the wrong source, the wrong encoder ------------------------------------------------------


def test_a_source_that_is_another_is_refused_with_what_differs(
    archives: Any, folders: Path, shards_copy: Path, sums: Sums
) -> None:
    (shards_copy / "train" / SHARD).unlink()
    before = sums(shards_copy)
    with pytest.raises(ToolError, match="0 images instead of 51"):
        mend(shards_copy / "train", folders)
    with pytest.raises(ToolError, match="no split 'train'"):
        mend(shards_copy / "train", archives.val)
    assert sums(shards_copy) == before


def test_a_source_with_other_pixels_is_refused_and_nothing_is_replaced(
    folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    """The same names and sizes, so the plan fits: only what is written tells."""
    source = Path(shutil.copytree(folders, tmp_path / "train"))
    (written,) = build(source, out=tmp_path / "out", samples_per_shard=4)
    name = written.manifest.shards[3].name
    flip(written.folder / name, 3)
    for image in source.rglob("*.jpg"):
        flip(image, -200)
    before = sums(tmp_path / "out")
    with pytest.raises(DamagedData, match=f"{name} would come out different"):
        mend(written.folder, source)
    assert sums(tmp_path / "out") == before
    (written.folder / MANIFEST_NAME).unlink()
    (written.folder / SUMS_NAME).unlink()
    before = sums(tmp_path / "out")
    with pytest.raises(DamagedData, match=f"{name} would come out different"):
        mend(written.folder, source)
    assert sums(tmp_path / "out") == before


def reencoded(path: Path, source: Path, run: Run) -> Path:
    """Shards of smaller pictures."""
    done = run("imagenet-prep", "shard", source, "--out", path, "--jpeg", "reencode",
               "--max-side", "32", "--samples-per-shard", "16")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path / "train"


def test_encoded_shards_are_encoded_again(
    archives: Any, run: Run, sums: Sums, tmp_path: Path
) -> None:
    folder = reencoded(tmp_path, archives.train, run)
    before = sums(tmp_path)
    flip(folder / SHARD, 2000)
    (folder / INDEX_NAME).unlink()
    assert not findings(mend(folder, archives.train))
    assert sums(tmp_path) == before


def test_another_encoder_than_the_plan_names_is_refused(
    archives: Any, run: Run, sums: Sums, tmp_path: Path
) -> None:
    folder = reencoded(tmp_path, archives.train, run)
    index = Index.read(folder / INDEX_NAME)
    index.header["plan"]["jpeg"]["encoder"] = "Pillow 1.0, libjpeg 6b"
    with (tmp_path / "index").open("wb") as file:
        index.write(file)
    (tmp_path / "index").replace(folder / INDEX_NAME)
    data = (folder / INDEX_NAME).read_bytes()

    def change(body: dict[str, Any]) -> None:
        body["plan"]["jpeg"]["encoder"] = "Pillow 1.0, libjpeg 6b"
        body["index"] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    edit_manifest(folder, change)
    assert examine(folder, deep=True, workers=1, progress=Silent()).faults == ()
    (folder / SHARD).unlink()
    before = sums(tmp_path)
    with pytest.raises(ToolError, match=r"encoder Pillow 1\.0, libjpeg 6b; here it is encoder Pil"):
        mend(folder, archives.train)
    assert sums(tmp_path) == before


# --- shards that others made ------------------------------------------------------------------


def test_of_shards_that_others_made_the_sums_are_mended_and_all_else_is_said(
    jpeg: Callable[[int], bytes], write_tar: Callable[..., Path], sums: Sums, tmp_path: Path
) -> None:
    members = {"a.jpg": jpeg(0), "a.cls": b"0", "b.jpg": jpeg(1), "b.cls": b"0"}
    tar = write_tar(tmp_path / "train-000000.tar", members)
    index_tars([tmp_path], tmp_path / "out", IndexOptions(), workers=1, progress=Silent())
    folder = tmp_path / "out" / "train"
    before = sums(folder)
    (folder / SUMS_NAME).unlink()
    assert mend(folder).repaired == (SUMS_NAME,)
    (folder / MANIFEST_NAME).unlink()
    assert mend(folder).repaired == (MANIFEST_NAME,)
    assert sums(folder) == before
    (folder / INDEX_NAME).unlink()
    assert "imagenet-prep index" in mend(folder).notes[0]
    flip(tar, 600)
    assert "not of this tool's making" in mend(folder).notes[0]


# --- the command ------------------------------------------------------------------------------


def test_the_command_mends_all_splits_and_what_stands_beside_them(
    archives: Any, run: Run, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    flip(shards_copy / "train" / SHARD, 2000)
    (shards_copy / "val" / "imagenet-val-000000.tar").unlink()
    flip(shards_copy / TIMM_NAME, 100)
    source = archives.train.parent
    done = run("imagenet-prep", "verify", shards_copy)
    assert done.returncode == 1
    assert str(shards_copy / TIMM_NAME) in done.stderr
    done = run("imagenet-prep", "verify", shards_copy, "--repair", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"]) == (1, False)
    assert [split["damaged"] for split in answer["splits"]] == [
        [SHARD],
        ["imagenet-val-000000.tar"],
    ]
    assert answer["splits"][0]["damage"][0]["offset"] == 512
    assert done.stderr.count("say by --source") == 2
    done = run("imagenet-prep", "verify", shards_copy, "--repair", "--source", source)
    assert done.returncode == 0, done.stderr
    assert f"repaired: {shards_copy / 'train' / SHARD}\n" in done.stderr
    assert sums(shards_copy) == sums(shards)
    assert run("imagenet-prep", "verify", shards_copy, "--deep", "--decode").returncode == 0


def test_an_altered_list_for_timm_is_put_right(
    run: Run, shards: Path, shards_copy: Path, sums: Sums
) -> None:
    (shards_copy / TIMM_NAME).write_text("{}")
    done = run("imagenet-prep", "verify", shards_copy / "val", "--repair", "--json")
    assert json.loads(done.stdout)["splits"][0]["repaired"] == [f"../{TIMM_NAME}"]
    assert sums(shards_copy) == sums(shards)


def test_a_list_for_timm_is_left_alone_while_a_split_is_damaged(
    run: Run, shards_copy: Path
) -> None:
    for name in (MANIFEST_NAME, INDEX_NAME):
        (shards_copy / "train" / name).unlink()
    before = (shards_copy / TIMM_NAME).read_bytes()
    assert run("imagenet-prep", "verify", shards_copy, "--repair").returncode == 1
    assert (shards_copy / TIMM_NAME).read_bytes() == before


def test_options_that_make_no_sense_are_refused(archives: Any, run: Run, shards: Path) -> None:
    done = run("imagenet-prep", "verify", shards, "--source", archives.train)
    assert (done.returncode, "--repair" in done.stderr) == (2, True)
    done = run("imagenet-prep", "verify", archives.train, "--repair")
    assert (done.returncode, "for shards" in done.stderr) == (2, True)


def test_an_unfinished_split_is_completed_by_the_command_that_began_it(
    archives: Any, run: Run, shards_copy: Path
) -> None:
    (shards_copy / "train" / MANIFEST_NAME).unlink()
    (shards_copy / "train" / ".imagenet-prep" / "shards").mkdir()
    done = run("imagenet-prep", "verify", shards_copy, "--repair", "--source", archives.train)
    assert done.returncode == 1
    assert "is unfinished; run the `imagenet-prep shard` command" in done.stderr


def test_a_folder_that_another_process_writes_to_is_left_alone(shards_copy: Path) -> None:
    (shards_copy / "train" / SUMS_NAME).unlink()
    with (
        folder_lock(shards_copy / "train"),
        pytest.raises(ToolError, match="being written by another process"),
    ):
        mend(shards_copy / "train")


def test_what_a_killed_repair_left_is_removed(shards_copy: Path, archives: Any) -> None:
    (shards_copy / "train" / SHARD).unlink()
    left = shards_copy / "train" / f"{TEMPORARY_PREFIX}99-{SHARD}"
    left.write_bytes(b"half")
    assert not findings(mend(shards_copy / "train", archives.train))
    assert not left.exists()


def test_the_list_for_wids_is_not_made_of_damaged_shards(
    archives: Any, build: Build, sums: Sums, tmp_path: Path
) -> None:
    (written,) = build(archives.train, out=tmp_path, write={"for_readers": ("wids",)})
    before = sums(tmp_path)
    flip(written.folder / SHARD, 2000)
    (written.folder / WIDS_NAME).unlink()
    assert mend(written.folder).repaired == ()
    assert not findings(mend(written.folder, archives.train))
    assert sums(tmp_path) == before
