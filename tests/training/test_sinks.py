"""What other people's loggers are told, by their names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ToolError
from training.sinks import open_sinks

# As Tecorigin's trainers call it; the package itself is in the vendor's image alone.
STAND_IN = """
import enum, json

class Verbosity(enum.Enum):
    DEFAULT, VERBOSE = 1, 2

class JSONStreamBackend:
    def __init__(self, verbosity, filename, append=False):
        assert isinstance(verbosity, Verbosity)
        assert append
        self.path = filename

class Logger:
    def __init__(self, backends):
        self.backends = backends
    def log(self, step, data, verbosity=Verbosity.DEFAULT):
        for backend in self.backends:
            with open(backend.path, "a") as file:
                file.write("DLLL " + json.dumps({"step": step, "data": data}) + "\\n")
    def flush(self):
        pass
"""

RESULTS = {"top1": 50.0, "top5": 90.0, "top1_count": 5, "top5_count": 9, "loss": 1.5}
STEP = {
    "kind": "step", "epoch": 0, "step": 20, "loss": 6.5, "lr": 0.1, "images_per_second": 400.0,
    "images_per_second_device": 100.0, "wait_share": 0.01, "loss_scale": None, "grad_norm": 2.0,
    "step_seconds": 0.5, "peak_memory": None,
}  # fmt: skip
EVAL = {
    "kind": "eval", "epoch": 1, "step": 0, **RESULTS, "ema": RESULTS | {"top1": 60.0},
    "images_per_second": 80.0, "images_per_second_device": 20.0,
}  # fmt: skip
END = {"kind": "end", "epoch": 1, "step": 0, "best": RESULTS | {"epoch": 1}}


def tell(out: Path, **options: Any) -> None:
    out.mkdir(exist_ok=True)
    sinks = open_sinks(out, **({"tensorboard": False, "steps_done": 0} | options))
    for sink in sinks:
        for steps_done, record in enumerate((STEP, {"kind": "start"}, EVAL, END)):
            sink.write(record, steps_done)
        sink.close()


def test_the_vendors_logger_gets_its_names_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(tmp_path)
    assert not list(tmp_path.iterdir())
    package = tmp_path / "path"
    package.mkdir()
    (package / "tcap_dllogger.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("LOCAL_RANK", "0")
    out = tmp_path / "run"
    tell(out)
    tell(out)  # gone on with
    written = (out / "tcap_dllogger.json").read_text().splitlines()
    lines = [line.removeprefix("DLLL ") for line in written]
    step, evaluation, summary = [json.loads(line)["data"] for line in lines[3:]]
    assert json.loads(lines[3])["step"] == [0, 20]
    assert step == {
        "rank": 0, "train.loss": 6.5, "train.ips": 100.0, "train.lr": 0.1, "train.scale": None
    }  # fmt: skip
    assert evaluation == {
        "rank": 0, "val.loss": 1.5, "val.top1": 50.0, "val.top5": 90.0, "val.ips": 20.0
    }  # fmt: skip
    assert summary["summary.best_metric"] == 50.0
    assert summary["summary.best_epoch"] == 1


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ToolError, match=r"--tensorboard needs tensorboard: pip install"):
        tell(tmp_path, tensorboard=True)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_draws_steps_and_evaluations(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    assert {"train/loss", "train/lr", "val/top1", "val_ema/top1"} <= set(names)
    assert "train/loss_scale" not in names
    assert [(each.step, each.value) for each in events.Scalars("val_ema/top1")] == [(2, 60.0)]
