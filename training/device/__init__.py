"""The one place that names accelerators: Tecorigin SDAA, NVIDIA CUDA, and the CPU.

`choose` picks a device and says why; everything else in training asks the `Device` it returns
and never spells "sdaa" or "cuda" itself. A machine that has SDAA cards but no working torch_sdaa
is an error with its remedy, never a silent run on the CPU.
"""

from training.device.choice import choose, device_count
from training.device.cpu import AmpRequest, Device, DeviceKind, DeviceRequest, Precision
from training.device.cuda import Cuda
from training.device.sdaa import Sdaa, prepare_environment

__all__ = [
    "AmpRequest",
    "Cuda",
    "Device",
    "DeviceKind",
    "DeviceRequest",
    "Precision",
    "Sdaa",
    "choose",
    "device_count",
    "prepare_environment",
]
