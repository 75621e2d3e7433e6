"""What the headers of an archive say is in it: how many images of each class, and where."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from prep.archives import Archive, ArchiveImage, Form, list_files, list_images
from prep.ilsvrc import ArchiveKind
from prep.inflate import Inflated
from prep.labels import class_in_name
from prep.verification.expected import compare, published
from shards.errors import DamagedData
from shards.tar import Bytes, scan


class Listing:
    """Counts the images of an archive while they are listed; `archive` is None for any other tar.

    `damage` says where the listing ended before the archive did.
    """

    def __init__(self, archive: Archive | None) -> None:
        self._archive = archive
        self._by_split: dict[str | None, Counter[str | None]] = defaultdict(Counter)
        self._misplaced: list[str] = []
        self.count = 0
        self.damage: list[str] = []

    def read(self, path: Path, source: Bytes) -> None:
        """Go through every header. Raises DamagedData where the archive is not whole."""
        if self._archive is None or self._archive.form is Form.NO_IMAGES:
            files = list_files(self._archive, source) if self._archive else scan(source, path)
            for _ in files:
                pass
            return
        for image in list_images(self._archive, source, []):
            self._take(path, image)

    def images(self, source: Bytes) -> Iterator[ArchiveImage]:
        """The images up to where the archive is damaged."""
        assert self._archive is not None
        try:
            for image in list_images(self._archive, source, []):
                self.count += 1
                yield image
        except DamagedData as error:
            self.damage.append(str(error))

    def _take(self, path: Path, image: ArchiveImage) -> None:
        self.count += 1
        self._by_split[image.split][image.class_id] += 1
        if image.class_id is not None and self._archive and self._archive.form is Form.NESTED:
            own = class_in_name(image.name)
            if own not in {None, image.class_id}:
                inside = f"{path}:{image.class_id}.tar"
                self._misplaced.append(f"{inside} holds {image.name}, an image of {own}")

    def compare(self, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Findings and notes: images in a wrong class, and their numbers against ILSVRC2012's."""
        findings, notes = list(self._misplaced), list[str]()
        for split, counts in self._by_split.items():
            expected = published(split)
            if expected is None or self._is_dogs():
                continue
            found = {class_id: count for class_id, count in counts.items() if class_id is not None}
            result = compare(found, counts.total(), expected, whole=False)
            findings += (f"{path} {each}" for each in result.findings)
            notes += (f"{path} has {each}" for each in result.notes)
        return tuple(findings), tuple(notes)

    def _is_dogs(self) -> bool:
        return self._archive is not None and self._archive.kind is ArchiveKind.TRAIN_DOGS


class Stepping:
    """What a compressed file inflates to; `step` is told how far its own bytes were used."""

    def __init__(self, inflated: Inflated, step: Callable[[int], None]) -> None:
        self._inflated = inflated
        self._step = step
        self._used = 0

    @property
    def end(self) -> int:
        """As shards.tar.Bytes has it."""
        return self._inflated.end

    def read_at(self, position: int, count: int) -> bytes:
        """As shards.tar.Bytes has it."""
        data = self._inflated.read_at(position, count)
        used = self._inflated.packed
        self._step(used - self._used)
        self._used = used
        return data
