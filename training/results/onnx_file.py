"""An ONNX file of a classifier, looked through before any runtime gets to see it.

What is promised of a file that `read_onnx` gives back: it is one graph with one picture in and
logits out, whose weights lie in it or beside it and nowhere else, and whose sizes are sane.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from shards.errors import DamagedData, ToolError
from shards.image import LARGEST_PIXELS
from shards.transform import Interpolation
from training.batches import MEAN, STD
from training.extras import load_extra

_LARGEST_FILE: Final = 1 << 31  # bytes: protobuf takes no more
_LARGEST_SIDE: Final = 4096  # pixels of a picture that is asked about
_LARGEST_CLASSES: Final = 1 << 20
_LARGEST_TENSOR: Final = 1 << 31  # elements; ResNet-152 has 60 million in all
_EXTERNAL: Final = 1  # TensorProto.DataLocation


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """What an ONNX file takes, gives, and says of itself; None is what it leaves open."""

    path: Path
    input: str
    output: str
    half: bool  # float16 in, else float32
    batch: int | None
    image_size: int | None  # as its input is, else as its metadata say
    fixed_size: bool  # it is the input's
    outputs: int | None
    model: str | None
    classes: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    interpolation: Interpolation
    epochs: int | None


def read_onnx(path: Path) -> OnnxFile:
    """Look through an ONNX file. No weight is used, nothing in it is run.

    Raises ToolError where it or the extra `export` is missing, and DamagedData, in one sentence,
    for a file that is none, is hostile, or is no classifier of pictures.
    """
    graph = _parsed(path)
    _check_tensors(path, graph)
    stored = {each.name for each in graph.graph.initializer}
    inputs = [each for each in graph.graph.input if each.name not in stored]
    if len(inputs) != 1 or len(graph.graph.output) != 1:
        raise DamagedData(
            f"{path} has {len(inputs)} inputs and {len(graph.graph.output)} outputs; a classifier "
            "has one picture in and its logits out"
        )
    taken, given = inputs[0], graph.graph.output[0]
    half = _is_half(path, taken)
    batch, size = _input_shape(path, taken)
    outputs = _output_shape(path, given)
    told = _Told(path, {each.key: each.value for each in graph.metadata_props})
    classes, names = told.texts("classes"), told.texts("class_names")
    crop = told.number("center_crop", _LARGEST_SIDE)
    _check_lists(path, outputs, classes, names)
    return OnnxFile(
        path=path,
        input=taken.name,
        output=given.name,
        half=half,
        batch=batch,
        image_size=size or crop,
        fixed_size=size is not None,
        outputs=outputs or (len(classes) if classes else None),
        model=told.text("model"),
        classes=classes,
        class_names=names,
        mean=told.colour("mean", MEAN),
        std=told.colour("std", STD),
        resize=told.number("resize_short_side", 2 * _LARGEST_SIDE),
        interpolation=told.interpolation(),
        epochs=told.number("epochs", 1 << 31, least=0),
    )


def _check_lists(path: Path, outputs: int | None, *lists: tuple[str, ...] | None) -> None:
    for listed in lists:
        if listed is not None and outputs is not None and len(listed) != outputs:
            raise DamagedData(
                f"{path} gives {outputs} logits and its metadata name {len(listed)} classes; "
                "export it again"
            )


def _parsed(path: Path) -> Any:
    if not path.exists():
        raise ToolError(f"{path} does not exist; give the path of a model")
    if not path.is_file():
        raise ToolError(f"{path} is not a file; give an ONNX file")
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise DamagedData(f"{path} has {size} bytes; an ONNX file has at most {_LARGEST_FILE}")
    onnx = runtime_library("onnx")
    try:
        graph = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's errors are of several libraries
        raise DamagedData(
            f"{path} is no ONNX file, or is truncated; export it again (`resnet export`)"
        ) from error
    if not graph.graph.node:
        raise DamagedData(f"{path} is no ONNX file of a network: its graph is empty")
    return graph


def runtime_library(name: str) -> Any:
    """A library of the extra `export`. Raises ToolError where it is not installed."""
    return load_extra(name, needed_by="an ONNX file", extra="export")


# --- tensors ---


def _check_tensors(path: Path, graph: Any) -> None:
    """Refuse weights that lie outside the file's folder, or claim to be enormous."""
    folder = path.resolve().parent
    for tensor in _tensors(graph.graph):
        if math.prod(tensor.dims) > _LARGEST_TENSOR or any(each < 0 for each in tensor.dims):
            raise DamagedData(
                f"{path}: the weights {tensor.name!r} claim the shape {list(tensor.dims)}; "
                "the file is damaged or hostile"
            )
        if tensor.data_location != _EXTERNAL:
            continue
        told = {each.key: each.value for each in tensor.external_data}
        place = (folder / told.get("location", "")).resolve()
        if place.parent != folder and folder not in place.parents:
            raise DamagedData(
                f"{path} keeps the weights {tensor.name!r} outside its folder, in "
                f"{told.get('location')!r}, and was refused"
            )
        if not place.is_file():
            raise DamagedData(
                f"{path} keeps its weights in {place}, which is not there; copy both files"
            )


def _tensors(graph: Any) -> Iterator[Any]:
    """All stored tensors of a graph and of the graphs inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (each for node in graph.node for each in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _tensors(attribute.g)
        for inner in attribute.graphs:
            yield from _tensors(inner)


# --- what goes in and comes out ---


def _is_half(path: Path, value: Any) -> bool:
    kinds = runtime_library("onnx").TensorProto
    kind = value.type.tensor_type.elem_type
    if kind not in (kinds.FLOAT, kinds.FLOAT16):
        known = kind in kinds.DataType.values()
        name = kinds.DataType.Name(kind).lower() if known else f"type {kind}"
        raise DamagedData(
            f"{path} takes {name} as its input {value.name!r}; a picture is float32 or float16"
        )
    return bool(kind == kinds.FLOAT16)


def _dims(value: Any) -> list[int | None]:
    """The sizes of a value's axes; None for one that is left open."""
    return [
        each.dim_value if each.WhichOneof("value") == "dim_value" else None
        for each in value.type.tensor_type.shape.dim
    ]


def _input_shape(path: Path, value: Any) -> tuple[int | None, int | None]:
    """(batch, side of the picture) as far as they are fixed."""
    shape = _dims(value)
    shown = " x ".join("?" if each is None else str(each) for each in shape) or "unknown"
    if len(shape) == 4 and shape[3] == 3 and shape[1] != 3:
        raise DamagedData(
            f"{path} takes {shown}, channels last; export it with channels first (N x 3 x H x W)"
        )
    if len(shape) != 4 or shape[1] not in (3, None):
        raise DamagedData(f"{path} takes {shown}; a batch of pictures is N x 3 x H x W")
    batch, height, width = shape[0], shape[2], shape[3]
    sides = {height, width}
    if len(sides) != 1 or any(
        each is not None and not 1 <= each <= _LARGEST_SIDE for each in sides
    ):
        raise DamagedData(
            f"{path} takes {shown}; pictures are squares here, of 1 to {_LARGEST_SIDE} pixels"
        )
    if batch is not None and not 1 <= batch * (height or 1) ** 2 <= LARGEST_PIXELS:
        raise DamagedData(f"{path} takes {shown}, which is no batch that a machine could hold")
    return batch, height


def _output_shape(path: Path, value: Any) -> int | None:
    """The number of logits, where it is fixed."""
    shape = _dims(value)
    if len(shape) != 2 or not 1 <= (shape[1] or 1) <= _LARGEST_CLASSES:
        shown = " x ".join("?" if each is None else str(each) for each in shape) or "unknown"
        raise DamagedData(f"{path} gives {shown}; a classifier gives N x classes")
    return shape[1]


# --- what it says of itself ---


@dataclass(frozen=True)
class _Told:
    """The metadata of a file: texts, of which some are JSON."""

    path: Path
    values: Mapping[str, str]

    def text(self, key: str) -> str | None:
        return self.values.get(key)

    def number(self, key: str, largest: int, *, least: int = 1) -> int | None:
        value = self._json(key)
        if value is None:
            return None
        if not isinstance(value, int) or not least <= value <= largest:
            raise self._wrong(key, f"a whole number from {least} to {largest}")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self._json(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(key, "a list of texts")
        return tuple(value)

    def colour(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self._json(key)
        if value is None:
            return default
        if not (
            isinstance(value, list)
            and len(value) == 3
            and all(isinstance(each, int | float) and math.isfinite(each) for each in value)
            and (key != "std" or min(value) > 0)
        ):
            raise self._wrong(key, "three numbers, one a channel")
        return tuple(float(each) for each in value)

    def interpolation(self) -> Interpolation:
        """Older files say it in a sentence about the resize alone."""
        said = self.values.get("interpolation", self.values.get("resize", "bilinear"))
        known: Interpolation
        for known in get_args(Interpolation):
            if said.startswith(known):
                return known
        raise self._wrong("interpolation", "bilinear or bicubic")

    def _json(self, key: str) -> Any:
        text = self.values.get(key)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError:
            raise self._wrong(key, "JSON") from None

    def _wrong(self, key: str, expected: str) -> DamagedData:
        said = self.values.get(key, "")
        return DamagedData(
            f"{self.path}: its metadata say {said[:40]!r} for {key}, which must be {expected}; "
            "export it again"
        )
