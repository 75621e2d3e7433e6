"""Columns of numbers in one file, opened by memory map: the safetensors layout.

A little-endian 64-bit length, a JSON header of that length, then each column's bytes in C
order. It is a documented format with readers in many languages, holds no code, and its bytes
follow from its content alone. Strings are matrices of uint8, padded with zeros.

Layout: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData

_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library
_NAMES = {"u8": "U64", "i8": "I64", "u4": "U32", "i4": "I32", "u2": "U16", "u1": "U8"}
_DTYPES = {name: np.dtype(f"<{code}") for code, name in _NAMES.items()}

Column = npt.NDArray[Any]


def write_columns(
    file: BinaryIO, columns: Mapping[str, Column], metadata: Mapping[str, str]
) -> None:
    """Write columns (integers, or bytes of fixed width) and text metadata.

    Columns are laid out by falling alignment, then name, so that each one is aligned.
    """
    arrays = {name: _as_numbers(column) for name, column in columns.items()}
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _NAMES[array.dtype.str[1:]],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(arrays[name].tobytes())


def _as_numbers(column: Column) -> Column:
    if column.dtype.kind == "S":
        return (
            np.ascontiguousarray(column).view(np.uint8).reshape(len(column), column.dtype.itemsize)
        )
    return np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<"))


def read_columns(path: Path) -> tuple[dict[str, Column], dict[str, str]]:
    """Columns and metadata of a file that `write_columns` wrote; uint8 matrices become bytes.

    The columns are read-only views of a memory map: opening takes milliseconds at any size.
    Raises DamagedData for anything that does not fit together.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 8:
            raise DamagedData(f"{path} is truncated: {size} bytes")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _parse(mapped)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise DamagedData(f"{path} is damaged: its header does not fit it ({error})") from None


def _parse(mapped: mmap.mmap) -> tuple[dict[str, Column], dict[str, str]]:
    length = int.from_bytes(mapped[:8], "little")
    if length > min(_LARGEST_HEADER, len(mapped) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(mapped)}")
    header = json.loads(mapped[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in (*metadata, *metadata.values())):
        raise ValueError("metadata that is not text")
    start, position = 8 + length, 0
    columns: dict[str, Column] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
        first, last = entry["data_offsets"]
        if first != position or min(shape, default=0) < 0:
            raise ValueError(f"column {name} lies at {first}, not {position}")
        if last - first != math.prod(shape) * dtype.itemsize or start + last > len(mapped):
            raise ValueError(f"column {name} claims bytes {first} to {last}")
        flat = np.frombuffer(mapped, dtype, math.prod(shape), start + first).reshape(shape)
        columns[name] = _as_text(flat) if dtype.itemsize == 1 and flat.ndim == 2 else flat
        position = last
    if start + position != len(mapped):
        raise ValueError(f"{len(mapped) - start - position} bytes more than its columns take")
    return columns, metadata


def _as_text(matrix: Column) -> Column:
    width = matrix.shape[1]
    return matrix.view(f"S{width}").reshape(len(matrix)) if matrix.size else np.zeros(0, "S1")
