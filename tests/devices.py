"""The device that the trainer's own tests train on: IMAGENET_RESNET_TEST_DEVICE, or the CPU.

`sdaa` is tests/simulator's stand-in (`make test-sdaa`). Precision is float32 on all of them, so
that the same is expected; mixed precision has tests of its own.
"""

from __future__ import annotations

import os

DEVICE = os.environ.get("IMAGENET_RESNET_TEST_DEVICE", "cpu")
ON_DEVICE = {"device": DEVICE, "amp": "off"} if DEVICE != "cpu" else {"device": DEVICE}
