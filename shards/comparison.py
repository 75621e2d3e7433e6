"""A finished shard against its index, in one pass: its SHA-256, and every place that differs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from shards.anatomy import Anatomy, Damage
from shards.durable import named

_CHUNK: Final = 1 << 20  # bytes read and hashed at once, where no single image has more


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a shard's file was found to be."""

    sha256: str
    damage: tuple[Damage, ...]


def compare(path: Path, anatomy: Anatomy, *, deep: bool, step: Callable[[int], None]) -> Comparison:
    """Read a shard once. What stands between the images is compared; `deep`, images are too.

    `step` is told the bytes of each chunk read, and may raise. Raises OSError as reading does.
    """
    digest = hashlib.sha256()
    damage: list[Damage] = []
    buffer = bytearray(_CHUNK)
    position = 0
    with named(path), path.open("rb", buffering=0) as file:
        for first, last, end in _chunks(anatomy):
            if end - position > len(buffer):
                buffer = bytearray(end - position)
            view = memoryview(buffer)[: end - position]
            count = _fill(file, view)
            digest.update(view[:count])
            step(count)
            if count < len(view):
                damage.append(anatomy.end_damage(position + count))
                return Comparison(sha256=digest.hexdigest(), damage=tuple(damage))
            damage += _differences(anatomy, range(first, last), buffer, position, deep=deep)
            position = end
        more = _rest(file, digest, step)
    if more:
        what = f"{more} bytes more than its samples take"
        damage.append(Damage(file=anatomy.name, sample=None, offset=position, what=what))
    return Comparison(sha256=digest.hexdigest(), damage=tuple(damage))


def _chunks(anatomy: Anatomy) -> Iterator[tuple[int, int, int]]:
    """Frames [first, last), each with the image behind it, up to which byte: about a chunk."""
    first, begin = 0, 0
    for number, end in enumerate([*anatomy.ends, anatomy.size]):
        if end - begin > _CHUNK and number > first:
            begin = anatomy.frame_start(number)
            yield first, number, begin
            first = number
    yield first, len(anatomy) + 1, anatomy.size


def _fill(file: BinaryIO, view: memoryview) -> int:
    """Read until the view is full or the file ends; the bytes read."""
    done = 0
    while done < len(view) and (count := file.readinto(view[done:])):  # type: ignore[attr-defined]
        done += count
    return done


def _differences(
    anatomy: Anatomy, frames: range, chunk: bytearray, position: int, *, deep: bool
) -> Iterator[Damage]:
    """What differs in these frames and their images; `chunk` is the shard from `position` on."""
    for number in frames:
        if anatomy.framed:
            expected = anatomy.frame(number)
            start = anatomy.frame_start(number) - position
            if not chunk.startswith(expected, start):
                yield anatomy.frame_damage(number, bytes(chunk[start : start + len(expected)]))
        if deep and number < len(anatomy):
            image = slice(anatomy.starts[number] - position, anatomy.ends[number] - position)
            fault = anatomy.image_damage(number, memoryview(chunk)[image])
            if fault is not None:
                yield fault


def _rest(file: BinaryIO, digest: hashlib._Hash, step: Callable[[int], None]) -> int:
    """Hash what is left of a file; its bytes."""
    more = 0
    while data := file.read(_CHUNK):
        digest.update(data)
        step(len(data))
        more += len(data)
    return more
