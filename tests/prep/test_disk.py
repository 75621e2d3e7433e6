"""A disk is what the kernel says of it, and its rates are measured without leaving a trace."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.doctor.disk import disk_of, existing, measure


def test_a_disk_in_memory_is_one(small_disk: Callable[[str], Any]) -> None:
    disk = disk_of(small_disk("size=8m,nr_inodes=100").path)
    assert (disk.kind, disk.writable, disk.block) == ("tmpfs", True, os.sysconf("SC_PAGE_SIZE"))
    assert disk.free_bytes == 8 << 20
    assert disk.free_inodes == 99  # the folder itself has one


def test_what_is_mounted_last_and_deepest_counts(small_disk: Callable[[str], Any]) -> None:
    outer = small_disk("size=8m")
    inner = outer.path / "a folder with blanks"
    inner.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", inner], check=True)
    try:
        assert (disk_of(inner / "not" / "yet").kind, disk_of(inner).mount) == ("ramfs", inner)
        assert disk_of(outer.path / "beside").kind == "tmpfs"
        link = outer.path / "link"
        link.symlink_to(inner)
        assert disk_of(link).kind == "ramfs"
    finally:
        subprocess.run(["umount", inner], check=True)


def test_a_file_system_without_a_table_of_files_has_no_number_of_them() -> None:
    assert disk_of(Path("/proc")).free_inodes is None


def test_what_is_not_there_yet_lies_where_it_would_be_made(tmp_path: Path) -> None:
    assert existing(tmp_path / "not" / "yet") == tmp_path
    assert existing(Path("relative-and-missing")) == Path.cwd()


def test_measuring_leaves_nothing_behind(tmp_path: Path) -> None:
    rates = measure(tmp_path, None)
    assert min(rates.read, rates.write, rates.create, rates.hash) > 0
    assert list(tmp_path.iterdir()) == []


def test_measuring_reads_a_large_archive_and_leaves_it_alone(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with archive.open("wb") as file:
        file.truncate(300 << 20)
    before = archive.stat()
    assert measure(tmp_path, archive).read > 0
    after = archive.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize(
    ("options", "code"),
    [("size=1m", errno.ENOSPC), ("size=400m,nr_inodes=20", errno.ENOSPC), ("ro", errno.EROFS)],
)
def test_a_disk_that_cannot_be_measured_is_left_as_it_was(
    small_disk: Callable[[str], Any], options: str, code: int
) -> None:
    place = small_disk(options).path
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        measure(place, None)
    assert str(caught.value.filename).startswith(str(place))
    assert list(place.iterdir()) == []
    assert disk_of(place).writable is (code != errno.EROFS)
