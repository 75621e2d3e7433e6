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
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.errors import ToolError, UsageError
from training.device import Device
from training.launch import follow_launcher

T = TypeVar("T")
_LIMB_BITS = 8
_LIMBS = 64 // _LIMB_BITS
_KEPT = 4  # collectives whose tensors are kept; only the very last ones can be under way


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
    """(rank, world size, local rank) as torchrun sets them; (0, 1, 0) without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        rank, size, local_rank = (
            int(os.environ.get(name, default))
            for name, default in zip(names, ("0", "1", "0"), strict=True)
        )
    except ValueError:
        raise UsageError(
            "RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers, as torchrun sets them"
        ) from None
    if not 0 <= rank < size or local_rank < 0:
        raise UsageError(f"RANK {rank} and WORLD_SIZE {size} do not fit together")
    return rank, size, local_rank


@contextlib.contextmanager
def joined(device: Device) -> Iterator[World]:
    """Become a member of the process group that the environment describes, if any.

    The device is made current before, as SDAA and CUDA need it. After a failure the group is
    left as it is: taking it down could wait for a peer that is gone, and the process ends.
    """
    follow_launcher()
    rank, size, local_rank = place_from_environment()
    device.activate()
    world = World(rank=rank, size=size, local_rank=local_rank, device=device.torch_device)
    if size == 1:
        yield world
        return
    try:
        dist.init_process_group(device.backend)
    except (RuntimeError, ValueError) as error:
        raise ToolError(
            f"process {rank} of {size} could not join the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        yield world
    except RuntimeError as error:
        if not _lost_a_peer(error):
            raise
        raise ToolError(
            f"process {rank} of {size} lost its connection to the others; where none of them says "
            "why, one was killed (by the system, out of memory?): start the same command again"
        ) from error
    dist.destroy_process_group()


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


def check_agreement(facts: Mapping[str, str], world: World) -> None:
    """Make sure that all processes run the same thing on the same data.

    Two machines have two copies of the shards and of the software. Raises ToolError, naming
    this machine, on a process whose `facts` are not rank 0's.
    """
    for what, value in from_main(lambda: dict(facts), world).items():
        if facts.get(what) != value:
            raise ToolError(
                f"process {world.rank} on {socket.gethostname()} has another {what} "
                f"({facts.get(what)}) than process 0 ({value}); make the machines equal"
            )
    barrier(world)


def barrier(world: World) -> None:
    """Return when every process has come here."""
    sum_integers([0], world)
