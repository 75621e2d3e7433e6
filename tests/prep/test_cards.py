"""Cards are known by device files and by what the vendors' tools, real processes here, print."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.doctor.cards import cards
from shards.finding import Finding, Status


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


@pytest.mark.usefixtures("tool")
def test_a_machine_without_cards_says_so(dev: Callable[..., Path]) -> None:
    found = only(cards(dev("tcaicard_ctl", "nvidiactl", "nvidia-uvm", "null")))
    assert (found.what, found.status) == ("devices", Status.NOTE)
    assert "--device /dev/tcaicard0" in found.remedy


def test_gpus_with_their_memory(dev: Callable[..., Path], tool: Callable[..., Path]) -> None:
    tool("nvidia-smi", "NVIDIA H200, 143771 MiB\nNVIDIA H200, 143771 MiB\nNVIDIA GB10, [N/A]\n")
    found = only(cards(dev("nvidia0", "nvidia1")))
    assert found.what == "CUDA"
    assert found.found.startswith(
        "2 x NVIDIA H200 with 143771 MiB, 1 x NVIDIA GB10 with shared memory"
    )


def test_gpus_and_a_torch_for_the_cpu_are_a_problem(
    dev: Callable[..., Path],
    tool: Callable[..., Path],
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
    dev: Callable[..., Path], tool: Callable[..., Path]
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
    dev: Callable[..., Path], tool: Callable[..., Path]
) -> None:
    tool("nvidia-smi", "").write_bytes(b"\x7fELF of another machine")
    found = only(cards(dev("nvidia0")))
    assert found.status is Status.PROBLEM
    assert os.strerror(8) in found.found  # ENOEXEC


def test_a_tool_that_hangs_is_given_up(dev: Callable[..., Path], tool: Callable[..., Path]) -> None:
    tool("nvidia-smi", "", hangs=True)
    found = only(cards(dev("nvidia0"), seconds=0.5))
    assert found.status is Status.PROBLEM
    assert "no answer within" in found.found
