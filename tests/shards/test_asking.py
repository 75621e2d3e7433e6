"""Programs are asked as real processes, and given up with all that they started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from shards.asking import ask


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_an_answer_is_all_that_was_printed_and_how_it_ended() -> None:
    code = "import sys; print('one', flush=True); sys.stderr.write('two'); sys.exit(3)"
    assert ask(python(code), 60) == ("one\ntwo", 3)
    code = "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    assert ask(python(code), 60) == ("", -signal.SIGABRT)
    assert ask(python("import sys; sys.stdout.buffer.write(b'\\xff')"), 60).text == "\ufffd"


def test_nobody_types_at_a_program_that_is_asked() -> None:
    assert (
        ask(python("print(input())"), 60).text.strip().endswith("EOFError: EOF when reading a line")
    )


def test_a_program_may_have_an_environment_of_its_own() -> None:
    code = "import os; print(os.environ.get('WHO'), os.environ.get('HOME'))"
    assert ask(python(code), 60, environment={"WHO": "me"}).text == "me None\n"


def test_a_program_that_does_not_end_is_ended_with_what_it_started(tmp_path: Path) -> None:
    """The pipe's other end is with a process that the program itself has left."""
    script = tmp_path / "hangs"
    script.write_text(
        f"#!/bin/sh\n{sys.executable} -S -c 'import signal; signal.pause()' &\n"
        f"echo $! > {tmp_path}/started\necho said before\nwait\n"
    )
    script.chmod(0o755)
    assert ask([str(script)], 2) == ("said before\n", None)
    started = int((tmp_path / "started").read_text())
    with contextlib.suppress(ProcessLookupError):
        end = os.pidfd_open(started)
        assert select.select([end], [], [], 60)[0], "it lives on"
        os.close(end)


def test_what_cannot_be_started_is_the_system_s_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask([str(tmp_path / "nothing")], 1)
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    with pytest.raises(OSError, match=os.strerror(8)):
        ask([str(broken)], 1)
