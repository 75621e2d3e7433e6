"""What computes a network's answers: torch on a device, or a runtime of ONNX files.

All take the loader's bytes and normalise them themselves, so whoever asks need not know which
one answers.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from shards.errors import UsageError
from training.batches import Normalizer
from training.device import Device, Precision

EngineName: TypeAlias = Literal["torch", "onnxruntime", "teco"]
EngineRequest: TypeAlias = Literal["auto", "torch", "onnxruntime", "teco"]


class Engine(Protocol):
    """Answers about batches of pictures, of any number of pictures each."""

    @property
    def name(self) -> EngineName:
        """Which one it is."""

    @property
    def device(self) -> Device:
        """Where it takes its pictures."""

    @property
    def precision(self) -> Precision:
        """What it computes in, or takes."""

    @property
    def classes(self) -> int:
        """How many logits it gives a picture."""

    def logits(self, images: Tensor) -> Tensor:
        """float32 (n, classes) of uint8 (n, 3, H, W) on `device`, in any memory format."""

    def close(self) -> None:
        """Give back what it holds on a device."""


class TorchEngine:
    """A network on the device where it lies, in evaluation mode."""

    name: EngineName = "torch"

    def __init__(
        self, network: nn.Module, device: Device, precision: Precision, *, classes: int
    ) -> None:
        self.device = device
        self.precision = precision
        self.classes = classes
        self._network = network
        self._normalize = Normalizer(device.torch_device)

    def logits(self, images: Tensor) -> Tensor:
        """See `Engine`."""
        with torch.no_grad(), self.device.autocast(self.precision):
            answer: Tensor = self._network(self._normalize(images))
        return answer.float()

    def close(self) -> None:
        """Nothing: the network is its caller's."""


def engine_for(requested: EngineRequest, *, onnx: bool) -> EngineName:
    """The engine that a request means for an ONNX file, or for weights of torch.

    Raises UsageError where that engine does not take such a file.
    """
    if requested not in get_args(EngineRequest):
        raise UsageError(
            f"--engine {requested}: choose one of {', '.join(get_args(EngineRequest))}"
        )
    if requested == "auto":
        return "onnxruntime" if onnx else "torch"
    if onnx == (requested == "torch"):
        raise UsageError(
            "--engine torch takes checkpoints and weights of torch, not ONNX files; give the "
            "checkpoint, or --engine onnxruntime"
            if onnx
            else f"--engine {requested} takes ONNX files; make one with `resnet export`"
        )
    return requested
