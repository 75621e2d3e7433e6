"""A download that was cut off, or has holes, shows at once; a whole archive does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.wholeness import why_unfinished


def test_whole_archives_show_nothing(archives: Any) -> None:
    for path in (archives.train, archives.val):
        assert why_unfinished(path, is_tar=True) == ""
    assert why_unfinished(archives.devkit, is_tar=False) == ""


@pytest.mark.parametrize("length", [1, 511, 512, 1024, 100_000, -1])
def test_a_tar_that_was_cut_off_shows(length: int, archives: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(archives.train.read_bytes()[:length])
    assert why_unfinished(path, is_tar=True)
    assert why_unfinished(path, is_tar=False) == ""


def test_a_hole_shows_and_its_place_is_said(archives: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    data = archives.train.read_bytes()
    with path.open("wb") as file:
        file.write(data[:8192])
        file.seek(8 << 20)
        file.write(data[8192:])
    if path.stat().st_blocks * 512 >= path.stat().st_size:
        pytest.skip("this file system keeps no holes")
    assert "never written" in why_unfinished(path, is_tar=True)
    os.truncate(path, 16 << 30)
    assert "never written" in why_unfinished(path, is_tar=False)


def test_zeros_that_were_written_are_no_hole(
    write_tar: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "t.tar", {"a": bytes(3 << 20)})
    assert why_unfinished(path, is_tar=True) == ""


def test_a_download_that_aria2_has_not_finished_shows(archives: Any, tmp_path: Path) -> None:
    path = tmp_path / archives.val.name
    path.symlink_to(archives.val)
    (tmp_path / f"{path.name}.aria2").touch()
    assert f"{path.name}.aria2" in why_unfinished(path, is_tar=True)
