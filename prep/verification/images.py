"""What the looks at many images add up to: damage by name, and oddities that are no damage."""

from __future__ import annotations

from collections import defaultdict

from prep.oddities import Oddity, oddity
from shards.errors import DamagedData
from shards.reader import Reader
from shards.sample import LARGEST_IMAGE
from shards.soundness import Verdict


class Looks:
    """Collects verdicts. `damage` has a sentence for each image that is not whole."""

    def __init__(self) -> None:
        self.damage: list[str] = []
        self._odd: dict[tuple[str, bool], list[str]] = defaultdict(list)

    def add(self, place: str, name: str, verdict: Verdict) -> None:
        """Take the verdict on the image `name` that lies at `place`."""
        if verdict.damage:
            self.damage.append(f"{place}: {verdict.damage}")
            return
        if verdict.warning:
            self._odd[verdict.warning, False].append(place)
        odd = None if verdict.info is None else oddity(name, verdict.info)
        if odd is not None:
            self._odd[odd].append(place)

    def oddities(self) -> tuple[Oddity, ...]:
        """What is odd, and known of ILSVRC2012 or not, with the places of all such images."""
        return tuple(
            Oddity(what=what, known=known, images=tuple(sorted(places)))
            for (what, known), places in sorted(self._odd.items())
        )


def read_image(reader: Reader, place: int, name: str, offset: int, size: int) -> bytearray:
    """The encoded bytes of an image. Raises DamagedData for more than an image may have."""
    if size > LARGEST_IMAGE:
        raise DamagedData(f"it has {size:,} bytes, an image may have {LARGEST_IMAGE:,}")
    data = bytearray(size)
    reader.read_into(memoryview(data), place, name, offset)
    return data
