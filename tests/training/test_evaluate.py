"""Every sample once, at any number of processes: sets smaller than, as large as, and larger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from devices import DEVICE

from prep.sample.data import write_sample_data
from shards.dataset import Dataset
from shards.errors import UsageError
from shards.loader import Loader
from shards.progress import Silent
from shards.transform import EvalTransform
from training.batches import MEAN, STD, Normalizer, on_device
from training.device import choose
from training.distributed import joined, place_from_environment
from training.evaluate import Evaluation, check_classes, evaluate
from training.model import build_model

TRANSFORM = EvalTransform(image_size=48, resize=55)
TINY = EvalTransform(image_size=16, resize=18)
MANY = 1003  # of 8 x 8 pixels, in 8 classes that are not equally large


@pytest.fixture(scope="module")
def val_sets(
    tmp_path_factory: pytest.TempPathFactory,
    build: Callable[..., Any],
    write_folders: Callable[..., Path],
    shards: Path,
) -> dict[int, Path]:
    """Folders of validation shards by their number of samples."""
    folders = {15: shards / "val"}
    for classes in (1, 2, 3, 4):
        place = tmp_path_factory.mktemp(f"val{classes}")
        data = write_sample_data(
            place / "archives",
            classes=classes,
            train_per_class=1,
            val_per_class=1,
            progress=Silent(),
        )
        build(data.val, out=place, labels=data.devkit)
        folders[classes] = place / "val"
    place = tmp_path_factory.mktemp("many")
    images: dict[str, dict[str, bytes]] = {f"class{number}": {} for number in range(8)}
    for number in range(MANY):
        images[f"class{number % 8}"][f"{number}.jpg"] = flat(number)
    write_folders(place / "images" / "val", images)
    build(place / "images" / "val", out=place, split="val", samples_per_shard=300)
    folders[MANY] = place / "val"
    return folders


def flat(number: int) -> bytes:
    """A JPEG of 8 x 8 pixels of one colour, another one for each number."""
    colour = np.random.default_rng(number).integers(256, size=3)
    return bytes(simplejpeg.encode_jpeg(np.full((8, 8, 3), colour, np.uint8)))


def evaluate_folder(
    folder: Path, classes: int, global_batch: int, transform: EvalTransform = TRANSFORM
) -> Evaluation:
    device = choose(DEVICE, place_from_environment()[2])
    with joined(device) as world, Dataset.open(folder) as dataset:
        model = build_model("resnet18", classes, seed=4).to(world.device)
        for buffer in model.buffers():  # as training leaves them: different on every process
            if buffer.is_floating_point():
                buffer.add_(world.rank)
        result = evaluate(
            model,
            dataset,
            transform,
            global_batch=global_batch,
            threads=1,
            device=device,
            precision="fp32",
            world=world,
            progress=Silent(),
        )
        assert model.training
        return result


@pytest.mark.parametrize(
    ("world", "size"), [(2, 1), (2, 3), (3, 1), (3, 2), (3, 4), (3, 15), (2, MANY), (3, MANY)]
)
def test_several_processes_count_what_one_counts(
    ranks: Any, val_sets: dict[int, Path], world: int, size: int
) -> None:
    transform, batch = (TINY, 50) if size == MANY else (TRANSFORM, 8)
    (alone,) = ranks.run(evaluate_folder, val_sets[size], 8, batch, transform, world=1)
    assert alone.samples == size
    assert 0 <= alone.top1_count <= alone.top5_count <= size
    batch -= batch % 3  # with two processes other batches too
    together = ranks.run(evaluate_folder, val_sets[size], 8, batch, transform, world=world)
    assert together[1:] == together[:-1]
    for field in ("samples", "top1_count", "top5_count"):
        assert getattr(together[0], field) == getattr(alone, field)
    assert together[0].loss == pytest.approx(alone.loss, rel=1e-5)


def test_it_is_plain_cross_entropy_and_counts(shards: Path) -> None:
    found = evaluate_folder(shards / "val", 3, 4)
    model = build_model("resnet18", 3, seed=4).eval()
    losses, top1 = [], 0
    with Dataset.open(shards / "val") as dataset:
        options: dict[str, Any] = {"shuffle": "none", "drop_last": False, "threads": 1}
        with Loader(dataset, TRANSFORM, global_batch=1, **options) as loader, torch.no_grad():
            for batch in loader.epoch(0):
                images = batch.images.permute(0, 3, 1, 2).double() / 255
                mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
                logits = model(((images - mean) / std).float())
                losses.append(torch.nn.functional.cross_entropy(logits, batch.labels).item())
                top1 += int(logits.argmax(1) == batch.labels)
    assert (found.samples, found.top1_count, found.top5_count) == (15, top1, 15)
    assert found.top1 == pytest.approx(100 * top1 / 15)
    assert found.loss == pytest.approx(sum(losses) / 15, rel=1e-5)


def test_normalising_on_the_device_is_to_tensor_and_normalize() -> None:
    pictures = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    expected = (pictures.double() / 255 - mean) / std
    ours = Normalizer(torch.device("cpu"))(pictures)
    assert (ours - expected).abs().max() < 1e-6


def test_batches_arrive_channels_last_and_whole(shards: Path) -> None:
    device = choose(DEVICE)
    options: dict[str, Any] = {"shuffle": "none", "drop_last": False, "threads": 1}
    with (
        Dataset.open(shards / "val") as dataset,
        Loader(dataset, TRANSFORM, global_batch=4, **options) as loader,
    ):
        labels = []
        for batch in on_device(loader.epoch(0), device):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.images.shape[1:] == (3, 48, 48)
            labels += batch.labels.tolist()
        assert labels == dataset.labels.tolist()


def test_another_class_list_is_refused(shards: Path) -> None:
    with Dataset.open(shards / "val") as dataset:
        listed = list(dataset.classes)
        check_classes(Path("c.pt"), listed, dataset)
        for classes, named in (
            (listed[:2], "class 2 is none there"),
            ([listed[0], "n99999999", listed[2]], "class 1 is n99999999 there"),
        ):
            with pytest.raises(UsageError, match=named):
                check_classes(Path("c.pt"), classes, dataset)
