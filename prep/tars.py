"""Which tars a user means, whether they are shards or archives, and which split each one is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from prep.archives import SPLITS, recognise
from prep.inflate import is_compressed
from prep.sources import Source, find_sources
from shards.errors import DamagedData, ToolError, UsageError
from shards.foreign import is_shard
from shards.tar import FileBytes

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MOST_TARS: Final = 100_000  # that one pattern may name
_WORDS: Final = {**SPLITS, "training": "train", "valid": "val"}


def find_tars(
    paths: Sequence[Path], split: str | None
) -> tuple[dict[str, list[Path]], list[Source]]:
    """The shards that the paths are, name or hold, by split; and archives and folders of images.

    `split` selects one split, and names it where the tars themselves do not. Raises ToolError for
    what is missing or not recognised, UsageError where it cannot be indexed.
    """
    shards: list[Path] = []
    others: list[Path] = []
    for path in paths:
        tars = _tars(path)
        if tars and _are_shards(tars[0]):
            shards += tars
        else:
            others += tars if tars and not path.is_dir() else [path]
    by_split = _by_split(shards, split) if shards else {}
    archives = find_sources(others, split) if others else []
    for each in archives:
        if each.split in by_split:
            raise UsageError(
                f"both {by_split[each.split][0]} and {each.path} are the split {each.split!r}; "
                "give one of them"
            )
    return by_split, archives


def _tars(path: Path) -> list[Path]:
    """The tars of a folder (or of its train/ and val/), those that a pattern names, or the path."""
    if path.is_dir():
        return _tars_in(path) or [each for name in SPLITS for each in _tars_in(path / name)]
    if "{" not in str(path) or path.exists():
        return [path]
    found = [Path(name) for name in islice(expand(str(path)), _MOST_TARS + 1)]
    if len(found) > _MOST_TARS:
        raise UsageError(f"{path} names more than {_MOST_TARS:,} tars")
    missing = [each for each in found if not each.exists()]
    if missing or not found:
        first = f"{missing[0]} first" if missing else "none that could exist"
        raise ToolError(
            f"{path} names {len(found):,} tars, of which {len(missing):,} do not exist, {first}"
        )
    return found


def expand(pattern: str) -> Iterator[str]:
    """The names that braces stand for: `{000..146}` and `{a,b}`, as shells and webdataset do it."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    numbers = _NUMBERS.fullmatch(match[1])
    if numbers:
        width = len(numbers[1])
        choices = (f"{each:0{width}d}" for each in range(int(numbers[1]), int(numbers[2]) + 1))
    else:
        choices = (each for each in match[1].split(","))
    for choice in choices:
        yield from expand(pattern[: match.start()] + choice + pattern[match.end() :])


def _tars_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.glob("*.tar") if not each.name.startswith("."))


def _are_shards(path: Path) -> bool:
    """Whether a tar is a shard; what is neither that nor a known archive is read as one."""
    if not path.is_file():
        raise ToolError(f"{path} does not exist; give tars, a pattern, or a folder that holds tars")
    if is_compressed(path):
        raise UsageError(
            f"{path} is compressed, so its images cannot be read in place: decompress it and give "
            "the tar, or, if it is an archive, extract it"
        )
    with path.open("rb", buffering=0) as file:
        if is_shard(FileBytes(file.fileno()), path):
            return True
    try:
        recognise(path)
    except DamagedData:
        return True
    return False


def _by_split(tars: Sequence[Path], split: str | None) -> dict[str, list[Path]]:
    """Shards by the split that their names say, or that the user says."""
    found: dict[str, list[Path]] = {}
    for path in tars:
        named = _named_split(path) or split
        if named is None:
            raise UsageError(f"{path} does not say which split it is of; say it: --split train")
        found.setdefault(named, []).append(path)
    if split is None:
        return found
    if split not in found:
        raise ToolError(f"no shards of the split {split!r} were found (found: {', '.join(found)})")
    return {split: found[split]}


def _named_split(path: Path) -> str | None:
    """The split that one word of a tar's name says, or else its folder's name."""
    words = set(re.findall("[a-z]+", path.name.lower())) & _WORDS.keys()
    splits = {_WORDS[word] for word in words}
    if not splits:
        return _WORDS.get(path.absolute().parent.name.lower())
    return splits.pop() if len(splits) == 1 else None
