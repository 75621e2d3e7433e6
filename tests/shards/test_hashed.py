"""Reading front to back gives the same bytes as the file has, and the digest of all of them."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from shards.hashed import HashedBytes


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hashed") / "file"
    path.write_bytes(b"".join(number.to_bytes(4, "big") for number in range(700_000)))
    return path


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
@pytest.mark.parametrize(
    "reads",
    [
        [],
        [(0, 10)],
        [(0, 512), (512, 512), (5000, 1), (5001, 0), (1_048_570, 12), (2_799_990, 100)],
        [(2_000_000, 3_000_000)],
        [(0, 2_800_000), (2_800_000, 5)],
        [(9_000_000, 10)],
    ],
)
def test_reads_and_the_digest_are_those_of_the_file(
    reads: list[tuple[int, int]], algorithm: str, file: Path
) -> None:
    data = file.read_bytes()
    steps: list[int] = []
    with HashedBytes(file, steps.append, algorithm) as hashed:
        assert hashed.end == len(data)
        for position, count in reads:
            assert hashed.read_at(position, count) == data[position : position + count]
        assert hashed.hexdigest() == hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    assert sum(steps) == len(data)


def test_an_empty_file_has_its_digest_too(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with HashedBytes(path, lambda _: None) as hashed:
        assert hashed.read_at(0, 512) == b""
        assert hashed.hexdigest() == hashlib.sha256().hexdigest()


def test_what_is_closed_halfway_leaves_no_thread(file: Path) -> None:
    before = threading.active_count()
    with HashedBytes(file, lambda _: None) as hashed:
        hashed.read_at(0, 2_000_000)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
