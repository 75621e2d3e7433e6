"""What an exported model says of itself, so that its user needs no other file.

Texts by key, in ONNX's metadata and in the header of safetensors; lists and numbers are JSON.
"""

from __future__ import annotations

import json

from training.batches import MEAN, STD
from training.results.saved import Saved


def metadata_of(saved: Saved) -> dict[str, str]:
    """Classes, normalisation and preparation of pictures; what is not known is left out."""
    transform = saved.transform
    values = {
        "model": saved.model,
        "epochs": saved.epoch,
        "classes": saved.classes,
        "class_names": saved.class_names,
        "channels": "RGB, of 0..1",
        "mean": MEAN,
        "std": STD,
        "resize_short_side": transform.resize,
        "resize": f"{transform.interpolation}, antialiased",
        "interpolation": transform.interpolation,
        "center_crop": transform.image_size,
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
        if value is not None
    }
