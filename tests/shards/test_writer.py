"""Writing shards: pinned bytes, whoever writes them, and nothing half done that looks finished."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from shards.dataset import Dataset
from shards.durable import RECORDS, TEMPORARY_PREFIX, folder_lock
from shards.errors import DamagedData, ToolError
from shards.image import Format
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, Manifest
from shards.order import Stream, permutation
from shards.plan import Plan, PlanOptions
from shards.progress import Silent
from shards.sample import UNLABELLED, Class, FoundImage, Layout, Samples
from shards.verify import verify_shards
from shards.writer import WriteOptions, Written, write_shards

Build = Callable[..., list[Written]]
Sums = Callable[[Path], dict[str, str]]

# What the classes of the fixture `folders` give with four samples a shard and the seed 0.
GOLDEN_FILES = {
    "SHA256SUMS": "e51f73f93c6cb6b69d3d3317fcf7bae21b4f89ec182fd9fed75c606f144daf14",
    "imagenet-train-000000.idx": "f49258a35c9ad5d78439f9e0e67b3badd170f7d7a9d97c5db942da0914a80d7e",
    "imagenet-train-000000.tar": "ebdb6602ba4fb694c6dc23d3a4125b40ed435b9a638aeb8a220e5e22849dfa0a",
    "imagenet-train-000001.idx": "03f6e0088df656c09aa9d98cc9f612b7d47aab320e96c7dcc9b08dcedbaacdf0",
    "imagenet-train-000001.tar": "9fb13e101d7d236fede35495bc518d74e8298b92bc0491bdd081e739b4d73f5b",
    "imagenet-train-000002.idx": "01e7f6d83bae4cc9f8dc67df9b2c1135a5cbe886f1487df70457cab9f6ad5b2d",
    "imagenet-train-000002.tar": "a18d9aa952b68ffdd64f66e9339deaadfd323cd9fa2c946fabd66c5ee8c53e6c",
    "index.safetensors": "3ff69dd968e97eb6658426512c65bca9c522851c81b70a8a7d6030684d251939",
    "manifest.json": "4f899e9a005d5de1e5595a9ab8271585eee0d99c7167db342f56734356567dc6",
}
GOLDEN = {f"train/{name}": digest for name, digest in GOLDEN_FILES.items()}
GOLDEN["_info.json"] = "84743a3738f08ba6e275edbd21642ac52bb761617f6ff049e5f474d07c3a3eb8"
GOLDEN_FINGERPRINT = "673772675ad00aded6274e1f0a53fc65b065fe4a6342a5c38bb39faf2be56177"
GOLDEN_CONTENT = "edf8dfb988b6ba10a4661d6473d43565333718f5c71328db824ddd1c4be943d7"


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    jpeg: Callable[[int], bytes],
    picture: Callable[[str], bytes],
    write_folders: Callable[..., Path],
) -> Path:
    """Two classes with names of ILSVRC2012's, others, and a PNG in JPEG's clothing."""
    classes = {
        "n01440764": {f"n01440764_{number}.JPEG": jpeg(number) for number in (3, 10, 200, 21)},
        "n02105855": {
            "n02105855_2933.JPEG": picture("picture.png"),
            "gr\u00fc\u00df.jpg": picture("cmyk.jpg"),
            "n02105855_1.JPEG": picture("progressive.jpg"),
            "a b.jpeg": picture("grey.jpg"),
            "x.JPG": jpeg(7),
        },
    }
    return write_folders(tmp_path_factory.mktemp("folders") / "train", classes)


def test_the_bytes_of_a_build_are_pinned(
    folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    (written,) = build(folders, out=tmp_path, samples_per_shard=4)
    assert sums(tmp_path) == GOLDEN
    assert written.manifest.plan["fingerprint"] == GOLDEN_FINGERPRINT
    assert written.manifest.content == GOLDEN_CONTENT


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_bytes_do_not_depend_on_the_workers(
    workers: int, archives: Any, shards: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    build(archives.train.parent, out=tmp_path, workers=workers)
    assert sums(tmp_path) == sums(shards)


def test_bytes_do_not_depend_on_where_the_images_lie(
    folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(folders, tmp_path / "elsewhere" / "train"))
    build(moved, out=tmp_path / "out", samples_per_shard=4)
    assert sums(tmp_path / "out") == GOLDEN


def test_the_content_has_one_digest_in_any_layout(shards: Path, archives: Any, build: Build,
                                                  tmp_path: Path) -> None:  # fmt: skip
    one = Manifest.read(shards / "train")
    (other,) = build(archives.train, out=tmp_path, seed=9, samples_per_shard=5)
    assert other.manifest.content == one.content
    assert other.manifest.plan["fingerprint"] != one.plan["fingerprint"]


def members(folder: Path) -> dict[str, tuple[str, bytes]]:
    """{member name: (shard, bytes)} by tarfile."""
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                assert member.name not in found
                found[member.name] = (shard.name, archive.extractfile(member).read())
    return found


def test_the_content_digest_follows_from_the_tars_alone(
    folders: Path, build: Build, tmp_path: Path
) -> None:
    (written,) = build(folders, out=tmp_path, samples_per_shard=4)
    found = members(tmp_path / "train")
    images = {name[:-4]: data for name, (_, data) in found.items() if not name.endswith(".cls")}
    keys = sorted(images)
    digest = hashlib.sha256("".join(f"{key}\n" for key in keys).encode())
    for key in keys:
        digest.update(int(found[f"{key}.cls"][1]).to_bytes(4, "little"))
    for key in keys:
        digest.update(len(images[key]).to_bytes(8, "little"))
    for key in keys:
        digest.update(xxhash.xxh3_64_intdigest(images[key]).to_bytes(8, "little"))
    assert written.manifest.content == digest.hexdigest()


def test_the_tars_hold_every_image_and_its_label(
    folders: Path, build: Build, tmp_path: Path
) -> None:
    build(folders, out=tmp_path, samples_per_shard=4)
    found = {name: data for name, (_, data) in members(tmp_path / "train").items()}
    read = {
        "n01440764_3.jpg": "n01440764/n01440764_3.JPEG",
        "n01440764_10.jpg": "n01440764/n01440764_10.JPEG",
        "n01440764_200.jpg": "n01440764/n01440764_200.JPEG",
        "n01440764_21.jpg": "n01440764/n01440764_21.JPEG",
        "n02105855_2933.png": "n02105855/n02105855_2933.JPEG",
        "n02105855_1.jpg": "n02105855/n02105855_1.JPEG",
        "00001_0000000.jpg": "n02105855/a b.jpeg",
        "00001_0000001.jpg": "n02105855/gr\u00fc\u00df.jpg",
        "00001_0000004.jpg": "n02105855/x.JPG",
    }
    expected = {name: (folders / path).read_bytes() for name, path in read.items()}
    labels = {
        f"{name[:-4]}.cls": b"0" if path.startswith("n01440764") else b"1"
        for name, path in read.items()
    }
    assert found == expected | labels


def test_the_index_says_where_everything_lies(folders: Path, build: Build, tmp_path: Path) -> None:
    build(folders, out=tmp_path, samples_per_shard=4)
    folder = tmp_path / "train"
    index = Index.read(folder / INDEX_NAME)
    found = members(folder)
    for row in range(len(index)):
        key = index["key"][row].decode()
        ending = "png" if index["format"][row] == Format.PNG else "jpg"
        shard, data = found[f"{key}.{ending}"]
        offset, size = int(index["offset"][row]), int(index["size"][row])
        assert index.header["files"][index["shard"][row]] == shard
        assert (folder / shard).read_bytes()[offset : offset + size] == data
        assert index["xxh3"][row] == xxhash.xxh3_64_intdigest(data)
        assert int(found[f"{key}.cls"][1]) == index["label"][row]
    assert index["key"][index.canonical_positions()].tolist() == sorted(index["key"].tolist())
    assert "gr\u00fc\u00df.jpg" in [name.decode() for name in index["name"].tolist()]


def test_sha256sum_confirms_the_sums(shards: Path) -> None:
    for split in ("train", "val"):
        command = ["sha256sum", "--strict", "--check", SUMS_NAME]
        done = subprocess.run(command, cwd=shards / split, capture_output=True, check=False)
        assert done.returncode == 0
        listed = {line[66:] for line in (shards / split / SUMS_NAME).read_text().splitlines()}
        there = {path.name for path in (shards / split).iterdir()}
        assert listed == there - {SUMS_NAME, RECORDS}


# --- going on, and being refused --------------------------------------------------------------


def test_a_second_run_writes_nothing(shards_copy: Path, archives: Any, build: Build) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards_copy.rglob("*.*")}
    assert [each.written for each in build(archives.train.parent, out=shards_copy)] == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in shards_copy.rglob("*.*")} == before


def test_another_plan_is_refused_and_changes_nothing(
    shards_copy: Path, archives: Any, build: Build, sums: Sums
) -> None:
    before = sums(shards_copy)
    with pytest.raises(ToolError, match="holds shards of another plan"):
        build(archives.train.parent, out=shards_copy, seed=1)
    assert sums(shards_copy) == before


def test_tars_of_others_are_never_overwritten(folders: Path, build: Build, tmp_path: Path) -> None:
    other = tmp_path / "train" / "imagenet-train-000000.tar"
    other.parent.mkdir()
    other.write_bytes(b"precious")
    with pytest.raises(ToolError, match="holds tars"):
        build(folders, out=tmp_path)
    assert other.read_bytes() == b"precious"


def test_a_second_writer_is_refused(folders: Path, build: Build, tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "train"),
        pytest.raises(ToolError, match="being written by another process"),
    ):
        build(folders, out=tmp_path)


def test_leftovers_of_a_killed_run_are_removed(
    folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{TEMPORARY_PREFIX}99-imagenet-train-000000.tar").write_bytes(b"half")
    build(folders, out=tmp_path, samples_per_shard=4)
    assert sums(tmp_path) == GOLDEN


@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_lost_shard_is_put_back(
    how: str, shards_copy: Path, archives: Any, build: Build, sums: Sums
) -> None:
    before = sums(shards_copy)
    lost = shards_copy / "train" / "imagenet-train-000001.tar"
    if how == "cut":
        os.truncate(lost, 1000)
    else:
        lost.unlink()
    assert [each.written for each in build(archives.train.parent, out=shards_copy)] == [1, 0]
    assert sums(shards_copy) == before


@pytest.mark.parametrize("data", [None, b"", b"0" * 64 + b"  manifest.json\n"])
def test_lost_sums_are_put_back(
    data: bytes | None, shards_copy: Path, archives: Any, build: Build, sums: Sums
) -> None:
    before = sums(shards_copy)
    path = shards_copy / "val" / SUMS_NAME
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    build(archives.train.parent, out=shards_copy)
    assert sums(shards_copy) == before


def test_a_lost_manifest_is_put_back_or_to_be_restored(
    shards_copy: Path, archives: Any, build: Build, sums: Sums
) -> None:
    before = sums(shards_copy)
    manifest = (shards_copy / "val" / MANIFEST_NAME).read_bytes()
    (shards_copy / "val" / MANIFEST_NAME).unlink()
    with pytest.raises(ToolError) as raised:
        Manifest.read(shards_copy / "val")
    if "unfinished" in str(raised.value):  # then the same command completes it
        build(archives.train.parent, out=shards_copy)
        assert sums(shards_copy) == before
        return
    (shards_copy / "val" / MANIFEST_NAME).write_bytes(manifest)
    assert not verify_shards(shards_copy / "val", workers=1, progress=Silent()).findings


def test_a_source_that_changed_is_refused_and_stays_refused(
    folders: Path, build: Build, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(folders, tmp_path / "source" / "train"))
    out = tmp_path / "out"
    build(source, out=out, samples_per_shard=4)
    image = source / "n01440764" / "n01440764_3.JPEG"
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(data)
    for shard in (out / "train").glob("*.tar"):
        shard.unlink()
    for _ in range(2):  # the second run must not take what the first one left for whole
        with pytest.raises(DamagedData, match="the source has changed"):
            build(source, out=out, samples_per_shard=4)


@pytest.mark.parametrize("name", [INDEX_NAME, SUMS_NAME])
def test_a_build_that_failed_near_its_end_is_completed(
    name: str, folders: Path, build: Build, sums: Sums, tmp_path: Path
) -> None:
    """A folder in the file's place makes the last steps fail for real."""
    obstacle = tmp_path / "train" / name
    obstacle.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        build(folders, out=tmp_path, samples_per_shard=4)
    assert not (tmp_path / "train" / MANIFEST_NAME).exists()
    with pytest.raises(ToolError, match="unfinished"):
        Dataset.open(tmp_path / "train")
    obstacle.rmdir()
    (written,) = build(folders, out=tmp_path, samples_per_shard=4)
    assert written.written == 0
    assert sums(tmp_path) == GOLDEN


# --- images that cannot be stored -------------------------------------------------------------


def absurd(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _: b"<html>404 Not Found</html>", "neither a JPEG nor a PNG"),
        (lambda _: b"", "it is empty"),
        (lambda data: data[:150], "truncated"),
        (absurd, "65535 x 65535 pixels"),
    ],
)
def test_an_image_that_is_none_is_refused_by_name(
    damage: Callable[[bytes], bytes],
    reason: str,
    jpeg: Callable[[int], bytes],
    build: Build,
    write_folders: Callable[..., Path],
    tmp_path: Path,
) -> None:
    images = {f"{number}.jpg": jpeg(number) for number in range(10)}
    images["6.jpg"] = damage(images["6.jpg"])
    source = write_folders(tmp_path / "train", {"cat": images})
    with pytest.raises(DamagedData, match=reason) as raised:
        build(source, out=tmp_path / "out", samples_per_shard=2)
    assert str(raised.value).startswith(f"{source}/cat: 6.jpg: ")
    left = {path.name for path in (tmp_path / "out" / "train").iterdir()}
    assert not left & {MANIFEST_NAME, INDEX_NAME, SUMS_NAME}
    assert not [name for name in left if name.startswith(TEMPORARY_PREFIX)]
    with pytest.raises(ToolError):
        Dataset.open(tmp_path / "out" / "train")


def test_a_mended_image_lets_the_same_build_complete(
    jpeg: Callable[[int], bytes],
    build: Build,
    sums: Sums,
    write_folders: Callable[..., Path],
    tmp_path: Path,
) -> None:
    images = {f"{number}.jpg": jpeg(number) for number in range(10)}
    last = f"{permutation(0, Stream.PLAN, 0, 10)[-1]}.jpg"  # in the shard that is written last
    whole = write_folders(tmp_path / "whole" / "train", {"cat": images})
    build(whole, out=tmp_path / "expected", samples_per_shard=2)
    damaged = images | {last: b"x" * len(images[last])}
    source = write_folders(tmp_path / "damaged" / "train", {"cat": damaged})
    with pytest.raises(DamagedData):
        build(source, out=tmp_path / "out", samples_per_shard=2, workers=1)
    (source / "cat" / last).write_bytes(images[last])
    (written,) = build(source, out=tmp_path / "out", samples_per_shard=2, workers=1)
    assert written.written == 1
    assert sums(tmp_path / "out") == sums(tmp_path / "expected")


def plan_of(path: Path, images: list[FoundImage]) -> Plan:
    samples = Samples.collect(Layout.TAR, [path], images)
    options = PlanOptions(split="test", samples_per_shard=2)
    return Plan(samples=samples, classes=(Class("cat", "cat"),), options=options)


def test_a_source_shorter_than_listed_is_refused(
    jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "images"
    path.write_bytes(jpeg(0) + jpeg(1)[:-30])
    images = [
        FoundImage("0.jpg", 0, 0, 0, len(jpeg(0))),
        FoundImage("1.jpg", 0, 0, len(jpeg(0)), len(jpeg(1))),
    ]
    with pytest.raises(DamagedData, match=f"{path} ends at byte"):
        write_shards(
            plan_of(path, images), tmp_path / "out", WriteOptions(), workers=1, progress=Silent()
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORDS]


def test_an_image_that_is_lost_to_a_finished_shard_cannot_be_left_out(
    jpeg: Callable[[int], bytes],
    build: Build,
    write_folders: Callable[..., Path],
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Nor does the command that mends it have an option for that."""
    source = write_folders(tmp_path / "train", {"a": {"1.jpg": jpeg(1)}})
    build(source, out=tmp_path / "out")
    next((tmp_path / "out" / "train").glob("*.tar")).unlink()
    (source / "a" / "1.jpg").write_bytes(bytes(len(jpeg(1))))
    done = run("imagenet-prep", "verify", tmp_path / "out", "--repair", "--source", source)
    assert done.returncode == 1
    assert "1.jpg: " in done.stderr
    assert "give a source that has it whole" in done.stderr
    assert "--on-bad" not in done.stderr


def test_no_samples_make_no_shards(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no samples"):
        write_shards(
            plan_of(tmp_path, []), tmp_path / "out", WriteOptions(), workers=1, progress=Silent()
        )
    assert not (tmp_path / "out").exists()


def test_images_without_labels_get_none(jpeg: Callable[[int], bytes], tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(jpeg(0))
    images = [FoundImage("ILSVRC2012_test_00000001.JPEG", UNLABELLED, 0, 0, len(jpeg(0)))]
    write_shards(
        plan_of(path, images), tmp_path / "out", WriteOptions(), workers=1, progress=Silent()
    )
    assert list(members(tmp_path / "out")) == ["ILSVRC2012_test_00000001.jpg"]
    assert not verify_shards(tmp_path / "out", workers=1, progress=Silent()).findings


def test_an_image_larger_than_the_buffer_is_written_whole(
    jpeg: Callable[[int], bytes], build: Build, write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    large = jpeg(1) + bytes(5 << 20)
    source = write_folders(tmp_path / "train", {"a": {"1.jpg": jpeg(0), "2.jpg": large,
                                                      "3.jpg": jpeg(3)}})  # fmt: skip
    build(source, out=tmp_path / "out")
    found = members(tmp_path / "out" / "train")
    assert found["00000_0000001.jpg"][1] == large
    assert found["00000_0000002.jpg"][1] == jpeg(3)
    assert not verify_shards(tmp_path / "out" / "train", workers=1, progress=Silent()).findings
