"""Machine 0's part of a launch that is not about its own processes: who is there, what is next.

The command of each machine (training/launch.py) starts, watches and ends its own processes and
tells the coordinator, which runs in a thread of machine 0's command, by `what` it is:

    hello   node, nodes, nproc, host, program, port   a machine is there; port: machine 0's
    ready   port                                      its processes are gone, it can start anew
    ended   kind, code, text                          how its processes, or the first, ended

and is told what to `do`:

    start   restart, port     start your processes; process 0 is met at that port
    stop                      end them at once, then say `ready`
    say     text              a line for the terminal
    end     kind, code, text  this is how the command ends

On a single machine it is the same, without a network.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from training.link import Link, Outcome

_SETTLE = 2.0  # seconds in which the reason for a lost connection may follow it
_STOPPING = 30.0  # seconds after which a machine that does not stop its processes is given up
_LEAVE = 5.0  # seconds in which the others hear how it ended
_AGAIN = "start the same command again: it goes on from the last checkpoint"


@dataclass(kw_only=True)
class _Machine:
    link: Link
    host: str
    port: int
    ready: bool = True
    outcome: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a launch was asked for, the same on all machines."""

    nodes: int
    nproc: int
    max_restarts: int
    join_seconds: float
    grace: float
    program: str  # a digest of its files
    address: str = ""  # HOST:PORT of machine 0, for sentences


class Coordinator:
    """Starts all machines together, decides what a loss means, and ends them together."""

    def __init__(self, rules: Rules, own: socket.socket, listener: socket.socket | None) -> None:
        """`own` is the link to machine 0's command; the others come to `listener`."""
        self._rules = rules
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._machines: dict[int, _Machine] = {}
        self._numbers: dict[Link, int] = {}  # those that said hello
        self._phase: Literal["gathering", "running", "stopping", "over"] = "gathering"
        self._deadline: float | None = time.monotonic() + rules.join_seconds
        self._cause: Outcome | None = None
        self._restarts = 0
        self._own = Link(own)
        self._selector.register(self._own, selectors.EVENT_READ)
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the end has been told to everybody."""
        try:
            while self._phase != "over":
                left = None if self._deadline is None else self._deadline - time.monotonic()
                for key, _ in self._selector.select(None if left is None else max(0.0, left)):
                    if isinstance(key.fileobj, Link):
                        self._hear(key.fileobj)
                    else:
                        self._accept()
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._too_late()
            self._take_leave()
        finally:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, Link | socket.socket):
                    key.fileobj.close()
            self._selector.close()

    def _take_leave(self) -> None:
        """Wait a moment for the others to hang up, so that they have heard the end."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
        for link in self._numbers:
            link.finish()
        end = time.monotonic() + _LEAVE
        while self._numbers and time.monotonic() < end:
            for key, _ in self._selector.select(end - time.monotonic()):
                if isinstance(key.fileobj, Link) and key.fileobj.receive() is None:
                    self._hang_up(key.fileobj)

    # --- what comes in ------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):  # it may have hung up meanwhile
            self._selector.register(Link(self._listener.accept()[0]), selectors.EVENT_READ)

    def _hear(self, link: Link) -> None:
        messages = link.receive()
        try:
            self._understand(link, messages)
        except (KeyError, TypeError, ValueError):  # a stranger
            self._hang_up(link)

    def _understand(self, link: Link, messages: list[dict[str, Any]] | None) -> None:
        if messages is None:
            self._hang_up(link)
            return
        for message in messages:
            if message.get("what") == "hello":
                self._hello(link, message)
            elif link in self._numbers:
                self._told(self._numbers[link], message)

    def _told(self, node: int, message: Mapping[str, Any]) -> None:
        machine = self._machines[node]
        if message.get("what") == "ready":
            machine.ready, machine.port = True, int(message["port"])
            if self._phase == "stopping":
                self._decide_if_all_stopped()
            return
        machine.outcome = Outcome(
            kind=message["kind"], code=int(message["code"]), text=message["text"]
        )
        if not machine.outcome.good:
            self._blame(machine.outcome)
        elif self._phase == "running":
            self._end_if_all_did()

    def _hello(self, link: Link, hello: Mapping[str, Any]) -> None:
        refusal = self._refusal(hello)
        if refusal is not None:
            link.send({"do": "end", "kind": "final", "code": 2, "text": refusal})
            self._hang_up(link)
            return
        node = int(hello["node"])
        machine = _Machine(link=link, host=str(hello["host"]), port=int(hello["port"]))
        self._numbers[link], self._machines[node] = node, machine
        self._start_if_complete()

    def _refusal(self, hello: Mapping[str, Any]) -> str | None:
        """Why this machine cannot take part."""
        rules, node, host = self._rules, hello.get("node"), hello.get("host")
        first = self._machines.get(0)
        name = f"machine 0 ({first.host if first else rules.address})"
        for option, own, other in (
            ("--nodes", rules.nodes, hello.get("nodes")),
            ("processes", rules.nproc, hello.get("nproc")),
            ("imagenet-resnet's code", rules.program, hello.get("program")),
        ):
            if own != other:
                return (
                    f"machine {node} ({host}) has {option} {other} and {name} {own}; "
                    "start the same command with the same program on every machine"
                )
        if not isinstance(node, int) or not 0 <= node < rules.nodes:
            return f"machine {node} ({host}): --node-rank must be from 0 to {rules.nodes - 1}"
        if node in self._machines:
            return (
                f"machine {node} is there already ({self._machines[node].host}), and {host} "
                "says it is that one, too; give each machine its own --node-rank"
            )
        return None

    def _hang_up(self, link: Link) -> None:
        """Forget a connection, and with it the machine that it was."""
        if link.fileno() < 0:
            return
        self._selector.unregister(link)
        link.close()
        node = self._numbers.pop(link, None)
        if link is self._own and self._phase != "over":
            text = f"the command of machine 0 ({self._rules.address}) ended"
            self._end(Outcome(kind="final", code=1, text=text))
        if node is None or self._phase == "over":
            return
        machine = self._machines.pop(node)
        if self._phase == "running":
            self._blame(
                Outcome(
                    kind="lost",
                    code=1,
                    text=f"machine {node} ({machine.host}) is gone: its command was killed, or the "
                    "connection to it broke",
                )
            )
        elif self._phase == "stopping":
            self._decide_if_all_stopped()

    # --- what follows from it -----------------------------------------------------------------

    def _start_if_complete(self) -> None:
        machines = self._machines.values()
        if self._phase != "gathering" or len(machines) < self._rules.nodes:
            return
        self._phase, self._deadline = "running", None
        for machine in machines:
            machine.ready, machine.outcome = False, None
        self._tell({"do": "start", "restart": self._restarts, "port": self._machines[0].port})

    def _end_if_all_did(self) -> None:
        outcomes = [machine.outcome for machine in self._machines.values()]
        ends = [outcome for outcome in outcomes if outcome is not None]
        if len(ends) == len(outcomes):
            self._end(max(ends, key=lambda outcome: outcome.weight))
        elif self._deadline is None:  # a process that hangs when all is done
            self._deadline = time.monotonic() + self._rules.grace

    def _blame(self, outcome: Outcome) -> None:
        """Take note of what went wrong, and stop everything unless more is to be heard of it."""
        first = self._cause is None
        if self._cause is None or outcome.weight > self._cause.weight:
            self._cause = outcome
        if self._phase == "stopping":
            return
        if outcome.kind != "peer":
            self._stop()
        elif first:
            self._deadline = time.monotonic() + _SETTLE

    def _stop(self) -> None:
        self._phase, self._deadline = "stopping", time.monotonic() + _STOPPING
        self._tell({"do": "stop"})
        self._decide_if_all_stopped()

    def _decide_if_all_stopped(self) -> None:
        """Restart, or end, once nothing of the last attempt runs any more."""
        if not all(machine.ready for machine in self._machines.values()):
            return
        cause, limit = self._cause, self._rules.max_restarts
        assert cause is not None
        saved = any(
            machine.outcome is not None and machine.outcome.kind == "saved"
            for machine in self._machines.values()
        )
        if cause.kind == "final" or saved or self._restarts >= limit:
            self._end(_final(cause, self._restarts))
            return
        self._restarts += 1
        text = f"{cause.text}; restart {self._restarts} of {limit} from the last checkpoint"
        if self._missing():
            text += f", once {self._missing()} is started again"
        self._tell({"do": "say", "text": text})
        self._cause, self._phase = None, "gathering"
        self._deadline = time.monotonic() + self._rules.join_seconds
        self._start_if_complete()

    def _too_late(self) -> None:
        """The deadline of this phase has passed."""
        self._deadline = None
        if self._phase == "gathering":
            self._end(
                Outcome(
                    kind="final",
                    code=1,
                    text=f"{self._missing()} of {self._rules.nodes} did not come to "
                    f"{self._rules.address} within {self._rules.join_seconds:g} s; start the same "
                    "command there with its --node-rank, and check that it reaches this address",
                )
            )
        elif self._phase == "stopping":
            for machine in [each for each in self._machines.values() if not each.ready]:
                self._hang_up(machine.link)
        elif self._cause is not None:  # nobody knows more of a lost connection
            self._stop()
        else:
            hanging = [
                f"machine {node} ({machine.host})"
                for node, machine in self._machines.items()
                if machine.outcome is None
            ]
            self._blame(
                Outcome(
                    kind="lost",
                    code=1,
                    text=f"the processes of {', '.join(hanging)} did not end within "
                    f"{self._rules.grace:g} s after the others",
                )
            )

    def _missing(self) -> str:
        """The machines that are not there, in words."""
        nodes = [node for node in range(self._rules.nodes) if node not in self._machines]
        if not nodes:
            return ""
        return f"machine{'s' * (len(nodes) > 1)} {', '.join(map(str, nodes))}"

    def _end(self, outcome: Outcome) -> None:
        self._phase = "over"
        self._tell({"do": "end", **vars(outcome)})

    def _tell(self, message: Mapping[str, Any]) -> None:
        for machine in self._machines.values():
            machine.link.send(message)


def _final(cause: Outcome, restarts: int) -> Outcome:
    """How a run ends that is not restarted."""
    if cause.kind == "final" or cause.text is None:
        return cause
    tried = f" (after {restarts} restart{'s' * (restarts > 1)})" if restarts else ""
    return Outcome(
        kind=cause.kind,
        code=cause.code,
        text=f"{cause.text}, and the others with it{tried}; {_AGAIN}",
    )
