"""A plain PyTorch trainer to be compared with: nothing in it is ours.

    python plain.py locked BATCHES.npz WEIGHTS.pt RECIPE   the loss of every step on given batches
    python plain.py train TREE RECIPE SEED EPOCHS SIZE     top-1 by epoch, from class folders

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
from torch.utils.data import DataLoader
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


def rate_of(recipe: str, epoch: int, epochs: int, batch: int) -> float:
    """A global batch below 256 has no warm-up in recipe `seed`."""
    if recipe == "torchvision-v1":
        return 0.1 * batch / 256 * 0.1 ** (epoch // 30)
    return 0.256 * batch / 256 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


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
    return float(loss)


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


def locked(batches: Path, weights: Path, recipe: str) -> list[float]:
    """Arrays images uint8 (epochs, steps, n, S, S, 3) and labels int64 (epochs, steps, n)."""
    torch.set_num_threads(1)  # sums of another order differ, and soon by much
    with np.load(batches) as arrays:
        images, labels = arrays["images"], arrays["labels"]
        planned = int(arrays["epochs"])
    state = torch.load(weights, weights_only=True)
    model = torchvision.models.resnet18(weights=None, num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    model = model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(model, recipe)
    losses: list[float] = []
    for epoch in range(len(images)):
        given = (
            (torch.from_numpy(one).permute(0, 3, 1, 2), torch.from_numpy(other))
            for one, other in zip(images[epoch], labels[epoch], strict=True)
        )
        lr = rate_of(recipe, epoch, planned, images.shape[2])
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
    loader = DataLoader(train_set, BATCH, shuffle=True, drop_last=recipe == "seed", num_workers=1)
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
    if sys.argv[1] == "locked":
        print(json.dumps(locked(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
    else:
        tree, name, *numbers = sys.argv[2:]
        print(json.dumps(train(Path(tree), name, *map(int, numbers))))
