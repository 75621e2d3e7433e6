"""Archives that are cut short, disks that are full or fail, files that may not be touched.

Whatever happens, what was whole before stays, the report names what is wrong, and once that is
mended the same command ends with the tree of an extraction that met nothing.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import gzip
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trees import nested, tar, tree

from prep.extraction.extract import extract
from prep.extraction.extraction import Options
from shards.durable import RECORDS, TEMPORARY_PREFIX
from shards.errors import DamagedData
from shards.progress import Silent

Run = Callable[..., subprocess.CompletedProcess[str]]
WriteTar = Callable[..., Path]
FIBMAP = 1  # ioctl(2): the block of the disk that a block of a file lies in


def times(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in tree(out)}


def refused(done: subprocess.CompletedProcess[str], *words: object) -> None:
    """Exit code 1 and one sentence with all the words."""
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    for word in words:
        assert str(word) in line


# --- truncation -------------------------------------------------------------------------------

CLASSES = {
    f"n0000000{label}": {
        f"n0000000{label}_{n}.JPEG": bytes([label, n]) * (700 + 150 * n) for n in range(4)
    }
    for label in (1, 2, 3)
}
FLAT = {name: data for images in CLASSES.values() for name, data in images.items()}
EXPECTED = {f"train/{name[:9]}/{name}": data for name, data in FLAT.items()}
WHOLE = {
    "tar of tars": nested(CLASSES),
    "flat tar": tar(FLAT),
    "class folders": tar(EXPECTED),
    "compressed": gzip.compress(tar(FLAT)),
}


def cuts(form: str) -> set[int]:
    """Places inside headers, inside bodies, between members, and up to the end blocks."""
    data = WHOLE[form]
    if form == "compressed":
        return {*range(0, len(data), max(1, len(data) // 25)), len(data) - 1, len(data) - 8}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        *_, last = archive
    end, inner = last.offset_data + last.size, data.index(b"n00000002")
    places = {*range(0, end, 2900), *range(inner - 512, inner + 4096, 256)}
    return places | {100, 512, 1000, end - 1, end + -end % 512, end + -end % 512 + 511}


@pytest.mark.parametrize("form", WHOLE)
def test_what_was_whole_before_a_cut_is_kept_and_the_rest_comes_with_the_whole_archive(
    form: str, tmp_path: Path
) -> None:
    path = tmp_path / "archive.tar"
    kept = set()
    for cut in sorted(cuts(form)):
        out = tmp_path / f"out-{cut}"
        path.write_bytes(WHOLE[form][:cut])
        with pytest.raises(DamagedData, match=f"{path}.*(truncated|is empty).*fetch it") as raised:
            extract([path], out, Options(), workers=2, progress=Silent())
        found = tree(out)
        assert found.items() <= EXPECTED.items()
        reported = re.search(r"; (\d+) files that were whole are extracted", str(raised.value))
        assert len(found) == (int(reported[1]) if reported else 0)
        kept.add(len(found))

        before = times(out)
        path.write_bytes(WHOLE[form])
        (again,) = extract([path], out, Options(), workers=2, progress=Silent())
        assert tree(out) == EXPECTED
        if form != "compressed":  # nothing of that is trusted before its checksum was right
            assert again.written == len(EXPECTED) - len(before)
            assert before.items() <= times(out).items()
    assert {0, 12} <= kept
    assert len(kept) >= 4


def test_bytes_that_are_wrong_in_a_compressed_archive_do_not_stay(tmp_path: Path) -> None:
    """Its checksum comes at the end, when all images are written already."""
    path = tmp_path / "archive.tar.gz"
    stored = gzip.compress(tar(FLAT), 0)
    place = stored.index(FLAT["n00000001_1.JPEG"])
    path.write_bytes(stored[: place + 9] + b"x" + stored[place + 10 :])
    out = tmp_path / "out"
    with pytest.raises(DamagedData, match=f"{path} is damaged .*fetch it again"):
        extract([path], out, Options(), workers=1, progress=Silent())
    assert tree(out) != EXPECTED
    path.write_bytes(stored)
    extract([path], out, Options(), workers=1, progress=Silent())
    assert tree(out) == EXPECTED


# --- full disks -------------------------------------------------------------------------------


@pytest.fixture
def small_files(tmp_path: Path) -> Path:
    """Archives of 300 files of 600 bytes: as files each takes a page."""
    folder = tmp_path / "archives"
    folder.mkdir()
    data = {n: bytes([n % 251]) * 600 for n in range(100)}
    classes = {
        f"n0000000{label}": {f"n0000000{label}_{n}.JPEG": data[n] for n in range(25)}
        for label in range(4)
    }
    val = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": data[n] for n in range(100)}
    test = {f"ILSVRC2012_test_{n + 1:08d}.JPEG": data[n] for n in range(100)}
    (folder / "train.tar").write_bytes(nested(classes))
    (folder / "val.tar").write_bytes(tar(val))
    (folder / "test.tar.gz").write_bytes(gzip.compress(tar(test)))
    labels = "".join(f"{name} n{n % 4:08d}\n" for n, name in enumerate(val))
    (tmp_path / "labels.txt").write_text(labels)
    return folder


@pytest.mark.parametrize("limit", ["size=700k", "size=8m,nr_inodes=120"])
def test_no_archive_is_removed_while_the_disk_is_full(
    limit: str, small_files: Path, small_disk: Callable[[str], Any], run: Run, tmp_path: Path
) -> None:
    archives = tree(small_files)
    options = ("--labels", tmp_path / "labels.txt", "--workers", 2)
    assert run("imagenet-prep", "extract", small_files, *options, "--out", tmp_path / "expected"
               ).returncode == 0  # fmt: skip
    disk = small_disk(limit)
    out = disk.path / "out"
    command = ("imagenet-prep", "extract", small_files, *options, "--out", out, "--remove-archive")
    refused(run(*command), out, os.strerror(errno.ENOSPC), "make room and run the same command")
    assert tree(small_files) == archives
    assert tree(out).items() <= tree(tmp_path / "expected").items()
    disk.resize("size=16m,nr_inodes=2000")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert tree(small_files) == {}
    assert tree(out) == tree(tmp_path / "expected")
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))


# --- failing disks ----------------------------------------------------------------------------


class LoopDisk:
    """An ext4 file system in a file: what is cut off that file, the disk cannot read."""

    def __init__(self, image: Path, path: Path) -> None:
        self.path = path
        self._image = image
        self._lost: tuple[int, bytes] | None = None
        path.mkdir()
        with image.open("wb") as file:
            file.truncate(64 << 20)
        self._call("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", image)
        self.mount()

    def _call(self, *command: object) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk of this kind can be made here: {done.stderr.strip()}")

    def mount(self) -> None:
        self._call("mount", "-o", "loop", self._image, self.path)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

    def check(self) -> None:
        """Repair what a loss has done to the file system itself."""
        subprocess.run(
            ["fsck.ext4", "-f", "-y", str(self._image)], check=False, capture_output=True
        )

    def lose(self, path: Path, offset: int) -> None:
        """Make the bytes of a file from `offset` on unreadable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            size = os.fstatvfs(descriptor).f_bsize
            block = array.array("i", [offset // size])
            fcntl.ioctl(descriptor, FIBMAP, block)
            with self._image.open("r+b") as file:
                file.seek(block[0] * size)
                self._lost = block[0] * size, file.read()
                file.truncate(block[0] * size)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def mend(self, path: Path) -> None:
        assert self._lost is not None
        with self._image.open("r+b") as file:
            file.seek(self._lost[0])
            file.write(self._lost[1])
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[Callable[[Path], LoopDisk]]:
    """An ext4 file system on a loop device; needs root."""
    tools = ("mount", "losetup", "mkfs.ext4")
    if os.geteuid() != 0 or not all(map(shutil.which, tools)):
        pytest.skip(f"a failing disk needs root, {', '.join(tools)}")
    with contextlib.ExitStack() as stack:

        def make(folder: Path) -> LoopDisk:
            disk = LoopDisk(folder / "disk.img", tmp_path / "loop")
            stack.callback(disk.unmount)
            return disk

        yield make


BIG = {
    f"n0000000{label}": {
        f"n0000000{label}_{n}.JPEG": os.urandom(9_000) + bytes([label, n]) for n in range(100)
    }
    for label in (1, 2, 3)
}
BIG_FLAT = {name: data for images in BIG.values() for name, data in images.items()}
BIG_TREE = {f"train/{name[:9]}/{name}": data for name, data in BIG_FLAT.items()}
EIO = os.strerror(errno.EIO)


@pytest.mark.parametrize("form", ["tar of tars", "flat tar", "compressed"])
def test_a_disk_that_fails_in_the_middle_of_an_archive_is_named_by_every_command(
    form: str, loop_disk: Callable[[Path], LoopDisk], run: Run, tmp_path: Path
) -> None:
    disk = loop_disk(tmp_path)
    path = disk.path / "archive.tar"
    data = nested(BIG) if form == "tar of tars" else tar(BIG_FLAT)
    path.write_bytes(gzip.compress(data, 1) if form == "compressed" else data)
    disk.lose(path, path.stat().st_size // 2)

    out = tmp_path / "out"
    command = ("imagenet-prep", "extract", path, "--out", out, "--workers", 2, "--md5")
    failing = (path, EIO, "the disk or its connection is failing")
    refused(run(*command), *failing)
    assert tree(out).items() <= BIG_TREE.items()
    if form == "tar of tars":
        refused(run(*command, "--dry-run"), *failing)
        refused(run("imagenet-prep", "shard", path, "--out", tmp_path / "shards"), *failing)
        refused(run("imagenet-prep", "inspect", path), *failing)
        found = run("imagenet-prep", "verify", path)
        assert (found.returncode, "Traceback" in found.stderr) == (1, False)
        assert f"{path} cannot be read ({EIO})" in found.stderr
    disk.mend(path)
    extract([path], out, Options(), workers=2, progress=Silent())
    assert tree(out) == BIG_TREE


def test_files_that_a_disk_loses_after_they_were_written_are_not_recorded(
    small_disk: Callable[[str], Any], loop_disk: Callable[[Path], LoopDisk], run: Run,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A write goes to the cache and fails when it is written back; a sync alone tells."""
    store = small_disk("size=2m")
    disk = loop_disk(store.path)
    path = tmp_path / "archive.tar"
    path.write_bytes(nested(BIG))
    out = disk.path / "out"
    command = ("imagenet-prep", "extract", path, "--out", out, "--workers", 2)
    done = run(*command)
    refused(done, f"error: {out}: ")
    assert os.strerror(errno.ENOSPC) in done.stderr or EIO in done.stderr
    records = out / RECORDS / "extract.jsonl"
    assert not records.exists() or not records.read_text().strip()

    disk.unmount()
    store.resize("size=80m")
    disk.check()
    disk.mount()
    extract([path], out, Options(), workers=2, progress=Silent())
    assert tree(out) == BIG_TREE


# --- permissions ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run_as_others(script: Callable[[str], str]) -> Run:
    """Run a console script without root's right to read and write everything."""
    drop = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may do everything, and there is no setpriv(1) to give that up")
        drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*drop, script(name), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    return call


@pytest.mark.parametrize(
    ("what", "mode"),
    [
        ("archive.tar", 0o000),
        ("out", 0o000),
        (f"out/{RECORDS}/extract.jsonl", 0o000),
        (f"out/{RECORDS}/extract.jsonl", 0o444),
        ("out/train", 0o555),
        ("out/train", 0o666),
        ("out/train/n00000002", 0o555),
        ("out/train/n00000002", 0o666),
        ("out/train/n00000002", 0o333),
    ],
)
def test_what_may_not_be_read_or_written_is_named(
    what: str, mode: int, run_as_others: Run, tmp_path: Path
) -> None:
    path, out = tmp_path / "archive.tar", tmp_path / "out"
    path.write_bytes(WHOLE["tar of tars"])
    extract([path], out, Options(), workers=2, progress=Silent())
    for name in ("n00000002_1.JPEG", "n00000002_2.JPEG"):
        (out / "train" / "n00000002" / name).unlink()
    shutil.rmtree(out / "train" / "n00000003")
    place, before = tmp_path / what, tree(out)
    usual = place.stat().st_mode
    place.chmod(mode)
    done = run_as_others("imagenet-prep", "extract", path, "--out", out)
    place.chmod(usual)
    refused(done, place, os.strerror(errno.EACCES), "check its owner and permissions")
    assert tree(out).items() >= before.items()
    extract([path], out, Options(), workers=2, progress=Silent())
    assert tree(out) == EXPECTED


@pytest.mark.parametrize("what", ["", "out"])
def test_a_folder_that_may_not_be_written_is_named(
    what: str, run_as_others: Run, tmp_path: Path
) -> None:
    path, place = tmp_path / "archive.tar", tmp_path / "folder" / what
    path.write_bytes(WHOLE["tar of tars"])
    place.mkdir(parents=True)
    place.chmod(0o555)
    done = run_as_others("imagenet-prep", "extract", path, "--out", tmp_path / "folder" / "out")
    place.chmod(0o755)
    refused(done, place, os.strerror(errno.EACCES), "check its owner and permissions")
