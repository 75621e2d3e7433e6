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
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TypeAlias, cast

import PIL
import torch
from torch import Tensor

from shards.durable import atomic_file
from shards.errors import DamagedData, ToolError
from training.checkpoint_check import check_content
from training.container import check_stored
from training.counts import Counts

FORMAT = "imagenet-resnet.checkpoint"
SCHEMA = 2
_SCHEMAS = range(1, 1000)  # what another version may have

# Steps of an epoch that are not trained on: (epoch, first step, last step + 1).
Window: TypeAlias = tuple[int, int, int]


class ForeignFile(DamagedData):
    """A file that is no checkpoint of ours; it may be somebody else's."""


class OtherSchema(DamagedData):
    """A checkpoint of another version, which is sound and not to be replaced."""


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
class Best(Counts):
    """The best evaluation so far."""

    epoch: int  # epochs that were over
    loss: float
    weights: Literal["model", "ema"] = "model"  # which were evaluated

    @property
    def place(self) -> tuple[int, int]:
        """(epochs that were over, steps of the next) when it was evaluated."""
        return self.epoch, 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped, and an evaluation to begin."""

    model: dict[str, Tensor]  # torchvision's names, no wrapper prefixes; contiguous, on the CPU
    optimizer: dict[str, dict[str, Any]]  # its state by parameter name: tensors and numbers
    scaler: dict[str, Any]  # fp16 gradient scaler; empty where none was in use
    ema: dict[str, Tensor] = field(default_factory=dict)  # averaged weights, named as `model`
    rng: dict[str, Tensor]  # {"torch": state of rank 0's CPU generator}
    position: Position
    best: Best | None
    left_out: list[Window] = field(default_factory=list)  # by --on-nonfinite rollback
    config: dict[str, Any]  # training.config.config_values
    data: dict[str, Any]  # {"train": digest, "val": digest, "train_samples": n, "val_samples": n}
    classes: list[str]
    class_names: list[str]
    versions: dict[str, str]


def current_versions() -> dict[str, str]:
    """Versions worth knowing when a result is questioned: timm's optimisers, decoders' pixels."""
    return {
        "imagenet-resnet": _version("imagenet-resnet"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": _version("torchvision"),
        "timm": _version("timm"),
        "pillow": PIL.__version__,  # pillow-simd's is another distribution
        "simplejpeg": _version("simplejpeg"),
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
        each.name: getattr(checkpoint, each.name) for each in dataclasses.fields(checkpoint)
    }
    content["position"] = dataclasses.asdict(checkpoint.position)
    content["best"] = None if checkpoint.best is None else dataclasses.asdict(checkpoint.best)
    try:
        with atomic_file(path) as file:
            noting = _Noting(file)
            torch.save(content, cast("IO[bytes]", noting))
    except (OSError, RuntimeError) as error:
        cause = noting.failure or error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise ToolError(
            f"{path} could not be written ({reason}); make room or mend the folder"
        ) from error


class _Noting:
    """A file that remembers why it could not be written: torch's writer says something else."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.flush = file.flush
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU.

    Raises ToolError where there is none, and DamagedData, in one sentence, where the file is
    truncated, altered, not a checkpoint of ours, or of another schema.
    """
    _check_container(path)
    try:
        # By its name torch would take some for safetensors; it warns of what is refused below.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignFile(
            f"{path} holds objects that could run code when loaded and was refused; only "
            "checkpoints written by `resnet train` are read"
        ) from error
    except Exception as error:  # the unpickler raises anything for what is no pickle
        raise _foreign(path) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _foreign(path)
    schema = content.get("schema")
    if type(schema) is not int or schema not in _SCHEMAS:
        raise _foreign(path)
    if schema != SCHEMA:
        raise OtherSchema(
            f"{path} has checkpoint schema {schema}, and this version reads {SCHEMA}; use the "
            "version of imagenet-resnet that wrote it"
        )
    try:
        return _parsed(content)
    except (TypeError, ValueError) as error:
        raise DamagedData(
            f"{path} is no checkpoint of schema {SCHEMA} as `resnet train` writes them ({error}); "
            "use another one of the run"
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
    check_zip(path, remedy="use another checkpoint of the run")


# What zipfile raises for damaged bytes; seeking where they say may be an OSError, and so is a
# disk that cannot read.
_ZIP_ERRORS = (
    zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, RuntimeError,
    struct.error, zlib.error, OSError,
)  # fmt: skip


def check_zip(path: Path, *, remedy: str) -> None:
    """Verify the checksums of torch.save's zip, which torch does not. Raises DamagedData."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_stored(path, archive)
            damaged = archive.testzip()
    except _ZIP_ERRORS as error:
        raise DamagedData(f"{path} is truncated or damaged; {remedy}") from error
    if damaged is not None:
        raise DamagedData(
            f"{path} is damaged: the checksum of its part {damaged} does not fit; {remedy}"
        )


def _parsed(content: dict[str, Any]) -> Checkpoint:
    names = [each.name for each in dataclasses.fields(Checkpoint)]
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"it lacks {missing[0]!r}")
    check_content(content)
    values = {name: content[name] for name in names}
    values["position"] = Position(**content["position"])
    values["best"] = None if content["best"] is None else Best(**content["best"])
    values["left_out"] = [(epoch, first, last) for epoch, first, last in content["left_out"]]
    return Checkpoint(**values)


def _foreign(path: Path) -> ForeignFile:
    return ForeignFile(
        f"{path} is not a checkpoint of imagenet-resnet; give a file that `resnet train` wrote"
    )
