"""What becomes of pictures: the recipe's transforms, and sizes that grow with the epochs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from shards.dataset import Dataset
from shards.errors import UsageError
from shards.image_augment import ColorJitter, RandAugment, RandomErasing
from shards.loader import Loader
from shards.map_style import ShardDataset
from shards.transform import EvalTransform
from training.config import TrainConfig, config_values, resolve
from training.distributed import World
from training.recipes import find_recipe
from training.settings import changed
from training.train_set import Streamed, eval_transform, make_loader, train_transform

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def config(shards: Path, **options: Any) -> TrainConfig:
    given = {"shards": shards, "out": Path("R"), "world": 1, "threads": 1, "batch_size": 5}
    return resolve(**(given | options))


def test_pictures_grow_with_the_epochs(shards: Path) -> None:
    made = config(shards, recipe="fast", image_size=96, epochs=8)
    with (
        Dataset.open(shards / "train") as dataset,
        contextlib.closing(make_loader(dataset, made, ALONE, pin_memory=False)) as loader,
    ):
        for epoch, size in ((0, 64), (5, 64), (7, 96), (2, 64)):
            assert next(iter(loader.epoch(epoch))).images.shape == (5, size, size, 3)


def test_a_stream_has_pictures_of_one_size(shards: Path) -> None:
    stream = Streamed(urls="x.tar", steps=1, label_field=None, classes=("a",), class_names=("a",))
    with pytest.raises(UsageError, match=r"begins with 160 pixels and ends with 192"):
        make_loader(stream, config(shards, recipe="fast"), ALONE, pin_memory=False)


def test_a_recipes_augmentation_is_the_loaders() -> None:
    transform = train_transform(
        changed(find_recipe("a3"), {"color_jitter": 0.4, "erasing": 0.25, "flip": 0.0})
    )
    assert transform.augment == (
        RandAugment.timm(magnitude=6),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
        RandomErasing(probability=0.25),
    )
    assert (transform.image_size, transform.interpolation, transform.flip) == (160, "bicubic", 0)
    assert train_transform(find_recipe("seed")).augment == ()


def test_a_checkpoints_configuration_says_how_to_evaluate(shards: Path) -> None:
    made = config(shards, recipe="a3")
    expected = EvalTransform(image_size=224, resize=236, interpolation="bicubic")
    assert eval_transform(made) == eval_transform(config_values(made)) == expected
    assert eval_transform(made, image_size=96).resize == 101


@pytest.mark.parametrize("recipe", ["seed", "a3"])
def test_evaluation_pictures_are_torchvisions(recipe: str, shards: Path) -> None:
    """From PIL images, as everyone's reference script prepares them, to a level or two of 255."""
    made = config(shards, recipe=recipe, image_size=64)
    transform = eval_transform(made)
    modes = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
    reference = v2.Compose(
        [
            v2.Resize(transform.resize, interpolation=modes[transform.interpolation]),
            v2.CenterCrop(transform.image_size),
            v2.PILToTensor(),
        ]
    )
    pictures = ShardDataset(shards / "val", reference)
    with (
        Dataset.open(shards / "val") as dataset,
        Loader(dataset, transform, global_batch=len(dataset), shuffle="none", threads=1) as loader,
    ):
        images = next(iter(loader)).images.permute(0, 3, 1, 2)
    for number, image in enumerate(images):
        expected = pictures[number][0]
        difference = (image.int() - expected.int()).abs()
        assert difference.max() <= 2, number
        assert difference.float().mean() < 0.2
