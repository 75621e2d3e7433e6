from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.errors import DamagedData
from training.log import RunLog


def written(path: Path) -> list[tuple[str, int, int]]:
    lines = path.read_text().splitlines()
    return [(each["kind"], each["epoch"], each["step"]) for each in map(json.loads, lines)]


def fill(path: Path) -> None:
    log = RunLog(path, (0, 0))
    for kind, epoch, step in (
        ("start", 0, 0),
        ("step", 0, 5),
        ("step", 0, 9),
        ("epoch", 1, 0),
        ("eval", 1, 0),
        ("step", 1, 5),
    ):
        log.write(kind, {"epoch": epoch, "step": step})
    log.close()


@pytest.mark.parametrize(
    ("resume_at", "lines"), [((0, 0), 1), ((0, 5), 2), ((0, 7), 2), ((1, 0), 5), ((1, 5), 6)]
)
def test_what_will_be_done_again_is_cut_off(
    tmp_path: Path, resume_at: tuple[int, int], lines: int
) -> None:
    path = tmp_path / "log.jsonl"
    fill(path)
    before = written(path)
    log = RunLog(path, resume_at)
    log.write("start", {"epoch": resume_at[0], "step": resume_at[1]})
    log.close()
    assert written(path) == [*before[:lines], ("start", *resume_at)]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    fill(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "step", "epo')
    RunLog(path, (9, 0)).close()
    assert path.read_bytes() == whole


def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("dear diary\n")
    with pytest.raises(DamagedData, match="line 1"):
        RunLog(path, (0, 0))
    assert path.read_text() == "dear diary\n"


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", (0, 0))
    log.write("step", {"epoch": 0, "step": 1, "loss": float("nan"), "deep": [{"a": float("inf")}]})
    log.close()
    record = json.loads((tmp_path / "log.jsonl").read_text())
    assert record["loss"] is None
    assert record["deep"] == [{"a": None}]
