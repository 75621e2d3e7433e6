"""Recipes: how a network is trained, as documented values with their sources.

A recipe is a frozen record. Everything a run does follows from its recipe, the options that
override single values of it (training/config.py), and the data. Nothing here was trained on
ImageNet by us: what is said to be published is what the sources report.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from shards.errors import UsageError
from shards.transform import Interpolation
from training.schedule import Schedule, ScheduleKind

OptimizerName = Literal["sgd", "lars", "lamb"]
NoDecay = Literal["none", "bn-in-name", "norm", "norm-and-bias"]
LossName = Literal["cross-entropy", "bce"]
InitMode = Literal["fan_in", "fan_out"]

_GRAIN = 32  # pixels: sizes on the way from the first to the last are multiples of it


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The values of a training method. Each is set by the recipe, by an option, or in a file."""

    name: str
    source: str  # of all values that `notes` says nothing of
    published: tuple[tuple[str, float], ...]  # (model, top-1 in per cent) as the source reports it
    remarks: str  # how those figures were made, and what is not verified
    notes: tuple[tuple[str, str], ...] = ()  # (value, where it is from instead, or why)

    # length and batch: defaults of --epochs, --batch-size, --lr
    epochs: int
    batch_size: int  # samples a process; the global batch is this times the processes
    base_lr: float  # peak learning rate for a global batch of `base_batch`
    base_batch: int
    lr_scaling: Literal["linear", "sqrt"] = "linear"  # of the peak with the global batch

    # pictures
    image_size: int = 224  # training crop, pixels a side, at the end of the run
    start_size: int = 0  # training crop at its beginning; 0 is image_size
    grow: tuple[float, float] = (0.0, 0.0)  # from when to when it grows, as shares of the epochs
    eval_size: int = 224  # evaluation crop
    eval_resize: float = 256 / 224  # short side before that crop, as a multiple of it
    interpolation: Interpolation = "bilinear"
    dct_scaling: bool = False  # decode large crops at 1/2, 1/4, 1/8: faster, not the same pixels
    crop_scale: tuple[float, float] = (0.08, 1.0)  # RandomResizedCrop: share of the area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # RandomResizedCrop: width over height
    flip: float = 0.5  # probability of a horizontal flip
    rand_augment: float = 0.0  # magnitude m of timm's rand-m{m}-mstd0.5-inc1; 0 for none
    color_jitter: float = 0.0  # brightness, contrast, saturation changed by up to this share
    erasing: float = 0.0  # probability of painting a rectangle over
    mixup: float = 0.0  # alpha; with cutmix too, each batch gets one of the two
    cutmix: float = 0.0  # alpha

    # loss
    loss: LossName = "cross-entropy"
    label_smoothing: float = 0.0
    bce_threshold: float = 0.0  # bce: targets above it count as 1, others as 0; 0 keeps them

    # optimiser
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float
    no_decay: NoDecay  # parameters without weight decay, training/optim.py
    loss_scale: float = 65536.0  # first scale of fp16's gradient scaler
    ema_decay: float = 0.0  # a step, of the averaged weights that are evaluated; 0 for none

    # schedule
    schedule: ScheduleKind
    warmup_epochs: int = 0
    warmup_per_256: int = 0  # further ones for each whole 256 of the global batch
    end_lr: float = 0.0
    step_epochs: int = 30  # schedule "step": epochs between drops
    step_gamma: float = 0.1
    poly_power: float = 2.0

    # network
    init: InitMode = "fan_out"  # Kaiming mode of the convolutions
    zero_init_residual: bool = False  # the last norm of each block starts at 0
    drop_last: bool = True  # leave out the epoch's last samples that fill no global batch

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate after warm-up for this global batch."""
        if self.lr_scaling == "sqrt":
            return float(self.base_lr * (global_batch / self.base_batch) ** 0.5)
        return self.base_lr * global_batch / self.base_batch

    def warmup(self, global_batch: int) -> int:
        """Epochs of warm-up for this global batch."""
        return self.warmup_epochs + self.warmup_per_256 * (global_batch // 256)

    def curve(self, *, peak: float, global_batch: int, epochs: int) -> Schedule:
        """The learning rate of a run."""
        return Schedule(
            kind=self.schedule,
            peak=peak,
            warmup=self.warmup(global_batch),
            epochs=epochs,
            end=self.end_lr,
            step_epochs=self.step_epochs,
            gamma=self.step_gamma,
            power=self.poly_power,
        )

    def size_at(self, epoch: int, epochs: int) -> int:
        """The training crop of `epoch` (from 0) of so many, in pixels.

        It grows as in ffcv-imagenet: `start_size` up to the epoch grow[0] x epochs, image_size from
        grow[1] x epochs on, in between the nearest multiple of 32 (of two equally near the even
        one) on a straight line.
        """
        if not self.start_size:
            return self.image_size
        first, last = (share * epochs for share in self.grow)
        if epoch <= first:
            return self.start_size
        if epoch >= last:
            return self.image_size
        way = (epoch - first) / (last - first)
        return (
            round((self.start_size + way * (self.image_size - self.start_size)) / _GRAIN) * _GRAIN
        )

    @property
    def eval_short_side(self) -> int:
        """Short side in pixels to which a picture is resized before the evaluation crop."""
        return round(self.eval_size * self.eval_resize)

    @property
    def eq224(self) -> float:
        """What training costs, in epochs of 224 x 224 pixels."""
        return sum((self.size_at(epoch, self.epochs) / 224) ** 2 for epoch in range(self.epochs))

    def resized(self, image_size: int, smallest: int) -> Recipe:
        """This recipe with another final training crop; its other sizes keep their ratio to it.

        The first crop stays a multiple of 32 pixels, and none is below `smallest`.
        """
        factor = image_size / self.image_size
        start = self.start_size
        if start:
            start = min(max(round(start * factor / _GRAIN) * _GRAIN, smallest), image_size)
        return dataclasses.replace(
            self, image_size=image_size, start_size=start, eval_size=round(self.eval_size * factor)
        )


SEED = Recipe(
    name="seed",
    source=(
        "Tecorigin teco-modelzoo, PyTorch/contrib/Classification/ResNet (configs.yml, "
        "run_scripts/run_resnet.py, README 2.5), a descendant of NVIDIA's ResNet-50 v1.5 recipe"
    ),
    published=(("resnet18", 70.06), ("resnet50", 76.09), ("resnet101", 77.65)),
    remarks="by the vendor, ResNet-50 on one card; not in every version of its README",
    notes=(
        (
            "no_decay",
            "misses the norms of the down-sampling branches, as the vendor's trainer does",
        ),
        ("loss_scale", "run_scripts/run_resnet.py: --static-loss-scale 65536"),
    ),
    epochs=50,
    batch_size=64,
    base_lr=0.256,
    base_batch=256,
    label_smoothing=0.1,
    momentum=0.875,
    weight_decay=3.0517578125e-05,  # 2**-15
    no_decay="bn-in-name",
    schedule="cosine-by-epoch",
    warmup_per_256=2,
    init="fan_in",
)

NVIDIA_90 = dataclasses.replace(
    SEED,
    name="nvidia-90",
    source=(
        "NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets: configs.yml "
        "(resnet_params_2k, AMP), resnet50v1.5/training/AMP/DGXA100_resnet50_AMP_90E.sh"
    ),
    published=(("resnet50", 77.12),),
    remarks="AMP on 8 A100, +- 0.11 over its runs (resnet50v1.5/README.md)",
    notes=(("no_decay", "image_classification/optimizers.py, the rule that `seed` inherits"),),
    epochs=90,
    batch_size=256,
    base_lr=2.048,
    base_batch=2048,
    warmup_epochs=8,
    warmup_per_256=0,
    loss_scale=128.0,
)

TORCHVISION_V1 = Recipe(
    name="torchvision-v1",
    source="torchvision references/classification/train.py, its defaults on 8 GPUs",
    published=(
        ("resnet18", 69.758),
        ("resnet34", 73.314),
        ("resnet50", 76.13),
        ("resnet101", 77.374),
        ("resnet152", 78.312),
    ),
    remarks="the weights IMAGENET1K_V1, which torchvision publishes with these figures",
    notes=(
        ("drop_last", "train.py keeps the last samples: its sampler repeats some to fill batches"),
        ("init", "torchvision.models.resnet"),
        ("base_lr", "--lr 0.1 for 8 x 32; that it grows with the global batch is ours"),
    ),
    epochs=90,
    batch_size=32,
    base_lr=0.1,
    base_batch=256,
    weight_decay=1e-4,
    no_decay="none",
    schedule="step",
    drop_last=False,
)

A3 = Recipe(
    name="a3",
    source=(
        "Wightman, Touvron, Jegou, ResNet strikes back, 2021 (arXiv 2110.00476), procedure A3; "
        "values as in mmpretrain's configs/resnet/resnet50_8xb256-rsb-a3-100e_in1k.py"
    ),
    published=(("resnet18", 68.25), ("resnet50", 78.052), ("resnet101", 79.836)),
    remarks="timm's results-imagenet.csv at 224; too strong a regularisation for ResNet-18",
    notes=(
        ("bce_threshold", "timm commands for A2 say --bce-target-thresh 0.2; for A3 not verified"),
        ("lr_scaling", "timm's train.py scales so for LAMB; the source trains at 2048 alone"),
        ("schedule", "set at every step here, the cosine by epoch there"),
        ("eval_resize", "236 pixels as in mmpretrain; timm's own evaluation has 235"),
        ("momentum", "LAMB's beta1; beta2 0.999, eps 1e-6 and clipping at norm 1 are timm's"),
        ("zero_init_residual", "timm's ResNet starts so"),
    ),
    epochs=100,
    batch_size=256,
    base_lr=8e-3,
    base_batch=2048,
    lr_scaling="sqrt",
    image_size=160,
    eval_size=224,
    eval_resize=1 / 0.95,
    interpolation="bicubic",
    rand_augment=6.0,
    mixup=0.1,
    cutmix=1.0,
    loss="bce",
    bce_threshold=0.2,
    optimizer="lamb",
    weight_decay=0.02,
    no_decay="norm-and-bias",
    schedule="cosine",
    warmup_epochs=5,
    end_lr=1e-6,
    zero_init_residual=True,
)

FAST = Recipe(
    name="fast",
    source="after ffcv-imagenet (rn50_configs/rn50_32_epochs.yaml, train_imagenet.py)",
    published=(),
    remarks=(
        "ffcv reports 76.6 % for ResNet-50 and 70.0 % for ResNet-18 with blurred strides, at 256 "
        "pixels over two mirrored views; here plain networks, 224 pixels, one view"
    ),
    notes=(
        ("base_batch", "512 on each of 8 GPUs; that the 512 is one GPU's is read from its loader"),
        ("no_decay", "all norms; by name there, which misses those of the down-sampling branches"),
        ("weight_decay", "its ResNet-18 has 5e-5"),
        ("dct_scaling", "ours, for speed; its accuracy is not verified"),
        ("eval_size", "its README says 224, its files 256"),
    ),
    epochs=32,
    batch_size=256,
    base_lr=1.7,
    base_batch=4096,
    image_size=192,
    start_size=160,
    grow=(23 / 32, 27 / 32),
    eval_size=224,
    dct_scaling=True,
    label_smoothing=0.1,
    weight_decay=1e-4,
    no_decay="norm",
    schedule="triangular",
    warmup_epochs=2,
)

MLPERF = Recipe(
    name="mlperf",
    source=(
        "MLPerf training v2.1, NVIDIA's ResNet-50 in MXNet (config_DGXA100.sh; the same values in "
        "v1.0, config_DGXA100_2x8x204.sh), LARS"
    ),
    published=(("resnet50", 75.9),),
    remarks="MLPerf's target, reached after 35 of 37 epochs; the epochs are a plan of 37",
    notes=(
        ("optimizer", "coefficient 0.001, eps 0; timm's LARS"),
        ("no_decay", "its classifier's bias decays; LARS leaves norms and biases alone"),
        ("crop_scale", "--min-random-area 0.05 in NVIDIA's MXNet command for ResNet-50"),
        ("init", "torchvision's; MXNet's start was not compared"),
        ("base_lr", "10.5 for 8 x 408; that it grows with the global batch is ours"),
        ("end_lr", "as the vendor's --mlperf_mode; MXNet's not verified"),
    ),
    epochs=37,
    batch_size=408,
    base_lr=10.5,
    base_batch=3264,
    crop_scale=(0.05, 1.0),
    label_smoothing=0.1,
    optimizer="lars",
    weight_decay=5e-5,
    no_decay="norm-and-bias",
    schedule="poly",
    warmup_epochs=2,
    end_lr=1e-4,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (SEED, NVIDIA_90, TORCHVISION_V1, A3, FAST, MLPERF)
}

_TEXTS = ("name", "source", "published", "remarks", "notes")  # what a recipe is, beside its values


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError naming those there are."""
    if name not in RECIPES:
        raise UsageError(f"--recipe {name}: there is no such recipe; choose {', '.join(RECIPES)}")
    return RECIPES[name]


def recipe_values(recipe: Recipe) -> dict[str, object]:
    """The recipe's name and values as primitives: tuples become lists. Its texts are left out."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(recipe).items()
        if name == "name" or name not in _TEXTS
    }
