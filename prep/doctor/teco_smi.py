"""What teco-smi's table says: devices with health and memory, versions, processes.

Two rows a device, which is a whole card (65,536 MB) or one of its four SPAs (15,296 or 16,384).
SPE-Util stands in the first row from version 1.12 on, in the second before:

    |   0    TECO_AICARD_01         | 00000000:0C:00.0     | OK                0% |
    |        40C                90W |        0MB / 65536MB |                      |

Both layouts are as the vendor's guides print them. What is not understood is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

_NAME_ROW: Final = re.compile(
    r"\|\s*(\d+)\s+(\S+)\s*\|\s*([0-9A-Fa-f:.]+)\s*\|\s*(\S+)\s*(\S*)\s*\|"
)
_MEMORY_ROW: Final = re.compile(r"\|[^|]*\|\s*(\d+)\s*MB\s*/\s*(\d+)\s*MB\s*\|\s*(\S*)\s*\|")
_PROCESS_ROW: Final = re.compile(r"\|\s*(\d+)\s+(\d+)\s+(\S.*?)\s+(\d+)\s*MB\s*\|")
_DRIVER: Final = re.compile(r"SDAADriver:\s*(\d\S*)")
_RUNTIME: Final = re.compile(r"SDAARuntime:\s*(\d\S*)")
SPAS: Final = 4  # of a card
_SPA_MEGABYTES: Final = 16_384  # more than a quarter of a card has none


class Listed(NamedTuple):
    """A device as it is listed."""

    number: int
    kind: str
    bus: str  # the card's: its SPAs share it
    health: str  # OK, DEVICE_LOST, HEARTBEAT_ERROR, ...
    load: str  # SPE-Util: 0%, or N/A for a card that dropped out
    used: int  # MB
    size: int | None  # MB; None where none is shown

    @property
    def is_spa(self) -> bool:
        """Whether this is a quarter of a card."""
        return self.size is not None and self.size <= _SPA_MEGABYTES

    @property
    def fault(self) -> str:
        """What is wrong with it, if anything."""
        sign = self.health if self.health != "OK" else "SPE-Util N/A" if self.load == "N/A" else ""
        return f"{self.bus} is not well ({sign})" if sign else ""


class Process(NamedTuple):
    """A process with memory on a device; in a container the number is the host's."""

    device: int
    number: int
    name: str
    megabytes: int


@dataclass(frozen=True, kw_only=True)
class TecoSmi:
    """All that was understood."""

    devices: list[Listed]
    processes: list[Process]
    driver: str | None
    runtime: str | None

    @property
    def buses(self) -> list[str]:
        """The cards."""
        return list(dict.fromkeys(each.bus for each in self.devices))

    @property
    def partial(self) -> dict[str, int]:
        """Cards by their bus of which some SPAs are missing, and how many there are."""
        spas = [each.bus for each in self.devices if each.is_spa]
        return {bus: spas.count(bus) for bus in dict.fromkeys(spas) if spas.count(bus) < SPAS}


def parse(text: str) -> TecoSmi:
    """The table, wherever it stands in the text."""
    lines = text.splitlines()
    driver, runtime = _DRIVER.search(text), _RUNTIME.search(text)
    return TecoSmi(
        devices=[
            _listed(name, _MEMORY_ROW.match(below))
            for above, below in pairwise([*lines, ""])
            if (name := _NAME_ROW.match(above))
        ],
        processes=[
            Process(int(row[1]), int(row[2]), row[3], int(row[4]))
            for row in map(_PROCESS_ROW.match, lines)
            if row
        ],
        driver=driver and driver[1],
        runtime=runtime and runtime[1],
    )


def _listed(name: re.Match[str], memory: re.Match[str] | None) -> Listed:
    return Listed(
        number=int(name[1]),
        kind=name[2],
        bus=name[3],
        health=name[4],
        load=name[5] or (memory[3] if memory else ""),
        used=int(memory[1]) if memory else 0,
        size=int(memory[2]) if memory else None,
    )
