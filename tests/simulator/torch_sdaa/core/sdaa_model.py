"""The module that older versions had in the place of torch.sdaa."""

import torch

from torch_sdaa._device import current_device, device_count, set_device

__all__ = ["current_device", "device_count", "sdaa_device", "set_device"]


def sdaa_device(index: int) -> torch.device:
    return torch.device("sdaa", index)
