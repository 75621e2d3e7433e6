"""Weights that others trained, under torchvision's names: state dicts, checkpoints, safetensors.

torchvision's and timm's ResNets name their parameters alike. NVIDIA's and the vendor's trainers
number the stages `layers.0` to `layers.3`. Wrappers leave prefixes, trainers put the weights under
a key of a larger dict. Whatever it is, it is read without running anything that is in it.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from shards.errors import DamagedData, ToolError, UsageError
from training.checkpoint import FORMAT, check_zip
from training.config import Stem, TrainConfig
from training.extras import load_extra
from training.model import WRAPPER_PREFIXES, build_model

# Where trainers keep the weights, averaged ones first, as timm's load_state_dict looks for them.
_KEYS: Final = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
_OF_RUN: Final = ("ema", "model")  # as our own checkpoints have them
_AVERAGED: Final = ("state_dict_ema", "model_ema", "ema")
# Lightning's modules have their network as an attribute, by custom of one of these names.
_PREFIXES: Final = (*WRAPPER_PREFIXES, "model.", "net.")
_WRAPPED: Final = re.compile(f"(?:{'|'.join(map(re.escape, _PREFIXES))})+")
_STAGE: Final = re.compile(r"layers\.([0-3])\.")
_BLOCK: Final = re.compile(r"layer([1-4])\.(\d+)\.")
_COUNTER: Final = ".num_batches_tracked"
# (blocks of the four stages, whether they are bottlenecks)
_NETWORKS: Final[Mapping[tuple[tuple[int, ...], bool], str]] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
_REMEDY: Final = (
    "give a state dict of torchvision, timm or the vendor, .safetensors, or RUN/best.pt"
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights and buffers of a ResNet, float32 on the CPU."""

    state: dict[str, Tensor]  # by torchvision's names
    layout: str  # what the file was, for people
    model: str | None  # which network they are of; None where it is none of ours
    stem: Stem
    classes: int
    metadata: Mapping[str, str]  # the texts of safetensors' header


def read_weights(path: Path) -> Weights:
    """Read weights that anyone's trainer or zoo saved.

    Raises ToolError where there is no such file, or it is safetensors and that library is not
    installed, and DamagedData where it is truncated, could run code, or holds no ResNet.
    """
    if not path.is_file():
        raise ToolError(f"{path} is not a file; {_REMEDY}")
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        (state, metadata), layout = _safetensors(path), "safetensors"
    else:
        state, layout = _unpacked(path, _unpickled(path))
    plain, prefixes = _unwrapped(path, state)
    if any(_STAGE.match(name) for name in plain):
        plain = {_STAGE.sub(_stage, name, count=1): tensor for name, tensor in plain.items()}
        layout += ", the vendor's or NVIDIA's names"
    layout += f", without {' and '.join(prefixes)}" if prefixes else ""
    return _described(path, plain, layout, metadata)


def starting_network(config: TrainConfig, classes: int, note: Callable[[str], None]) -> nn.Module:
    """The network that a new run begins with, on the CPU: random, or from --init-weights.

    `note` is told what was taken. Raises UsageError for weights of another network.
    """
    network = build_model(
        config.model,
        classes,
        init=config.recipe.init,
        zero_init_residual=config.recipe.zero_init_residual,
        stem=config.stem,
        seed=config.seed,
    )
    if config.init_weights is not None:
        path = config.init_weights
        note(_take(network, path, read_weights(path), config, classes))
    return network


def _take(
    network: nn.Module, path: Path, weights: Weights, config: TrainConfig, classes: int
) -> str:
    """Put weights into a network, all but a classifier of another size; what to say of it."""
    for option, found, asked in (
        ("--model", weights.model or "none of ours", config.model),
        ("--stem", weights.stem, config.stem),
    ):
        if found != asked:
            raise UsageError(
                f"{path} holds weights for {option} {found} and this command says {asked}; "
                "give the one or other weights"
            )
    state = dict(weights.state)
    said = f"begins with the weights of {path} ({weights.layout})"
    if weights.classes != classes:
        own = {name: each for name, each in network.state_dict().items() if name.startswith("fc.")}
        state = {name: each for name, each in state.items() if not name.startswith("fc.")} | own
        said += f", but for the classifier: it has {weights.classes} classes, this run {classes}"
    fill(network, state, path=path, model=config.model)
    return said


def fill(network: nn.Module, state: Mapping[str, Tensor], *, path: Path, model: str) -> None:
    """Put the weights of `path`, all and no others, into a network that is called `model`.

    Raises DamagedData, with the first tensor that does not fit.
    """
    own = network.state_dict()
    for name, each in own.items():
        if name not in state:
            raise _misfit(path, model, name, "is missing")
        if state[name].shape != each.shape:
            found, wanted = (_size(tensor) for tensor in (state[name], each))
            raise _misfit(path, model, name, f"is {found} and must be {wanted}")
    unknown = [name for name in state if name not in own]
    if unknown:
        raise _misfit(path, model, unknown[0][:80], "is not one of them")
    network.load_state_dict(dict(state))


def _misfit(path: Path, model: str, name: str, problem: str) -> DamagedData:
    return DamagedData(
        f"{path} does not hold the parameters of {model}: {name!r} {problem}; give other weights"
    )


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _unwrapped(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by names without the prefixes of wrappers, and which those were."""
    found: set[str] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        wrapped = _WRAPPED.match(name)
        prefix = wrapped[0] if wrapped else ""
        found |= {each for each in _PREFIXES if each in prefix}
        own = name.removeprefix(prefix)
        if own in plain:
            raise DamagedData(
                f"{path} holds several networks, or one twice: {own[:80]!r} comes under two "
                "prefixes; save the state dict of one of them"
            )
        plain[own] = tensor
    return plain, [each for each in _PREFIXES if each in found]


def _stage(found: re.Match[str]) -> str:
    return f"layer{int(found[1]) + 1}."


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, and the texts of the header."""
    library = load_extra("safetensors", needed_by=str(path), extra="recipes")
    try:
        with library.safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise DamagedData(f"{path} is no whole safetensors file ({error}); get it again") from error


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        check_zip(path, remedy="get it again")
    try:
        # Trainers leave their options beside the weights, in a plain record of argparse's.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of pickles of other protocols: refused, or fine
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DamagedData(
            f"{path} is no file of weights, or holds objects that could run code when loaded, and "
            f"was refused; {_REMEDY}"
        ) from error
    except Exception as error:  # the unpickler raises anything for what is no pickle
        raise DamagedData(f"{path} is no file of weights; {_REMEDY}") from error


def _unpacked(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """The state dict in what a file holds, and what the file was."""
    ours = isinstance(content, dict) and content.get("format") == FORMAT
    layout = "a checkpoint of `resnet train`" if ours else "a state dict"
    if isinstance(content, dict):
        for key in _OF_RUN if ours else _KEYS:
            if isinstance(content.get(key), Mapping) and content[key]:
                content = content[key]
                layout += ", averaged weights" if key in _AVERAGED else ""
                break
    if not isinstance(content, Mapping):
        raise DamagedData(f"{path} holds no weights by name; {_REMEDY}")
    return {str(name): each for name, each in content.items() if isinstance(each, Tensor)}, layout


def _described(
    path: Path, plain: Mapping[str, Tensor], layout: str, metadata: Mapping[str, str]
) -> Weights:
    first, last = plain.get("conv1.weight"), plain.get("fc.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 2:
        raise DamagedData(
            f"{path} holds no ResNet: conv1.weight or fc.weight is not among its {len(plain)} "
            f"tensors; {_REMEDY}"
        )
    state = {
        name: each.float() if each.is_floating_point() else each
        for name, each in plain.items()
        if name != "n_averaged"  # torch's AveragedModel counts
    }
    for name in [name for name in state if name.endswith(".running_mean")]:
        state.setdefault(name.removesuffix(".running_mean") + _COUNTER, torch.tensor(0))
    return Weights(
        state=state,
        layout=layout,
        model=_network(state),
        stem="small" if first.shape[-1] == 3 else "imagenet",
        classes=len(last),
        metadata=metadata,
    )


def _network(state: Mapping[str, Tensor]) -> str | None:
    """Which of our networks has these blocks, of these widths."""
    found = {(int(each[1]), int(each[2])) for each in map(_BLOCK.match, state) if each}
    blocks = tuple(sum(stage == wanted for stage, _ in found) for wanted in (1, 2, 3, 4))
    second = state.get("layer1.0.conv2.weight")
    if second is None or tuple(second.shape) != (64, 64, 3, 3):  # wide, or in groups
        return None
    return _NETWORKS.get((blocks, "layer1.0.conv3.weight" in state))
