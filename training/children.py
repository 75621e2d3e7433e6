"""The processes of one machine in one attempt: started, watched, ended.

A process that fails hands its sentence to the command that started it, by a pipe, so that a
failure on 16 processes is told once. However that command ends, its processes end with it:
one left behind would go on writing into a run that is started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import ToolError
from training.link import Kind, Outcome
from training.place import LAUNCHER_VARIABLE
from training.stopping import STOP_SIGNALS, STOPPED

REPORT_VARIABLE = "IMAGENET_RESNET_REPORT"  # file descriptor that takes a failure's sentence
INTERRUPTED = 130  # exit code after Ctrl-C, by the shells' convention
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal this process gets when its parent dies
_LONGEST = 16384  # characters of a sentence; a pipe takes 64 KiB without anybody reading
_REAP_SECONDS = 10.0  # until a killed process is left to the kernel: it waits for a device or disk


class PeerLost(ToolError):
    """Another process of the run is gone; what happened to it is told there."""


def follow_launcher() -> None:
    """End with the command that started this process, even if it is killed without warning.

    From here on signals come through that it held back while this process could not take them.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the call above
        raise ToolError("the launcher of this process is gone; start the command again")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def report_failure(error: ToolError) -> bool:
    """Hand a failure of this process to the command that will show it; False if none will."""
    pipe = os.environ.get(REPORT_VARIABLE)
    if pipe is None:
        return False
    report = {
        "kind": "peer" if isinstance(error, PeerLost) else "final",
        "code": error.exit_code,
        "text": str(error)[:_LONGEST],
    }
    try:
        os.write(int(pipe), json.dumps(report).encode())
    except OSError:  # it is gone
        return False
    return True


class Children:
    """Processes that run this console script again, by this same Python."""

    def __init__(
        self,
        argv: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        keep: socket.socket | None,
    ) -> None:
        """Start one in each environment, RANK in it; the first inherits the socket `keep`.

        They are out of reach of the terminal's Ctrl-C, which is for the command alone. A signal
        that asks them to stop waits until they call `follow_launcher`: it would kill a process
        that has only begun, and a run that is to stop would be started again.
        """
        self._host = socket.gethostname()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._pipes: dict[int, int] = {}
        self._reports: dict[int, dict[str, Any] | None] = {}  # of those that have ended
        program = [sys.executable, "-u", str(Path(sys.argv[0]).resolve()), *argv]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # they inherit it
        try:
            for environment in environments:
                self._start(program, environment, None if self._children else keep)
        except OSError as error:
            self.kill()
            raise ToolError(
                f"process {len(self._children)} of {len(environments)} could not be started "
                f"({error.strerror}); look at the limits of `ulimit -u` and `ulimit -n`"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _start(
        self, program: Sequence[str], environment: Mapping[str, str], keep: socket.socket | None
    ) -> None:
        rank = int(environment["RANK"])
        self._pipes[rank], end = os.pipe()
        try:
            self._children[rank] = subprocess.Popen(
                program,
                env={**environment, REPORT_VARIABLE: str(end)},
                pass_fds=[end] if keep is None else [end, keep.fileno()],
                start_new_session=True,
            )
        finally:
            os.close(end)

    def outcome(self, forwarded: signal.Signals | None) -> Outcome | None:
        """How they ended; None as long as some run and none has failed.

        Of several failures the one that tells most. `forwarded` is the signal that they were
        given to end by; who dies of it is not lost.
        """
        codes = {rank: child.poll() for rank, child in self._children.items()}
        failures = [
            self._failure(rank, code, forwarded)
            for rank, code in codes.items()
            if code not in {None, 0, STOPPED}
        ]
        if failures:
            return max(failures, key=lambda outcome: outcome.weight)
        if None in codes.values():
            return None
        if STOPPED not in codes.values():
            return Outcome(kind="done")
        reports = [self._report(rank) for rank in codes]
        text = next((report["text"] for report in reports if report is not None), None)
        return Outcome(kind="saved", code=STOPPED, text=text)

    def forward(self, number: signal.Signals) -> None:
        """Give them a signal."""
        for child in self._children.values():
            child.send_signal(number)

    def kill(self) -> None:
        """End them at once and wait until they are gone."""
        for child in self._children.values():
            child.kill()
        end = time.monotonic() + _REAP_SECONDS
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, end - time.monotonic()))
        for pipe in self._pipes.values():
            os.close(pipe)
        self._pipes.clear()

    def _failure(self, rank: int, code: int | None, forwarded: signal.Signals | None) -> Outcome:
        assert code is not None
        report = self._report(rank)
        if report is not None:
            return Outcome(**report)
        who = f"process {rank} on {self._host}"
        if code == INTERRUPTED or (forwarded is not None and code == -forwarded):
            number = forwarded or signal.SIGINT
            text = f"{who} was ended by {number.name} before it could save"
            return Outcome(kind="final", code=128 + number, text=text)
        if code > 0:
            text = f"{who} ended with exit code {code} and no reason but what it printed"
            return Outcome(kind="lost", code=code, text=text)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = " (by the system, if memory ran out)" if name == "SIGKILL" else ""
        kind: Kind = "lost" if forwarded is None else "final"
        return Outcome(kind=kind, code=1, text=f"{who} was ended by {name}{why}")

    def _report(self, rank: int) -> dict[str, Any] | None:
        """What a process that has ended has told."""
        if rank not in self._reports:
            os.set_blocking(self._pipes[rank], False)
            data = os.read(self._pipes[rank], 1 << 16)
            self._reports[rank] = json.loads(data) if data else None
        return self._reports[rank]
