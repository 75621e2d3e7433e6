"""One thing that was looked at: ok, worth a note, or a problem, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Status(enum.Enum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"  # works, but slower, with less than there could be, or not finished
    PROBLEM = "problem"  # something will not work


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was looked at, what was found, and the remedy where it is not ok."""

    what: str
    status: Status
    found: str
    remedy: str = ""


def ok(what: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(what=what, status=Status.OK, found=found)


def note(what: str, found: str, remedy: str) -> Finding:
    """It works, and this is worth knowing."""
    return Finding(what=what, status=Status.NOTE, found=found, remedy=remedy)


def problem(what: str, found: str, remedy: str) -> Finding:
    """Something will not work until the remedy is applied."""
    return Finding(what=what, status=Status.PROBLEM, found=found, remedy=remedy)


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 card`, `1,282 shards`; `plural` where it is not the noun and an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {plural or noun + 's'}"
