"""From the loader's uint8 ring to normalised pictures on the device.

Only bytes travel: 150 kB a picture of 224 x 224 instead of 600 kB in float32. The ring is NHWC,
so a permuted view of it is a channels-last NCHW tensor and nothing is transposed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.loader import Batch
from training.device import Device

# ImageNet's channel means and deviations (RGB, of 0..1), the ones torchvision's weights use.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_GRAIN = 32768  # numbers that torch gives no second thread for (GRAIN_SIZE of ATen/Parallel.h)
_SLOTS_LIVE = 2  # a batch's memory is reused when the batch after the next is requested


@dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """A batch whose tensors are on the device. `host` has the numbers; its images may be gone."""

    images: Tensor  # uint8 (n, 3, H, W), channels last
    labels: Tensor  # int64 (n,)
    host: Batch


class Normalizer:
    """uint8 pictures of 0..255 into float32 with zero mean and unit deviation, on one device."""

    def __init__(
        self,
        device: torch.device,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ) -> None:
        scale = torch.tensor(255.0)
        self._mean = (torch.tensor(mean) * scale).view(1, 3, 1, 1).to(device)
        self._std = (torch.tensor(std) * scale).view(1, 3, 1, 1).to(device)
        self._memory = torch.empty(0)

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (n, 3, H, W) in the memory format of `images`; valid until the next call."""
        if images.is_cpu and images.is_contiguous(memory_format=torch.channels_last):
            return self._on_cpu(images)
        return images.float().sub_(self._mean).div_(self._std)

    def _on_cpu(self, images: Tensor) -> Tensor:
        """Some rows after the others in memory that is kept, 0.11 ms a picture of 224 x 224.

        New memory for each batch takes 0.2 ms a picture: the kernel gives it page by page. Parts
        are so small that torch computes each on this thread alone: to wake and await others for
        every part takes longer while the loader's threads keep the cores. And over whole rows,
        since three values that repeat are too few for a processor's vectors.
        """
        nhwc = images.permute(0, 2, 3, 1)
        if len(self._memory) < nhwc.numel():
            self._memory = torch.empty(nhwc.numel())
        count, height, width, channels = nhwc.shape
        rows = nhwc.reshape(count * height, width * channels)
        result = self._memory[: nhwc.numel()].view(rows.shape)
        mean, std = (each.view(channels).repeat(width) for each in (self._mean, self._std))
        some = max(1, _GRAIN // rows.shape[1])
        for target, source in zip(result.split(some), rows.split(some), strict=True):
            target.copy_(source).sub_(mean).div_(std)
        return result.view(nhwc.shape).permute(0, 3, 1, 2)


def on_device(batches: Iterable[Batch], device: Device) -> Generator[DeviceBatch, None, None]:
    """The batches as tensors on the device, each asked for only when its memory is free.

    The loader reuses a batch's memory when the batch after the next is requested, and copies
    to an accelerator run behind the host; so before each request the copy of the batch before
    the last one is waited for, which on a busy device was done long ago.
    """
    copies: deque[Callable[[], None]] = deque()
    source = iter(batches)
    while True:
        if len(copies) == _SLOTS_LIVE:
            copies.popleft()()
        batch = next(source, None)
        if batch is None:
            return
        images = batch.images.permute(0, 3, 1, 2).to(device.torch_device, non_blocking=True)
        labels = batch.labels.to(device.torch_device, non_blocking=True)
        copies.append(device.copied())
        yield DeviceBatch(images=images, labels=labels, host=batch)
