from __future__ import annotations

import json
from pathlib import Path

import torch

from training.device import choose
from training.profiling import profiled


def test_a_trace_of_some_steps_is_written_once(tmp_path: Path) -> None:
    notes: list[str] = []
    with profiled(tmp_path / "deep" / "trace", choose("cpu"), notes.append) as recorded:
        for step in range(30):
            torch.ones(4).mul_(step)
            recorded()
    (note,) = notes
    path = tmp_path / "deep" / "trace" / "trace.json"
    assert note.startswith(str(path))
    names = [each.get("name") for each in json.loads(path.read_text())["traceEvents"]]
    assert names.count("aten::mul_") == 3


def test_without_a_folder_nothing_is_recorded(tmp_path: Path) -> None:
    with profiled(None, choose("cpu"), lambda _note: None) as recorded:
        recorded()
    assert not list(tmp_path.iterdir())
