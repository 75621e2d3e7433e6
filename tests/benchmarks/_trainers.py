"""Training loops that ours is compared with: `python _trainers.py NAME SPEC`.

bare         a network, torch's optimiser and loss, and one batch over and over: no trainer
torchvision  ImageFolder and DataLoader in a loop as in torchvision's reference script
             (references/classification/train.py), which is in no package: its transforms, its
             averages of loss and accuracy read from the network after every step
timm         timm's loader, which normalises, in a loop as in its train.py,
             which is in no package either: the loss is read at every 50th step

All train ResNet-18 in float32, channels last, with SGD. The answer, the last line of the output,
is {"rate": images/s}: a few steps at the beginning are not counted. A Python that has the library
runs it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

CLASSES = 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOG_EVERY = 50  # timm's --log-interval
WARM_STEPS = 5  # that are not counted


@dataclass(frozen=True)
class Work:
    """What is trained on, and how long."""

    data: str  # class folders; empty for a batch made up
    batch: int
    size: int
    steps: int
    workers: int


def network() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(weights=None, num_classes=CLASSES)
    return model.to(memory_format=torch.channels_last)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def bare(work: Work) -> float:
    images = torch.randint(0, 256, (work.batch, work.size, work.size, 3), dtype=torch.uint8)
    labels = torch.arange(work.batch) % CLASSES
    mean, std = (255 * torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    model = network().train()
    optimizer, criterion = sgd(model), nn.CrossEntropyLoss(label_smoothing=0.1)

    def step() -> None:
        pictures = images.permute(0, 3, 1, 2).float().sub_(mean).div_(std)
        criterion(model(pictures), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return rate(work, (step for _ in range(work.steps)))


def with_torchvision(work: Work) -> float:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(work.size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(
        ImageFolder(work.data, transform),
        work.batch,
        shuffle=True,
        drop_last=True,
        num_workers=work.workers,
    )
    model = network().train()
    optimizer, criterion = sgd(model), nn.CrossEntropyLoss(label_smoothing=0.1)
    seen: list[float] = []

    def step(images: Tensor, labels: Tensor) -> None:
        output = model(images)
        loss = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = output.topk(5, 1).indices == labels[:, None]
        seen.extend([loss.item(), right[:, 0].sum().item(), right.sum().item()])

    return rate(work, taken(loader, step))


def with_timm(work: Work) -> float:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=work.data, is_training=True),
        work.size,
        work.batch,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=work.workers,
        device=torch.device("cpu"),
    )
    model = network().train()
    optimizer, criterion = sgd(model), nn.CrossEntropyLoss(label_smoothing=0.1)
    count = 0

    def step(images: Tensor, labels: Tensor) -> None:
        nonlocal count
        images = images.contiguous(memory_format=torch.channels_last)
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += 1
        if count % LOG_EVERY == 0:
            loss.item()

    return rate(work, taken(loader, step))


def taken(
    loader: Iterable[Any], step: Callable[[Tensor, Tensor], None]
) -> Iterator[Callable[[], None]]:
    """The steps of an epoch; waiting for a batch is part of the step that uses it."""
    for images, labels in loader:
        yield lambda images=images, labels=labels: step(images, labels)


def rate(work: Work, steps: Iterator[Callable[[], None]]) -> float:
    """Images/s of `work.steps` steps but for the first ones."""
    started = 0.0
    for number, step in enumerate(steps):
        if number == WARM_STEPS:
            started = time.perf_counter()
        step()
        if number == work.steps - 1:
            return (work.steps - WARM_STEPS) * work.batch / (time.perf_counter() - started)
    sys.exit(f"the epoch has fewer than {work.steps} steps")


WAYS = {"bare": bare, "torchvision": with_torchvision, "timm": with_timm}

if __name__ == "__main__":
    found = WAYS[sys.argv[1]](Work(**json.loads(sys.argv[2])))
    print(json.dumps({"rate": found}), flush=True)
