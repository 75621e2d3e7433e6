"""The MD5 sums that archives should have: published ones are in `prep.ilsvrc`, others are given.

A file of sums is what md5sum writes (`SUM  NAME`, `SUM *NAME`) or BSD's md5 (`MD5 (NAME) = SUM`).
For one archive the 32 digits themselves will do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.durable import named
from shards.errors import DamagedData, ToolError, UsageError

_DIGITS = re.compile(r"[0-9a-fA-F]{32}")
_GNU = re.compile(r"(\\?)([0-9a-fA-F]{32}) [ *](.+)")
_BSD = re.compile(r"(\\?)MD5 ?\((.+)\) ?= ([0-9a-fA-F]{32})")
_LARGEST = 16 << 20  # bytes of a file of sums: 200,000 lines


@dataclass(frozen=True, kw_only=True)
class Sums:
    """MD5 sums in lower case by file name (without folders), and where they come from.

    `alone` is one sum without a name: that of the only archive.
    """

    origin: str
    by_name: Mapping[str, str]
    alone: str | None = None


NO_SUMS = Sums(origin="", by_name={})


def read_sums(given: str) -> Sums:
    """The sums that `--md5` gives: 32 digits, or the path of a file of sums.

    Raises ToolError where there is no such file, DamagedData where it is none of sums.
    """
    if _DIGITS.fullmatch(given):
        return Sums(origin="--md5", by_name={}, alone=given.lower())
    path = Path(given)
    try:
        with named(path), path.open("rb") as file:
            text = file.read(_LARGEST + 1).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        raise ToolError(
            f"{given} does not exist; --md5 takes a file of `SUM  NAME` lines, or the 32 "
            "hexadecimal digits of one archive's sum"
        ) from None
    if len(text) > _LARGEST:
        raise DamagedData(f"{given} is too large for a file of sums ({_LARGEST} bytes)")
    return Sums(origin=given, by_name=_parse(given, text))


def _parse(origin: str, text: str) -> dict[str, str]:
    by_name: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, digest = _parse_line(origin, number, line.rstrip())
        if by_name.setdefault(name, digest) != digest:
            raise UsageError(
                f"{origin} has two sums for files called {name}; give the sums of one folder"
            )
    if not by_name:
        raise DamagedData(f"{origin} holds no sums")
    return by_name


def _parse_line(origin: str, number: int, line: str) -> tuple[str, str]:
    """File name and sum of a line; a backslash before it says that the name has escapes."""
    if match := _GNU.fullmatch(line):
        escaped, digest, name = match.groups()
    elif match := _BSD.fullmatch(line):
        escaped, name, digest = match.groups()
    else:
        raise DamagedData(
            f"{origin} is no file of MD5 sums: line {number} is neither `SUM  NAME` nor "
            f"`MD5 (NAME) = SUM`, with 32 hexadecimal digits ({line[:60]!a})"
        )
    if escaped:
        name = name.replace(r"\\", "\0").replace(r"\n", "\n").replace("\0", "\\")
    return PurePosixPath(name).name, digest.lower()
