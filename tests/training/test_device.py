from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shards.errors import ToolError, UsageError
from training.device import Cuda, Device, Sdaa, choose, prepare_environment

BROKEN = "raise OSError('libsdaart.so: cannot open shared object file')\n"


@pytest.fixture
def broken_torch_sdaa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch_sdaa that is installed and does not load, as without the driver's libraries."""
    install(tmp_path / "site", monkeypatch, {"__init__.py": BROKEN})


def install(site: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Put a package torch_sdaa in front of all others, and forget those that were imported."""
    for name, text in files.items():
        path = site / "torch_sdaa" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(site)
    for name in ("torch_sdaa", "torch_sdaa.core", "torch_sdaa.core.sdaa_model"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Install a torch_sdaa of the older spelling that sees so many devices; sdaa:1 is lost."""

    def make(devices: int) -> None:
        api = (
            f"def device_count(): return {devices}\n"
            "def set_device(index):\n"
            "    if index == 1: raise RuntimeError('heartbeat is gone\\nand a page of C++')\n"
        )
        files = {"__init__.py": "", "core/__init__.py": "", "core/sdaa_model.py": api}
        monkeypatch.delenv("SDAA_VISIBLE_DEVICES", raising=False)
        install(tmp_path / "site", monkeypatch, files)

    return make


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """A /dev with two cards, and files that only look like cards."""
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in ("tcaicard0", "tcaicard1", "tcaicard_ctl", "null"):
        (dev / name).touch()
    return dev


def test_the_cpu_when_asked_for() -> None:
    device = choose("cpu", 3)
    assert (device.kind, device.torch_device, device.backend) == (
        "cpu",
        torch.device("cpu"),
        "gloo",
    )
    assert device.processes_per_card == 1
    assert device.reason == "asked for"


def test_auto_on_a_machine_without_cards_says_why(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    device = choose("auto", dev=tmp_path)
    assert device.kind == "cpu"
    assert "no SDAA card here" in device.reason


@pytest.mark.usefixtures("broken_torch_sdaa")
@pytest.mark.parametrize("requested", ["auto", "sdaa"])
def test_cards_without_a_working_torch_sdaa_are_an_error(requested: str, cards: Path) -> None:
    with pytest.raises(ToolError, match=r"2 SDAA cards .*libsdaart.*setvars.sh.*--device cpu"):
        choose(requested, dev=cards)  # type: ignore[arg-type]
    assert choose("cpu", dev=cards).kind == "cpu"


def test_cards_without_torch_sdaa_are_an_error(cards: Path) -> None:
    with pytest.raises(ToolError, match="torch_sdaa is not installed"):
        choose("auto", dev=cards)


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no SDAA card"):
        choose("sdaa", dev=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ToolError, match="--device cuda"):
            choose("cuda", dev=tmp_path)
    with pytest.raises(UsageError, match="--device tpu"):
        choose("tpu")  # type: ignore[arg-type]


def test_a_card_that_lost_some_of_its_spas_is_named(
    installed: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(6)
    with pytest.raises(ToolError, match=r"6 SDAA devices, and a card has 4.*SDAA_VISIBLE_DEVICES"):
        choose("auto", dev=tmp_path)
    monkeypatch.setenv("SDAA_VISIBLE_DEVICES", "0,1,2,3,4,5")  # they were chosen, so be it
    device = choose("auto", 5, dev=tmp_path)
    assert (device.kind, device.index) == ("sdaa", 5)
    assert device.reason == "6 SDAA devices found by SDAA_VISIBLE_DEVICES=0,1,2,3,4,5"
    with pytest.raises(UsageError, match=r"needs sdaa:6, .*=0,1,2,3,4,5 shows no more"):
        choose("sdaa", 6, dev=tmp_path)


def test_devices_that_are_hidden_are_explained(
    installed: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(0)
    monkeypatch.setenv("SDAA_VISIBLE_DEVICES", "9")
    with pytest.raises(ToolError, match="sees no device, where SDAA_VISIBLE_DEVICES=9 chooses"):
        choose("sdaa", dev=tmp_path)


def test_a_lost_card_is_part_of_the_reason(installed: Callable[[int], None], cards: Path) -> None:
    installed(4)
    assert "2 cards in /dev should be 8" in choose("auto", dev=cards).reason


def test_a_device_that_does_not_answer_is_named(
    installed: Callable[[int], None], tmp_path: Path
) -> None:
    installed(4)
    choose("sdaa", 0, dev=tmp_path).activate()
    said = r"sdaa:1 does not answer \(RuntimeError: heartbeat is gone\); .*teco-smi -c"
    with pytest.raises(ToolError, match=said):
        choose("sdaa", 1, dev=tmp_path).activate()


def test_precision_by_device() -> None:
    cpu, cuda, sdaa = (kind(index=0, reason="") for kind in (Device, Cuda, Sdaa))
    assert [cpu.precision(amp) for amp in ("auto", "off", "bf16")] == ["fp32", "fp32", "bf16"]
    assert [cuda.precision(amp) for amp in ("auto", "off", "fp16", "bf16")] == [
        "fp16",
        "fp32",
        "fp16",
        "bf16",
    ]
    assert [sdaa.precision(amp) for amp in ("auto", "off", "fp16")] == ["fp16", "fp32", "fp16"]
    with pytest.raises(UsageError, match="not real on SDAA"):
        sdaa.precision("bf16")
    with pytest.raises(UsageError, match="--amp fp16 is for accelerators"):
        cpu.precision("fp16")


def test_what_sdaa_wants() -> None:
    sdaa = Sdaa(index=2, reason="")
    assert (sdaa.backend, sdaa.processes_per_card) == ("tccl", 4)
    assert sdaa.ddp_arguments() == {"bucket_cap_mb": 110}
    assert Cuda(index=2, reason="").ddp_arguments() == {"device_ids": [2]}


def test_what_the_cpu_tells_of_itself() -> None:
    cpu = Device(index=0, reason="")
    cpu.activate()
    cpu.synchronize()
    cpu.copied()()
    assert cpu.name
    assert (cpu.memory(), cpu.peak_memory()) == (None, None)
    assert cpu.profiler_activity == torch.profiler.ProfilerActivity.CPU


def test_sgd_of_the_cpu_is_torch_s_at_a_rate_of_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "weight_decay": 0.5}]
    optimizer = Device(index=0, reason="").sgd(groups, momentum=0.9, nesterov=True)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert [group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [
        0.0,
        0.9,
        True,
        0.5,
    ]


def test_the_cpu_scales_no_loss_and_casts_when_asked() -> None:
    cpu = Device(index=0, reason="")
    scaler = cpu.grad_scaler("fp32", 65536.0)
    assert not scaler.is_enabled()
    assert scaler.state_dict() == {}
    with cpu.autocast("bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with cpu.autocast("fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_the_environment_is_set_where_the_user_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCH_SDAA_CONV_WEIGHT_CHWN"
    monkeypatch.setenv(name, "0")
    prepare_environment()
    assert os.environ[name] == "0"
    monkeypatch.delenv(name)
    prepare_environment()
    assert os.environ[name] == "1"
