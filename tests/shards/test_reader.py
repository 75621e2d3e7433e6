"""Reading samples: exact bytes, and an error that says where they ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import DamagedData
from shards.hashing import hash_file
from shards.reader import Reader
from shards.sample import Layout

# Reading this file fails with EIO, as a dying disk does, and tells no name with it.
FAILING = Path("/proc/self/mem")
SECONDS = 60  # until a process that hangs fails its test


def test_a_part_of_a_tar_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(range(100)))
    view = bytearray(10)
    with Reader(Layout.TAR, [path, path]) as reader:
        reader.read_into(memoryview(view), 1, "", 90)
    assert view == bytes(range(90, 100))


def test_a_source_shorter_than_listed_is_named_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(95))
    with Reader(Layout.TAR, [path]) as reader, pytest.raises(DamagedData) as raised:
        reader.read_into(memoryview(bytearray(10)), 0, "", 90)
    assert str(raised.value).startswith(f"{path} ends at byte 95")
    assert "reach to 100" in str(raised.value)


@pytest.mark.parametrize("size", [9, 11])
def test_an_image_file_that_changed_its_size_is_named(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(size))
    reader = Reader(Layout.FOLDER, [tmp_path])
    with pytest.raises(DamagedData, match=f"{tmp_path}/a.jpg has changed its size"):
        reader.read_into(memoryview(bytearray(10)), 0, "a.jpg", 0)


def test_reading_goes_on_after_close(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"abc")
    reader = Reader(Layout.TAR, [path])
    for _ in range(2):
        view = bytearray(1)
        reader.read_into(memoryview(view), 0, "", 1)
        assert view == b"b"
        reader.close()


def test_a_process_forked_while_a_file_is_being_opened_can_read(tmp_path: Path) -> None:
    waiting, whole = tmp_path / "waiting", tmp_path / "a.tar"
    os.mkfifo(waiting)  # opening it lasts until somebody writes
    whole.write_bytes(b"abc")
    code = (
        "import linecache, os, sys, threading\n"
        "from pathlib import Path\n"
        "from shards.reader import Reader\n"
        "from shards.sample import Layout\n"
        "reader = Reader(Layout.TAR, [Path(each) for each in sys.argv[1:]])\n"
        "read = lambda place: reader.read_into(memoryview(bytearray(1)), place, '', 0)\n"
        "opening = threading.Thread(target=read, args=(0,), daemon=True)\n"
        "opening.start()\n"
        "frame = lambda: sys._current_frames()[opening.ident]\n"
        "line = lambda at: linecache.getline(at.f_code.co_filename, at.f_lineno)\n"
        "while 'os.open(' not in line(frame()): pass\n"
        "child = os.fork()\n"
        "if not child: read(1); os._exit(7)\n"
        "os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, waiting, whole]
    assert subprocess.run(command, check=False, timeout=SECONDS).returncode == 7


@pytest.mark.skipif(not FAILING.exists(), reason="there is no /proc here")
def test_a_failing_disk_is_named() -> None:
    with Reader(Layout.TAR, [FAILING]) as reader, pytest.raises(OSError) as raised:  # noqa: PT011
        reader.read_into(memoryview(bytearray(10)), 0, "", 0)
    assert raised.value.filename == str(FAILING)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        hash_file(FAILING)
    assert raised.value.filename == str(FAILING)
