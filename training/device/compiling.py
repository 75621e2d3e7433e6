"""A network that is compiled, or goes on as it is where its compiler fails.

The vendor's compiler is known to fail on networks of its users (AssertionError, IndexError,
InductorError, RuntimeError; some only in the backward pass), and a C++ compiler may be missing
on a CPU. So each new kind of input is tried once, forwards and backwards, before it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.device.cpu import first_line

Call = Callable[[Tensor], Tensor]


def compiled_or_eager(
    model: nn.Module, compile_network: Callable[[nn.Module], Call], note: Callable[[str], None]
) -> nn.Module:
    """`model` with its network compiled at the first call, or as it is where that fails.

    DistributedDataParallel stays outside: a process whose compiler fails exchanges what the
    others do. torch's compiler asks it for its buckets all the same.
    """
    if isinstance(model, DistributedDataParallel):
        model.module = _CompiledOrEager(model.module, compile_network, note)
        return model
    return _CompiledOrEager(model, compile_network, note)


class _CompiledOrEager(nn.Module):
    """Calls the compiled network while all goes well."""

    def __init__(
        self,
        network: nn.Module,
        compile_network: Callable[[nn.Module], Call],
        note: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._orig_mod = network  # torch.compile's name of it, which `unwrap` knows
        self._compile_network = compile_network
        self._note = note
        self._compiled: Call | None = None
        self._tried: set[Hashable] = set()
        self._failed = False

    def forward(self, images: Tensor) -> Tensor:
        if not self._failed and self._kind(images) not in self._tried:
            self._try(images)
        call = self._orig_mod if self._failed or self._compiled is None else self._compiled
        logits: Tensor = call(images)
        return logits

    def _kind(self, images: Tensor) -> Hashable:
        """What a compiler makes a version of its own for."""
        mixed = torch.is_autocast_enabled(images.device.type)
        training = self._orig_mod.training
        return images.shape, images.dtype, training, torch.is_grad_enabled(), mixed

    def _try(self, images: Tensor) -> None:
        """Compile, run once forwards and backwards, and leave the network as it was."""
        before = [buffer.clone() for buffer in self._orig_mod.buffers()]
        try:
            if self._compiled is None:
                self._compiled = self._compile_network(self._orig_mod)
            total = self._compiled(images).float().sum()
            if total.requires_grad:
                torch.autograd.grad(total, [p for p in self.parameters() if p.requires_grad])
            self._tried.add(self._kind(images))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a compiler raises anything
            self._failed = True
            self._note(
                f"the network could not be compiled ({type(error).__name__}: {first_line(error)}); "
                "it runs as it is, which only concerns the speed"
            )
        with torch.no_grad():
            for buffer, value in zip(self._orig_mod.buffers(), before, strict=True):
                buffer.copy_(value)
        torch.clear_autocast_cache()  # of weights that belong to the trial's backward pass
