"""The way to machine 0: which interface it takes, and whether gloo would take the same."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import Final

from shards.errors import UsageError
from shards.finding import Finding, note, ok, problem

_SIOCGIFADDR: Final = 0x8915  # netdevice(7): an interface's IPv4 address
_VARIABLE: Final = "GLOO_SOCKET_IFNAME"


def network(master: str | None) -> list[Finding]:
    """The interface and address that this machine reaches `master` (HOST:PORT) by.

    Nothing is sent. Raises UsageError where `master` is no such thing.
    """
    host, _, port = (master or "").rpartition(":")
    if not host or not port.isdigit():
        raise UsageError("--nodes above 1 needs --master HOST:PORT, an address of machine 0")
    try:
        there, address = _route(host, int(port))
    except OSError as error:
        remedy = "name machine 0 by an address that all machines reach"
        return [problem("network", f"no way to {host} ({error.strerror})", remedy)]
    interface = interface_of(address)
    named = f"{address} by {interface or 'an unknown interface'}{_speed(interface)}"
    return [ok("network", f"{named} to {there}"), *_gloo(interface)]


def _route(host: str, port: int) -> tuple[str, str]:
    """The address of a host, and ours on the way there; connecting UDP sends nothing."""
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)
        return str(place[0]), str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The network interface that has an address of this machine."""
    if ipaddress.ip_address(address).version == 6:
        return _interface6(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an IPv4 address
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def _interface6(address: str) -> str | None:
    packed = ipaddress.ip_address(address).packed.hex()
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            if line.startswith(packed):
                return line.split()[-1]
    return None


def _speed(interface: str | None) -> str:
    """` (25,000 Mb/s)`, where the system knows it."""
    with contextlib.suppress(OSError, ValueError):
        megabits = int(Path(f"/sys/class/net/{interface}/speed").read_text())
        return f" ({megabits:,} Mb/s)" if megabits > 0 else ""
    return ""


def _gloo(interface: str | None) -> list[Finding]:
    """Gloo listens where the host's name leads: on Debian that is 127.0.1.1, reached by nobody."""
    chosen = os.environ.get(_VARIABLE)
    known = [name for _, name in socket.if_nameindex()]
    if chosen is not None:
        missing = [name for name in chosen.split(",") if name not in known]
        if missing:
            remedy = f"{_VARIABLE}={interface or 'NAME'}; there are {', '.join(known)}"
            return [problem(_VARIABLE, f"there is no interface {', '.join(missing)}", remedy)]
        return [ok(_VARIABLE, chosen)]
    try:
        address = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)[0][4][0]
        loopback = ipaddress.ip_address(str(address).split("%")[0]).is_loopback
        leads = f"leads to {address}"
    except OSError:
        loopback, leads = True, "has no address"
    if not loopback or interface in (None, "lo"):
        return []
    found = f"not set, and this machine's name, {socket.gethostname()}, {leads}"
    return [note(_VARIABLE, found, f"export {_VARIABLE}={interface}")]
