"""The checkpoint's container: whole or absent, checked before it is believed, never code.

A file is torch.save's zip of one dict of tensors and primitives, so `weights_only` loading
takes it. Before anything in it is unpickled, the zip's own checksums are verified (0.1 s for
ResNet-50), because torch does not look at them and a flipped bit in a weight shows nowhere
else. training/README.md lists the keys.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pickle
import platform
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.durable import atomic_file
from shards.errors import DamagedData, ToolError

FORMAT = "imagenet-resnet.checkpoint"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is: `epoch` epochs are over, and `step` steps of the next one."""

    epoch: int
    step: int
    samples: int  # consumed since the run began, over all processes
    order: str  # digest of this epoch's consumed samples so far, 16 hexadecimal digits

    @property
    def place(self) -> tuple[int, int]:
        """What positions are compared by."""
        return self.epoch, self.step


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation so far."""

    epoch: int  # epochs that were over
    top1_count: int
    top5_count: int
    samples: int
    loss: float

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * self.top1_count / self.samples


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped, and an evaluation to begin."""

    model: dict[str, Tensor]  # torchvision's names, no wrapper prefixes; contiguous, on the CPU
    optimizer: dict[str, Tensor]  # SGD momentum by parameter name
    scaler: dict[str, Any]  # fp16 gradient scaler; empty where none was in use
    rng: dict[str, Tensor]  # {"torch": state of rank 0's CPU generator}
    position: Position
    best: Best | None
    config: dict[str, Any]  # training.config.config_values
    data: dict[str, Any]  # {"train": digest, "val": digest, "train_samples": n, "val_samples": n}
    classes: list[str]
    class_names: list[str]
    versions: dict[str, str]


def current_versions() -> dict[str, str]:
    """Versions worth knowing when a result is questioned."""
    return {
        "imagenet-resnet": _version("imagenet-resnet"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": _version("torchvision"),
    }


def _version(distribution: str) -> str:
    """What is installed, without importing it: torchvision takes seconds."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` as a whole or not at all. Raises ToolError when it cannot be written."""
    content = {"format": FORMAT, "schema": SCHEMA}
    content |= {
        field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)
    }
    content["position"] = dataclasses.asdict(checkpoint.position)
    content["best"] = None if checkpoint.best is None else dataclasses.asdict(checkpoint.best)
    try:
        with atomic_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ToolError(
            f"{path} could not be written ({reason}); make room or mend the folder, then start "
            "the same command again: it goes on from the last whole checkpoint"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU.

    Raises ToolError where there is none, and DamagedData, in one sentence, where the file is
    truncated, altered, not a checkpoint of ours, or of another schema.
    """
    _check_container(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedData(
            f"{path} holds objects that could run code when loaded and was refused; only "
            "checkpoints written by `resnet train` are read"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise _foreign(path) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _foreign(path)
    if content.get("schema") != SCHEMA:
        raise DamagedData(
            f"{path} has checkpoint schema {content.get('schema')}, and this version reads "
            f"{SCHEMA}; use the version of imagenet-resnet that wrote it"
        )
    try:
        return _parsed(content)
    except (KeyError, TypeError) as error:
        raise DamagedData(
            f"{path} lacks what a checkpoint of schema {SCHEMA} has ({error}); it cannot be used"
        ) from error


def _check_container(path: Path) -> None:
    if not path.exists():
        raise ToolError(f"{path} does not exist; give the path of a checkpoint (RUN/best.pt)")
    if not path.is_file():
        raise ToolError(f"{path} is not a file; give a checkpoint in it (RUN/best.pt)")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic and magic != b"PK\x03\x04":
        raise _foreign(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _damaged(path, "is truncated or damaged") from error
    if damaged is not None:
        raise _damaged(path, f"is damaged: the checksum of its part {damaged} does not fit")


def _parsed(content: dict[str, Any]) -> Checkpoint:
    values = {field.name: content[field.name] for field in dataclasses.fields(Checkpoint)}
    values["position"] = Position(**content["position"])
    values["best"] = None if content["best"] is None else Best(**content["best"])
    return Checkpoint(**values)


def _foreign(path: Path) -> DamagedData:
    return DamagedData(
        f"{path} is not a checkpoint of imagenet-resnet; give a file that `resnet train` wrote"
    )


def _damaged(path: Path, how: str) -> DamagedData:
    return DamagedData(f"{path} {how}; use another checkpoint of the run")
