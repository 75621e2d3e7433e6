"""The accelerators of this machine: SDAA cards and CUDA GPUs, found without importing torch.

Cards are known by their device files; name, memory and health by what the vendors' own tools
print (teco-smi, nvidia-smi), which run without a shell and are given up after a few seconds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from prep.doctor.finding import Finding, counted, note, ok, problem
from prep.doctor.software import torch_build, version_of

_SECONDS: Final = 10.0  # a driver in trouble lets its tool hang; otherwise it answers at once
_SDAA_CARD = re.compile(r"tcaicard\d+")  # what the SDAA driver puts under /dev, one a card
_CUDA_CARD = re.compile(r"nvidia\d+")

# teco-smi prints two rows a device: a card, in older versions a quarter of one. SPE-Util stands
# in the first (1.15) or in the second row (1.10).
#   |   0    TECO_AICARD_01         | 00000000:0C:00.0     | OK                0% |
#   |        40C                90W |        0MB / 65536MB |                      |
_NAME_ROW = re.compile(r"\|\s*\d+\s+(\S+)\s*\|\s*([0-9A-Fa-f:.]+)\s*\|\s*(\S+)\s*(\S*)\s*\|")
_MEMORY_ROW = re.compile(r"\|[^|]*\|\s*\d+\s*MB\s*/\s*(\d+)\s*MB\s*\|\s*(\S*)\s*\|")
_DRIVER = re.compile(r"SDAADriver:\s*(\S+)")
_CUDA_ROW = re.compile(r"(.+), (\d+ MiB|\[.+\])")  # the memory is [N/A] where it is the host's


class _SdaaDevice(NamedTuple):
    """One device as teco-smi lists it; `fault` says what is wrong with it, if anything."""

    kind: str
    fault: str


def cards(dev: Path = Path("/dev")) -> list[Finding]:
    """SDAA cards and CUDA GPUs, or a note that there are none; `dev` has the device files."""
    found = [*_sdaa(dev), *_cuda(dev)]
    return found or [
        note(
            "devices",
            "no SDAA card and no CUDA GPU: training runs on the CPU",
            "preparing needs none; containers are given cards by docker run --device "
            "/dev/tcaicard0, GPUs by --gpus all",
        )
    ]


def _sdaa(dev: Path) -> list[Finding]:
    count = _count(dev, _SDAA_CARD)
    answer = _answer("teco-smi")
    torch_sdaa = version_of("torch_sdaa")
    if count:
        return [_sdaa_cards(count, answer, torch_sdaa)]
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


def _sdaa_cards(count: int, answer: str | None, torch_sdaa: str | None) -> Finding:
    """An SDAA machine whose Python lacks torch_sdaa would train on the CPU: a problem."""
    found = counted(count, "card")
    devices = _parse_teco_smi(answer or "")
    if devices:
        driver = _DRIVER.search(answer or "")
        found += f": {_together(each.kind for each in devices)}"
        found += f", driver {driver[1]}" if driver else ""
    faults = [each.fault for each in devices if each.fault]
    if faults:
        remedy = "restart the machine; ask the vendor if the card does not come back"
        return problem("SDAA", f"{found}; {', '.join(faults)}", remedy)
    if torch_sdaa is None:
        return problem(
            "SDAA",
            f"{found}; this Python has no torch_sdaa",
            "source /opt/tecoai/setvars.sh, activate the vendor's environment, then: "
            "make clean install PYTHON=python",
        )
    if not devices:
        return note(
            "SDAA",
            f"{found}, torch_sdaa {torch_sdaa}; teco-smi "
            + ("is not on PATH" if answer is None else "lists no device"),
            "source /opt/tecoai/setvars.sh and see what teco-smi says",
        )
    return ok("SDAA", f"{found}, torch_sdaa {torch_sdaa}")


def _parse_teco_smi(answer: str) -> list[_SdaaDevice]:
    """The devices in teco-smi's table; SPE-Util N/A is its sign of a card that dropped out."""
    lines = answer.splitlines()
    devices = []
    for above, below in pairwise(lines):
        name, memory = _NAME_ROW.match(above), _MEMORY_ROW.match(below)
        if name is None:
            continue
        size = f"{int(memory[1]):,} MB" if memory else "unknown memory"
        load = name[4] or (memory[2] if memory else "")
        sign = name[3] if name[3] != "OK" else "SPE-Util N/A" if load == "N/A" else ""
        fault = f"{name[2]} is not well ({sign})" if sign else ""
        devices.append(_SdaaDevice(kind=f"{name[1]} with {size}", fault=fault))
    return devices


def _cuda(dev: Path) -> list[Finding]:
    answer = _answer("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if answer is None:
        count = _count(dev, _CUDA_CARD)
        remedy = "it comes with the driver; a container has it with --gpus all"
        found = f"{counted(count, 'GPU')}; no nvidia-smi to tell name and memory"
        return [note("CUDA", found, remedy)] if count else []
    rows = [match for line in answer.splitlines() if (match := _CUDA_ROW.fullmatch(line))]
    if not rows:
        return [
            problem(
                "CUDA",
                f"nvidia-smi lists no GPU: {(answer.strip().splitlines() or ['no output'])[0]}",
                "reboot if the driver was updated; give a container its GPUs (--gpus all)",
            )
        ]
    found = _together(f"{row[1]} with {row[2].replace('[N/A]', 'shared memory')}" for row in rows)
    if torch_build() == "the CPU":
        remedy = "install a torch built for CUDA (https://pytorch.org/get-started/locally)"
        return [problem("CUDA", f"{found}; this torch is built for the CPU", remedy)]
    return [ok("CUDA", found)]


def _answer(tool: str, *arguments: str) -> str | None:
    """What a tool prints, errors too, or why it does not answer; None where it is not there."""
    path = shutil.which(tool)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{tool} gave no answer within {_SECONDS:.0f} s"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return done.stdout.decode(errors="replace")


def _count(dev: Path, name: re.Pattern[str]) -> int:
    return sum(name.fullmatch(path.name) is not None for path in dev.iterdir())


def _together(kinds: Iterable[str]) -> str:
    """Equal ones together: `2 x TECO_AICARD_01 with 65,536 MB`."""
    return ", ".join(f"{count} x {kind}" for kind, count in Counter(kinds).items())
