"""Recipes: how a network is trained, as documented values with their sources.

A recipe is a frozen record. Everything a run does follows from its recipe, the options that
override single fields of it (`TrainConfig` in training/config.py), and the data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from shards.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The values of a training method. Epochs and sizes are defaults that options override."""

    name: str
    source: str
    published: str  # top-1 as its source reports it; not reproduced by us unless said so
    epochs: int
    batch_size: int  # samples a process; the global batch is this times the processes
    image_size: int  # training crop, pixels a side; also the evaluation crop
    eval_resize: float  # short side before the evaluation crop, as a multiple of image_size
    crop_scale: tuple[float, float]  # RandomResizedCrop: share of the picture's area
    crop_ratio: tuple[float, float]  # RandomResizedCrop: width over height
    flip: float  # probability of a horizontal flip
    lr_per_256: float  # peak learning rate for a global batch of 256; grows linearly with it
    warmup_per_256: int  # warm-up epochs for each whole 256 of the global batch, 0 below 256
    momentum: float
    weight_decay: float
    no_decay: Literal["bn-in-name", "norm"]  # parameters without weight decay, training/optim.py
    label_smoothing: float
    init: Literal["fan_in", "fan_out"]  # Kaiming mode of the convolutions
    drop_last: bool  # leave out the epoch's last samples that do not fill a global batch
    loss_scale: float  # first scale of fp16's gradient scaler

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate after warm-up for this global batch."""
        return self.lr_per_256 * global_batch / 256

    def warmup_epochs(self, global_batch: int) -> int:
        """Epochs of linear warm-up for this global batch."""
        return self.warmup_per_256 * (global_batch // 256)

    def eval_short_side(self, image_size: int) -> int:
        """Short side in pixels to which a picture is resized before the evaluation crop."""
        return round(image_size * self.eval_resize)


SEED = Recipe(
    name="seed",
    source=(
        "Tecorigin teco-modelzoo, PyTorch/contrib/Classification/ResNet (configs.yml, "
        "run_scripts/run_resnet.py, README 2.5), a descendant of NVIDIA's ResNet-50 v1.5 recipe"
    ),
    published="ResNet-18 70.06 %, ResNet-50 76.09 %, ResNet-101 77.65 % top-1, by the vendor",
    epochs=50,
    batch_size=64,
    image_size=224,
    eval_resize=256 / 224,
    crop_scale=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
    flip=0.5,
    lr_per_256=0.256,
    warmup_per_256=2,
    momentum=0.875,
    weight_decay=3.0517578125e-05,  # 2**-15
    no_decay="bn-in-name",
    label_smoothing=0.1,
    init="fan_in",
    drop_last=True,
    loss_scale=65536.0,
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (SEED,)}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError naming those there are."""
    if name not in RECIPES:
        raise UsageError(f"--recipe {name}: there is no such recipe; choose {', '.join(RECIPES)}")
    return RECIPES[name]


def recipe_values(recipe: Recipe) -> dict[str, object]:
    """The recipe as a dict of primitives: tuples become lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(recipe).items()
    }
