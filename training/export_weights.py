"""A network's weights for other programs: a state dict of torch, or safetensors.

Both have torchvision's names, so `torchvision.models.resnet50(num_classes=N)` takes them as they
are, and timm's networks too.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from shards.durable import atomic_write_bytes
from training.export import check_side
from training.extras import load_extra
from training.metadata import metadata_of
from training.model import plain_weights
from training.results.saved import Saved

WeightsFormat: TypeAlias = Literal["state-dict", "safetensors"]

_ENDINGS = {".pt": "state-dict", ".pth": "state-dict", ".safetensors": "safetensors"}


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What was written."""

    out: Path
    bytes: int
    format: WeightsFormat
    said: str  # what it is, for people
    model: str
    classes: int
    tensors: int


def format_of(out: Path) -> str:
    """The format that a file's name asks for: "state-dict", "safetensors", or else "onnx"."""
    return _ENDINGS.get(out.suffix.lower(), "onnx")


def export_weights(saved: Saved, out: Path, form: WeightsFormat) -> WeightsReport:
    """Write the weights of an opened model. Safetensors carry the model's metadata as well.

    Raises UsageError for pictures of a size that their reader refuses.
    """
    check_side(saved.transform.image_size)
    assert saved.network is not None
    assert saved.model is not None
    assert saved.outputs is not None
    state = plain_weights(saved.network.state_dict())
    content = _as_safetensors(state, saved) if form == "safetensors" else _as_state_dict(state)
    atomic_write_bytes(out, content)
    return WeightsReport(
        out=out,
        bytes=len(content),
        format=form,
        said=saved.said,
        model=saved.model,
        classes=saved.outputs,
        tensors=len(state),
    )


def _as_safetensors(state: dict[str, Tensor], saved: Saved) -> bytes:
    library = load_extra("safetensors.torch", needed_by="--format safetensors", extra="export")
    # "pt" is what readers look for before they make tensors of torch.
    content: bytes = library.save(state, {"format": "pt", **metadata_of(saved)})
    return content


def _as_state_dict(state: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()
