"""Tecorigin's SDAA cards, judged without torch: files, teco-smi, versions, the environment."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from prep.doctor.software import satisfies, version_of
from prep.doctor.teco_smi import SPAS, TecoSmi, parse
from shards.asking import Answer, ask
from shards.finding import Finding, counted, note, ok, problem

SECONDS: Final = 10.0  # a driver in trouble lets its tool hang; otherwise it answers at once
TOOLKIT: Final = Path("/opt/tecoai")  # where the vendor installs TecoToolKit
_CARD = re.compile(r"tcaicard\d+")  # what the driver puts under /dev, one a card
_VISIBLE: Final = "SDAA_VISIBLE_DEVICES"
_MINOR = re.compile(r"(\d+)\.(\d+)")

# The vendor's table: TecoToolKit's major version, and the TecoDriver that it needs. The numbers
# that teco-smi shows stand for them: TecoDriver 3.2.1 holds SDAADriver 3.2.0, and so on.
_DRIVER_FOR: Final[Mapping[int, str]] = {2: ">=2.1.0", 3: ">=2.3.0"}

_SEARCHED: Final = ("PATH", "LD_LIBRARY_PATH")
_SOURCE: Final = "source /opt/tecoai/setvars.sh"
_MATCH: Final = "install the same version of TecoDriver on the host and in the container"


def sdaa(dev: Path, *, toolkit: Path = TOOLKIT, seconds: float = SECONDS) -> list[Finding]:
    """What is there of SDAA; nothing where there is none. `dev` has the device files.

    teco-smi is given up after so many seconds.
    """
    files = sdaa_cards(dev)
    answer = _ask_teco_smi(toolkit, seconds)
    torch_sdaa = version_of("torch_sdaa")
    table = parse(answer.text if answer else "")
    hangs = answer is not None and answer.code is None
    if not files and not table.devices and not hangs:
        return _without_cards(dev, answer, torch_sdaa)
    found = [
        _cards(len(files) or len(table.buses), answer, table, torch_sdaa),
        _versions(table, torch_sdaa),
        _use(table),
        _access(dev, files),
        _environment(toolkit),
        _visible(os.environ.get(_VISIBLE)),
    ]
    return [each for each in found if each is not None]


def sdaa_cards(dev: Path = Path("/dev")) -> list[Path]:
    """The device files of SDAA cards."""
    return sorted(path for path in dev.iterdir() if _CARD.fullmatch(path.name))


def _ask_teco_smi(toolkit: Path, seconds: float) -> Answer | None:
    """What teco-smi says; None where it is not on PATH, and not where it is installed either."""
    tool = shutil.which("teco-smi") or shutil.which(toolkit / "bin" / "teco-smi")
    if tool is None:
        return None
    try:
        return ask([tool], seconds)
    except OSError as error:
        return Answer(text=f"{tool}: {error.strerror}", code=1)


def _without_cards(dev: Path, answer: Answer | None, torch_sdaa: str | None) -> list[Finding]:
    if answer is None and torch_sdaa is None:
        return []
    installed = "teco-smi" if torch_sdaa is None else f"torch_sdaa {torch_sdaa}"
    return [
        note(
            "SDAA",
            f"{installed} is installed, but there is no card ({dev}/tcaicard*)",
            "give the container its cards (docker run --device /dev/tcaicard0), or load the "
            "driver on the host",
        )
    ]


def _cards(count: int, answer: Answer | None, table: TecoSmi, torch_sdaa: str | None) -> Finding:
    """The cards' health; SDAA cards whose Python lacks torch_sdaa would not be trained on."""
    found = counted(count, "card")
    if table.devices:
        kinds = (f"{each.kind} with {_size(each.size)}" for each in table.devices)
        found += f": {together(kinds)}"
    if answer is not None and answer.code is None:
        remedy = "the driver or a card hangs: see dmesg, and restart the machine"
        return problem("SDAA", f"{found}; teco-smi gave no answer in time", remedy)
    if faults := list(_faults(count, table)):
        remedy = "restart the machine; ask the vendor if the card does not come back"
        return problem("SDAA", f"{found}; {', '.join(faults)}", remedy)
    if torch_sdaa is None:
        return problem(
            "SDAA",
            f"{found}; this Python has no torch_sdaa",
            f"{_SOURCE}, activate the vendor's environment, then: make clean install PYTHON=python",
        )
    if not table.devices:
        return note(
            "SDAA",
            f"{found}, torch_sdaa {torch_sdaa}; teco-smi {_said(answer)}",
            f"{_SOURCE} and see what teco-smi says",
        )
    return ok("SDAA", f"{found}, torch_sdaa {torch_sdaa}")


def _faults(count: int, table: TecoSmi) -> Iterator[str]:
    """What teco-smi finds wrong; a container's may list more cards than it was given."""
    yield from dict.fromkeys(each.fault for each in table.devices if each.fault)
    for bus, spas in table.partial.items():
        yield f"{bus} shows {spas} of its {SPAS} SPAs"
    if 0 < len(table.buses) < count:
        yield f"teco-smi lists {len(table.buses)} of {count} cards"


def _said(answer: Answer | None) -> str:
    if answer is None:
        return "is not on PATH"
    first = next(iter(answer.text.strip().splitlines()), "")
    return f"lists no device{f' ({first.strip()[:100]})' if first else ''}"


def _size(megabytes: int | None) -> str:
    return "unknown memory" if megabytes is None else f"{megabytes:,} MB"


def _versions(table: TecoSmi, torch_sdaa: str | None) -> Finding | None:
    """Driver, runtime and torch_sdaa against each other."""
    driver, runtime = table.driver, table.runtime
    if driver is None or runtime is None:
        return None
    found = f"driver {driver}, runtime {runtime}"
    needed = _DRIVER_FOR.get(int(runtime.split(".")[0]), "")
    if not satisfies(driver, needed):
        remedy = f"update TecoDriver on the host ({needed}), or take an older image"
        return problem("SDAA driver", f"{found}, which needs a driver {needed}", remedy)
    # Before version 2 the parts counted each on their own.
    if torch_sdaa and needed and _minor(torch_sdaa) != _minor(runtime):
        return note(
            "SDAA driver",
            f"{found}, and torch_sdaa {torch_sdaa} of another release",
            "take TecoToolKit and torch_sdaa of one release: the vendor's images have them",
        )
    if _minor(driver) < _minor(runtime):
        return note("SDAA driver", f"{found}: the driver is older", _MATCH)
    return ok("SDAA driver", found)


def _minor(version: str) -> tuple[int, ...]:
    match = _MINOR.match(version)
    return (int(match[1]), int(match[2])) if match else ()


def _use(table: TecoSmi) -> Finding | None:
    """Whether others compute on the cards now."""
    if not table.devices:
        return None
    holders = [
        f"{each.name} ({each.number}) {each.megabytes:,} MB on device {each.device}"
        for each in table.processes
    ]
    used = sum(each.used for each in table.devices)
    if not holders and not used:
        return ok("SDAA use", "no other process holds memory of the cards")
    return note(
        "SDAA use",
        ", ".join(holders) or f"{used:,} MB are held by what teco-smi does not name",
        f"wait for it, end it, or leave its devices out by {_VISIBLE}; in a container the numbers "
        "are the host's",
    )


def _access(dev: Path, files: list[Path]) -> Finding:
    if not files:
        remedy = "give the container its cards: docker run --device /dev/tcaicard0"
        return problem("SDAA access", f"there is no device file ({dev}/tcaicard*)", remedy)
    denied = [str(path) for path in files if not os.access(path, os.R_OK | os.W_OK)]
    if denied:
        remedy = "add the user to the group that owns them, or docker run --device PATH:PATH:rwm"
        return problem("SDAA access", f"{', '.join(denied)}: not for this user", remedy)
    return ok("SDAA access", f"{counted(len(files), 'device file')} may be read and written")


def _environment(toolkit: Path) -> Finding:
    """Whether setvars.sh was sourced: it leads the search for programs and libraries there."""
    names = [
        name
        for name in _SEARCHED
        if any(Path(each).is_relative_to(toolkit) for each in os.environ.get(name, "").split(":"))
    ]
    if not toolkit.is_dir():
        return note("setvars.sh", f"no TecoToolKit in {toolkit}", "run inside the vendor's image")
    if len(names) < 2:
        lacking = [name for name in _SEARCHED if name not in names]
        return note("setvars.sh", f"not sourced: no {toolkit} in {' and '.join(lacking)}", _SOURCE)
    return ok("setvars.sh", f"sourced: {' and '.join(names)} name {toolkit}")


def _visible(value: str | None) -> Finding | None:
    """The devices that torch_sdaa is confined to, which are SPAs."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")] if value.strip() else []
    if not parts:
        return problem(_VISIBLE, "set to nothing: no device can be used", f"unset {_VISIBLE}")
    if not all(part.isdigit() for part in parts) or len({*parts}) < len(parts):
        remedy = f"{_VISIBLE}=0,1,2,3, numbers of SPAs, {SPAS} a card"
        return problem(_VISIBLE, f"{value!r} is no list of different numbers", remedy)
    return ok(_VISIBLE, f"{value}: {counted(len(parts), 'device')}, the others are left alone")


def together(kinds: Iterable[str]) -> str:
    """Equal ones together: `2 x TECO_AICARD_01 with 65,536 MB`."""
    return ", ".join(f"{count} x {kind}" for kind, count in Counter(kinds).items())
