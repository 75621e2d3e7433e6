from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shards.errors import ToolError
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


def test_too_few_steps_for_a_trace_are_told(tmp_path: Path) -> None:
    notes: list[str] = []
    with profiled(tmp_path, choose("cpu"), notes.append) as recorded:
        for _ in range(4):
            recorded()
    assert notes == ["--profile recorded nothing: it takes 10 steps"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ToolError, match=r"file cannot be made .* give --profile another"),
        profiled(tmp_path / "file", choose("cpu"), lambda _note: None),
    ):
        pass


def test_without_a_folder_nothing_is_recorded(tmp_path: Path) -> None:
    with profiled(None, choose("cpu"), lambda _note: None) as recorded:
        recorded()
    assert not list(tmp_path.iterdir())
