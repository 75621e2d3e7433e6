"""Verification: what is whole passes, and every kind of damage is found and named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prep.indexing import IndexOptions, index_tars
from shards.agreement import index_findings, inner_findings
from shards.durable import RECORDS
from shards.errors import DamagedData, ToolError
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest
from shards.plan import canonical_json
from shards.progress import Silent
from shards.verify import find_splits, verify_shards

SHARD = "imagenet-train-000002.tar"


def findings(folder: Path) -> str:
    report = verify_shards(folder, workers=2, progress=Silent())
    return "\n".join(report.findings)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_what_is_whole_passes(shards: Path) -> None:
    report = verify_shards(shards / "train", workers=2, progress=Silent())
    assert report.findings == ()
    assert (report.split, report.samples, report.files) == ("train", 51, 9)
    unlisted = {MANIFEST_NAME, SUMS_NAME, RECORDS}
    files = [path for path in (shards / "train").iterdir() if path.name not in unlisted]
    assert report.bytes == sum(path.stat().st_size for path in files)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flip in a tar header": (SHARD, lambda path: flip(path, 3)),
    "a flip in an image": (SHARD, lambda path: flip(path, 2000)),
    "a flip in the padding at the end": (SHARD, lambda path: flip(path, -1)),
    "a cut shard": (SHARD, lambda path: os.truncate(path, path.stat().st_size - 512)),
    "a longer shard": (SHARD, lambda path: os.truncate(path, path.stat().st_size + 1)),
    "an empty shard": (SHARD, lambda path: os.truncate(path, 0)),
    "a missing shard": (SHARD, lambda path: path.unlink()),
    "a folder for a shard": (SHARD, lambda path: (path.unlink(), path.mkdir())),
    "another shard in its place": (
        SHARD,
        lambda path: shutil.copy(path.with_name("imagenet-train-000001.tar"), path),
    ),
    "a flip in the index's header": (INDEX_NAME, lambda path: flip(path, 100)),
    "a flip in the index's columns": (INDEX_NAME, lambda path: flip(path, -40)),
    "a cut index": (INDEX_NAME, lambda path: os.truncate(path, 500)),
    "a missing index": (INDEX_NAME, lambda path: path.unlink()),
    "a missing list of sums": (SUMS_NAME, lambda path: path.unlink()),
    "a flip in the sums": (SUMS_NAME, lambda path: flip(path, 10)),
    "an extra digit in the sums": (SUMS_NAME, lambda path: path.write_text("0" + path.read_text())),
    "an extra line in the sums": (
        SUMS_NAME,
        lambda path: path.write_text(path.read_text() + "0" * 64 + "  other\n"),
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_and_named(case: str, shards_copy: Path) -> None:
    name, damage = DAMAGE[case]
    path = shards_copy / "train" / name
    damage(path)
    found = findings(shards_copy / "train")
    assert str(path) in found
    assert found.count(SHARD) <= 1
    assert not findings(shards_copy / "val")


@pytest.mark.parametrize("place", [0, 30, 500, -10])
def test_a_flip_in_the_manifest_is_found_and_all_else_is_checked(
    place: int, shards_copy: Path
) -> None:
    folder = shards_copy / "train"
    flip(folder / MANIFEST_NAME, place)
    flip(folder / SHARD, 2000)
    report = verify_shards(folder, workers=1, progress=Silent())
    assert report.damaged == (SHARD, MANIFEST_NAME)
    assert str(folder / MANIFEST_NAME) in report.findings[0]


def test_a_manifest_whose_text_was_changed_and_its_content_not_is_found(shards_copy: Path) -> None:
    path = shards_copy / "train" / MANIFEST_NAME
    path.write_text(path.read_text().replace("\n ", "\n  ", 1))
    assert "not written as it was" in findings(shards_copy / "train")


def test_a_manifest_of_another_version_is_not_taken_for_a_damaged_one(shards_copy: Path) -> None:
    path = shards_copy / "train" / MANIFEST_NAME
    body = json.loads(path.read_bytes()) | {"version": 2}
    del body["sha256"]
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    path.write_text(json.dumps(body))
    with pytest.raises(DamagedData, match="version 2"):
        verify_shards(shards_copy / "train", workers=1, progress=Silent())


def test_all_damage_is_reported_at_once(shards_copy: Path) -> None:
    folder = shards_copy / "train"
    (folder / "imagenet-train-000000.tar").unlink()
    flip(folder / SHARD, 2000)
    flip(folder / SUMS_NAME, 0)
    assert len(verify_shards(folder, workers=2, progress=Silent()).findings) == 3


def test_the_index_of_another_build_is_found(
    shards_copy: Path, archives: Any, build: Callable[..., Any], tmp_path: Path
) -> None:
    build(archives.train, out=tmp_path / "other", seed=5)
    shutil.copy(tmp_path / "other" / "train" / INDEX_NAME, shards_copy / "train" / INDEX_NAME)
    assert "another plan" in findings(shards_copy / "train")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest by hand as a forger would: digest and sums made to fit."""
    path = folder / MANIFEST_NAME
    body = json.loads(path.read_bytes())
    change(body)
    del body["sha256"]
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    path.write_text(json.dumps(body, indent=1) + "\n")
    (folder / SUMS_NAME).write_bytes(Manifest.read(folder).sums())


def test_a_forged_manifest_cannot_name_files_outside(shards_copy: Path) -> None:
    with pytest.raises(DamagedData, match="could lead out of the folder"):
        edit_manifest(
            shards_copy / "train", lambda body: body["shards"][0].update(name="../val/x.tar")
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body.update(samples=50), "51 samples, the manifest 50"),
        (lambda body: body["shards"].pop(), "lists other shards"),
        (lambda body: body["plan"].update(seed=1), "another plan"),
        (lambda body: body["classes"].pop(), "other classes"),
        (lambda body: body["classes"][0].update(name="x"), "other classes"),
        (lambda body: body.update(content="0" * 64), "content"),
        (lambda body: body.update(kept=3), "other kept images"),
        (lambda body: body["shards"][0].update(samples=15), "other bytes or samples"),
        (lambda body: body["shards"][0].update(bytes=1), "outside its shard"),
        (lambda body: body["index"].update(samples=50), "other bytes or samples"),
        (lambda body: body["shards"][2].update(sha256="0" * 64), "is as the index says"),
    ],
)
def test_a_forged_manifest_contradicts_the_index(
    change: Callable[[dict[str, Any]], object], reason: str, shards_copy: Path
) -> None:
    edit_manifest(shards_copy / "train", change)
    report = verify_shards(shards_copy / "train", workers=2, progress=Silent())
    assert reason in report.findings[0]
    assert MANIFEST_NAME in report.findings[0]
    assert MANIFEST_NAME in report.damaged


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("shard", 4, "a shard that does not exist"),
        ("offset", 2**64 - 1, "outside its shard"),
        ("offset", 2**40, "outside its shard"),
        ("size", 2**32 - 1, "outside its shard"),
        ("label", 3, "outside the 3 classes"),
        ("label", -2, "outside the 3 classes"),
        ("rank", 5, "rank"),
        ("rank", 2**31, "rank"),
        ("format", 0, "format"),
        ("width", 0, "pixels"),
        ("key", b"\xff\xfe", "key"),
        ("size", 2**30 + 1, "more than"),
    ],
)
def test_an_index_that_lies_is_found_whatever_its_digest(
    column: str, value: object, reason: str, shards: Path
) -> None:
    index = Index.read(shards / "train" / INDEX_NAME)
    values = index[column].copy()
    values[7] = value
    wrong = replace(index, columns=index.columns | {column: values})
    assert reason in "\n".join(index_findings(wrong, Manifest.read(shards / "train")))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("offset", 512, "cannot lie at byte 512"),
        ("size", 1, "cannot lie"),
        ("label", 1, "fingerprint"),
        ("label", -1, "cannot lie"),
        ("shard", 0, "begin where its plan says"),
        ("shard", 3, "not in the order of the shards"),
        ("rank", 0, "ranks"),
        ("key", b"n01440764_0", "order of its keys"),
        ("key", b"a.b", "a dot"),
    ],
)
def test_an_index_that_contradicts_its_plan_is_found(
    column: str, value: object, reason: str, shards: Path
) -> None:
    index = Index.read(shards / "train" / INDEX_NAME)
    assert inner_findings(index) == []
    values = index[column].copy()
    row = int(np.flatnonzero(index["label"] == 0)[3]) if column == "label" else 20
    values[row] = value
    wrong = replace(index, columns=index.columns | {column: values})
    assert reason in "\n".join(inner_findings(wrong))


@pytest.mark.parametrize(
    "change",
    [
        {"split": "val"},
        {"files": ["../x.tar"] * 4},
        {"files": ["x.tar"] * 4},
        {"files": 5},
        {"classes": [1]},
        {"plan": None},
        {"plan": {}},
        {"plan": {"seed": "x", "jpeg": "keep"}},
        {"plan": {"seed": 0, "jpeg": "keep", "samples_per_shard": 0}},
        {"plan": {"seed": 0, "jpeg": "keep", "samples_per_shard": 10**30}},
        {"skipped": [{}]},
        {"kept": "x"},
    ],
)
def test_an_index_with_a_header_that_lies_is_an_answer(
    change: dict[str, object], shards: Path
) -> None:
    index = Index.read(shards / "train" / INDEX_NAME)
    assert inner_findings(replace(index, header=index.header | change))


def test_a_key_that_is_no_text_is_still_an_answer(shards: Path) -> None:
    index = Index.read(shards / "train" / INDEX_NAME)
    keys, offsets = index["key"].copy(), index["offset"].copy()
    keys[:], offsets[:] = b"\xff\xfe", np.uint64(2**63)
    wrong = replace(index, columns=index.columns | {"key": keys, "offset": offsets})
    assert index_findings(wrong, Manifest.read(shards / "train"))


# --- the damaged sample is named --------------------------------------------------------------


def place_of(folder: Path, row: int) -> tuple[str, str, int, int]:
    """Shard, key, offset and size of a row of the index."""
    index = Index.read(folder / INDEX_NAME)
    shard = index.header["files"][index["shard"][row]]
    return shard, index["key"][row].decode(), int(index["offset"][row]), int(index["size"][row])


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (lambda offset, _: offset - 500, "the tar header of its image is altered"),
        (lambda offset, _: offset, "its image ({size} bytes) is altered"),
        (lambda offset, size: offset + size - 1, "its image ({size} bytes) is altered"),
        (lambda offset, size: offset + size, "the padding after its image is altered"),
        (lambda offset, size: offset + size + -size % 512 + 3, "the tar header of its label"),
        (lambda offset, size: offset + size + -size % 512 + 512, "its label is altered"),
        (lambda offset, size: offset + size + -size % 512 + 1000, "its label is altered"),
    ],
)
def test_the_damaged_sample_is_named_with_its_place(
    where: Callable[[int, int], int], what: str, shards_copy: Path
) -> None:
    folder = shards_copy / "train"
    shard, key, offset, size = place_of(folder, 21)
    flip(folder / shard, where(offset, size))
    report = verify_shards(folder, workers=2, progress=Silent())
    (finding,), (damage,) = report.findings, report.damage
    place = offset if "its image (" in what else where(offset, size)
    assert (damage.file, damage.sample, damage.offset) == (shard, key, place)
    assert f"{folder / shard} has SHA-256 " in finding
    assert f"sample {key} at byte {place}: {what.format(size=size)}" in finding


@pytest.mark.parametrize("row", [0, 1, 9, 10, 11, 28, 29])
def test_every_sample_of_a_shard_that_is_read_in_parts_is_looked_at(
    row: int, jpeg: Callable[[int], bytes], build: Callable[..., Any],
    write_folders: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    """Three megabytes, read a megabyte at a time; one image alone has more."""
    images = {f"{number:02d}.jpg": jpeg(number) + bytes(100_000) for number in range(30)}
    images["17.jpg"] += bytes(2_000_000)
    build(write_folders(tmp_path / "train", {"cat": images}), out=tmp_path / "out",
          samples_per_shard=30)  # fmt: skip
    folder = tmp_path / "out" / "train"
    assert not verify_shards(folder, deep=True, workers=1, progress=Silent()).findings
    shard, key, offset, size = place_of(folder, row)
    flip(folder / shard, offset + size - 1)
    flip(folder / shard, offset - 1)
    damage = verify_shards(folder, workers=1, progress=Silent()).damage
    assert [(each.sample, each.offset) for each in damage] == [(key, offset - 1), (key, offset)]


def test_a_cut_shard_says_which_samples_are_lost(shards_copy: Path) -> None:
    folder = shards_copy / "train"
    shard, key, offset, _ = place_of(folder, 12)  # of 16 in the first shard
    os.truncate(folder / shard, offset + 10)
    (finding,) = verify_shards(folder, workers=2, progress=Silent()).findings
    assert f"sample {key} at byte {offset + 10}" in finding
    assert "4 images from this on are lost" in finding


def test_many_damaged_samples_are_counted(shards_copy: Path) -> None:
    folder = shards_copy / "train"
    for row in range(5):
        shard, _, offset, _ = place_of(folder, row)
        flip(folder / shard, offset)
    report = verify_shards(folder, workers=2, progress=Silent())
    assert report.findings[0].endswith("and 2 more places")
    assert len(report.damage) == 5


def test_a_shard_in_the_place_of_another_is_recognised(shards_copy: Path) -> None:
    folder = shards_copy / "train"
    shutil.copy(folder / "imagenet-train-000001.tar", folder / SHARD)
    assert findings(folder).endswith(": it is imagenet-train-000001.tar")


def test_an_index_and_shards_that_disagree_are_found_whatever_the_digests(
    shards_copy: Path,
) -> None:
    """A forger's work: a label is changed in its shard and every SHA-256 made to fit."""
    folder = shards_copy / "train"
    shard, key, offset, size = place_of(folder, 3)
    flip(folder / shard, offset + size + -size % 512 + 512)
    sha256 = hashlib.sha256((folder / shard).read_bytes()).hexdigest()
    edit_manifest(folder, lambda body: body["shards"][0].update(sha256=sha256))
    (finding,) = verify_shards(folder, workers=1, progress=Silent()).findings
    assert f"{folder / shard} is not what the index says: sample {key}" in finding


def test_deep_finds_an_image_that_was_changed_with_every_sha256(shards_copy: Path) -> None:
    folder = shards_copy / "train"
    shard, key, offset, _ = place_of(folder, 3)
    flip(folder / shard, offset + 300)
    sha256 = hashlib.sha256((folder / shard).read_bytes()).hexdigest()
    edit_manifest(folder, lambda body: body["shards"][0].update(sha256=sha256))
    assert not findings(folder)
    (finding,) = verify_shards(folder, deep=True, workers=1, progress=Silent()).findings
    assert f"sample {key} at byte {offset}: its image" in finding


def test_decoding_leaves_damaged_shards_out_and_looks_at_all_others(
    jpeg: Callable[[int], bytes], build: Callable[..., Any], write_folders: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    images = {f"{number}.jpg": jpeg(number) for number in range(6)}
    images["0.jpg"], images["5.jpg"] = images["0.jpg"][:-80], images["5.jpg"][:-80]
    build(write_folders(tmp_path / "train", {"cat": images}), out=tmp_path / "out",
          samples_per_shard=1)  # fmt: skip
    folder = tmp_path / "out" / "train"
    assert not findings(folder)
    report = verify_shards(folder, decode=True, workers=2, progress=Silent())
    assert len(report.findings) == 2
    damage = report.damage[0]
    assert (
        f"{folder / damage.file}: sample {damage.sample} at byte 512: it is trunc"
        in (report.findings[0])
    )
    flip(folder / damage.file, 3)
    report = verify_shards(folder, decode=True, workers=2, progress=Silent())
    assert ["truncated" in finding for finding in report.findings] == [False, True]


# --- shards that others made ------------------------------------------------------------------


@pytest.fixture
def foreign(jpeg: Callable[[int], bytes], write_tar: Callable[..., Path], tmp_path: Path) -> Path:
    """An indexed split of two shards as tarfile writes them."""
    for tar in range(2):
        members = {}
        for number in range(4):
            members[f"{tar}{number}.jpg"] = jpeg(4 * tar + number)
            members[f"{tar}{number}.cls"] = b"0"
        write_tar(tmp_path / f"train-{tar:06d}.tar", members)
    index_tars([tmp_path], tmp_path / "out", IndexOptions(), workers=1, progress=Silent())
    return tmp_path / "out" / "train"


def test_shards_of_others_are_checked_too(foreign: Path) -> None:
    report = verify_shards(foreign, deep=True, decode=True, workers=2, progress=Silent())
    assert (report.findings, report.samples) == ((), 8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tar: tar.unlink(), "is missing: it is a link to "),
        (lambda tar: os.truncate(tar, tar.stat().st_size - 512), " bytes instead of "),
        (lambda tar: os.truncate(tar, tar.stat().st_size + 512), " bytes instead of "),
    ],
)
def test_a_linked_tar_that_is_gone_or_of_another_length_is_no_altered_manifest(
    change: Callable[[Path], object], reason: str, foreign: Path
) -> None:
    link = sorted(foreign.glob("*.tar"))[1]
    change(link.readlink())
    report = verify_shards(foreign, workers=2, progress=Silent())
    (finding,) = report.findings
    assert finding.startswith(f"{link} ")
    assert reason in finding
    assert report.damaged == (link.name,)


def test_a_tar_that_is_gone_and_a_manifest_that_was_altered_are_told_apart(foreign: Path) -> None:
    flip(foreign / MANIFEST_NAME, 200)
    link = min(foreign.glob("*.tar"))
    link.readlink().unlink()
    report = verify_shards(foreign, workers=2, progress=Silent())
    assert [finding.partition(" ")[0] for finding in report.findings] == [
        str(foreign / MANIFEST_NAME), str(link),
    ]  # fmt: skip


@pytest.mark.parametrize("change", [-512, 512])
def test_a_forged_manifest_of_a_shard_of_others_is_found(change: int, foreign: Path) -> None:
    size = (foreign / "train-000001.tar").stat().st_size
    edit_manifest(foreign, lambda body: body["shards"][1].update(bytes=size + change))
    report = verify_shards(foreign, workers=2, progress=Silent())
    said = f"{foreign / MANIFEST_NAME} was altered: it says {size + change} bytes of "
    assert report.findings[0].startswith(
        f"{said}train-000001.tar, which has {size} and the SHA-256"
    )
    assert report.damaged[0] == MANIFEST_NAME


def test_a_damaged_sample_in_a_shard_of_others_is_named(foreign: Path) -> None:
    shard, key, offset, _ = place_of(foreign, 5)
    flip(foreign / shard, offset + 100)
    (finding,) = verify_shards(foreign, workers=2, progress=Silent()).findings
    assert f"{foreign / shard} has SHA-256 " in finding
    assert f"sample {key} at byte {offset}: its image" in finding


def test_damage_between_the_images_of_a_shard_of_others_is_found(foreign: Path) -> None:
    shard, _, offset, _ = place_of(foreign, 5)
    flip(foreign / shard, offset - 300)
    (finding,) = verify_shards(foreign, workers=2, progress=Silent()).findings
    assert f"{foreign / shard} has SHA-256 " in finding


# --- which folders ----------------------------------------------------------------------------


def test_a_folder_of_splits_is_all_of_them(shards: Path) -> None:
    assert find_splits(shards) == [shards / "train", shards / "val"]
    assert find_splits(shards / "val") == [shards / "val"]


def test_an_unfinished_split_is_no_success(shards_copy: Path) -> None:
    """What a build that was killed in its second split leaves."""
    (shards_copy / "val" / MANIFEST_NAME).unlink()
    (shards_copy / "val" / RECORDS / "shards").mkdir()
    with pytest.raises(ToolError, match=f"{shards_copy}/val is unfinished"):
        verify_shards(shards_copy / "val", workers=1, progress=Silent())


@pytest.mark.parametrize("command", ["shard", "index"])
def test_a_split_that_was_begun_is_named_with_what_completes_it(
    command: str, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    (folder / RECORDS / {"shard": "shards"}.get(command, command)).mkdir(parents=True)
    (folder / INDEX_NAME).touch()  # of a run that was killed before its manifest
    said = f"{folder} is unfinished; run the `imagenet-prep {command}` command that began it again"
    for place in (tmp_path, folder):
        with pytest.raises(ToolError) as raised:
            find_splits(place)
        assert str(raised.value) == said
    with pytest.raises(ToolError) as raised:
        verify_shards(folder, workers=1, progress=Silent())
    assert str(raised.value) == said


def test_splits_that_changed_places_are_found(shards_copy: Path) -> None:
    (shards_copy / "train").rename(shards_copy / "other")
    (shards_copy / "val").rename(shards_copy / "train")
    (shards_copy / "other").rename(shards_copy / "val")
    for name, split in (("train", "val"), ("val", "train")):
        assert f"{shards_copy / name} holds the split {split!r}" in findings(shards_copy / name)


def test_a_shard_that_nobody_lists_is_found(shards_copy: Path) -> None:
    stray = shards_copy / "train" / "imagenet-train-000004.tar"
    shutil.copy(shards_copy / "train" / SHARD, stray)
    assert f"{stray} is not in the manifest" in findings(shards_copy / "train")


def test_what_is_no_folder_of_shards_at_all_is_an_error(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ToolError, match=str(place)):
            verify_shards(place, workers=1, progress=Silent())


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="holds no shards"):
        find_splits(tmp_path)
    with pytest.raises(ToolError, match="does not exist"):
        find_splits(tmp_path / "absent")


def test_a_manifest_may_not_claim_a_digest_for_what_is_not_there(tmp_path: Path) -> None:
    absent = File(name="imagenet-train-000000.tar", bytes=0, sha256="0" * 64, samples=0)
    index = replace(absent, name=INDEX_NAME)
    manifest = Manifest(
        split="train", samples=0, classes=(), plan={}, content="", index=index, shards=(absent,)
    )
    (tmp_path / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    found = findings(tmp_path)
    assert f"{absent.name} is missing" in found
    assert f"{INDEX_NAME} is missing" in found
    assert SUMS_NAME in found
