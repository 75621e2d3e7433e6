"""A command line taken apart into the vendor's options and the other words, and their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from shards.errors import UsageError

_TRUE: Final = ("yes", "true", "t", "y", "1")  # as the vendor's str2bool has them, in any case
_FALSE: Final = ("no", "false", "f", "n", "0")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A command line taken apart: the vendor's options with their values, and the other words."""

    vendors: Mapping[str, str]
    rest: Sequence[str]

    def ours(self, option: str) -> list[str]:
        """The values that an option of ours has among the other words."""
        behind = zip(self.rest, [*self.rest, ""][1:], strict=True)
        return [
            word.partition("=")[2] if "=" in word else following
            for word, following in behind
            if word.partition("=")[0] == option
        ]

    def says(self, *options: str) -> str | None:
        """The value of the first of the options that is given, whoever it belongs to."""
        for option in options:
            if option in self.vendors:
                return self.vendors[option]
            if values := self.ours(option):
                return values[-1]
        return None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What options of the vendor's come to: options of ours, or none; and the notice."""

    ours: tuple[tuple[str, ...], ...] = ()  # each an option and its value, or a switch
    notice: str


Read = Callable[[Mapping[str, str], Line], Reading]


class Rule(NamedTuple):
    """How options of the vendor's that say one thing together are understood."""

    spellings: tuple[str, ...]
    read: Read  # of those that are given, with their values; raises UsageError
    bare: bool = False  # whether a spelling without a value is an option of ours


def take_apart(argv: Sequence[str], known: Mapping[str, bool]) -> Line:
    """The line of these words; `known` are the vendor's options, each of which takes a value.

    Those that are true there are ours where they have none.

    Raises UsageError for one without a value, and one that is given two.
    """
    vendors: dict[str, str] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name not in known:
            rest.append(word)
            if word == "--":
                rest += words
                break
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                if not known[name]:
                    raise UsageError(f"{name} needs a value")
                rest.append(word)
                continue
            value = words.pop(0)
        if name in vendors:
            refuse_other(f"{name} {vendors[name]}", vendors[name], f"{name} {value}", value)
        vendors[name] = value
    return Line(vendors=vendors, rest=rest)


def refuse_other(one: str, value: str, other: str, other_value: str) -> None:
    """Raise UsageError where two options that say one thing have other values."""
    if value != other_value and number(value) != number(other_value):
        raise UsageError(f"{one} and {other} contradict each other; give one of them")


def number(value: str) -> object:
    """A number of that value; of what is none, something that equals nothing."""
    try:
        return float(value)
    except ValueError:
        return object()


def spelt(given: Mapping[str, str]) -> str:
    """Options with their values, as they were given."""
    return " ".join(f"{name} {value}" for name, value in given.items())


def only(given: Mapping[str, str]) -> str:
    """The value of spellings that mean the same."""
    (first, value), *others = given.items()
    for name, other in others:
        refuse_other(f"{first} {value}", value, f"{name} {other}", other)
    return value


def whole(name: str, value: str, least: int) -> int:
    """The whole number that a value is. Raises UsageError where it is none, or below `least`."""
    try:
        count = int(value)
    except ValueError:
        count = least - 1
    if count < least:
        raise UsageError(f"{name} {value}: it must be a whole number, at least {least}")
    return count


def switch(name: str, value: str) -> bool:
    """Whether a value of the vendor's switches means on. Raises UsageError where it is neither."""
    if value.lower() not in (*_TRUE, *_FALSE):
        raise UsageError(f"{name} {value}: say True or False")
    return value.lower() in _TRUE
