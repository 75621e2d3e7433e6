"""Several processes as one: joining, exact sums, and state that must be equal everywhere.

Collectives use float32 and bytes only, with SUM and broadcast: SDAA's library is not known to
reduce integers, float64 or averages. Integers are summed exactly all the same, cut into
8-bit limbs: a float32 holds a sum of 65,793 limbs of 255 without rounding.

Tensors given to a collective are kept for a while: in torch 2.7 gloo's thread may be the last
to let one go, needs the interpreter lock for that, and then waits for ever for a process
group that is being destroyed under that lock. Seen within 150 groups on a busy machine.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from shards.errors import ToolError
from training.children import PeerLost
from training.device import Device
from training.launch import JOIN_SECONDS, JOIN_VARIABLE, STORE_VARIABLE
from training.link import program
from training.place import Place, master_of, place_of

T = TypeVar("T")
_LIMB_BITS = 8
_LIMBS = 64 // _LIMB_BITS
_KEPT = 4  # collectives whose tensors are kept; only the very last ones can be under way
# A collective that waits longer than this for a process fails. Launchers end the others when one
# is lost, and gloo notices by itself; this is for a process that hangs. Rank 0 may take minutes
# to write a checkpoint to a slow disk while the others wait; NCCL's own limit is 10 minutes, too.
_COLLECTIVE_LIMIT = dt.timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, as this one sees them. With size 1 no collective happens."""

    rank: int
    size: int
    local_rank: int  # this process's number on its machine
    device: torch.device  # where collectives keep their tensors
    kept: deque[Tensor] = field(default_factory=lambda: deque(maxlen=_KEPT), compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files and speaks to the user."""
        return self.rank == 0


def place_from_environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as a launcher sets them; (0, 1, 0) without one."""
    place = place_of(os.environ)
    return (0, 1, 0) if place is None else (place.rank, place.size, place.local_rank)


@contextlib.contextmanager
def joined(device: Device, store: Store | None = None) -> Iterator[World]:
    """Become a member of the process group that the environment describes, if any.

    `store` is what `meet` gave to a process that had something to settle before.

    The device is made current before, as SDAA and CUDA need it. After a failure the group is
    left as it is: taking it down could wait for a peer that is gone, and the process ends.
    """
    place = place_of(os.environ)
    device.activate()
    rank, size, local_rank = place_from_environment()
    world = World(rank=rank, size=size, local_rank=local_rank, device=device.torch_device)
    if place is None or size == 1:
        yield world
        return
    store = meet(place) if store is None else store
    try:
        dist.init_process_group(
            device.backend, store=store, rank=rank, world_size=size, timeout=_COLLECTIVE_LIMIT
        )
    except (RuntimeError, ValueError) as error:
        raise PeerLost(
            f"process {rank} of {size} could not connect to the others: {_first_line(error)}"
        ) from error
    try:
        yield world
    except RuntimeError as error:
        if not _lost_a_peer(error):
            raise
        raise PeerLost(
            f"process {rank} of {size} lost its connection to the others; where none of them says "
            "why, one was killed (by the system, out of memory?): start the same command again"
        ) from error
    dist.destroy_process_group()


def meet(place: Place) -> Store:
    """The store of a launch, once all its processes have come to it.

    Raises ToolError, naming who did not come, or who is of another launch.
    """
    host, port = master_of(place, os.environ)
    seconds = float(os.environ.get(JOIN_VARIABLE, JOIN_SECONDS))
    inherited = os.environ.get(STORE_VARIABLE)
    # torchrun may hold the store itself.
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    try:
        tcp = TCPStore(
            host,
            port,
            is_master=place.rank == 0 and not held,
            timeout=dt.timedelta(seconds=seconds),
            wait_for_workers=False,
            master_listen_fd=None if inherited is None else int(inherited),
            use_libuv=inherited is None,  # libuv's store of torch 2.7 takes no socket
        )
    except (RuntimeError, OSError) as error:
        raise ToolError(_not_met(place, f"{host}:{port}", seconds, error)) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"imagenet-resnet/{attempt}", tcp)
    try:
        _await_all(store, place, f"{host}:{port}", seconds)
    except RuntimeError as error:
        raise PeerLost(
            f"process {place.rank} of {place.size} lost process 0 at {host}:{port} before all had "
            f"come: {_first_line(error)}"
        ) from error
    return store


def _not_met(place: Place, address: str, seconds: float, error: Exception) -> str:
    if place.rank == 0:
        return (
            f"process 0 cannot be met at {address}: {_first_line(error)}; where the port is in "
            "use, set MASTER_PORT to another one for all processes"
        )
    return (
        f"process {place.rank} of {place.size} on {socket.gethostname()} did not find process 0 at "
        f"{address} within {seconds:g} s: {_first_line(error)}; check that process 0 runs and that "
        "this machine reaches that address"
    )


def _await_all(store: Store, place: Place, address: str, seconds: float) -> None:
    """Wait until each process has said where it is, and check that they are one launch."""
    own = {"host": socket.gethostname(), "size": place.size}
    if store.add(f"count/{place.rank}", 1) > 1:
        other = json.loads(store.get(f"place/{place.rank}"))["host"]
        raise ToolError(
            f"two processes, on {other} and {own['host']}, say that they are process {place.rank} "
            f"of {place.size}; give each a number of its own"
        )
    store.set(f"place/{place.rank}", json.dumps(own))
    names = [f"place/{rank}" for rank in range(place.size)]
    limit = dt.timedelta(seconds=seconds)
    try:
        for some in (names[:1], names):  # whoever is of a larger launch would wait in vain
            store.wait(some, limit)
            for rank, name in enumerate(some):
                _check_size(place, rank, json.loads(store.get(name)), own)
    except dist.DistStoreError as error:
        missing = [rank for rank, name in enumerate(names) if not store.check([name])]
        raise ToolError(
            f"{_listed(missing)} of {place.size} did not come to {address} within {seconds:g} s "
            f"(process {place.rank} on {own['host']} waited); see what became of them there, or "
            "give them longer with --join-timeout"
        ) from error


def _check_size(
    place: Place, rank: int, other: Mapping[str, object], own: Mapping[str, object]
) -> None:
    if other["size"] != own["size"]:
        raise ToolError(
            f"process {rank} on {other['host']} was started as one of {other['size']}, and process "
            f"{place.rank} on {own['host']} as one of {own['size']}; start all machines with the "
            "same number of processes"
        )


def _listed(ranks: Sequence[int]) -> str:
    """Processes in words: process 3, or processes 4 to 7."""
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    if len(ranks) == ranks[-1] - ranks[0] + 1:
        return f"processes {ranks[0]} to {ranks[-1]}"
    return f"processes {', '.join(map(str, ranks))}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _lost_a_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone; gloo has no type for it."""
    if isinstance(error, dist.DistNetworkError | dist.DistBackendError):
        return True
    return any(sign in str(error) for sign in ("gloo", "closed by peer", "reset by peer"))


def sum_integers(values: Sequence[int], world: World) -> list[int]:
    """The sums over all processes, exact modulo 2**64, equal on every process."""
    if world.size == 1:
        return [value % (1 << 64) for value in values]
    limbs = [
        (value >> (_LIMB_BITS * limb)) % (1 << _LIMB_BITS)
        for value in values
        for limb in range(_LIMBS)
    ]
    tensor = sum_floats(torch.tensor(limbs, dtype=torch.float32).to(world.device), world)
    sums = [int(limb) for limb in tensor.cpu().tolist()]
    return [
        sum(limb << (_LIMB_BITS * place) for place, limb in enumerate(sums[first : first + _LIMBS]))
        % (1 << 64)
        for first in range(0, len(sums), _LIMBS)
    ]


def sum_floats(tensor: Tensor, world: World) -> Tensor:
    """The float32 tensor summed over all processes, in place."""
    assert tensor.dtype == torch.float32
    if world.size > 1:
        world.kept.append(tensor)
        dist.all_reduce(tensor)
    return tensor


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Give every process rank 0's floating-point buffers (batch norm's running statistics).

    Training leaves them different: each process saw its own samples. Integer buffers count
    steps, which are equal already.
    """
    if world.size == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
    world.kept.append(flat)
    dist.broadcast(flat, src=0)
    with torch.no_grad():
        parts = flat.split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def from_main(produce: Callable[[], T], world: World) -> T:
    """Call `produce` on rank 0 alone and give its result to all processes.

    A ToolError or OSError there is raised on all of them, so that they end together. The
    result is sent by pickle, between processes of one run only.
    """
    if world.size == 1:
        return produce()
    result, failure, payload = None, None, b""
    if world.is_main:
        try:
            result = produce()
        except (ToolError, OSError) as error:
            failure = error
        payload = pickle.dumps((result, failure))
    (size,) = sum_integers([len(payload)], world)
    received = _broadcast_bytes(payload, size, world)
    if not world.is_main:
        result, failure = pickle.loads(received)  # noqa: S301 - by rank 0 of this very run
    if failure is not None:
        raise failure
    return cast("T", result)


def _broadcast_bytes(payload: bytes, size: int, world: World) -> bytes:
    """Rank 0's payload of `size` bytes, everywhere."""
    buffer = bytearray(payload or bytes(size))
    tensor = torch.frombuffer(buffer, dtype=torch.uint8).to(world.device)
    world.kept.append(tensor)
    dist.broadcast(tensor, src=0)
    return tensor.cpu().numpy().tobytes()


def gather_bytes(payload: bytes, world: World) -> list[bytes]:
    """What each process gives, by rank, on all of them."""
    if world.size == 1:
        return [payload]
    own = [len(payload) * (rank == world.rank) for rank in range(world.size)]
    sizes = sum_integers(own, world)
    ends = [sum(sizes[: rank + 1]) for rank in range(world.size)]
    flat = torch.zeros(sum(sizes))
    if payload:
        part = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        flat[ends[world.rank] - len(payload) : ends[world.rank]] = part
    gathered = sum_floats(flat.to(world.device), world).cpu().to(torch.uint8).numpy().tobytes()
    return [gathered[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def software() -> dict[str, str]:
    """What all processes must run alike: torch, and this program to the letter."""
    return {"torch": str(torch.__version__), "imagenet-resnet's code": program()}


def check_agreement(facts: Mapping[str, Any], world: World) -> None:
    """Make sure that all processes run the same thing on the same data.

    Two machines have two copies of the shards and of the software. `facts` are values of JSON by
    what they tell; a mapping among them is compared entry by entry. Where any process differs
    from process 0, all raise the same ToolError: which, on which machines, and in what.
    """
    own = {"host": socket.gethostname(), "facts": facts}
    told = [json.loads(each) for each in gather_bytes(json.dumps(own).encode(), world)]
    for rank, other in enumerate(told):
        differences = list(_differences(told[0]["facts"], other["facts"]))
        if differences:
            raise ToolError(
                f"process 0 on {told[0]['host']} and process {rank} on {other['host']} differ in "
                f"{'; '.join(differences)}; make the machines equal"
            )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for what in [*ours, *(each for each in theirs if each not in ours)]:
        one, other = ours.get(what), theirs.get(what)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from (f"{what}, {difference}" for difference in _differences(one, other))
        elif one != other:
            yield f"{what} ({one} and {other})"


def barrier(world: World) -> None:
    """Return when every process has come here."""
    sum_integers([0], world)
