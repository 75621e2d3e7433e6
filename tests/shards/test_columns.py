"""Columns of numbers in the safetensors layout: what is written is read, by others too."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from shards.columns import read_columns, write_columns
from shards.errors import DamagedData

COLUMNS = {
    "key": np.array([b"a", b"bcd", b"ef"]),
    "offset": np.array([1, 2**40, 2**64 - 1], np.uint64),
    "label": np.array([-1, 0, 999], np.int32),
    "signed": np.array([-(2**63), 0, 1], np.int64),
    "small": np.array([1, 2, 65535], np.uint16),
    "format": np.array([1, 2, 3], np.uint8),
}
METADATA = {"what": "gr\u00fc\u00dfe", "empty": ""}


def written(columns: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    file = io.BytesIO()
    write_columns(file, columns, metadata)
    return file.getvalue()


@pytest.fixture
def file_with(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "columns.safetensors"
        path.write_bytes(data)
        return path

    return write


def framed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_what_is_written_is_read(file_with: Callable[[bytes], Path]) -> None:
    columns, metadata = read_columns(file_with(written(COLUMNS, METADATA)))
    assert metadata == METADATA
    assert columns.keys() == COLUMNS.keys()
    for name, column in COLUMNS.items():
        assert columns[name].dtype == column.dtype
        assert columns[name].tolist() == column.tolist()
        assert not columns[name].flags.writeable


def test_columns_without_rows_are_read(file_with: Callable[[bytes], Path]) -> None:
    empty = {"key": np.zeros(0, "S1"), "offset": np.zeros(0, np.uint64)}
    columns, _ = read_columns(file_with(written(empty, {})))
    assert {name: len(column) for name, column in columns.items()} == {"key": 0, "offset": 0}


def test_bytes_follow_from_the_content_alone() -> None:
    backwards = dict(reversed(COLUMNS.items()))
    swapped = {
        name: column if column.dtype.kind == "S" else column.astype(column.dtype.newbyteorder(">"))
        for name, column in backwards.items()
    }
    expected = written(COLUMNS, METADATA)
    assert written(backwards, dict(reversed(METADATA.items()))) == expected
    assert written(swapped, METADATA) == expected


def test_every_column_is_aligned(file_with: Callable[[bytes], Path]) -> None:
    columns, _ = read_columns(file_with(written(COLUMNS, METADATA)))
    assert all(column.flags.aligned for column in columns.values())


def test_the_safetensors_library_reads_it(file_with: Callable[[bytes], Path]) -> None:
    path = file_with(written(COLUMNS, METADATA))
    found = load_file(path)
    assert found.keys() == COLUMNS.keys()
    for name, column in COLUMNS.items():
        if column.dtype.kind == "S":
            assert [row.tobytes().rstrip(b"\0") for row in found[name]] == column.tolist()
        else:
            assert found[name].tolist() == column.tolist()
    with safe_open(path, "numpy") as file:
        assert file.metadata() == METADATA


def entry(dtype: str = "U8", shape: object = (1,), offsets: object = (0, 1)) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


DAMAGED = {
    "nothing": b"",
    "half a length": b"\x08\0\0",
    "a length beyond the file": (1 << 62).to_bytes(8, "little") + b"{}",
    "a length of all ones": b"\xff" * 8,
    "no JSON": framed(b"{'a': 1}"),
    "not UTF-8": framed(b'{"\xff": 1}'),
    "a list": framed(b"[]"),
    "nested deeply": framed(b"[" * 100_000),
    "metadata a list": framed(b'{"__metadata__": [1]}'),
    "metadata of numbers": framed(b'{"__metadata__": {"imagenet-resnet.index": 5}}'),
    "a column that is a number": framed(b'{"a": 1}'),
    "a column without a place": framed(b'{"a": {"dtype": "U8", "shape": [1]}}', b"x"),
    "an unknown type": framed(entry("F8_E4M3"), b"x"),
    "a gap": framed(entry(offsets=(1, 2)), b"xx"),
    "an end before its start": framed(entry(offsets=(0, -1)), b"x"),
    "a place beyond the end": framed(entry(shape=(100,), offsets=(0, 100)), b"x"),
    "more bytes than the shape": framed(entry(shape=(1,), offsets=(0, 2)), b"xx"),
    "a negative shape": framed(entry(shape=(-1, -1)), b"x"),
    "a shape of text": framed(entry(shape=("x",)), b"x"),
    "an endless shape": framed(
        b'{"a": {"dtype": "U8", "shape": [1e999], "data_offsets": [0, 1]}}', b"x"
    ),
    "a shape that overflows": framed(entry(shape=(2**62, 4)), b"x"),
    "places of text": framed(entry(offsets=("0", "1")), b"x"),
    "bytes left over": framed(entry(), b"xy"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name(case: str, file_with: Callable[[bytes], Path]) -> None:
    path = file_with(DAMAGED[case])
    with pytest.raises(DamagedData, match=str(path)):
        read_columns(path)


def test_every_truncation_is_noticed(file_with: Callable[[bytes], Path]) -> None:
    data = written(COLUMNS, METADATA)
    for size in range(len(data)):
        path = file_with(data[:size])
        with pytest.raises(DamagedData, match=str(path)):
            read_columns(path)


def test_flips_in_the_header_are_refused_or_leave_sound_columns(
    file_with: Callable[[bytes], Path],
) -> None:
    data = written(COLUMNS, METADATA)
    header = 8 + int.from_bytes(data[:8], "little")
    generator = random.Random(0)
    refused = 0
    for _ in range(500):
        flipped = bytearray(data)
        flipped[generator.randrange(header)] ^= 1 << generator.randrange(8)
        path = file_with(flipped)
        try:
            columns, metadata = read_columns(path)
        except DamagedData as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017
            continue
        # What passes is another name, or the same bytes seen as signed or unsigned.
        assert all(isinstance(text, str) for text in metadata.values())
        payload = sum(column.nbytes for column in columns.values())
        assert payload == len(data) - header
    assert 100 < refused < 500
