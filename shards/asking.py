"""Asking another program, and giving it up where it does not answer.

A driver in trouble makes its tools hang, at worst inside the kernel, where no signal reaches
them. So a program has a time to answer in, is killed with all that it started, and is left
behind where even that does not end it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_SECONDS_TO_DIE: Final = 5.0


class Answer(NamedTuple):
    """What a program printed, errors too, and how it ended: None is not in time."""

    text: str
    code: int | None  # negative: the signal that ended it


def ask(
    command: Sequence[str], seconds: float, *, environment: Mapping[str, str] | None = None
) -> Answer:
    """Run a program without a shell and without input, for so many seconds at most.

    Raises OSError where it cannot be started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # so that what it started can be ended with it
    )
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        return Answer(text=(late.output or b"").decode(errors="replace"), code=None)
    finally:
        _end(process)
    return Answer(text=text.decode(errors="replace"), code=process.returncode)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_SECONDS_TO_DIE)
    if process.stdout is not None:
        process.stdout.close()
