"""Files that are whole or absent, locks that die with their process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.durable import (
    RECORDS,
    TEMPORARY_PREFIX,
    atomic_file,
    atomic_write_bytes,
    check_writable,
    folder_lock,
    named,
    remove_leftovers,
    sync_file_system,
)
from shards.errors import ToolError, UsageError


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_file(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        assert all(each.name.startswith(TEMPORARY_PREFIX) for each in path.parent.iterdir())
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_after_an_error_the_old_file_is_there_and_nothing_else(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, b"old")
    with pytest.raises(error), atomic_file(path) as file:  # noqa: PT012
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_without_a_name_gets_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="file") as raised, named(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "file")


def test_an_error_about_the_temporary_name_is_about_the_file(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)  # as long as a name may be
    with pytest.raises(OSError, match="File name too long") as raised:
        atomic_write_bytes(path, b"")
    assert raised.value.filename == str(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file in a folder of its own, under three names."""
    path = tmp_path / "data" / "model"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard").hardlink_to(path)
    return path


def test_what_is_read_is_not_written(model: Path, tmp_path: Path) -> None:
    for name in ("data/model", "data/../data/model", "link", "hard"):
        with pytest.raises(UsageError, match=r"would replace .*data/model\); give another file"):
            check_writable(tmp_path / name, besides=[tmp_path / "absent", model])
    with pytest.raises(UsageError, match=r"would replace .*data\); give"):
        check_writable(model, besides=[model.parent])
    with pytest.raises(UsageError, match="would replace"):
        check_writable(tmp_path / "new", besides=[tmp_path / "data" / ".." / "new"])
    check_writable(model, besides=[tmp_path / "absent"])
    check_writable(model.with_name("new"), besides=[model, model.parent])
    check_writable(tmp_path / "deep" / "new", besides=[tmp_path / "other"])
    assert {path.name for path in tmp_path.iterdir()} == {"data", "link", "hard"}
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_places_that_take_no_file_are_told_with_the_reason(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to(tmp_path / "pipe")
    for path, said in (
        (tmp_path, "it is a folder or a device"),
        (tmp_path / "pipe", "it is a folder or a device"),
        (tmp_path / "to-pipe", "it is a folder or a device"),
        (model / "deep" / "file", "Not a directory"),
        (tmp_path / ("x" * 255), "File name too long"),
    ):
        with pytest.raises(UsageError, match=f"{path.name} cannot be written.*{said}") as refused:
            check_writable(path)
        assert TEMPORARY_PREFIX not in str(refused.value)


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}1-a.tar").write_bytes(b"")
    (tmp_path / f"{TEMPORARY_PREFIX}folder").mkdir()
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / f"{TEMPORARY_PREFIX}link").symlink_to(tmp_path / "a.tar")
    remove_leftovers(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.tar", f"{TEMPORARY_PREFIX}folder", f"{TEMPORARY_PREFIX}link"}


def test_a_whole_file_system_can_be_synced(tmp_path: Path) -> None:
    sync_file_system(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_file_system(tmp_path / "absent")


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path),
        pytest.raises(ToolError, match="being written by another process"),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):
        assert (tmp_path / RECORDS).is_dir()


HOLD = """
import sys
from pathlib import Path
from shards.durable import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ToolError), folder_lock(tmp_path):
            pass
        process.kill()
    with folder_lock(tmp_path):
        pass
