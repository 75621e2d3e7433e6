"""The part of MATLAB level 5 files that the devkit's `meta.mat` uses: one array of structs.

Written here rather than taken from SciPy, which would be a 100 MB dependency for one file of
200 kB. Fields are texts (char rows) and numbers (real arrays of any numeric class); a field of
another kind reads as None. Format: "MAT-File Format", MathWorks, level 5. The reader takes
hostile bytes: nothing is allocated on the word of a length or a count that the data does not
back, elements are not nested, and a compressed variable is inflated up to a bound.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from shards.errors import DamagedData

Value: TypeAlias = str | npt.NDArray[Any] | None
Record: TypeAlias = Mapping[str, Value]

# Element types (mi...) and array classes (mx...) of the format.
_INT8, _UINT16, _INT32, _UINT32, _DOUBLE, _MATRIX, _COMPRESSED, _UTF8 = 1, 4, 5, 6, 9, 14, 15, 16
_STRUCT, _CHAR, _DOUBLE_ARRAY = 2, 4, 6
_NUMERIC_ARRAYS: Final = range(6, 16)
_COMPLEX_FLAG: Final = 0x0800
_NUMBERS: Final = {
    1: "<i1",
    2: "<u1",
    3: "<i2",
    4: "<u2",
    5: "<i4",
    6: "<u4",
    7: "<f4",
    9: "<f8",
    12: "<i8",
    13: "<u8",
}
# A char row is stored as UTF-8, UTF-16 or UTF-32, or one integer a UTF-16 unit.
_TEXTS: Final = {
    1: "ascii",
    2: "latin-1",
    4: "utf-16-le",
    16: "utf-8",
    17: "utf-16-le",
    18: "utf-32-le",
}
_HEADER_BYTES: Final = 128
_VERSION_LITTLE_ENDIAN: Final = b"\x00\x01IM"
_MAX_RECORDS: Final = 100_000
_NO_NUMBERS: Final = np.empty(0)  # shared: an empty array costs the reader no memory


@dataclass(frozen=True, kw_only=True)
class _Array:
    """A matrix element whose common head (flags, dimensions, name) has been read."""

    array_class: int
    complex: bool
    count: int
    rows: int
    name: str
    rest: memoryview


def read_struct_array(data: bytes, name: str, *, max_bytes: int) -> list[Record]:
    """The structs of variable `name` in column order, inflating at most `max_bytes`.

    Numbers come as flat arrays, texts as str. Raises DamagedData with a reason that names no
    file: the caller knows which one it is.
    """
    if len(data) < _HEADER_BYTES or data[124:_HEADER_BYTES] != _VERSION_LITTLE_ENDIAN:
        raise DamagedData("not a little-endian MATLAB level 5 file")
    rest = memoryview(data)[_HEADER_BYTES:]
    while rest:
        kind, body, rest = _element(rest)
        if kind == _COMPRESSED:
            inflated = memoryview(_inflate(body, max_bytes))
            max_bytes -= len(inflated)
            kind, body, _ = _element(inflated)
        if kind != _MATRIX:
            continue
        array = _array(body)
        if array.name == name:
            return _structs(array)
    raise DamagedData(f"it holds no variable named {name!r}")


def write_struct_array(name: str, records: Sequence[Mapping[str, str | Sequence[float]]]) -> bytes:
    """A file with one compressed 1xN struct array; every record has the fields of the first.

    Texts are ASCII and written as char rows, numbers as rows of doubles.
    """
    fields = tuple(records[0])
    width = max(map(len, fields)) + 1
    body = _head(_STRUCT, (1, len(records)), name)
    body += _pack(_INT32, struct.pack("<i", width))
    body += _pack(_INT8, b"".join(field.encode("ascii").ljust(width, b"\0") for field in fields))
    body += b"".join(_pack_value(record[field]) for record in records for field in fields)
    compressed = zlib.compress(_pack(_MATRIX, body), 9)
    text = b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8)
    tag = struct.pack("<II", _COMPRESSED, len(compressed))
    return text + _VERSION_LITTLE_ENDIAN + tag + compressed


def _element(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """Type and body of the first data element, and what follows it."""
    if len(data) < 8:
        raise DamagedData("it ends inside an element")
    kind, size = struct.unpack_from("<II", data)
    start, padding = 8, -size % 8
    if kind >> 16:  # the small form: size and type share one word, four bytes of body
        kind, size = kind & 0xFFFF, kind >> 16
        start, padding = 4, 4 - size
    elif kind == _COMPRESSED:
        padding = 0
    if padding < 0 or start + size > len(data):
        raise DamagedData("an element is longer than what holds it")
    return kind, data[start : start + size], data[start + size + padding :]


def _inflate(data: memoryview, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise DamagedData(f"a compressed variable cannot be inflated ({error})") from None
    if len(inflated) > max_bytes:
        raise DamagedData(f"a compressed variable is larger than {max_bytes:,} bytes")
    if not inflater.eof:
        raise DamagedData("a compressed variable is truncated")
    return inflated


def _array(body: memoryview) -> _Array:
    if not body:  # an empty cell or field may be written without a head
        return _Array(array_class=_DOUBLE_ARRAY, complex=False, count=0, rows=0, name="", rest=body)
    kind, flags, body = _element(body)
    if kind != _UINT32 or len(flags) != 8:
        raise DamagedData("an array has no flags")
    shape, body = _integers(body)
    _, name, body = _element(body)
    word = struct.unpack_from("<I", flags)[0]
    if len(shape) < 2 or min(shape) < 0:
        raise DamagedData("an array has impossible dimensions")
    return _Array(
        array_class=word & 0xFF,
        complex=bool(word & _COMPLEX_FLAG),
        count=math.prod(shape),
        rows=shape[0],
        name=bytes(name).decode("latin-1"),
        rest=body,
    )


def _structs(array: _Array) -> list[Record]:
    if array.array_class != _STRUCT:
        raise DamagedData(f"{array.name!r} is not an array of structs")
    if array.count > _MAX_RECORDS:
        raise DamagedData(f"{array.name!r} has {array.count:,} structs, over {_MAX_RECORDS:,}")
    widths, rest = _integers(array.rest)
    _, names, rest = _element(rest)
    width = widths[0] if len(widths) == 1 else 0
    if width < 1 or len(names) < width:
        raise DamagedData(f"{array.name!r} has no field names")
    fields = [
        bytes(names[start : start + width]).split(b"\0")[0].decode("latin-1")
        for start in range(0, len(names), width)
    ]
    records: list[Record] = []
    for _ in range(array.count):
        record: dict[str, Value] = {}
        for field in fields:
            kind, body, rest = _element(rest)
            if kind != _MATRIX:
                raise DamagedData(f"field {field!r} is not an array")
            record[field] = _value(_array(body))
        records.append(record)
    return records


def _value(array: _Array) -> Value:
    if array.array_class == _CHAR:
        return _text(array)
    if array.array_class not in _NUMERIC_ARRAYS or array.complex:
        return None
    if array.count == 0:
        return _NO_NUMBERS
    numbers, _ = _numbers(array.rest)
    if len(numbers) != array.count:
        raise DamagedData(f"{len(numbers)} numbers where the dimensions say {array.count}")
    return numbers


def _text(array: _Array) -> str | None:
    if array.count == 0:
        return ""
    kind, body, _ = _element(array.rest)
    encoding = _TEXTS.get(kind)
    if array.rows != 1 or encoding is None:
        return None
    try:
        return bytes(body).decode(encoding)
    except UnicodeDecodeError:
        raise DamagedData(f"a text is not {encoding}") from None


def _numbers(data: memoryview) -> tuple[npt.NDArray[Any], memoryview]:
    """The first element as numbers in their stored type, and what follows it."""
    kind, body, rest = _element(data)
    if kind not in _NUMBERS or len(body) % np.dtype(_NUMBERS[kind]).itemsize:
        raise DamagedData("numbers are not stored as numbers")
    return np.frombuffer(body, dtype=_NUMBERS[kind]), rest


def _integers(data: memoryview) -> tuple[list[int], memoryview]:
    numbers, rest = _numbers(data)
    if numbers.dtype.kind == "f":
        raise DamagedData("a dimension or width is not an integer")
    return [int(number) for number in numbers], rest


def _head(array_class: int, shape: tuple[int, int], name: str = "") -> bytes:
    return (
        _pack(_UINT32, struct.pack("<II", array_class, 0))
        + _pack(_INT32, struct.pack("<ii", *shape))
        + _pack(_INT8, name.encode("ascii"))
    )


def _pack(kind: int, body: bytes) -> bytes:
    if kind != _MATRIX and 0 < len(body) <= 4:
        return struct.pack("<HH", kind, len(body)) + body.ljust(4, b"\0")
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def _pack_value(value: str | Sequence[float]) -> bytes:
    shape = (1, len(value)) if value else (0, 0)
    if isinstance(value, str):
        body = _head(_CHAR, shape) + _pack(_UTF8, value.encode("ascii"))
    else:
        body = _head(_DOUBLE_ARRAY, shape) + _pack_numbers(value)
    return _pack(_MATRIX, body)


def _pack_numbers(numbers: Sequence[float]) -> bytes:
    """Small counts as uint16, as MATLAB stores them: SciPy then gives integers."""
    if all(float(number).is_integer() and 0 <= number < 2**16 for number in numbers):
        return _pack(_UINT16, struct.pack(f"<{len(numbers)}H", *map(int, numbers)))
    return _pack(_DOUBLE, struct.pack(f"<{len(numbers)}d", *numbers))
