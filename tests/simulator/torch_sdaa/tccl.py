"""tccl: gloo on CPU tensors over the same memory. Every collective is over when it returns."""

from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions

_KEPT = 8  # calls whose tensors are kept, so that gloo's thread is not the last to let one go


def create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> "Tccl":
    return Tccl(store, rank, size, timeout)


class Tccl(dist.ProcessGroup):
    """The collectives that torch's DistributedDataParallel and a trainer use."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._kept: deque[Any] = deque(maxlen=_KEPT)

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "tccl"

    @property
    def _device_types(self) -> list[torch.device]:
        """Where torch's collectives of objects put their bytes."""
        return [torch.device("sdaa")]

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        options = opts or dist.AllreduceOptions()
        for tensor in tensors:
            _check_reduction(tensor, options.reduceOp)
        return self._run(self._gloo.allreduce, self._on_cpu(tensors), options, result=tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:
        options = opts or dist.BroadcastOptions()
        return self._run(self._gloo.broadcast, self._on_cpu(tensors), options, result=tensors)

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> dist.Work:
        given = [self._on_cpu(each) for each in outputs]
        options = opts or AllgatherOptions()
        return self._run(
            self._gloo.allgather, given, self._on_cpu(inputs), options, result=outputs[0]
        )

    def _allgather_base(self, output: Tensor, given: Tensor, opts: Any) -> dist.Work:
        """Into one tensor, as torch gathers objects."""
        parts = list(output.view(self.size(), -1).unbind())
        return self.allgather([parts], [given.view(-1)], opts)

    all_gather_single = _allgather_base  # what newer versions call it

    def barrier(self, opts: Any = None) -> dist.Work:
        return self._run(self._gloo.barrier, opts or dist.BarrierOptions(), result=[])

    def _on_cpu(self, tensors: list[Tensor]) -> list[Tensor]:
        for tensor in tensors:
            if tensor.device.type != "sdaa":
                raise RuntimeError(f"tccl takes tensors on sdaa, not on {tensor.device}")
        aliases = [torch.ops.sdaa_simulator.on_cpu(tensor.detach()) for tensor in tensors]
        self._kept.append(aliases)
        return aliases

    def _run(self, collective: Any, *arguments: Any, result: list[Tensor]) -> dist.Work:
        collective(*arguments).wait()
        devices = sorted({tensor.device for tensor in result}, key=str)
        future: torch.futures.Future[list[Tensor]] = torch.futures.Future(devices=devices)
        future.set_result(result)
        return torch._C._distributed_c10d._create_work_from_future(future)


def _check_reduction(tensor: Tensor, operation: Any) -> None:
    """What nobody was seen to do on the cards is an error, so that nothing comes to need it."""
    if tensor.dtype != torch.float32:
        raise RuntimeError(f"tccl is not known to reduce {tensor.dtype}")
    if operation == dist.ReduceOp.AVG:
        raise RuntimeError("tccl is not known to reduce by AVG")
