"""What the doctor's processes found, as they hand it over: one small JSON file each."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_SURVEY: Final = "survey.json"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The devices that torch shows, and how many processes compute on them.

    Where there are none to be had `refused` says why, and the rest means nothing.
    """

    kind: str = "cpu"
    reason: str = ""
    processes: int = 0  # on this machine
    per_card: int = 1  # devices of a card
    count: int | None = None  # devices that torch shows; None for the CPU
    visible: str | None = None  # the variable's value that confines torch to some devices
    refused: str = ""
    usage: bool = False  # whether it is the command that cannot be, not the machine

    def write(self, folder: Path) -> None:
        """Leave it for the process that asked."""
        _write(folder / _SURVEY, self)

    @classmethod
    def read(cls, folder: Path) -> Survey | None:
        """What was left, if anything was."""
        path = folder / _SURVEY
        return cls(**json.loads(path.read_text())) if path.exists() else None


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product that was timed, and compared with the CPU's."""

    rate: float  # floating-point operations a second
    error: float | None  # the largest, as a share of the largest value; None: no number at all


@dataclass(frozen=True, kw_only=True)
class Report:
    """One device as its process found it. Where it failed, what it said stands in `failure`."""

    rank: int  # over all machines
    device: str  # as torch names it
    name: str = ""
    free: int | None = None  # bytes, before this process took any
    total: int | None = None
    fp32: Product | None = None
    fp16: Product | None = None  # None where there is no such arithmetic
    copy: float | None = None  # bytes a second from the host; None on it
    failure: str = ""

    def write(self, folder: Path) -> None:
        """Leave it for the process that asked."""
        _write(folder / f"device-{self.rank:05}.json", self)

    @classmethod
    def read_all(cls, folder: Path) -> list[Report]:
        """What was left, by rank."""
        read = (json.loads(path.read_text()) for path in sorted(folder.glob("device-*.json")))
        return [cls(**{**each, **_products(each)}) for each in read]


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """The all-reduce of all processes, timed by one of them; `right`: whether the sum was."""

    processes: int
    backend: str
    bytes: int
    seconds: float  # the median of a few
    right: bool

    def write(self, folder: Path, rank: int) -> None:
        """Leave it for the process that asked."""
        _write(folder / f"reduction-{rank:05}.json", self)

    @classmethod
    def read(cls, folder: Path) -> Reduction | None:
        """A wrong sum if any process had one, else the slowest; None where none came so far."""
        read = [cls(**json.loads(path.read_text())) for path in folder.glob("reduction-*.json")]
        return max(read, key=lambda each: (not each.right, each.seconds), default=None)


def _products(report: dict[str, Any]) -> dict[str, Product]:
    return {name: Product(**report[name]) for name in ("fp32", "fp16") if report[name]}


def _write(path: Path, record: Survey | Report | Reduction) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(dataclasses.asdict(record)))
    temporary.replace(path)
