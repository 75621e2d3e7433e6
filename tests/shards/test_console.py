"""What a person sees on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shards.console import emit, say, table_lines

PROGRAM = """
from shards.console import say, showing_progress
with showing_progress() as progress:
    progress.start("decode", 10, "images")
    progress.advance(5)
    progress.note("one was odd")
    say("epoch 1: done")
"""


def test_lines_stand_above_the_live_display() -> None:
    leader, follower = pty.openpty()
    root = Path(__file__).parents[2]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=root, env=environment, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        while block := _read(leader):
            shown += block
    os.close(leader)
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    lines = [line.rpartition("\r")[2] for line in plain.replace("\r\n", "\n").split("\n")]
    assert "note: one was odd" in lines
    assert "epoch 1: done" in lines
    assert any(line.startswith("decode ") for line in lines)


HOSTILE = "a\x1b]0;x\x07\r\n\x9b\u202e\ud800"
HARMLESS = r"a\x1b]0;x\x07\r\n\x9b\u202e\ud800"


def test_control_characters_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    emit(False, {}, [HOSTILE, "Grüße, 猫\u3000\u200d"])
    say(HOSTILE)
    shown = capsys.readouterr()
    assert shown.out == f"{HARMLESS}\nGrüße, 猫\u3000\u200d\n"
    assert shown.err == f"{HARMLESS}\n"
    emit(True, {"name": HOSTILE}, [])
    assert json.loads(capsys.readouterr().out) == {"name": HOSTILE}


def test_a_cell_is_one_line_and_nothing_but_itself() -> None:
    lines = table_lines(("name", "count"), [(HOSTILE, 1000), ("[red]:cat:", 1)])
    assert [line.split() for line in lines] == [
        ["name", "count"],
        [HARMLESS, "1,000"],
        ["[red]:cat:", "1"],
    ]


def _read(terminal: int) -> bytes:
    """What is written next; nothing when the last process with the terminal has ended."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
