"""Tars as they lie: what training reads from them is what is in them, and nothing is copied."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from prep import ilsvrc
from prep.indexing import Indexed, IndexOptions, index_tars
from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError
from shards.manifest import MANIFEST_NAME, Manifest
from shards.progress import Silent
from shards.verify import verify_shards

Run = Callable[..., subprocess.CompletedProcess[str]]
Jpeg = Callable[[int], bytes]
Sums = Callable[[Path], dict[str, str]]
WriteTar = Callable[..., Path]


class Listening(Silent):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def index(*paths: Path, out: Path, progress: Silent | None = None, **options: Any) -> list[Indexed]:
    chosen = IndexOptions(**options)
    return index_tars(paths, out, chosen, workers=2, progress=progress or Silent())


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Label and bytes of every sample of a split, by key."""
    with Dataset.open(folder) as dataset:
        return {
            key.decode(): (int(dataset.labels[number]), bytes(dataset.read(number).data))
            for number, key in enumerate(dataset.keys.tolist())
        }


def is_sound(folder: Path) -> bool:
    return not verify_shards(folder, workers=2, progress=Silent()).findings


# --- archives ---------------------------------------------------------------------------------


def test_archives_as_they_lie_hold_what_shards_of_them_do(
    archives: Any, shards: Path, tmp_path: Path
) -> None:
    index(archives.train.parent, out=tmp_path)
    for split, archive in (("train", archives.train), ("val", archives.val)):
        folder = tmp_path / split
        (link,) = folder.glob("*.tar")
        assert link.readlink() == archive
        assert contents(folder) == contents(shards / split)
        with Dataset.open(folder) as one, Dataset.open(shards / split) as other:
            assert one.digest == other.digest
            assert one.classes == other.classes
            assert one.class_names == other.class_names
        assert is_sound(folder)


def test_rows_stand_in_the_order_of_the_archive(archives: Any, tmp_path: Path) -> None:
    from shards.index import INDEX_NAME, Index

    index(archives.train, out=tmp_path)
    offsets = Index.read(tmp_path / "train" / INDEX_NAME)["offset"].tolist()
    assert offsets == sorted(offsets)
    header = Index.read(tmp_path / "train" / INDEX_NAME).header
    assert header["layout"] == "foreign"
    assert header["files"] == ["ILSVRC2012_img_train.tar"]


def test_a_tar_of_class_folders_is_linked_in_each_split_that_it_holds(
    write_tar: WriteTar, jpeg: Jpeg, build: Callable[..., Any], tmp_path: Path
) -> None:
    members = {
        f"set/{split}/{name}/{n}.jpg": jpeg(n + 10 * len(split) + len(name))
        for split in ("train", "val")
        for name in ("cat", "mouse")
        for n in range(3)
    }
    path = write_tar(tmp_path / "set.tar", members)
    index(path, out=tmp_path / "index")
    build(path, out=tmp_path / "shards")
    for split in ("train", "val"):
        assert contents(tmp_path / "index" / split) == contents(tmp_path / "shards" / split)
        assert (tmp_path / "index" / split / "set.tar").readlink() == path


def test_an_image_that_is_none_is_left_out_of_an_archive_on_request(
    write_train_tar: Callable[..., Path], jpeg: Jpeg, tmp_path: Path
) -> None:
    names = [f"n00000001_{n}" for n in range(4)]
    images = {f"{name}.JPEG": jpeg(n) for n, name in enumerate(names)}
    images[f"{names[2]}.JPEG"] = b"<html>"
    path = write_train_tar(tmp_path / "train.tar", {"n00000001": images})
    with pytest.raises(DamagedData, match=rf"train.tar: {names[2]}.JPEG: it is neither"):
        index(path, out=tmp_path)
    listening = Listening()
    (done,) = index(path, out=tmp_path, on_bad="skip", progress=listening)
    assert list(contents(tmp_path / "train")) == [names[0], names[1], names[3]]
    assert [each.key for each in done.manifest.skipped] == [names[2]]
    assert "1 samples were left out" in "".join(listening.notes)
    assert is_sound(tmp_path / "train")


# --- shards -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file")  # the library leaves its shards open
def test_what_webdataset_wrote_is_read_as_webdataset_reads_it(jpeg: Jpeg, tmp_path: Path) -> None:
    import webdataset

    for split, count in (("train", 25), ("validation", 7)):
        pattern = str(tmp_path / f"set-{split}-%04d.tar")
        with webdataset.ShardWriter(pattern, maxcount=10, verbose=0) as writer:
            for n in range(count):
                writer.write({"__key__": f"{split}{n:05d}", "jpg": jpeg(n), "cls": n % 5,
                              "json": {"n": n}})  # fmt: skip
    index(tmp_path, out=tmp_path / "index")
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted(map(str, tmp_path.glob(f"set-{name}-*.tar")))
        read = webdataset.WebDataset(files, shardshuffle=False)
        expected = {each["__key__"]: (int(each["cls"]), each["jpg"]) for each in read}
        assert contents(tmp_path / "index" / split) == expected
        assert is_sound(tmp_path / "index" / split)


def test_shards_of_our_own_are_indexed_as_well(shards: Path, sums: Sums, tmp_path: Path) -> None:
    before = sums(shards)
    index(shards, out=tmp_path)
    assert sums(shards) == before
    for split in ("train", "val"):
        with Dataset.open(tmp_path / split) as one, Dataset.open(shards / split) as other:
            assert one.digest == other.digest


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1690000000.5
    archive.addfile(info, io.BytesIO(data))


def test_img2dataset_s_layout_with_a_label_in_the_json(jpeg: Jpeg, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for tar in range(2):
        with tarfile.open(tmp_path / "out" / f"{tar:05d}.tar", "w") as archive:
            for n in range(5):
                key = f"{tar:05d}{n:04d}"
                add(archive, f"{key}.jpg", jpeg(n))
                add(archive, f"{key}.json", json.dumps({"key": key, "label": n}).encode())
                add(archive, f"{key}.txt", b"a caption")
        (tmp_path / "out" / f"{tar:05d}_stats.json").write_text("{}")
        (tmp_path / "out" / f"{tar:05d}.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        DamagedData, match=r"0000[01]\.tar: 0000[01]0000: it has no label .*--label-field"
    ):
        index(tmp_path / "out", out=tmp_path / "index", split="train")
    index(tmp_path / "out", out=tmp_path / "index", split="train", label_field="label")
    found = contents(tmp_path / "index" / "train")
    assert found["000010003"] == (3, jpeg(3))
    assert len(found) == 10


@pytest.fixture(scope="module")
def timm(write_tar: WriteTar, jpeg: Jpeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 1000 classes as timm/imagenet-1k-wds has them: jpg, cls and json; names as published."""
    root = tmp_path_factory.mktemp("timm")
    members: dict[str, bytes] = {}
    for label, each in enumerate(ilsvrc.classes()):
        key = f"{each.wnid}_{label}"
        members |= {f"{key}.cls": b"%d" % label, f"{key}.jpg": jpeg(label % 7),
                    f"{key}.json": b'{"filename": "%s.JPEG"}' % key.encode()}  # fmt: skip
    write_tar(root / "imagenet1k-train-0000.tar", members)
    return root


def test_ilsvrc2012_s_classes_are_known_by_labels_and_names(timm: Path, tmp_path: Path) -> None:
    listening = Listening()
    index(timm, out=tmp_path, progress=listening)
    with Dataset.open(tmp_path / "train") as dataset:
        assert dataset.classes == tuple(each.wnid for each in ilsvrc.classes())
        assert dataset.class_names[0] == "tench"
        assert dataset.keys[0] == b"n01440764_0"
    assert listening.notes == []


def test_labels_in_another_order_than_the_names_are_refused(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    """As the devkit's ILSVRC2012_ID is: training would go well, and every prediction be wrong."""
    members: dict[str, bytes] = {}
    for number, wnid in enumerate(ilsvrc.id_to_wnid()):
        members |= {f"{wnid}_1.jpg": jpeg(0), f"{wnid}_1.cls": b"%d" % number}
    path = write_tar(tmp_path / "train.tar", members)
    with pytest.raises(ToolError, match=r"n02119789_1.jpg has the label 0, which is n01440764"):
        index(path, out=tmp_path)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(ilsvrc.id_to_wnid()))
    index(path, out=tmp_path, classes=classes)
    assert Manifest.read(tmp_path / "train").classes[0].id == "n02119789"


def test_without_a_list_classes_are_numbers_and_the_same_for_all_splits(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    for split, most in (("train", 3), ("val", 1)):
        members = {f"{n}.{ending}": data for n in range(most + 1)
                   for ending, data in (("jpg", jpeg(n)), ("cls", b"%d" % n))}  # fmt: skip
        write_tar(tmp_path / f"{split}-0.tar", members)
    listening = Listening()
    index(tmp_path, out=tmp_path / "index", progress=listening)
    for split in ("train", "val"):
        with Dataset.open(tmp_path / "index" / split) as dataset:
            assert dataset.classes == ("0", "1", "2", "3")
    assert [note.partition(",")[0] for note in listening.notes] == ["labels are 0 to 3"]
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\nmouse\n")
    with pytest.raises(DamagedData, match=r"train-0.tar: 3.cls: its label is 3; .* 0 to 2"):
        index(tmp_path, out=tmp_path / "index", classes=classes)


def test_keys_that_will_not_do_are_replaced_and_the_names_kept(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    for tar in range(2):
        members = {f"a/{n}.{ending}": data for n in range(2)
                   for ending, data in (("jpg", jpeg(2 * tar + n)), ("cls", b"0"))}  # fmt: skip
        write_tar(tmp_path / f"train-{tar}.tar", members)
    listening = Listening()
    index(tmp_path, out=tmp_path / "index", progress=listening)
    assert contents(tmp_path / "index" / "train") == {
        f"{tar:06d}_{n:07d}": (0, jpeg(2 * tar + n)) for tar in range(2) for n in range(2)
    }
    assert any("the key 'a/0' has other characters" in note for note in listening.notes)


def test_a_test_set_needs_no_labels_but_all_or_none(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "test-0.tar", {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})
    index(path, out=tmp_path)
    assert contents(tmp_path / "test") == {"a": (-1, jpeg(0)), "b": (-1, jpeg(1))}
    write_tar(path, {"a.jpg": jpeg(0), "a.cls": b"1", "b.jpg": jpeg(1)})
    with pytest.raises(ToolError, match="test: 1 of 2 samples have no label"):
        index(path, out=tmp_path)


# --- again ------------------------------------------------------------------------------------


def shard_of(write_tar: WriteTar, path: Path, images: Mapping[str, bytes]) -> Path:
    members = {f"{key}.{ending}": data for key, image in images.items()
               for ending, data in (("jpg", image), ("cls", b"1"))}  # fmt: skip
    return write_tar(path, members)


def times_of(root: Path) -> dict[Path, int]:
    """When each file was written to; links are told apart from what they lead to."""
    return {path: path.lstat().st_mtime_ns for path in root.rglob("[!.]*") if path.name != "lock"}


@pytest.mark.parametrize("kind", ["archives", "shards"])
def test_a_finished_index_is_known_again(
    kind: str, archives: Any, shards: Path, sums: Sums, tmp_path: Path
) -> None:
    source = archives.train.parent if kind == "archives" else shards
    assert [each.written for each in index(source, out=tmp_path)] == [True, True]
    times = times_of(tmp_path)
    assert [each.written for each in index(source, out=tmp_path)] == [False, False]
    assert times_of(tmp_path) == times
    before = sums(tmp_path)
    (tmp_path / "train" / MANIFEST_NAME).unlink()
    assert any(each.written for each in index(source, out=tmp_path))
    assert sums(tmp_path) == before


def test_what_has_changed_is_indexed_again(write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path) -> None:
    path = shard_of(write_tar, tmp_path / "train-0.tar", {"a": jpeg(0)})
    index(path, out=tmp_path)
    images = {f"b{n}": jpeg(n) for n in range(20)}
    shard_of(write_tar, path, images)
    with pytest.raises(DamagedData, match=r"train-0.tar has .* bytes instead of"):
        Dataset.open(tmp_path / "train")
    index(path, out=tmp_path)
    assert contents(tmp_path / "train") == {key: (1, image) for key, image in images.items()}
    moved = tmp_path / "moved" / "train-0.tar"
    moved.parent.mkdir()
    path.rename(moved)
    index(moved, out=tmp_path)
    assert (tmp_path / "train" / "train-0.tar").readlink() == moved
    assert len(contents(tmp_path / "train")) == len(images)


def test_a_killed_index_is_completed_by_the_same_command(
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
    write_tar: WriteTar,
    jpeg: Jpeg,
    sums: Sums,
    tmp_path: Path,
) -> None:
    for tar in range(40):
        images = {f"{tar:02d}-{n:03d}": jpeg(n) for n in range(100)}
        shard_of(write_tar, tmp_path / "wds" / f"train-{tar:02d}.tar", images)
    folder = tmp_path / "out" / "train"
    records = folder / ".imagenet-prep" / "index"
    process = start("imagenet-prep", "index", tmp_path / "wds", "--out", tmp_path / "out",
                    "--workers", 1)  # fmt: skip
    wait_until(process, lambda: records.is_dir() and len(list(records.iterdir())) >= 2)
    process.kill()
    process.wait()
    with pytest.raises(ToolError, match="unfinished; run the `imagenet-prep index` command"):
        Dataset.open(folder)
    index(tmp_path / "wds", out=tmp_path / "out")
    index(tmp_path / "wds", out=tmp_path / "fresh")
    assert sums(folder) == sums(tmp_path / "fresh" / "train")
    assert not records.exists()


# --- the commands -----------------------------------------------------------------------------


def test_training_streams_from_the_archives_as_they_lie(
    run: Run, archives: Any, tmp_path: Path
) -> None:
    done = run(
        "imagenet-prep", "index", archives.train.parent, "--out", tmp_path / "index", "--json"
    )
    assert done.returncode == 0, done.stderr
    splits = json.loads(done.stdout)["splits"]
    assert [(each["samples"], each["tars"], each["written"]) for each in splits] == [
        (archives.train_images, 1, True), (archives.val_images, 1, True),
    ]  # fmt: skip
    done = run("resnet", "train", "--shards", tmp_path / "index", "--out", tmp_path / "run",
               "--device", "cpu", "--model", "resnet18", "--image-size", 32, "--batch-size", 4,
               "--max-steps", 2, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last.pt").exists()
    if shutil.which("sha256sum"):
        check = ["sha256sum", "-c", "SHA256SUMS"]
        subprocess.run(check, cwd=tmp_path / "index" / "train", check=True, capture_output=True)


def test_the_command_says_what_it_did_and_what_is_wrong(
    run: Run, write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    shard_of(write_tar, tmp_path / "train-0.tar", {"a": jpeg(0), "b": jpeg(1)})
    command = ("imagenet-prep", "index", tmp_path / "train-{0..0}.tar", "--out", tmp_path / "out")
    done = run(*command)
    assert done.stdout.startswith(f"{tmp_path}/out/train: 2 images in 1 tar, 2 classes (")
    assert "was whole already" in run(*command).stdout
    shard_of(write_tar, tmp_path / "train-0.tar", {"a": jpeg(0), "b": b"GIF89a"})
    done = run(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path}/train-0.tar: b.jpg: it is neither a JPEG nor")
    done = run(*command, "--on-bad", "skip", "--json")
    (found,) = json.loads(done.stdout)["splits"]
    assert found["samples"] == 1
    assert [each["name"] for each in found["skipped"]] == ["b.jpg"]
