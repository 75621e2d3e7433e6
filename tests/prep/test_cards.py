"""Cards are known by device files and by what the vendors' tools, real processes here, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.doctor.cards import cards
from prep.doctor.finding import Finding, Status

# As the tools print them: Tecorigin's modelzoo documents 1.10 and 1.15 in its guides.
OLD = """\
Wed Jun  5 02:46:48 2024
+-----------------------------------------------------------------------------+
|  TCML: 1.10.0        SDAADriver: 1.1.2b1        SDAARuntime: 1.1.2b0        |
|-------------------------------+----------------------+----------------------|
| Index  Name                   | Bus-Id               | Health      Volatile |
|        Temp          Pwr Usage|          Memory-Usage|             SPE-Util |
|=============================================================================|
|   0    TECO_AICARD_01         | 00000000:01:00.0     | OK                   |
|        35C                90W |        0MB / 15296MB |                   0% |
|-------------------------------+----------------------+----------------------|
|   1    TECO_AICARD_01         | 00000000:01:00.0     | OK                   |
|        35C                90W |      165MB / 15296MB |                  25% |
+-------------------------------+----------------------+----------------------+
| Processes:                                                                  |
|  Tcaicard     PID      Process name                            Memory Usage |
|=============================================================================|
|     1       76262      python train.py                              165 MB |
+-----------------------------------------------------------------------------+
"""
NEW = """\
Mon Aug 31 18:04:46 2026
+-----------------------------------------------------------------------------+
|  TECO-SMI: 1.15.0        SDAADriver: 3.2.0        SDAARuntime: 3.2.0        |
|-------------------------------+----------------------+----------------------|
| Index  Name                   | Bus-Id               | Health      SPE-Util |
|        Temp          Pwr Usage|          Memory-Usage|                      |
|=============================================================================|
|   0    TECO_AICARD_01         | 00000000:0C:00.0     | OK                0% |
|        40C                90W |        0MB / 65536MB |                      |
|-------------------------------+----------------------+----------------------|
|   1    TECO_AICARD_01         | 00000000:10:00.0     | OK                0% |
|        38C                88W |        0MB / 65536MB |                      |
+-------------------------------+----------------------+----------------------+
| No Process Running                                                          |
+-----------------------------------------------------------------------------+
"""


@pytest.fixture
def dev(tmp_path: Path) -> Callable[..., Path]:
    """A folder with device files."""

    def make(*names: str) -> Path:
        folder = tmp_path / "dev"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        return folder

    return make


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put an executable on PATH, where there is nothing else, that prints a text and ends."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(name: str, text: str, code: int = 0, stream: str = "stdout") -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        script = f"import sys; sys.{stream}.write({text!r}); sys.exit({code})"
        path.write_text(f"#!{sys.executable}\n{script}\n")
        path.chmod(0o755)

    return make


@pytest.fixture
def torch_sdaa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of an installed torch_sdaa."""
    place = tmp_path / "site" / "torch_sdaa-3.1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Name: torch_sdaa\nVersion: 3.1.0\n")
    monkeypatch.syspath_prepend(str(place.parent))


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


@pytest.mark.usefixtures("tool")
def test_a_machine_without_cards_says_so(dev: Callable[..., Path]) -> None:
    found = only(cards(dev("tcaicard_ctl", "nvidiactl", "nvidia-uvm", "null")))
    assert (found.what, found.status) == ("devices", Status.NOTE)
    assert "--device /dev/tcaicard0" in found.remedy


@pytest.mark.usefixtures("torch_sdaa")
@pytest.mark.parametrize(
    ("answer", "described"),
    [
        (OLD, "1 card: 2 x TECO_AICARD_01 with 15,296 MB, driver 1.1.2b1, torch_sdaa 3.1.0"),
        (NEW, "1 card: 2 x TECO_AICARD_01 with 65,536 MB, driver 3.2.0, torch_sdaa 3.1.0"),
    ],
)
def test_sdaa_cards_with_their_memory(
    dev: Callable[..., Path], tool: Callable[..., None], answer: str, described: str
) -> None:
    tool("teco-smi", answer)
    found = only(cards(dev("tcaicard0", "tcaicard_ctl")))
    assert (found.what, found.status, found.found) == ("SDAA", Status.OK, described)


@pytest.mark.usefixtures("torch_sdaa")
@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (NEW.replace("10:00.0     | OK                0%", "10:00.0     | DEVICE_LOST      N/A"),
         "00000000:10:00.0 is not well (DEVICE_LOST)"),
        (NEW.replace("0C:00.0     | OK                0%", "0C:00.0     | OK               N/A"),
         "00000000:0C:00.0 is not well (SPE-Util N/A)"),
        (OLD.replace("                25% |", "                N/A |"),
         "00000000:01:00.0 is not well (SPE-Util N/A)"),
    ],
)  # fmt: skip
def test_a_card_that_dropped_out_is_a_problem(
    dev: Callable[..., Path], tool: Callable[..., None], table: str, fault: str
) -> None:
    assert table not in (OLD, NEW)
    tool("teco-smi", table)
    found = only(cards(dev("tcaicard0", "tcaicard1")))
    assert found.status is Status.PROBLEM
    assert found.found.endswith(fault)
    assert found.remedy


def test_cards_without_torch_sdaa_are_a_problem(
    dev: Callable[..., Path], tool: Callable[..., None]
) -> None:
    tool("teco-smi", NEW)
    found = only(cards(dev("tcaicard0", "tcaicard1")))
    assert found.status is Status.PROBLEM
    assert found.found.startswith("2 cards: 2 x TECO_AICARD_01")
    assert found.found.endswith("this Python has no torch_sdaa")
    assert "source /opt/tecoai/setvars.sh" in found.remedy


@pytest.mark.usefixtures("tool", "torch_sdaa")
def test_cards_without_their_tool_are_counted(dev: Callable[..., Path]) -> None:
    found = only(cards(dev("tcaicard0", "tcaicard1", "tcaicard10")))
    assert found.status is Status.NOTE
    assert found.found == "3 cards, torch_sdaa 3.1.0; teco-smi is not on PATH"


@pytest.mark.usefixtures("torch_sdaa")
def test_a_tool_that_lists_nothing_is_a_note(
    dev: Callable[..., Path], tool: Callable[..., None]
) -> None:
    tool("teco-smi", "Failed to initialize TCML\n", code=1, stream="stderr")
    found = only(cards(dev("tcaicard0")))
    assert found.status is Status.NOTE
    assert found.found == "1 card, torch_sdaa 3.1.0; teco-smi lists no device"


def test_a_container_without_its_cards_is_told(
    dev: Callable[..., Path], tool: Callable[..., None]
) -> None:
    tool("teco-smi", "No devices were found\n")
    found = only(cards(dev()))
    assert (found.what, found.status) == ("SDAA", Status.NOTE)
    assert "docker run --device /dev/tcaicard0" in found.remedy


def test_gpus_with_their_memory(dev: Callable[..., Path], tool: Callable[..., None]) -> None:
    tool("nvidia-smi", "NVIDIA H200, 143771 MiB\nNVIDIA H200, 143771 MiB\nNVIDIA GB10, [N/A]\n")
    found = only(cards(dev("nvidia0", "nvidia1")))
    assert found.what == "CUDA"
    assert found.found.startswith(
        "2 x NVIDIA H200 with 143771 MiB, 1 x NVIDIA GB10 with shared memory"
    )


def test_gpus_and_a_torch_for_the_cpu_are_a_problem(
    dev: Callable[..., Path],
    tool: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = tmp_path / "site"
    (site / "torch-2.7.1.dist-info").mkdir(parents=True)
    (site / "torch-2.7.1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.7.1+cpu\n")
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text("cuda: Optional[str] = None\n")
    monkeypatch.syspath_prepend(str(site))
    tool("nvidia-smi", "NVIDIA H200, 143771 MiB\n")
    found = only(cards(dev("nvidia0")))
    assert found.status is Status.PROBLEM
    assert found.found.endswith("this torch is built for the CPU")


def test_a_driver_in_trouble_is_a_problem_with_its_own_words(
    dev: Callable[..., Path], tool: Callable[..., None]
) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch"
    tool("nvidia-smi", f"{said}\nNVML library version: 550.90\n", code=18)
    found = only(cards(dev("nvidia0")))
    assert found.status is Status.PROBLEM
    assert found.found == f"nvidia-smi lists no GPU: {said}"
    assert "reboot" in found.remedy


@pytest.mark.usefixtures("tool")
def test_gpus_without_their_tool_are_counted(dev: Callable[..., Path]) -> None:
    found = only(cards(dev("nvidia0", "nvidia1", "nvidiactl")))
    assert (found.what, found.status) == ("CUDA", Status.NOTE)
    assert found.found.startswith("2 GPUs")


def test_a_tool_that_cannot_run_is_no_crash(
    dev: Callable[..., Path], tool: Callable[..., None], tmp_path: Path
) -> None:
    tool("nvidia-smi", "")
    path = tmp_path / "bin" / "nvidia-smi"
    path.write_bytes(b"\x7fELF of another machine")
    found = only(cards(dev("nvidia0")))
    assert found.status is Status.PROBLEM
    assert os.strerror(8) in found.found  # ENOEXEC
