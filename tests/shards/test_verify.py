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

from shards.errors import DamagedData, ToolError
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest
from shards.plan import canonical_json
from shards.progress import Silent
from shards.verify import Report, find_splits, index_findings, verify_shards

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
    assert (report.split, report.samples, report.files) == ("train", 51, 5)
    files = [
        path for path in (shards / "train").iterdir() if path.suffix in {".tar", ".safetensors"}
    ]
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
def test_a_flip_in_the_manifest_is_refused(place: int, shards_copy: Path) -> None:
    path = shards_copy / "train" / MANIFEST_NAME
    flip(path, place)
    with pytest.raises(DamagedData, match=str(path)):
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
        (lambda body: body["classes"].pop(), "outside the 2 classes"),
        (lambda body: body.update(content="0" * 64), "content"),
    ],
)
def test_a_forged_manifest_contradicts_the_index(
    change: Callable[[dict[str, Any]], object], reason: str, shards_copy: Path
) -> None:
    edit_manifest(shards_copy / "train", change)
    assert reason in findings(shards_copy / "train")


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


def test_a_key_that_is_no_text_is_still_an_answer(shards: Path) -> None:
    index = Index.read(shards / "train" / INDEX_NAME)
    keys, offsets = index["key"].copy(), index["offset"].copy()
    keys[:], offsets[:] = b"\xff\xfe", np.uint64(2**63)
    wrong = replace(index, columns=index.columns | {"key": keys, "offset": offsets})
    assert index_findings(wrong, Manifest.read(shards / "train"))


# --- which folders ----------------------------------------------------------------------------


def test_a_folder_of_splits_is_all_of_them(shards: Path) -> None:
    assert find_splits(shards) == [shards / "train", shards / "val"]
    assert find_splits(shards / "val") == [shards / "val"]


def test_an_unfinished_split_beside_a_whole_one_is_no_success(shards_copy: Path) -> None:
    """What a build that was killed in its second split leaves."""
    (shards_copy / "val" / MANIFEST_NAME).unlink()

    def verify_all() -> list[Report]:
        folders = find_splits(shards_copy)
        return [verify_shards(folder, workers=1, progress=Silent()) for folder in folders]

    with pytest.raises(ToolError, match=f"{shards_copy}/val"):
        verify_all()


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
