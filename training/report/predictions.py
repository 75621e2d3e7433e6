"""What a network got wrong: the classes it knows least, the pairs it confuses, its worst mistakes.

Reads what `resnet eval --save-predictions` wrote: a header line, then a line for each image.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import DamagedData, ToolError

_LONGEST_LINE = 1 << 24  # bytes; a header with ImageNet's class names has 50,000
_MOST_PAIRS = 20
_SPLIT = re.compile(r"\w[\w-]*")


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """How a class fared."""

    name: str
    samples: int
    correct: int
    taken_for: str  # what its images were mistaken for most often; empty where nothing was
    taken_for_count: int

    @property
    def accuracy(self) -> float:
        """Per cent."""
        return 100 * self.correct / self.samples


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Images of one class that were taken for another."""

    name: str
    taken_for: str
    count: int
    samples: int  # of the class


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image whose likeliest class was not its own."""

    key: str
    name: str  # of its class
    probability: float | None  # of its class; None where that is not among the likeliest five
    taken_for: str
    taken_for_probability: float


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a file of predictions says."""

    path: Path
    model: str  # its file
    split: str
    classes: tuple[str, ...]
    samples: int  # with a label
    correct: int
    per_class: tuple[ClassResult, ...]  # lowest accuracy first; classes with images only
    pairs: tuple[Pair, ...]  # most images first
    mistakes: tuple[Mistake, ...]  # surest first

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * self.correct / self.samples if self.samples else 0.0


@dataclass(frozen=True, kw_only=True)
class _Row:
    key: str
    label: int
    top: tuple[tuple[int, float], ...]


def read_predictions(path: Path, *, mistakes: int) -> Predictions:
    """Count what is in the file, and keep its `mistakes` surest wrong answers.

    Raises ToolError where there is none, DamagedData where a line is not what it should be.
    """
    lines = _lines(path)
    header = next(lines, (0, {}))[1]
    names, ids = _texts(header.get("class_names")), _texts(header.get("classes"))
    split = header.get("split")
    if header.get("kind") != "header" or names is None or ids is None:
        raise _foreign(path, 1)
    if not isinstance(split, str) or not _SPLIT.fullmatch(split):
        raise _foreign(path, 1)  # it becomes the name of a folder
    if len(names) != len(ids):
        raise DamagedData(f"{path} has {len(ids)} classes and {len(names)} names of classes")
    told = _told_apart(ids, names)
    count = _Count()
    for place, record in lines:
        row = _row(record, len(ids))
        if row is None:
            raise _foreign(path, place)
        count.add(row)
    return Predictions(
        path=path,
        model=str(header.get("path") or header.get("model")),
        split=split,
        classes=tuple(ids),
        samples=sum(count.samples.values()),
        correct=sum(count.correct.values()),
        per_class=tuple(count.by_class(told)),
        pairs=tuple(count.pairs(told)),
        mistakes=tuple(count.worst(told, mistakes)),
    )


class _Count:
    """Adds up rows."""

    def __init__(self) -> None:
        self.samples: collections.Counter[int] = collections.Counter()
        self.correct: collections.Counter[int] = collections.Counter()
        self._confused: collections.Counter[tuple[int, int]] = collections.Counter()
        self._wrong: list[_Row] = []

    def add(self, row: _Row) -> None:
        if row.label < 0:
            return
        self.samples[row.label] += 1
        if row.top[0][0] == row.label:
            self.correct[row.label] += 1
        else:
            self._confused[row.label, row.top[0][0]] += 1
            self._wrong.append(row)

    def by_class(self, names: list[str]) -> list[ClassResult]:
        most: dict[int, tuple[int, int]] = {}
        for (label, other), count in self._confused.most_common():
            most.setdefault(label, (other, count))
        found = [
            ClassResult(
                name=names[label],
                samples=samples,
                correct=self.correct[label],
                taken_for=names[most[label][0]] if label in most else "",
                taken_for_count=most[label][1] if label in most else 0,
            )
            for label, samples in sorted(self.samples.items())
        ]
        return sorted(found, key=lambda each: each.accuracy)

    def pairs(self, names: list[str]) -> Iterator[Pair]:
        ranked = sorted(self._confused.items(), key=lambda each: (-each[1], each[0]))
        for (label, other), count in ranked[:_MOST_PAIRS]:
            yield Pair(
                name=names[label],
                taken_for=names[other],
                count=count,
                samples=self.samples[label],
            )

    def worst(self, names: list[str], count: int) -> Iterator[Mistake]:
        ranked = sorted(self._wrong, key=lambda row: (-row.top[0][1], row.key))
        for row in ranked[:count]:
            yield Mistake(
                key=row.key,
                name=names[row.label],
                probability=dict(row.top).get(row.label),
                taken_for=names[row.top[0][0]],
                taken_for_probability=row.top[0][1],
            )


def _told_apart(ids: list[str], names: list[str]) -> list[str]:
    """Names of classes; those that several classes have (crane, maillot) get their ids too."""
    often = collections.Counter(names)
    return [
        name if often[name] == 1 else f"{name} ({each})"
        for each, name in zip(ids, names, strict=True)
    ]


def _texts(value: Any) -> list[str] | None:
    return (
        value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None
    )


def _row(record: dict[str, Any], classes: int) -> _Row | None:
    """A line as a row; None where it is not one."""
    try:
        label = -1 if record["label"] is None else record["label"]
        # A network whose logits are no numbers has no probabilities.
        top = tuple(
            (number, 0.0 if probability is None else float(probability))
            for number, probability in record["top"]
        )
        numbers = (label, *(number for number, _ in top))
        sound = (
            isinstance(record["key"], str)
            and bool(top)
            and all(type(number) is int and number < classes for number in numbers)
            and min(numbers[1:]) >= 0
            and all(0 <= probability <= 1.001 for _, probability in top)
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return _Row(key=record["key"], label=label, top=top) if sound else None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise ToolError(
            f"{path} is no file; give what `resnet eval --save-predictions FILE` wrote"
        ) from None
    with file:
        for place, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise _foreign(path, place)
            yield place, record


def _foreign(path: Path, line: int) -> DamagedData:
    return DamagedData(
        f"{path}, line {line}, is not what `resnet eval --save-predictions` writes; make the file "
        "again"
    )
