from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from shards.errors import ToolError, UsageError
from training.device import Cuda, Device, Sdaa, choose, prepare_environment

BROKEN = "raise OSError('libsdaart.so: cannot open shared object file')\n"


@pytest.fixture
def broken_torch_sdaa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch_sdaa that is installed and does not load, as without the driver's libraries."""
    (tmp_path / "site" / "torch_sdaa").mkdir(parents=True)
    (tmp_path / "site" / "torch_sdaa" / "__init__.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "torch_sdaa", raising=False)


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
