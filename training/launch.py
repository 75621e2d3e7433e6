"""Starting the processes of a run: `resnet train --cards 4` becomes 16 of them, joined.

This needs no torch, so nobody waits for it twice. On every machine one command starts, watches
and ends its own processes; machine 0's also holds the coordinator (training/coordinator.py), which
all commands obey. How a command reacts:

    a process is lost     every process of every machine is ended, then all are started again
    a process gives up    the same without a restart: its sentence is this command's
    SIGTERM, SIGUSR1,     handed on; the processes save and end, in the time that --grace gives;
    SIGHUP                where none runs, the command ends as one that is stopped
    Ctrl-C, or a second   everything is ended at once
    machine 0 is lost     the others wait for its command to be started again, and join it
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import ToolError, UsageError
from training.attention import Attention
from training.children import Children
from training.coordinator import Coordinator, Rules
from training.device import prepare_environment
from training.link import Link, Outcome, connect, exit_with, listen, program
from training.place import (
    BEGAN_VARIABLE,
    LAUNCHER_VARIABLE,
    LOCALHOST,
    RESTART_VARIABLE,
    command_began,
)
from training.stopping import SAME_SECONDS, STOPPED, Signals, leave_terminal, stopped_early

JOIN_VARIABLE = "IMAGENET_RESNET_JOIN_SECONDS"  # how long this process waits for the others
STORE_VARIABLE = "IMAGENET_RESNET_STORE"  # file descriptor on which process 0 is to be met
RESTARTS = 3
JOIN_SECONDS = 300.0
GRACE_SECONDS = 120.0
_RETRY_SECONDS = 0.5
_LONGEST = 7 * 86400.0  # seconds; what waits for sockets takes 24 days at most
_LAST_WORDS = 5.0  # seconds in which machine 0 confirms an end that was asked for here


def _unheard(_text: str) -> None:
    """Where nobody is told of restarts."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be started here, and what with."""

    argv: Sequence[str]
    nproc: int
    nodes: int
    node_rank: int
    master: tuple[str, int]
    max_restarts: int
    join_seconds: float
    grace: float
    began: float  # time.monotonic() of the command's start
    say: Callable[[str], None]

    @property
    def address(self) -> str:
        """Where machine 0 is met."""
        return f"{self.master[0]}:{self.master[1]}"


def launch(
    argv: Sequence[str],
    *,
    nproc: int,
    nodes: int = 1,
    node_rank: int = 0,
    master: str | None = None,
    max_restarts: int = 0,
    join_seconds: float = JOIN_SECONDS,
    grace: float = GRACE_SECONDS,
    signals: Signals | None = None,
    say: Callable[[str], None] = _unheard,
) -> int:
    """Run this program with `argv` in `nproc` processes here; the exit code once all are gone.

    With `nodes` above 1 the same is started on each machine, `node_rank` being its number and
    `master` HOST:PORT of machine 0. `signals` has listened until now. `say` tells the user of
    restarts. Raises the ToolError or UsageError that the first failing process reported, Stopped
    where a signal made the run stop, with nothing lost, or a ToolError that names a process that
    was lost and how.
    """
    check_seconds("--grace", grace)
    check_seconds("--join-timeout", join_seconds)
    prepare_environment()
    job = Job(
        argv=argv,
        nproc=nproc,
        nodes=nodes,
        node_rank=node_rank,
        master=_master(nodes, node_rank, master),
        max_restarts=max_restarts,
        join_seconds=join_seconds,
        grace=grace,
        began=command_began() if signals is None else signals.began,
        say=say,
    )
    with Attention() as attention, contextlib.closing(_Command(job, attention)) as command:
        if signals is not None:
            signals.end_if_received()
        return exit_with(command.run(), say)


def check_seconds(option: str, seconds: float) -> None:
    """Raise UsageError for a time that cannot be waited for; infinity and NaN are such."""
    if not 0 < seconds <= _LONGEST:
        raise UsageError(
            f"{option} {seconds:g}: it must be a number of seconds above 0, {_LONGEST:g} (a week) "
            "at most"
        )


def _master(nodes: int, node_rank: int, master: str | None) -> tuple[str, int]:
    """Machine 0's host and port, checked; on one machine nobody needs them."""
    if nodes == 1 and node_rank == 0:
        return LOCALHOST, 0
    if not 0 <= node_rank < nodes:
        raise UsageError(f"--node-rank {node_rank}: it must be from 0 to {nodes - 1}")
    host, _, port = (master or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            "--nodes above 1 needs --master HOST:PORT, an address of machine 0 and a port from 1 "
            f"to 65535{'' if master is None else f', not {master}'}"
        )
    return host.strip("[]"), int(port)


class _Command:
    """This machine's part: its link to the coordinator and its processes."""

    def __init__(self, job: Job, attention: Attention) -> None:
        self._job = job
        self._attention = attention
        self._stack = contextlib.ExitStack()
        self._program = program()
        self._link: Link | None = None
        self._children: Children | None = None
        self._told: Outcome | None = None  # what the coordinator knows of this attempt
        self._store: socket.socket | None = None  # machine 0's: where process 0 will be met
        self._forwarded: signal.Signals | None = None
        self._own: Outcome | None = None  # how the user ended this very command
        self._forwarded_at = 0.0
        self._deadline: float | None = None  # of what was asked for by a signal
        self._returns = 0  # how often machine 0 was lost

    def run(self) -> Outcome:
        """Serve until the coordinator says how it ended."""
        link = self._link = self._meet()
        while link is not None:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            numbers, readable = self._attention.wait(link, left)
            for number in numbers:
                self._on_signal(signal.Signals(number))
            if self._deadline is not None and time.monotonic() >= self._deadline:
                if self._own is not None:
                    return self._own
                self._give_up_saving()
            if readable:
                messages = link.receive()
                if messages is None:
                    link = self._link = self._meet_again()
                    continue
                for message in messages:
                    if message["do"] == "end":
                        return self._end(message)
                    self._on_message(message)
            self._tell_outcome()
        assert self._own is not None
        return self._own

    def close(self) -> None:
        """Leave nothing behind."""
        self._stop()
        if self._link is not None:
            self._link.close()
        self._stack.close()

    # --- with the coordinator -----------------------------------------------------------------

    def _meet(self) -> Link | None:
        """Come to machine 0, or be it; None where a signal ended the waiting."""
        job = self._job
        if job.node_rank == 0:
            link: Link | None = self._be_first()
        else:
            link = self._connect()
        if link is not None:
            self._open_store()
            link.send(
                {
                    "what": "hello",
                    "node": job.node_rank,
                    "nodes": job.nodes,
                    "nproc": job.nproc,
                    "host": socket.gethostname(),
                    "program": self._program,
                    "port": self._store_port,
                }
            )
        return link

    def _be_first(self) -> Link:
        job = self._job
        listener = listen(job.master[1]) if job.nodes > 1 else None
        own, end = socket.socketpair()
        rules = Rules(
            nodes=job.nodes,
            nproc=job.nproc,
            max_restarts=job.max_restarts,
            join_seconds=job.join_seconds,
            grace=job.grace,
            program=self._program,
            address=job.address,
        )
        coordinator = Coordinator(rules, end, listener)
        thread = threading.Thread(target=coordinator.run, name="coordinator", daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        return Link(own)

    def _connect(self) -> Link | None:
        job = self._job
        end = time.monotonic() + job.join_seconds
        while True:
            try:
                return Link(connect(job.master))
            except OSError as error:
                if time.monotonic() >= end:
                    raise ToolError(
                        f"machine 0 did not answer at {job.address} within {job.join_seconds:g} s "
                        f"({error.strerror or error}); start the same command there with "
                        "--node-rank 0, and check that this machine reaches that address"
                    ) from error
            for number in self._attention.wait(None, _RETRY_SECONDS)[0]:
                self._on_signal(signal.Signals(number))
            if self._own is not None:
                return None

    def _meet_again(self) -> Link | None:
        """Machine 0 is gone: end what runs here and wait for it, as a restart."""
        job = self._job
        self._stop()
        if self._link is not None:
            self._link.close()
        if self._own is not None:
            return None
        gone = f"machine 0 at {job.address} is gone"
        if job.node_rank == 0 or self._returns >= job.max_restarts or self._forwarded is not None:
            raise ToolError(
                f"{gone}, and the processes here were ended with it; start the same command again "
                "on every machine: it goes on from the last checkpoint"
            )
        self._returns += 1
        job.say(
            f"{gone}; restart {self._returns} of {job.max_restarts} from the last checkpoint, once "
            f"it is started again (waiting {job.join_seconds:g} s)"
        )
        return self._meet()

    def _on_message(self, message: Mapping[str, Any]) -> None:
        job = self._job
        if message["do"] == "say":
            job.say(message["text"])
        elif message["do"] == "start" and self._own is None:
            if self._forwarded is not None:  # those that it was for are gone
                self._end_early(self._forwarded)
            else:
                self._start(int(message["restart"]), int(message["port"]))
        elif message["do"] == "stop":
            self._stop()
            self._open_store()
            self._send({"what": "ready", "port": self._store_port})

    def _tell_outcome(self) -> None:
        """Tell the coordinator how the processes ended, and again if more becomes known."""
        if self._children is None:
            return
        outcome = self._children.outcome(self._forwarded)
        if outcome is None or (self._told is not None and outcome.weight <= self._told.weight):
            return
        self._told = outcome
        if outcome.good:
            self._deadline = None
        self._send({"what": "ended", **vars(outcome)})

    def _end(self, message: Mapping[str, Any]) -> Outcome:
        if self._own is not None:
            return self._own
        return Outcome(kind=message["kind"], code=message["code"], text=message["text"])

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._link is not None:
            self._link.send(message)

    # --- with the processes -------------------------------------------------------------------

    def _start(self, restart: int, port: int) -> None:
        """Start them; process 0 gets the socket on which the others will meet it."""
        self._told = None
        environments = list(self._environments(restart, port))
        self._children = Children(self._job.argv, environments, self._store)
        if self._store is not None:
            self._store.close()
            self._store = None

    def _environments(self, restart: int, port: int) -> Iterator[dict[str, str]]:
        job = self._job
        for local_rank in range(job.nproc):
            environment = {
                **os.environ,
                LAUNCHER_VARIABLE: str(os.getpid()),
                RESTART_VARIABLE: str(restart),
                BEGAN_VARIABLE: str(job.began),
                "RANK": str(job.node_rank * job.nproc + local_rank),
                "WORLD_SIZE": str(job.nodes * job.nproc),
                "LOCAL_RANK": str(local_rank),
                "LOCAL_WORLD_SIZE": str(job.nproc),
                "MASTER_ADDR": LOCALHOST if job.node_rank == 0 else job.master[0],
                "MASTER_PORT": str(port),
                "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
            }
            if local_rank == 0 and self._store is not None:
                environment[STORE_VARIABLE] = str(self._store.fileno())
            yield environment

    def _stop(self) -> None:
        if self._children is not None:
            self._children.kill()
            self._children = None

    def _open_store(self) -> None:
        """A port of its own for each attempt: what is left of the last one cannot disturb."""
        if self._job.node_rank == 0 and self._store is None:
            self._store = listen(0, everywhere=self._job.nodes > 1)
            self._stack.callback(self._store.close)

    @property
    def _store_port(self) -> int:
        return 0 if self._store is None else int(self._store.getsockname()[1])

    # --- with signals -------------------------------------------------------------------------

    def _on_signal(self, number: signal.Signals) -> None:
        """The first one to stop is handed on; Ctrl-C, or a second one, ends all at once."""
        now, asks = time.monotonic(), number != signal.SIGINT
        if number == signal.SIGHUP:
            leave_terminal()
        if self._own is not None or (
            asks and self._forwarded is not None and now - self._forwarded_at <= SAME_SECONDS
        ):
            return
        if not asks or self._forwarded is not None:
            text = f"{number.name} ended the command of {self._machine}"
            self._end_with(Outcome(kind="final", code=128 + number), code=1, text=text)
        elif self._children is None:
            self._end_early(number)
        else:
            self._forwarded, self._forwarded_at = number, now
            self._children.forward(number)
            self._deadline = now + self._job.grace

    def _end_early(self, number: signal.Signals) -> None:
        """End as asked: no process runs here, so there is nothing to save."""
        text = str(stopped_early(f"{number.name} asked {self._machine} for it"))
        self._end_with(Outcome(kind="final", code=STOPPED, text=text), code=STOPPED, text=text)

    def _end_with(self, own: Outcome, *, code: int, text: str) -> None:
        """End this command so, and those of other machines with this code and sentence."""
        self._stop()
        self._own = own
        self._send({"what": "ended", "kind": "final", "code": code, "text": text})
        self._deadline = time.monotonic() + _LAST_WORDS

    @property
    def _machine(self) -> str:
        return f"machine {self._job.node_rank} ({socket.gethostname()})"

    def _give_up_saving(self) -> None:
        self._deadline = None
        name = "no signal" if self._forwarded is None else self._forwarded.name
        self._stop()
        text = (
            f"the processes on {socket.gethostname()} did not save and end within "
            f"{self._job.grace:g} s of {name}, and were ended; --grace SECONDS gives them more"
        )
        self._send({"what": "ended", "kind": "final", "code": 1, "text": text})
