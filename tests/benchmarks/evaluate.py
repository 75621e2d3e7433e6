"""An evaluation's pictures by our loader and by the usual pipeline of PIL, same work, one run.

From files to normalised float32 batches of 64: short side 256 (antialiased bilinear), the central
224 x 224, ImageNet's means and deviations. Everything is in this process but the workers of torch's
DataLoader; each way has done a whole epoch before its first figure, and ways take turns. Sections
can be named, all is the default:

  rate       images/s. `ours` is our loader with as many threads as cores on shards of the pictures
             with restart markers, which hold the same pixels; on ordinary shards; and on shards
             that were reduced to a short side of 256 when they were made, which hold other ones.
             PIL is torchvision's ImageFolder with Resize, CenterCrop, ToTensor and Normalize on
             the same pictures as files, in this process alone (the way of the vendor's example of
             its inference engine) and with 2 workers
  agreement  pictures, in per cent, whose best class is the same by ours as by PIL's.
             The network is --checkpoint, of `resnet train`; without it a ResNet-18 with random
             weights whose answers are centred over all pictures, so that they lie close together

--quick takes a tenth of the pictures and two rounds. Name pictures of real size by --images.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _bench import Bench, parse_sections, run_on_pictures
from _pictures import Setup
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from shards.cores import available_cores
from shards.dataset import Dataset
from shards.loader import Loader
from shards.transform import EvalTransform
from training.batches import MEAN, STD, Normalizer
from training.model import build_model
from training.results.saved import open_saved

BATCH = 64
WORKERS = 2
TRANSFORM = EvalTransform(image_size=224, resize=256)

Batches = Callable[[], Iterator[torch.Tensor]]


def rate(setup: Setup) -> Iterator[Bench]:
    bench = setup.bench("evaluation's pictures")
    with contextlib.ExitStack() as stack:
        ways = {
            "ours": stack.enter_context(ours(setup.restart, TRANSFORM)),
            "ours, ordinary shards": stack.enter_context(ours(setup.ordinary, TRANSFORM)),
            "ours, short side 256": stack.enter_context(ours(setup.reduced_restart, TRANSFORM)),
            "PIL, one process": usual(setup, TRANSFORM, 0),
            f"PIL, DataLoader with {WORKERS} workers": usual(setup, TRANSFORM, WORKERS),
        }
        for batches in ways.values():
            timed(batches)
        bench.measure({name: lambda way=way: timed(way) for name, way in ways.items()})
    yield bench


def timed(batches: Batches) -> float:
    """Images/s of an epoch."""
    started = time.perf_counter()
    count = sum(len(batch) for batch in batches())
    return count / (time.perf_counter() - started)


@contextlib.contextmanager
def ours(shards: Path, transform: EvalTransform) -> Iterator[Batches]:
    normalize = Normalizer(torch.device("cpu"))
    with (
        Dataset.open(shards) as dataset,
        Loader(
            dataset, transform, global_batch=BATCH, shuffle="none", threads=available_cores()
        ) as loader,
    ):
        yield lambda: (normalize(batch.images.permute(0, 3, 1, 2)) for batch in loader.epoch(0))


def files(setup: Setup, transform: EvalTransform) -> ImageFolder:
    return ImageFolder(
        setup.tree,
        Compose(
            [
                Resize(transform.resize, InterpolationMode(transform.interpolation)),
                CenterCrop(transform.image_size),
                ToTensor(),
                Normalize(MEAN, STD),
            ]
        ),
    )


def usual(setup: Setup, transform: EvalTransform, workers: int) -> Batches:
    loader: DataLoader[Any] = DataLoader(
        files(setup, transform),
        BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: (images for images, _ in loader)


# --- agreement ---


def agreement(setup: Setup) -> Iterator[Bench]:
    network, transform = chosen(setup.options)
    same = setup.bench("equal top-1", "% of the pictures")
    apart = setup.bench("logits", "largest difference, as a share of the largest logit")
    theirs = answers(network, usual(setup, transform, 0))
    with Dataset.open(setup.restart) as dataset:
        keys = [key.decode() for key in dataset.keys.tolist()]
    places = {
        Path(path).stem: place for place, (path, _) in enumerate(files(setup, transform).samples)
    }
    theirs = theirs[[places[key] for key in keys]]
    stored = {"ours": setup.restart, "ours, short side 256": setup.reduced_restart}
    for name, shards in stored.items():
        with ours(shards, transform) as batches:
            mine = answers(network, batches)
        apart.add(name, ((mine - theirs).abs().max() / theirs.abs().max()).item())
        # The answers of a network that learnt nothing lie close together, around their mean.
        centre = 0 if setup.options.checkpoint else mine.mean(0)
        equal = (mine - centre).argmax(1) == (theirs - centre).argmax(1)
        same.add(name, 100 * equal.double().mean().item())
    yield same
    yield apart


def chosen(options: argparse.Namespace) -> tuple[torch.nn.Module, EvalTransform]:
    """The network that is asked, and how it wants its pictures."""
    if options.checkpoint is not None:
        saved = open_saved(options.checkpoint)
        assert saved.network is not None
        return saved.network, saved.transform
    return build_model("resnet18", 1000).eval(), TRANSFORM


def answers(network: torch.nn.Module, batches: Batches) -> torch.Tensor:
    """Logits of all pictures, in their order."""
    with torch.no_grad():
        return torch.cat([network(batch) for batch in batches()])


SECTIONS = {section.__name__: section for section in (rate, agreement)}


def main() -> None:
    options = parse_sections(__doc__, SECTIONS, count=2000, checkpoint=True)
    run_on_pictures(SECTIONS, Setup, options)


if __name__ == "__main__":
    main()
