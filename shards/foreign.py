"""Tars that others made, read once as they lie: what they hold and their SHA-256 in one pass.

A shard is told by WebDataset's own rule: the name of a member up to the first dot of its last part
is the key, the rest the field, and neighbours of the same key are one sample. What that rule makes
of two fields of one name, or of a key that comes again, is a sample lost or mixed up, so both are
refused by name. Of an archive the images are known already, and only looked at.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from shards.contents import BadSample, Contents, Place, Rows, Step, look, skip
from shards.errors import DamagedData
from shards.hashed import HashedBytes
from shards.manifest import Skipped
from shards.sample import LARGEST_IMAGE, LONGEST_KEY, UNLABELLED, ilsvrc_key
from shards.tar import Bytes, Member, scan

if TYPE_CHECKING:
    from shards.writer import OnBad

IMAGE_FIELDS: Final = ("jpg", "jpeg", "png")
LABEL_FIELD: Final = "cls"
# Without a list of classes there are as many as the largest label says: a bound against one that
# is no label at all. More classes than ImageNet-22k has need a list.
MOST_CLASSES: Final = 99_999
JSON_FIELD: Final = "json"
_LARGEST_LABEL: Final = 64  # bytes of a .cls; a number and a line end
LARGEST_JSON: Final = 1 << 20  # bytes; EXIF and captions take some kilobytes
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
_META = re.compile(r"__[^/]*__(?:$|/)")  # which WebDataset passes over
_INTEGER = re.compile(rb"\s*([+-]?[0-9]{1,18})\s*")
_TELLING_MEMBERS: Final = 200  # in which a sample with a field besides its image must be


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples are told.

    `label_field` is the name of the label in each sample's .json, with dots for objects in it;
    None takes the .cls. `classes` is how many there are, None if unknown. Where labels are not
    `labelled` (a test set), a sample may lack one. `on_bad` says whether a sample that cannot be
    used ends the reading or is left out.
    """

    label_field: str | None = None
    classes: int | None = None
    labelled: bool = True
    on_bad: OnBad = "fail"


# --- archives ---------------------------------------------------------------------------------


def read_archive(path: Path, places: Iterable[Place], on_bad: OnBad, step: Step) -> Contents:
    """Look at the images of an archive, which come by rising offset.

    Raises DamagedData for an image that cannot be used, or with `on_bad` "skip" lists it.
    """
    rows, skipped = Rows(), []
    with HashedBytes(path, step) as source:
        for number, place in enumerate(places):
            try:
                looked = _look(source, path, place.offset, place.size)
            except BadSample as error:
                skipped.append(skip(path, place.key, place.name, error, on_bad))
            else:
                rows.add(place.name, place.label, (number, *looked))
        return Contents(
            sha256=source.hexdigest(),
            bytes=source.end,
            columns=rows.columns(),
            skipped=tuple(skipped),
        )


def _look(source: Bytes, path: Path, offset: int, size: int) -> tuple[int, ...]:
    """Read an image and say what the index has of it, from its offset on. Raises BadSample."""
    if size > LARGEST_IMAGE:
        raise BadSample(f"it has {size} bytes, an image may have {LARGEST_IMAGE}")
    data = source.read_at(offset, size)
    if len(data) < size:
        raise DamagedData(f"{path} became shorter while it was read; wait until it is complete")
    return look(data, offset)


# --- shards -----------------------------------------------------------------------------------


def is_shard(source: Bytes, path: Path) -> bool:
    """Whether a tar has images with a .cls or .json each, as WebDataset's have and archives not.

    Raises DamagedData where it is no tar.
    """
    fields: dict[str, set[str]] = {}
    for member in islice(scan(source, path), _TELLING_MEMBERS):
        told = split_name(member.name)
        if told is not None:
            fields.setdefault(told[0], set()).add(told[1])
    labelled = [each for each in fields.values() if not each.isdisjoint((LABEL_FIELD, JSON_FIELD))]
    return any(not each.isdisjoint(IMAGE_FIELDS) for each in labelled)


def read_shard(path: Path, reading: Reading, step: Step) -> Contents:
    """The samples of a shard. Raises DamagedData, with the member's name, for what is odd."""
    with HashedBytes(path, step) as source:
        found = _Samples(path=path, reading=reading, source=source)
        for member in scan(source, path):
            found.take(member)
        found.end_sample()
        return Contents(
            sha256=source.hexdigest(),
            bytes=source.end,
            columns=found.rows.columns(),
            skipped=tuple(found.skipped),
            ignored=(found.ignored, found.first_ignored),
        )


def split_name(name: str) -> tuple[str, str] | None:
    """Key and field (lower case) of a member; None where WebDataset passes over it."""
    match = None if _META.match(name) else _MEMBER.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


@dataclass(kw_only=True)
class _Sample:
    """The sample whose members are being read."""

    key: str
    number: int
    fields: dict[str, str] = field(default_factory=dict)  # names of the members
    image: tuple[str, tuple[int, ...]] | None = None  # name of the member, and what was seen
    label: int | None = None
    fault: tuple[str, BadSample] | None = None  # the first one, and its member


@dataclass(kw_only=True)
class _Samples:
    """A shard as it is read, member by member."""

    path: Path
    reading: Reading
    source: Bytes
    rows: Rows = field(default_factory=Rows)
    skipped: list[Skipped] = field(default_factory=list)
    ignored: int = 0
    first_ignored: str = ""
    _current: _Sample | None = None
    _seen: set[str] = field(default_factory=set)

    def take(self, member: Member) -> None:
        """Take the next member of the tar."""
        told = split_name(member.name)
        if told is None:
            self.ignored += 1
            self.first_ignored = self.first_ignored or member.name
            return
        sample = self._sample(told[0], member.name)
        if told[1] in sample.fields:
            raise DamagedData(
                f"{self.path}: {member.name!r} is the second .{told[1]} of its sample; refused"
            )
        sample.fields[told[1]] = member.name
        try:
            self._read(sample, told[1], member)
        except BadSample as error:
            sample.fault = sample.fault or (member.name, error)

    def _sample(self, key: str, name: str) -> _Sample:
        """The sample that a member belongs to: the current one, or a new one."""
        if self._current is not None and self._current.key == key:
            return self._current
        self.end_sample()
        if key in self._seen:
            raise DamagedData(
                f"{self.path}: {name!r} stands apart from the other members of its sample, or the "
                f"key {key!r} is there twice; refused"
            )
        self._current = _Sample(key=key, number=len(self._seen))
        self._seen.add(key)
        return self._current

    def _read(self, sample: _Sample, field_name: str, member: Member) -> None:
        if field_name in IMAGE_FIELDS:
            if sample.image is not None:
                raise BadSample(f"it is a second image beside {sample.image[0]!r}")
            looked = _look(self.source, self.path, member.offset, member.size)
            sample.image = member.name, (sample.number, *looked)
        elif field_name == (LABEL_FIELD if self.reading.label_field is None else JSON_FIELD):
            sample.label = self._label(member)

    def _label(self, member: Member) -> int:
        name = self.reading.label_field
        limit = _LARGEST_LABEL if name is None else LARGEST_JSON
        if member.size > limit:
            raise BadSample(
                f"it has {member.size} bytes, and {limit} are plenty for what it should be"
            )
        data = self.source.read_at(member.offset, member.size)
        return read_label(data, name, self.reading.classes)

    def end_sample(self) -> None:
        """The current sample has no more members."""
        sample, self._current = self._current, None
        if sample is None:
            return
        fault = sample.fault or self._gap(sample)
        if fault is not None:
            self.skipped.append(skip(self.path, sample.key, *fault, self.reading.on_bad))
        elif sample.image is not None:
            name, looked = sample.image
            self.rows.add(name, UNLABELLED if sample.label is None else sample.label, looked)

    def _gap(self, sample: _Sample) -> tuple[str, BadSample] | None:
        """What a sample lacks."""
        held = ", ".join(f".{each}" for each in sample.fields)
        if sample.image is None:
            wanted = ", ".join(f".{each}" for each in IMAGE_FIELDS)
            return sample.key, BadSample(f"it has no image ({wanted}), only {held}")
        if sample.label is not None or not self.reading.labelled:
            return None
        if self.reading.label_field is not None:
            return sample.key, BadSample(f"it has no .{JSON_FIELD} with a label, only {held}")
        remedy = "; name the label's field in it by --label-field" * (JSON_FIELD in sample.fields)
        return sample.key, BadSample(f"it has no label (.{LABEL_FIELD}), only {held}{remedy}")


def read_label(data: bytes, label_field: str | None, classes: int | None) -> int:
    """The label that a .cls holds, or a .json under `label_field`.

    Raises DamagedData, with the reason alone, where there is none of so many classes.
    """
    label = _integer(data) if label_field is None else _in_json(data, label_field)
    most = MOST_CLASSES if classes is None else classes
    if not 0 <= label < most:
        given = "without --classes FILE" if classes is None else f"of {classes} classes"
        raise BadSample(f"its label is {label}; {given} labels are 0 to {most - 1}")
    return label


def _integer(data: bytes) -> int:
    match = _INTEGER.fullmatch(data)
    if match is None:
        raise BadSample(f"its label {data[:40]!r} is no integer")
    return int(match[1])


def _in_json(data: bytes, name: str) -> int:
    """The label that a JSON object has under a name, or under names joined by dots."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BadSample("it is no JSON") from None
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            held = ", ".join(map(str, value)) if isinstance(value, dict) else "no object"
            raise BadSample(f"it has no field {name!r} (--label-field); it has {held[:200]}")
        value = value[part]
    if isinstance(value, str):
        return _integer(value.encode())
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadSample(f"its field {name!r} is {str(value)[:40]!r}, no integer")
    return value


# --- keys -------------------------------------------------------------------------------------


def foreign_keys(tars: Sequence[Contents]) -> tuple[npt.NDArray[np.bytes_], str]:
    """Keys of the samples of a split, in the order of its tars: ASCII, without dots, all different.

    They are the samples' own where all of these will do, else all go by position (FORMAT.md);
    then the second value is the reason.
    """
    names = [name.decode() for each in tars for name in each.columns["name"].tolist()]
    keys = [_own_key(name) for name in names]
    if len(set(keys)) == len(keys) and all(map(_fits, keys)):
        return np.array([key.encode("ascii") for key in keys], np.bytes_), ""
    unfit = next((key for key in keys if not _fits(key)), None)
    return np.array(list(_positions(tars)), np.bytes_), (
        f"the key {Counter(keys).most_common(1)[0][0]!r} is there twice"
        if unfit is None
        else f"the key {unfit!r} has other characters than a plain name, or more than {LONGEST_KEY}"
    )


def _own_key(name: str) -> str:
    """The key that the name of an image gives."""
    start = name.rfind("/") + 1
    return ilsvrc_key(name[start:]) or name[: name.index(".", start)]


def _fits(key: str) -> bool:
    return key.isascii() and " " not in key and "/" not in key and len(key) <= LONGEST_KEY


def _positions(tars: Sequence[Contents]) -> Iterator[bytes]:
    for tar, each in enumerate(tars):
        for number in each.columns["number"].tolist():
            yield b"%06d_%07d" % (tar, number)
