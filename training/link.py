"""What the commands of a launch on several machines tell each other, and how a run ends.

Messages are JSON objects, one a line, over TCP between machine 0 and each other one, and over
a socket pair inside machine 0's command.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from shards.errors import ToolError, UsageError
from training.place import LOCALHOST
from training.stopping import STOPPED, Stopped

# From the least to the most telling: what is found of one accident in several places.
Kind = Literal["done", "saved", "peer", "lost", "final"]
_LONGEST = 1 << 20  # bytes of a message; a stranger's stream has no newline, perhaps
_CONNECT_SECONDS = 2.0
_SILENCE = 20  # seconds after which a machine that answers nothing any more is gone


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the processes of a machine ended.

    `done` and `saved` are good ends. `peer` lost its connection to another process, `lost` was
    killed or crashed: both can be restarted. `final` is what another try would not change.
    """

    kind: Kind
    code: int = 0  # exit code of the command
    text: str | None = None  # one sentence

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return self.kind in {"done", "saved"}

    @property
    def weight(self) -> int:
        """How much it tells, compared with another one's."""
        return get_args(Kind).index(self.kind)


def exit_with(outcome: Outcome, say: Callable[[str], None]) -> int:
    """The exit code of a command that ended so; its sentence is raised where that has a type."""
    if outcome.text is None:
        return outcome.code
    if outcome.code == STOPPED:
        raise Stopped(outcome.text)
    if outcome.code == UsageError.exit_code:
        raise UsageError(outcome.text)
    if outcome.code == ToolError.exit_code:
        raise ToolError(outcome.text)
    say(outcome.text)
    return outcome.code


def program() -> str:
    """A digest of this program's own files: it has to be the same on all machines of a run."""
    root = Path(__file__).parents[1]
    paths = [root / "cli.py", *root.glob("shards/**/*.py"), *root.glob("training/**/*.py")]
    code = hashlib.sha256()
    for path in sorted(paths):
        code.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return code.hexdigest()[:12]


class Link:
    """One end of a connection that carries messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        if connection.family != socket.AF_UNIX:
            _notice_silence(connection)

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message. That the other end is gone is noticed when receiving."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that came, once the link is readable; None where its other end is gone.

        Whatever speaks another language counts as gone.
        """
        try:
            data = self._socket.recv(1 << 16)
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > _LONGEST:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(each, dict) for each in messages) else None

    def finish(self) -> None:
        """Say that nothing more comes from here; what was sent still arrives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _notice_silence(connection: socket.socket) -> None:
    """Have the kernel ask whether a silent machine still lives, and give up one that does not."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE // 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENCE // 4)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE * 1000)


def listen(port: int, *, everywhere: bool = True) -> socket.socket:
    """A socket that takes connections, from this machine alone or from everywhere."""
    try:
        if not everywhere:
            return socket.create_server((LOCALHOST, port), backlog=1024)
        both = socket.has_dualstack_ipv6()
        return socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=1024,
        )
    except OSError as error:
        what = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
        raise ToolError(
            f"port {port} of this machine is {what}; give another one to --master, the same on "
            "every machine"
        ) from error


def connect(address: tuple[str, int]) -> socket.socket:
    """A connection to where somebody listens; raises OSError soon where nobody does."""
    connection = socket.create_connection(address, _CONNECT_SECONDS)
    if connection.getsockname() == connection.getpeername():
        # On one machine, where nobody listens yet, a socket may meet itself.
        connection.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    connection.settimeout(None)
    return connection
