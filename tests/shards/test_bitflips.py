"""One bit, anywhere in a folder of shards: found, its file named, and put right from the source."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.verification.shards import ShardChecks, check_shards
from shards.progress import Silent
from shards.verify import Report


@pytest.fixture(scope="module")
def whole(
    archives: Any, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Shards of `archives` with everything that can stand beside them."""
    out = tmp_path_factory.mktemp("whole")
    build(archives.train.parent, out=out, write={"for_readers": ("timm", "dali", "wids")})
    return out


def check(out: Path, **options: Any) -> list[Report]:
    folders = [out / "train", out / "val"]
    return check_shards(folders, ShardChecks(**options), workers=2, progress=Silent())


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_found_named_and_put_right(count: int, whole: Path, archives: Any) -> None:
    """Every other flip goes to any of the files, the rest to any of the bytes."""
    files = {
        path: path.read_bytes()
        for path in sorted(whole.rglob("*"))
        if path.is_file() and ".imagenet-prep" not in path.parts
    }
    assert len(files) == 19
    generator = random.Random(count)
    lengths = list(map(len, files.values()))
    for number in range(count):
        weights = lengths if number % 2 else None
        (path,) = generator.choices(list(files), weights)
        place, bit = generator.randrange(len(files[path])), generator.randrange(8)
        flipped = bytearray(files[path])
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        case = f"bit {bit} of byte {place} of {path}"
        found = check(whole)
        assert [Path(name).name for each in found for name in each.damaged] == [path.name], case
        assert all(path.name in finding for each in found for finding in each.findings), case
        mended = check(whole, repair=True, sources=(archives.train.parent,))
        assert [each.findings for each in mended] == [(), ()], case
        assert {each: each.read_bytes() for each in files} == files, case
