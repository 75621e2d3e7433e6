"""A plain PyTorch trainer to be compared with: nothing in it is ours.

    python plain.py locked PICTURES.npz WEIGHTS.pt RECIPE BATCH WARMUP DROP
        the loss of every step on given pictures; epochs of warm-up, epochs from drop to drop
    python plain.py train TREE RECIPE SEED EPOCHS SIZE
        top-1 by epoch, from class folders

It is what one would write by hand: torchvision's network, transforms and ImageFolder, torch's
SGD, cross-entropy and DataLoader, and the recipe's published values written out once more.
Answers with one JSON list on stdout. TREE has train/ and val/, with the same classes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

BATCH = 64
# Of 0..255: a difference of a rounding in a picture grows tenfold with every step.
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def optimizer_of(model: nn.Module, recipe: str) -> torch.optim.SGD:
    if recipe == "torchvision-v1":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    bn = [parameter for name, parameter in model.named_parameters() if "bn" in name]
    rest = [parameter for name, parameter in model.named_parameters() if "bn" not in name]
    groups = [{"params": rest}, {"params": bn, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.256, momentum=0.875, weight_decay=3.0517578125e-05)


def loss_of(recipe: str) -> nn.Module:
    return nn.CrossEntropyLoss(label_smoothing=0.1 if recipe == "seed" else 0.0)


def rate_of(
    recipe: str, epoch: int, epochs: int, batch: int, *, warmup: int = 0, drop: int = 30
) -> float:
    """A global batch below 256 has no warm-up in recipe `seed`, unless it is asked for."""
    if recipe == "torchvision-v1":
        return 0.1 * batch / 256 * 0.1 ** (epoch // drop)
    peak = 0.256 * batch / 256
    if epoch < warmup:
        return peak * (epoch + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def loader_of(data: Dataset, recipe: str, batch: int, *, shuffle: bool) -> DataLoader:
    """Recipe `seed` leaves out the last pictures that fill no batch, the other trains on them."""
    return DataLoader(data, batch, shuffle=shuffle, drop_last=recipe == "seed", num_workers=1)


def step(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
) -> float:
    loss = criterion(model((images.float() - MEAN) / STD), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train_epoch(
    model: nn.Module,
    recipe: str,
    optimizer: torch.optim.Optimizer,
    lr: float,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> list[float]:
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    criterion = loss_of(recipe)
    return [step(model, criterion, optimizer, images, labels) for images, labels in batches]


def locked(
    pictures: Path, weights: Path, recipe: str, batch: int, warmup: int, drop: int
) -> list[float]:
    """Arrays images uint8 (epochs, n, S, S, 3) and labels int64 (epochs, n), in their order."""
    torch.set_num_threads(1)  # sums of another order differ, and soon by much
    with np.load(pictures) as arrays:
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    state = torch.load(weights, weights_only=True)
    model = torchvision.models.resnet18(weights=None, num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    model = model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(model, recipe)
    losses: list[float] = []
    for epoch in range(len(images)):
        data = TensorDataset(images[epoch], labels[epoch])
        batches = loader_of(data, recipe, batch, shuffle=False)
        given = ((each.permute(0, 3, 1, 2), other) for each, other in batches)
        lr = rate_of(recipe, epoch, len(images), batch, warmup=warmup, drop=drop)
        losses += train_epoch(model, recipe, optimizer, lr, given)
    return losses


def train(tree: Path, recipe: str, seed: int, epochs: int, size: int) -> list[float]:
    """Per cent of TREE/val that are right after each epoch."""
    torch.manual_seed(seed)
    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    centre = transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224)),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    train_set = ImageFolder(str(tree / "train"), crop)
    val_set = ImageFolder(str(tree / "val"), centre)
    loader = loader_of(train_set, recipe, BATCH, shuffle=True)
    model = torchvision.models.resnet18(weights=None, num_classes=len(train_set.classes))
    if recipe == "seed":
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    model = model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(model, recipe)
    found: list[float] = []
    for epoch in range(epochs):
        train_epoch(model, recipe, optimizer, rate_of(recipe, epoch, epochs, BATCH), loader)
        found.append(100 * right(model, DataLoader(val_set, BATCH)) / len(val_set))
    return found


@torch.no_grad()
def right(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    model.eval()
    return sum(int((model((x.float() - MEAN) / STD).argmax(1) == y).sum()) for x, y in batches)


if __name__ == "__main__":
    kind, first, *rest = sys.argv[1:]
    if kind == "locked":
        weights, name, *numbers = rest
        print(json.dumps(locked(Path(first), Path(weights), name, *map(int, numbers))))
    else:
        name, *numbers = rest
        print(json.dumps(train(Path(first), name, *map(int, numbers))))
