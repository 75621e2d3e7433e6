"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shards.hashing import hash_file


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_length_and_digest_are_those_of_the_bytes(size: int, tmp_path: Path) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "file"
    path.write_bytes(data[:size])
    steps: list[int] = []
    assert hash_file(path, step=steps.append) == (size, hashlib.sha256(data[:size]).hexdigest())
    assert sum(steps) == size


def test_other_algorithms_are_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(tmp_path / "file", "md5")[1] == "900150983cd24fb0d6963f7d28e17f72"
