"""Images per second of a training loader: RandomResizedCrop 224 and flip to uint8 batches of 256.

Ours, torchvision's ImageFolder in a DataLoader (what the replaced trainer did) and webdataset's
WebLoader read the same pictures from a warm page cache and do the same work, with as many
threads or workers as there are cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from _bench import Bench, parse, pictures, write_folders
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

from prep.build import build_shards
from prep.sources import find_sources
from shards.dataset import Dataset
from shards.loader import Loader, TrainTransform
from shards.progress import Silent

BATCH, SIZE = 256, 224
CORES = len(os.sched_getaffinity(0))
TRANSFORM = Compose([RandomResizedCrop(SIZE), RandomHorizontalFlip()])


def collate(samples: list[tuple[Image.Image, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """PIL pictures to one uint8 batch, NHWC."""
    batch = np.stack([np.asarray(picture, np.uint8) for picture, _ in samples])
    return torch.from_numpy(batch), torch.tensor([label for _, label in samples])


def decode(sample: dict[str, Any]) -> tuple[Image.Image, int]:
    return TRANSFORM(sample["jpg"].convert("RGB")), sample["cls"]


def rate(batches: Callable[[], Iterable[Any]], count: int) -> float:
    """Images per second over a pass, from asking for the first batch on."""
    started = time.perf_counter()
    seen = sum(
        len(batch[1] if isinstance(batch, tuple | list) else batch.labels) for batch in batches()
    )
    assert seen >= count - BATCH * CORES, seen
    return seen / (time.perf_counter() - started)


def main() -> None:
    options = parse(__doc__)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folders = write_folders(pictures(options, scratch), scratch / "images" / "train")
        (written,) = build_shards(
            find_sources([folders], "train"), scratch / "shards", labels=None, classes=None,
            seed=0, samples_per_shard=1000, workers=CORES, progress=Silent(),
        )  # fmt: skip
        urls = [str(written.folder / shard.name) for shard in written.manifest.shards]
        loader = Loader(
            Dataset.open(written.folder), TrainTransform(image_size=SIZE), global_batch=BATCH,
            shuffle=True, drop_last=False, threads=CORES,
        )  # fmt: skip
        usual = DataLoader(
            ImageFolder(str(folders), TRANSFORM), BATCH, shuffle=True, num_workers=CORES,
            collate_fn=collate,
        )  # fmt: skip
        stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        stream = stream.shuffle(1000).decode("pil").map(decode).batched(BATCH, collation_fn=collate)
        peer = webdataset.WebLoader(stream, batch_size=None, num_workers=CORES)
        bench = Bench(unit="images/s", rounds=options.rounds)
        bench.measure(
            {
                "ours, ordinary shards": lambda: rate(lambda: loader.epoch(0), options.count),
                "torchvision ImageFolder, DataLoader": lambda: rate(lambda: usual, options.count),
                "webdataset WebLoader": lambda: rate(lambda: peer, options.count),
            }
        )
        loader.close()
        bench.report("ours, ordinary shards", options)


if __name__ == "__main__":
    main()
