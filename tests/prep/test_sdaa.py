"""SDAA cards without torch: what teco-smi says in both of its layouts, and what surrounds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import teco_smi

from prep.doctor.sdaa import sdaa, sdaa_cards
from prep.doctor.teco_smi import parse
from shards.finding import Finding, Status

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which nobody chose devices."""
    monkeypatch.delenv("SDAA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)


@pytest.fixture
def torch_sdaa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install the metadata of a torch_sdaa."""

    def install(version: str) -> None:
        place = tmp_path / "site" / f"torch_sdaa-{version}.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(f"Name: torch_sdaa\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(place.parent))

    return install


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    for each in findings:
        assert (each.status is Status.OK) is (each.remedy == ""), each
    return {each.what: each for each in findings}


# --- the table --------------------------------------------------------------------------------


def test_both_layouts_say_the_same_things() -> None:
    old, new, spas = parse(teco_smi.OLD), parse(teco_smi.NEW), parse(teco_smi.SPAS)
    assert [each.load for each in old.devices] == ["0%", "25%", "0%", "0%"]
    assert [(each.number, each.used, each.size) for each in old.devices][1:3] == [
        (1, 165, 15296),
        (2, 165, 15296),
    ]
    assert [(each.bus, each.health, each.load, each.size) for each in new.devices] == [
        ("00000000:0C:00.0", "OK", "0%", 65536),
        ("00000000:10:00.0", "OK", "0%", 65536),
    ]
    assert [tuple(each) for each in old.processes] == [
        (1, 76262, "python3.8", 165),
        (2, 76263, "python train.py", 165),
    ]
    assert (new.processes, old.partial, new.partial, spas.partial) == ([], {}, {}, {})
    assert (old.driver, old.runtime) == ("1.1.2b1", "1.1.2b0")
    assert (new.driver, new.runtime) == ("3.2.0", "3.2.0")
    assert (len(old.buses), len(new.buses), len(spas.buses)) == (1, 2, 1)


@pytest.mark.parametrize("text", ["", "\n", "|   0  X | 00:00 |", "Segmentation fault", "| | | |"])
def test_what_is_no_table_has_no_devices(text: str) -> None:
    found = parse(text)
    assert (found.devices, found.processes, found.driver) == ([], [], None)


def test_every_beginning_of_a_table_is_understood_as_far_as_it_goes() -> None:
    for table in (teco_smi.OLD, teco_smi.NEW, teco_smi.BARE):
        for end in range(0, len(table), 7):
            assert len(parse(table[:end]).devices) <= len(parse(table).devices)


# --- cards ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "described"),
    [
        (teco_smi.OLD, "1 card: 4 x TECO_AICARD_01 with 15,296 MB, torch_sdaa 3.2.0"),
        (teco_smi.SPAS, "1 card: 4 x TECO_AICARD_01 with 16,384 MB, torch_sdaa 3.2.0"),
        (teco_smi.NEW, "1 card: 2 x TECO_AICARD_01 with 65,536 MB, torch_sdaa 3.2.0"),
    ],
    ids=["1.10", "by SPA", "1.15"],
)
def test_cards_with_their_memory(
    dev: Make, tool: Make, torch_sdaa: Callable[[str], None], answer: str, described: str
) -> None:
    torch_sdaa("3.2.0")
    tool("teco-smi", answer)
    found = by_name(sdaa(dev("tcaicard0", "tcaicard_ctl")))["SDAA"]
    assert (found.status, found.found) == (Status.OK, described)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (teco_smi.LOST, "00000000:10:00.0 is not well (DEVICE_LOST)"),
        (teco_smi.SILENT, "00000000:0C:00.0 is not well (HEARTBEAT_ERROR)"),
        (teco_smi.DROPPED, "00000000:0C:00.0 is not well (SPE-Util N/A)"),
        (teco_smi.OLD_DROPPED, "00000000:01:00.0 is not well (SPE-Util N/A)"),
        (teco_smi.BARE, "00000000:10:00.0 is not well (DEVICE_LOST)"),
        (teco_smi.HALF, "00000000:4F:00.0 shows 3 of its 4 SPAs"),
    ],
    ids=["lost", "no heartbeat", "dropped", "dropped, 1.10", "without memory", "half gone"],
)
def test_a_card_that_is_not_whole_is_a_problem(
    dev: Make, tool: Make, torch_sdaa: Callable[[str], None], table: str, fault: str
) -> None:
    assert table not in (teco_smi.OLD, teco_smi.NEW, teco_smi.SPAS)
    torch_sdaa("3.2.0")
    tool("teco-smi", table)
    found = by_name(sdaa(dev("tcaicard0")))["SDAA"]
    assert found.status is Status.PROBLEM
    assert found.found.endswith(f"; {fault}")


def test_a_card_that_is_not_listed_is_a_problem(dev: Make, tool: Make) -> None:
    tool("teco-smi", teco_smi.NEW)
    found = by_name(sdaa(dev("tcaicard0", "tcaicard1", "tcaicard2")))["SDAA"]
    assert found.status is Status.PROBLEM
    assert found.found.endswith("; teco-smi lists 2 of 3 cards")


@pytest.mark.parametrize("files", [["tcaicard0"], []])
def test_a_tool_that_hangs_is_given_up(dev: Make, tool: Make, files: list[str]) -> None:
    tool("teco-smi", teco_smi.NEW[:200], hangs=True)
    found = by_name(sdaa(dev(*files), seconds=0.5))["SDAA"]
    assert found.status is Status.PROBLEM
    assert found.found == f"{len(files)} card{'s' * (not files)}; teco-smi gave no answer in time"
    assert "dmesg" in found.remedy


def test_cards_without_torch_sdaa_are_a_problem(dev: Make, tool: Make) -> None:
    tool("teco-smi", teco_smi.NEW)
    found = by_name(sdaa(dev("tcaicard0", "tcaicard1")))["SDAA"]
    assert found.status is Status.PROBLEM
    assert found.found.startswith("2 cards: 2 x TECO_AICARD_01")
    assert found.found.endswith("this Python has no torch_sdaa")
    assert "source /opt/tecoai/setvars.sh" in found.remedy


@pytest.mark.usefixtures("tool")
def test_cards_without_their_tool_are_counted(
    dev: Make, torch_sdaa: Callable[[str], None], tmp_path: Path
) -> None:
    torch_sdaa("3.1.0")
    place = dev("tcaicard0", "tcaicard1", "tcaicard10")
    found = by_name(sdaa(place, toolkit=tmp_path / "none"))["SDAA"]
    assert found.status is Status.NOTE
    assert found.found == "3 cards, torch_sdaa 3.1.0; teco-smi is not on PATH"
    assert len(sdaa_cards(place)) == 3


def test_what_the_tool_says_instead_of_a_table_is_told(
    dev: Make, tool: Make, torch_sdaa: Callable[[str], None]
) -> None:
    torch_sdaa("3.1.0")
    tool("teco-smi", "Failed to initialize TCML\n", code=1, stream="stderr")
    found = by_name(sdaa(dev("tcaicard0")))["SDAA"]
    assert found.status is Status.NOTE
    assert found.found.endswith("teco-smi lists no device (Failed to initialize TCML)")


def test_a_tool_that_cannot_run_is_no_crash(dev: Make, tool: Make) -> None:
    tool("teco-smi", "").write_bytes(b"\x7fELF of another machine")
    assert by_name(sdaa(dev("tcaicard0")))["SDAA"].status is Status.PROBLEM


def test_a_container_without_its_cards_is_told(dev: Make, tool: Make) -> None:
    tool("teco-smi", "No devices were found\n")
    (found,) = sdaa(dev())
    assert (found.what, found.status) == ("SDAA", Status.NOTE)
    assert "docker run --device /dev/tcaicard0" in found.remedy


@pytest.mark.usefixtures("tool")
def test_a_machine_without_any_of_it_says_nothing(dev: Make) -> None:
    assert sdaa(dev("null")) == []


# --- what surrounds them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "runtime", "torch", "status", "said"),
    [
        ("3.2.0", "3.2.0", "3.2.0", Status.OK, "driver 3.2.0, runtime 3.2.0"),
        ("3.4.0", "3.3.0b0", "3.3.0b0+gitb716a30", Status.OK, ""),
        ("2.3.0", "3.3.0", "3.3.0", Status.NOTE, "the driver is older"),
        ("2.2.9", "3.0.0", "3.0.0", Status.PROBLEM, "needs a driver >=2.3.0"),
        ("2.1.0", "2.1.0", "2.1.0", Status.OK, ""),
        ("2.0.9", "2.1.0", "2.1.0", Status.PROBLEM, "needs a driver >=2.1.0"),
        ("3.2.0", "3.2.0", "3.1.0", Status.NOTE, "torch_sdaa 3.1.0 of another release"),
        ("1.1.2b1", "1.1.2b0", "1.6.0b0", Status.OK, ""),
    ],
)
def test_driver_runtime_and_torch_sdaa_belong_together(
    dev: Make,
    tool: Make,
    torch_sdaa: Callable[[str], None],
    driver: str,
    runtime: str,
    torch: str,
    status: Status,
    said: str,
) -> None:
    torch_sdaa(torch)
    table = teco_smi.NEW.replace("SDAADriver: 3.2.0", f"SDAADriver: {driver}")
    tool("teco-smi", table.replace("SDAARuntime: 3.2.0", f"SDAARuntime: {runtime}"))
    found = by_name(sdaa(dev("tcaicard0")))["SDAA driver"]
    assert found.status is status
    assert said in found.found


def test_processes_on_the_cards_are_named(dev: Make, tool: Make) -> None:
    tool("teco-smi", teco_smi.OLD)
    found = by_name(sdaa(dev("tcaicard0")))["SDAA use"]
    assert found.status is Status.NOTE
    assert "python train.py (76263) 165 MB on device 2" in found.found
    assert "SDAA_VISIBLE_DEVICES" in found.remedy


def test_memory_that_nobody_is_named_for_is_told(dev: Make, tool: Make) -> None:
    place = dev("tcaicard0")
    tool("teco-smi", teco_smi.NEW.replace("     0MB /", "  9000MB /", 1))
    found = by_name(sdaa(place))["SDAA use"]
    assert found.found == "9,000 MB are held by what teco-smi does not name"
    tool("teco-smi", teco_smi.NEW)
    assert by_name(sdaa(place))["SDAA use"].status is Status.OK


@pytest.mark.parametrize(
    ("value", "status", "said"),
    [
        ("0,1,2,3", Status.OK, "0,1,2,3: 4 devices"),
        ("6", Status.OK, "6: 1 device,"),
        ("", Status.PROBLEM, "no device can be used"),
        ("0,0", Status.PROBLEM, "no list of different numbers"),
        ("sdaa:0", Status.PROBLEM, "no list of different numbers"),
    ],
)
@pytest.mark.usefixtures("tool")
def test_devices_that_were_chosen_are_named(
    dev: Make, monkeypatch: pytest.MonkeyPatch, value: str, status: Status, said: str
) -> None:
    monkeypatch.setenv("SDAA_VISIBLE_DEVICES", value)
    found = by_name(sdaa(dev("tcaicard0")))["SDAA_VISIBLE_DEVICES"]
    assert found.status is status
    assert said in found.found


def test_device_files_that_cannot_be_opened_are_a_problem(dev: Make, tool: Make) -> None:
    place = dev("tcaicard0", "tcaicard1")
    assert "2 device files" in by_name(sdaa(place))["SDAA access"].found
    (place / "tcaicard1").unlink()
    (place / "tcaicard1").symlink_to("/no/device")
    found = by_name(sdaa(place))["SDAA access"]
    assert (found.status, found.found) == (Status.PROBLEM, f"{place}/tcaicard1: not for this user")
    tool("teco-smi", teco_smi.NEW)
    for path in place.iterdir():
        path.unlink()
    assert "there is no device file" in by_name(sdaa(place))["SDAA access"].found


def test_whether_setvars_was_sourced_shows_in_the_paths(
    dev: Make, tool: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit = tmp_path / "tecoai"
    place = dev("tcaicard0")
    assert "no TecoToolKit" in by_name(sdaa(place, toolkit=toolkit))["setvars.sh"].found
    (toolkit / "bin").mkdir(parents=True)
    tool("teco-smi", teco_smi.NEW).rename(toolkit / "bin" / "teco-smi")
    found = by_name(sdaa(place, toolkit=toolkit))
    assert found["setvars.sh"].found == f"not sourced: no {toolkit} in PATH and LD_LIBRARY_PATH"
    assert "TECO_AICARD_01" in found["SDAA"].found  # it is asked all the same
    monkeypatch.setenv("PATH", f"{toolkit}/bin:{os.environ['PATH']}")
    found = by_name(sdaa(place, toolkit=toolkit))
    assert found["setvars.sh"].found == f"not sourced: no {toolkit} in LD_LIBRARY_PATH"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{toolkit}/lib64")
    assert by_name(sdaa(place, toolkit=toolkit))["setvars.sh"].status is Status.OK
