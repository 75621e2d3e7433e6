"""What `imagenet-prep shard` can be asked for: subsets, sizes, other readers, bad images."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.durable import RECORDS
from shards.errors import DamagedData, ToolError
from shards.index import INDEX_NAME, Index
from shards.manifest import Manifest
from shards.progress import Silent
from shards.tar import RECORD
from shards.verify import verify_shards

Build = Callable[..., Any]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Sums = Callable[[Path], dict[str, str]]


def whole(folder: Path) -> Manifest:
    """The manifest of a folder that passes its check."""
    assert verify_shards(folder, workers=1, progress=Silent()).findings == ()
    return Manifest.read(folder)


# --- which images -----------------------------------------------------------------------------


def test_a_subset_has_so_many_of_each_class_and_follows_the_seed(
    archives: Any, build: Build, tmp_path: Path
) -> None:
    drawn = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        (written,) = build(archives.train, out=tmp_path / name, per_class=5, seed=seed)
        index = Index.read(written.folder / INDEX_NAME)
        assert Counter(index["label"].tolist()) == {0: 5, 1: 5, 2: 5}
        assert whole(written.folder).plan["per_class"] == 5
        drawn[name] = set(index["key"].tolist())
    assert drawn["one"] == drawn["again"] != drawn["other"]


def test_a_subset_larger_than_a_class_is_all_of_it(
    archives: Any, build: Build, shards: Path, tmp_path: Path
) -> None:
    (written,) = build(archives.train, out=tmp_path, per_class=1000)
    assert written.manifest.content == Manifest.read(shards / "train").content


def test_images_of_classes_that_are_not_listed_are_left_out_and_counted(
    archives: Any, run: Run, tmp_path: Path
) -> None:
    with tarfile.open(archives.train) as outer:
        wnids = sorted(name.removesuffix(".tar") for name in outer.getnames())
    (tmp_path / "classes.txt").write_text(f"{wnids[2]}\n{wnids[0]}\n")
    done = run("imagenet-prep", "shard", archives.train, "--out", tmp_path / "out", "--classes",
               tmp_path / "classes.txt")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "17 images of classes that" in done.stderr
    manifest = whole(tmp_path / "out" / "train")
    assert [each.id for each in manifest.classes] == [wnids[2], wnids[0]]
    assert manifest.samples == 34


# --- how large --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40_000, 100_000, 10_000_000])
def test_shards_are_filled_up_to_their_size(
    size: int, archives: Any, build: Build, tmp_path: Path
) -> None:
    (written,) = build(archives.train, out=tmp_path, shard_size=size)
    manifest = whole(written.folder)
    assert all(shard.bytes <= size for shard in manifest.shards)
    assert sum(shard.samples for shard in manifest.shards) == 51
    # None but the last could have taken the first image of the next.
    largest = int(Index.read(written.folder / INDEX_NAME)["size"].max()) + 2048
    assert all(shard.bytes > size - largest - 2 * RECORD for shard in manifest.shards[:-1])
    assert "samples_per_shard" not in manifest.plan


def test_an_image_larger_than_a_shard_has_one_to_itself(
    archives: Any, build: Build, tmp_path: Path
) -> None:
    (written,) = build(archives.train, out=tmp_path, shard_size=RECORD)
    assert [shard.samples for shard in whole(written.folder).shards] == [1] * 51


# --- files for other readers ------------------------------------------------------------------


def test_the_index_for_dali_names_the_place_of_every_member(shards: Path) -> None:
    for path in sorted((shards / "train").glob("*.tar")):
        head, *lines = path.with_suffix(".idx").read_text("ascii").splitlines()
        with tarfile.open(path) as archive:
            members = list(archive)
        assert head == f"v1.2 {len(members) // 2}"
        assert lines == [
            f"{image.name.split('.')[1]} {image.offset_data} {image.size} {image.name} "
            f"cls {label.offset_data} {label.size} {label.name}"
            for image, label in zip(members[::2], members[1::2], strict=True)
        ]


def test_timm_s_list_has_the_shards_of_both_splits(shards: Path) -> None:
    splits = json.loads((shards / "_info.json").read_text())["splits"]
    assert list(splits) == ["train", "val"]
    for name, told in splits.items():
        manifest = Manifest.read(shards / name)
        assert told["num_samples"] == sum(told["shard_lengths"]) == manifest.samples
        for filename, length in zip(told["filenames"], told["shard_lengths"], strict=True):
            with tarfile.open(shards / filename) as archive:
                assert len(archive.getnames()) == 2 * length


def test_the_list_for_wids_has_the_md5_of_every_shard(
    archives: Any, build: Build, tmp_path: Path
) -> None:
    (written,) = build(archives.train, out=tmp_path, write={"for_readers": ("wids",)})
    listed = json.loads((written.folder / "shardindex.json").read_text())["shardlist"]
    for each in listed:
        data = (written.folder / each["url"]).read_bytes()
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert (each["filesize"], each["md5sum"]) == (len(data), digest)
    assert sum(each["nsamples"] for each in listed) == 51
    assert not list(tmp_path.rglob("*.idx"))
    assert not (tmp_path / "_info.json").exists()


def test_files_for_other_readers_can_be_added_later(
    archives: Any, build: Build, sums: Sums, shards: Path, tmp_path: Path
) -> None:
    build(archives.train.parent, out=tmp_path, write={"for_readers": ()})
    assert not list(tmp_path.rglob("*.idx"))
    for written in build(archives.train.parent, out=tmp_path):
        assert written.written == 0
    assert sums(tmp_path) == sums(shards)


def test_readers_that_are_not_known_are_refused(archives: Any, run: Run, tmp_path: Path) -> None:
    done = run("imagenet-prep", "shard", archives.train, "--out", tmp_path, "--for", "timm,ffcv")
    assert done.returncode == 2
    assert "not 'ffcv'" in done.stderr


# --- bad images -------------------------------------------------------------------------------

BAD = {
    "n01440764_7.JPEG": b"<html>404</html>",
    "n01440764_8.JPEG": b"",
    "n01440764_9.JPEG": b"\xff\xd8",
}


@pytest.fixture
def with_bad(
    jpeg: Callable[[int], bytes], write_train_tar: Callable[..., Path], tmp_path: Path
) -> Path:
    """A training archive of 20 images in two classes, and three that are none."""
    classes = {
        wnid: {f"{wnid}_{n}.JPEG": jpeg(n) for n in range(10, 20)}
        for wnid in ("n01440764", "n01443537")
    }
    classes["n01440764"] |= BAD
    return write_train_tar(tmp_path / "train.tar", classes)


def test_a_bad_image_ends_the_run_by_name(with_bad: Path, build: Build, tmp_path: Path) -> None:
    with pytest.raises(DamagedData, match=r"n01440764_\d\.JPEG.*--on-bad skip"):
        build(with_bad, out=tmp_path / "out")


def test_bad_images_are_left_out_and_listed_on_request(
    with_bad: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    skip = {"on_bad": "skip"}
    (one,) = build(with_bad, out=tmp_path / "one", samples_per_shard=4, write=skip)
    build(with_bad, out=tmp_path / "two", samples_per_shard=4, write=skip, workers=1)
    assert sums(tmp_path / "one") == sums(tmp_path / "two")
    manifest = whole(one.folder)
    assert manifest.samples == 20
    assert {each.name: each.reason for each in manifest.skipped} == {
        "n01440764_7.JPEG": "it is neither a JPEG nor a PNG (it begins with b'<html>40')",
        "n01440764_8.JPEG": "it is empty",
        "n01440764_9.JPEG": "it ends before its JPEG frame header: it is truncated",
    }
    index = Index.read(one.folder / INDEX_NAME)
    assert sorted(index["rank"].tolist()) == list(range(20))
    assert (index["key"][index.canonical_positions()] == sorted(index["key"])).all()


def test_an_archive_without_one_readable_image_makes_no_shards(
    write_train_tar: Callable[..., Path], build: Build, tmp_path: Path
) -> None:
    path = write_train_tar(tmp_path / "train.tar", {"n01440764": BAD})
    with pytest.raises(DamagedData, match="none of the 3 images is readable"):
        build(path, out=tmp_path / "out", write={"on_bad": "skip"})
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()


# --- sources and resuming ---------------------------------------------------------------------


def test_compressed_archives_give_the_same_shards(
    archives: Any, build: Build, shards: Path, tmp_path: Path
) -> None:
    """Hugging Face's form: two compressed flat archives whose names carry the class."""
    images = []
    with tarfile.open(archives.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                for image in inner:
                    name = image.name.replace(".", f"_{member.name[:-4]}.")
                    images.append((name, inner.extractfile(image).read()))
    for number, part in enumerate((images[::2], images[1::2])):
        with tarfile.open(tmp_path / f"train_images_{number}.tar.gz", "w:gz") as archive:
            for name, data in part:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    (written,) = build(tmp_path, out=tmp_path / "out")
    for shard in written.manifest.shards:
        assert (written.folder / shard.name).read_bytes() == (
            shards / "train" / shard.name
        ).read_bytes()
    assert not list((tmp_path / "out" / RECORDS).glob("inflated*"))


def test_a_full_check_finds_what_a_fast_one_cannot(
    archives: Any, shards_copy: Path, build: Build, sums: Sums, shards: Path
) -> None:
    path = shards_copy / "train" / "imagenet-train-000001.tar"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    (train, _) = build(archives.train.parent, out=shards_copy)
    assert train.written == 0
    (train, _) = build(archives.train.parent, out=shards_copy, write={"check": "full"})
    assert train.written == 1
    assert sums(shards_copy) == sums(shards)


def test_an_archive_that_changes_while_it_is_read_is_refused(
    archives: Any, build: Build, tmp_path: Path
) -> None:
    path = tmp_path / "train.tar"
    path.write_bytes(archives.train.read_bytes())

    class Writes(Silent):
        def advance(self, amount: int) -> None:  # noqa: ARG002
            path.touch()

    with pytest.raises(DamagedData, match=f"{path} changed while it was read"):
        build(path, out=tmp_path / "out", progress=Writes())
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    archives: Any, run: Run, shards: Path, tmp_path: Path
) -> None:
    done = run("imagenet-prep", "shard", archives.train.parent, "--out", tmp_path / "out",
               "--samples-per-shard", 16, "--dry-run", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for told in json.loads(done.stdout)["splits"]:
        manifest = Manifest.read(shards / told["split"])
        assert told["fingerprint"] == manifest.plan["fingerprint"]
        assert told["bytes"] == sum(shard.bytes for shard in manifest.shards)
        assert (told["samples"], told["shards"]) == (manifest.samples, len(manifest.shards))
        assert told["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_a_run_with_other_options_is_refused(
    archives: Any, shards_copy: Path, build: Build
) -> None:
    for options in ({"seed": 1}, {"per_class": 3}, {"shard_size": 50_000}):
        with pytest.raises(ToolError, match="holds shards of another plan"):
            build(archives.train, out=shards_copy, **options)
