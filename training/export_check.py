"""Whether an ONNX file answers as the network that it was made from.

Both get the loader's bytes: the file by way of its own metadata, through onnxruntime, as it
will be used; the network through torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from shards.dataset import Dataset
from shards.loader import Loader
from training.device import choose
from training.engines import Engine, TorchEngine
from training.results.onnx_engines import open_onnxruntime
from training.results.onnx_file import read_onnx
from training.results.saved import Saved

_NOISE = 8  # pictures, where no shards are given
_BATCH = 16  # pictures computed together
_SEED = 0  # of the draw of pictures: those of one class often lie together

Pictures: TypeAlias = tuple[Tensor, list[str]]  # uint8 (n, 3, S, S), and a key for each


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the file's answers compare with torch's."""

    pictures: int
    real: bool  # from shards, not noise
    largest_difference: float  # of logits
    largest_logit: float
    same_top1: int  # pictures with the same best class
    different: tuple[str, ...]  # keys of the others


def compare(
    saved: Saved, content: bytes, split: Path | None, *, images: int, threads: int
) -> Agreement:
    """Ask both about the same pictures: of the folder `split`, drawn by a seed, or of noise.

    Raises UsageError where the pictures are of other classes than the model's.
    """
    assert saved.network is not None
    assert saved.outputs is not None
    device = choose("cpu")
    own = TorchEngine(saved.network, device, "fp32", classes=saved.outputs)
    with tempfile.TemporaryDirectory(prefix="imagenet-resnet-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        exported = open_onnxruntime(read_onnx(path), threads=threads)
        if split is None:
            return _compared(own, exported, _noise(saved.transform.image_size), real=False)
        pictures = _drawn(saved, split, images, threads)
        return _compared(own, exported, pictures, real=True)


def _compared(
    own: Engine, exported: Engine, pictures: Iterator[Pictures], *, real: bool
) -> Agreement:
    difference = largest = 0.0
    count = 0
    different: list[str] = []
    for images, keys in pictures:
        wanted, found = own.logits(images), exported.logits(images)
        # A difference that is no number must not be passed over by max().
        difference = float(np.maximum(difference, (found - wanted).abs().max().item()))
        largest = float(np.maximum(largest, wanted.abs().max().item()))
        agree = (found.argmax(1) == wanted.argmax(1)).tolist()
        different += [key for key, same in zip(keys, agree, strict=True) if not same]
        count += len(keys)
    return Agreement(
        pictures=count,
        real=real,
        largest_difference=difference,
        largest_logit=largest,
        same_top1=count - len(different),
        different=tuple(different),
    )


def _noise(size: int) -> Iterator[Pictures]:
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randint(0, 256, (_NOISE, 3, size, size), generator=generator)
    yield images.to(torch.uint8), [f"noise {number}" for number in range(_NOISE)]


def _drawn(saved: Saved, split: Path, count: int, threads: int) -> Iterator[Pictures]:
    """Pictures of a split as an evaluation sees them."""
    with Dataset.open(split) as dataset:
        saved.check(dataset)
        with Loader(
            dataset, saved.transform, global_batch=_BATCH, seed=_SEED, threads=threads
        ) as loader:
            for batch in loader.epoch(0):
                left = min(count, len(batch.labels))
                if not left:
                    return
                count -= left
                keys = [dataset.keys[number].decode() for number in batch.samples[:left]]
                yield batch.images[:left].permute(0, 3, 1, 2), keys
