"""A stand-in for Tecorigin's torch_sdaa: devices that are the CPU under the name sdaa.

Written after the spellings in the vendor's published code, never checked against the real
package. It is stricter than need be where the cards are known or feared to be: no float64 on
the device, fp16 autocast only, no DataParallel, reductions of float32 only. simulator.cpp is
the device; SDAA_SIMULATOR names its library, SDAA_SIMULATOR_DEVICES says how many there are (4),
SDAA_VISIBLE_DEVICES chooses among them. There is no torch_sdaa.models.
"""

import os
import sys

import torch

# Read by the real package when it is loaded; whoever trains has to set it before.
CONV_WEIGHT_CHWN = os.environ.get("TORCH_SDAA_CONV_WEIGHT_CHWN") == "1"


def _register() -> None:
    torch.ops.load_library(os.environ["SDAA_SIMULATOR"])
    torch.utils.rename_privateuse1_backend("sdaa")
    from torch_sdaa import _device

    torch._register_device_module("sdaa", _device)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    from torch_sdaa import amp, optim, tccl

    assert optim
    _device.amp = amp
    sys.modules["torch.sdaa.amp"] = amp
    torch.distributed.Backend.register_backend("tccl", tccl.create, devices=["sdaa"])
    torch.nn.DataParallel.__init__ = _no_data_parallel


def _no_data_parallel(*_: object, **__: object) -> None:
    raise RuntimeError("SDAA does not support DataParallel; use DistributedDataParallel")


def _autoload() -> None:
    """What torch calls when it loads an installed backend by itself: importing was enough."""


_register()
# The real package says its versions when it is loaded; where to is not known.
print(f"simulated Torch-SDAA: {torch.ops.sdaa_simulator.device_count()} devices", flush=True)  # noqa: T201
