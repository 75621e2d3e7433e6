"""What goes wrong at the command line: one sentence that names the file and the remedy.

Every command here is the installed console script in a process of its own.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trees import open_files

from prep.extraction.extract import extract
from prep.extraction.extraction import Options
from prep.sample.data import write_sample_data
from shards.dataset import Dataset
from shards.durable import TEMPORARY_PREFIX, folder_lock
from shards.errors import ToolError
from shards.manifest import MANIFEST_NAME, File, Manifest
from shards.progress import Silent
from shards.verify import verify_shards

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]
WaitUntil = Callable[..., None]
Sums = Callable[[Path], dict[str, str]]


def refused(done: subprocess.CompletedProcess[str], code: int, *words: object) -> None:
    """One line on stderr with all the words, nothing on stdout, the exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert str(word) in lines[0]


# --- archives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["extract", "shard"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, ["does not exist", "give the path"]),
        (b"", ["is empty", "fetch it again"]),
        (b"<html>404</html>" * 100, ["is not a tar archive", "fetch it again"]),
        ("cut", ["truncated", "fetch it again and run the same command"]),
        (bytes(10240), ["neither", "training archive"]),
    ],
)
def test_a_bad_archive_is_named(
    command: str,
    data: bytes | str | None,
    words: list[str],
    run: Run,
    archives: Any,
    tmp_path: Path,
) -> None:
    path = tmp_path / archives.train.name
    if data == "cut":
        path.write_bytes(archives.train.read_bytes()[:-20_000])
    elif data is not None:
        path.write_bytes(data)
    out = tmp_path / "out"
    refused(run("imagenet-prep", command, path, "--out", out), 1, path, *words)
    # Of a truncated archive, an extraction keeps the classes that are whole.
    kept = 34 if data == "cut" and command == "extract" else 0
    assert sum(path.suffix in (".JPEG", ".tar") for path in out.rglob("*")) == kept


@pytest.mark.parametrize("command", ["extract", "shard"])
def test_a_truncated_inner_tar_is_named(
    command: str, run: Run, write_tar: Callable[..., Path], jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> None:  # fmt: skip
    inner = write_tar(tmp_path / "inner", {f"n01440764_{n}.JPEG": jpeg(n) for n in range(3)})
    cut = {"n01440764.tar": inner.read_bytes()[:2500]}
    path = write_tar(tmp_path / "train.tar", cut)
    done = run("imagenet-prep", command, path, "--out", tmp_path / "out")
    refused(done, 1, f"{path}:n01440764.tar", "truncated", "fetch it again")


@pytest.mark.parametrize("command", ["extract", "shard"])
def test_a_member_that_would_escape_is_refused(
    command: str, run: Run, write_train_tar: Callable[..., Path], tmp_path: Path
) -> None:
    images = {"n01440764": {"../../../../escaped.JPEG": b"x"}}
    path = write_train_tar(tmp_path / "train.tar", images)
    done = run("imagenet-prep", command, path, "--out", tmp_path / "a" / "b" / "out")
    refused(done, 1, path, "../../../../escaped.JPEG", "outside its folder")
    assert not list(tmp_path.rglob("escaped*"))


def test_a_folder_with_nothing_says_what_was_looked_for(run: Run, tmp_path: Path) -> None:
    for command in ("extract", "shard"):
        done = run("imagenet-prep", command, tmp_path, "--out", tmp_path / "out")
        refused(done, 1, tmp_path, "was not recognised", "*.tar", "class folders")


def test_class_folders_need_their_split(
    run: Run, write_folders: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    folder = write_folders(tmp_path / "pictures", {"cat": {"a.jpg": jpeg(0)}})
    done = run("imagenet-prep", "shard", folder, "--out", tmp_path / "out")
    refused(done, 2, folder, "--split train")
    done = run("imagenet-prep", "shard", folder, "--out", tmp_path / "out", "--split", "train")
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["extract", "shard"])
def test_missing_labels_are_asked_for(
    command: str, run: Run, archives: Any, tmp_path: Path
) -> None:
    alone = tmp_path / "archives" / archives.val.name
    alone.parent.mkdir()
    alone.symlink_to(archives.val)
    done = run("imagenet-prep", command, alone, "--out", tmp_path / "out")
    refused(done, 1, alone, "--labels FILE")
    labels = ("--labels", tmp_path / "absent.txt")
    done = run("imagenet-prep", command, alone, "--out", tmp_path / "out", *labels)
    refused(done, 1, labels[1], "does not exist")


@pytest.mark.parametrize("command", ["extract", "shard"])
def test_labels_of_other_images_are_refused(
    command: str, run: Run, archives: Any, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")
    done = run(
        "imagenet-prep", command, archives.val, "--out", tmp_path / "out", "--labels", labels
    )
    refused(done, 1, labels, "no label for the image", "--labels")
    assert not list((tmp_path / "out").rglob("*.JPEG"))


def test_an_image_that_is_none_is_named(
    run: Run, write_train_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    images = {"n01440764_1.JPEG": jpeg(1), "n01440764_2.JPEG": b"<html>"}
    path = write_train_tar(tmp_path / "train.tar", {"n01440764": images})
    done = run("imagenet-prep", "shard", path, "--out", tmp_path / "out")
    refused(done, 1, path, "n01440764_2.JPEG", "neither a JPEG nor a PNG")
    assert not list((tmp_path / "out").rglob(MANIFEST_NAME))


def test_two_writers_do_not_meet(run: Run, archives: Any, tmp_path: Path) -> None:
    with folder_lock(tmp_path / "val"), folder_lock(tmp_path):
        options = ("--out", tmp_path, "--labels", archives.devkit)
        refused(run("imagenet-prep", "shard", archives.val, *options), 1, tmp_path / "val", "wait")
        refused(run("imagenet-prep", "extract", archives.val, *options), 1, tmp_path, "wait")


def test_another_plan_is_refused(run: Run, archives: Any, shards: Path) -> None:
    done = run("imagenet-prep", "shard", archives.train.parent, "--out", shards, "--seed", 1)
    refused(done, 1, shards / "train", "another plan", "choose another --out")


# --- usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["shard"],
        ["shard", "x"],
        ["shard", "x", "--out", "y", "--no-such-option"],
        ["shard", "x", "--out", "y", "--split", "other"],
        ["shard", "x", "--out", "y", "--workers", "0"],
        ["shard", "x", "--out", "y", "--seed", "-1"],
        ["extract", "x"],
        ["verify"],
        ["sample-data"],
        ["sample-data", "--out", "y", "--classes", "0"],
        ["sample-data", "--out", "y", "--classes", "1001"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_ends_with_2_and_no_traceback(arguments: list[str], run: Run) -> None:
    done = run("imagenet-prep", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: imagenet-prep" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("y").exists()


@pytest.mark.parametrize("count", [0, -5])
def test_a_shard_needs_a_sample(count: int, run: Run, archives: Any, tmp_path: Path) -> None:
    done = run("imagenet-prep", "shard", archives.train.parent, "--out", tmp_path / "out",
               "--samples-per-shard", count)  # fmt: skip
    assert done.returncode == 2
    assert "samples-per-shard" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_devkit_is_no_source(run: Run, archives: Any, tmp_path: Path) -> None:
    done = run("imagenet-prep", "shard", archives.devkit, "--out", tmp_path / "out")
    refused(done, 2, archives.devkit, "--labels")


def test_the_traceback_is_shown_on_demand(run: Run, tmp_path: Path) -> None:
    done = run("imagenet-prep", "verify", tmp_path, "--traceback")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ToolError" in done.stderr


# --- files that cannot be read or written -----------------------------------------------------


def test_an_out_that_is_a_file_is_named(run: Run, archives: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    for command in ("extract", "shard"):
        done = run("imagenet-prep", command, archives.train.parent, "--out", out)
        refused(done, 1, out)
    assert out.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_archive_that_may_not_be_read_is_named(run: Run, archives: Any, tmp_path: Path) -> None:
    path = tmp_path / archives.train.name
    shutil.copy(archives.train, path)
    path.chmod(0)
    done = run("imagenet-prep", "shard", path, "--out", tmp_path / "out")
    refused(done, 1, path, "Permission denied", "permissions")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no /proc here")
def test_a_failing_disk_is_an_error_and_no_traceback(
    run: Run, write_folders: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    """Reading this file fails as a dying disk does: with EIO, and without a name."""
    folder = write_folders(tmp_path / "train", {"cat": {"a.jpg": jpeg(0)}})
    failing = Path("/proc/self/mem")
    done = run("imagenet-prep", "shard", folder, "--out", tmp_path / "out", "--classes", failing)
    refused(done, 1, os.strerror(errno.EIO))


# --- verification -----------------------------------------------------------------------------


def test_whole_shards_end_with_0(run: Run, shards: Path) -> None:
    done = run("imagenet-prep", "verify", shards, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["ok"] is True
    assert [split["samples"] for split in answer["splits"]] == [51, 15]


def test_damaged_shards_end_with_1_and_every_finding(run: Run, shards_copy: Path) -> None:
    lost = shards_copy / "train" / "imagenet-train-000000.tar"
    flipped = shards_copy / "val" / "imagenet-val-000000.tar"
    lost.unlink()
    data = bytearray(flipped.read_bytes())
    data[5000] ^= 1
    flipped.write_bytes(data)
    done = run("imagenet-prep", "verify", shards_copy)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0] == f"damaged: {lost} is missing"
    assert lines[1].startswith(f"damaged: {flipped} has SHA-256 ")


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_a_place_without_shards_is_named(what: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("x")
    refused(run("imagenet-prep", "verify", path), 1, path)


def test_an_unfinished_split_is_not_passed_over(run: Run, shards_copy: Path) -> None:
    """Training would find no validation shards where verification found nothing wrong."""
    (shards_copy / "val" / MANIFEST_NAME).unlink()
    done = run("imagenet-prep", "verify", shards_copy)
    assert done.returncode == 1
    assert str(shards_copy / "val") in done.stderr


def test_an_altered_manifest_is_named(run: Run, shards_copy: Path) -> None:
    path = shards_copy / "train" / MANIFEST_NAME
    path.write_text(path.read_text().replace('"samples": 51', '"samples": 50'))
    done = run("imagenet-prep", "verify", shards_copy)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"damaged: {path} was altered")


# --- a full disk ------------------------------------------------------------------------------

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture(scope="module")
def small_images(
    tmp_path_factory: pytest.TempPathFactory,
    jpeg: Callable[[int], bytes],
    write_train_tar: Callable[..., Path],
) -> Path:
    """200 images of 600 bytes: they take more room as files, a page each, than in their tar."""
    classes = {
        f"n0000000{label}": {f"n0000000{label}_{n}.JPEG": jpeg(n) for n in range(50)}
        for label in range(4)
    }
    return write_train_tar(tmp_path_factory.mktemp("small") / "train.tar", classes)


def extracted(path: Path, out: Path) -> Path:
    extract([path], out, Options(), workers=2, progress=Silent())
    return out


@pytest.mark.parametrize("limit", ["size=480k", "size=4m,nr_inodes=30"])
def test_an_extraction_onto_a_full_disk_goes_on_once_there_is_room(
    limit: str, small_images: Path, small_disk: Callable[[str], Any], run: Run, sums: Sums,
    tmp_path: Path,
) -> None:  # fmt: skip
    disk = small_disk(limit)
    out = disk.path / "out"
    command = ("imagenet-prep", "extract", small_images, "--out", out, "--workers", 1)
    refused(run(*command), 1, out, FULL, "make room and run the same command again")
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    assert 0 < len(list(out.rglob("*.JPEG"))) < 200
    disk.resize("size=8m,nr_inodes=1000")
    assert run(*command).returncode == 0
    assert sums(out) == sums(extracted(small_images, tmp_path / "expected"))


def test_shards_onto_a_full_disk_go_on_once_there_is_room(
    archives: Any, shards: Path, small_disk: Callable[[str], Any], run: Run, sums: Sums
) -> None:
    size = sum(path.stat().st_size for path in shards.rglob("*.tar"))
    disk = small_disk(f"size={size // 2}")
    out = disk.path / "out"
    command = ("imagenet-prep", "shard", archives.train.parent, "--out", out,
               "--samples-per-shard", 16, "--workers", 1)  # fmt: skip
    refused(run(*command), 1, out / "train", FULL, "make room and run the same command again")
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    assert not list(out.rglob(MANIFEST_NAME))
    with pytest.raises(ToolError):
        Dataset.open(out / "train")
    disk.resize(f"size={2 * size + (1 << 20)}")
    assert run(*command).returncode == 0
    assert sums(out) == sums(shards)


def test_sample_data_onto_a_full_disk_goes_on_once_there_is_room(
    small_disk: Callable[[str], Any], run: Run
) -> None:
    disk = small_disk("size=100k")
    out = disk.path / "out"
    command = ("imagenet-prep", "sample-data", "--out", out, "--classes", 2,
               "--train-per-class", 20, "--val-per-class", 1)  # fmt: skip
    refused(run(*command), 1, out, FULL, "make room")
    assert not list(out.glob("*.tar"))
    disk.resize("size=8m")
    assert run(*command).returncode == 0
    assert len(list(out.glob("ILSVRC2012_*"))) == 3


# --- Ctrl-C -----------------------------------------------------------------------------------


def interrupted(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert output == ""
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def many_images(
    tmp_path_factory: pytest.TempPathFactory,
    jpeg: Callable[[int], bytes],
    write_train_tar: Callable[..., Path],
) -> Path:
    """6,000 small images in 20 classes."""
    classes = {
        f"n{label:08d}": {f"n{label:08d}_{n}.JPEG": jpeg(n) for n in range(300)}
        for label in range(20)
    }
    return write_train_tar(tmp_path_factory.mktemp("many") / "train.tar", classes)


def test_ctrl_c_in_sample_data(
    start: Start, wait_until: WaitUntil, run: Run, sums: Sums, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("imagenet-prep", "sample-data", "--out", out, "--classes", 2,
               "--train-per-class", 100, "--val-per-class", 1)  # fmt: skip
    process = start(*command)
    wait_until(process, lambda: any(out.glob(f"{TEMPORARY_PREFIX}*")))
    interrupted(process)
    assert not list(out.glob("*.tar*"))
    assert run(*command).returncode == 0
    write_sample_data(
        tmp_path / "expected",
        classes=2,
        train_per_class=100,
        val_per_class=1,
        progress=Silent(),
    )
    assert sums(out) == sums(tmp_path / "expected")


def test_ctrl_c_in_extract(
    many_images: Path, start: Start, wait_until: WaitUntil, run: Run, sums: Sums, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("imagenet-prep", "extract", many_images, "--out", out, "--workers", 2)
    process = start(*command)
    wait_until(process, lambda: any(out.glob("train/*/n*")))
    interrupted(process)
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    assert 0 < len(list(out.rglob("*.JPEG"))) < 6000
    assert run(*command).returncode == 0
    assert sums(out) == sums(extracted(many_images, tmp_path / "expected"))


def test_ctrl_c_in_shard(
    many_images: Path, start: Start, wait_until: WaitUntil, run: Run, sums: Sums,
    build: Callable[..., Any], tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ("imagenet-prep", "shard", many_images, "--out", out, "--workers", 2,
               "--samples-per-shard", 30)  # fmt: skip
    process = start(*command)
    wait_until(process, lambda: any(out.glob("train/imagenet-*.tar")))
    interrupted(process)
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    assert not list(out.rglob(MANIFEST_NAME))
    assert run(*command).returncode == 0
    build(many_images, out=tmp_path / "expected", samples_per_shard=30)
    assert sums(out) == sums(tmp_path / "expected")


def test_ctrl_c_in_verify(start: Start, wait_until: WaitUntil, tmp_path: Path) -> None:
    """On a shard of 64 GiB, all of it a hole, whose digest takes half a minute."""
    shard = tmp_path / "imagenet-train-000000.tar"
    with shard.open("wb") as file:
        file.truncate(1 << 36)
    entry = File(name=shard.name, bytes=1 << 36, sha256="0" * 64, samples=1)
    index = File(name="index.safetensors", bytes=0, sha256="0" * 64, samples=1)
    manifest = Manifest(
        split="train", samples=1, classes=(), plan={}, content="", index=index, shards=(entry,)
    )
    (tmp_path / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    process = start("imagenet-prep", "verify", tmp_path)
    wait_until(process, lambda: shard in open_files(process.pid))
    interrupted(process)


def test_what_a_ctrl_c_left_verifies_once_it_is_completed(
    archives: Any, start: Start, wait_until: WaitUntil, run: Run, tmp_path: Path
) -> None:
    command = ("imagenet-prep", "shard", archives.train.parent, "--out", tmp_path,
               "--samples-per-shard", 1)  # fmt: skip
    process = start(*command)
    wait_until(process, lambda: any(tmp_path.glob("train/imagenet-*.tar")))
    interrupted(process)
    done = run(*command, "--json")
    assert [split["samples"] for split in json.loads(done.stdout)["splits"]] == [51, 15]
    for split in ("train", "val"):
        assert not verify_shards(tmp_path / split, workers=1, progress=Silent()).findings
