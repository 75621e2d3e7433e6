"""Tars by the batch are, byte for byte, what tarfile writes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import pytest

from prep.sample.tar import MTIME, TarWriter


def ours(*batches: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    archive = TarWriter(file)
    for batch in batches:
        archive.add([name for name, _ in batch], [data for _, data in batch])
    archive.end()
    return file.getvalue()


def theirs(members: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), MTIME, 0o644
            info.uid, info.gid, info.uname, info.gname = 1000, 1000, "imagenet", "imagenet"
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


SIZES = (0, 1, 7, 8, 63, 64, 511, 512, 513, 1023, 1024, 1025, 4095, 10_239, 10_240, 2**18 + 5)


@pytest.mark.parametrize("length", [1, 2, 19, 99, 100])
def test_any_size_under_names_of_any_length(length: int) -> None:
    members = [
        (
            f"{number:0{length}d}"[-length:] if length > 1 else "abcdefghijklmnop"[number],
            b"x" * size,
        )
        for number, size in enumerate(SIZES)
    ]
    assert ours(members) == theirs(members)


def test_batches_do_not_show() -> None:
    members = [(f"n01440764_{number**3}.JPEG", bytes(number)) for number in range(300)]
    expected = theirs(members)
    assert ours(members) == expected
    assert ours(members[:1], members[1:128], [], members[128:]) == expected


@pytest.mark.parametrize("blocks", [*range(15, 22), 39, 40])
def test_the_end_fills_a_record(blocks: int) -> None:
    members = [("a", bytes(512 * (blocks - 1)))]
    assert ours(members) == theirs(members)


def test_an_empty_archive() -> None:
    assert ours() == theirs([])


@pytest.mark.parametrize("name", ["", "n" * 101])
def test_a_name_that_no_header_holds_is_a_programming_error(name: str) -> None:
    with pytest.raises(AssertionError):
        ours([(name, b"")])
