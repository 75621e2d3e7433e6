"""An ONNX file of a classifier, looked through before any runtime gets to see it.

What is promised of a file that `read_onnx` gives back: it is one graph with one picture in and
logits out, without loops, whose weights lie in it or beside it and nowhere else, and whose sizes
are sane. How much memory it takes on its way to the logits is not known before it runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards.errors import DamagedData, ToolError
from shards.image import LARGEST_PIXELS
from shards.transform import Interpolation
from training.extras import load_extra
from training.results.told import LARGEST_SIDE, read_told

_LARGEST_FILE: Final = 1 << 31  # bytes: protobuf takes no more
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
    half_weights: bool  # most of its weights are float16
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
    model = _parsed(path)
    _check_nodes(path, model)
    _check_tensors(path, model)
    taken, given = _ends(path, model.graph)
    half = _is_half(path, taken)
    batch, size = _input_shape(path, taken)
    outputs = _output_shape(path, given)
    told = read_told(path, {each.key: each.value for each in model.metadata_props}, outputs)
    return OnnxFile(
        path=path,
        input=taken.name,
        output=given.name,
        half=half,
        half_weights=_has_half_weights(model),
        batch=batch,
        image_size=size or told.crop,
        fixed_size=size is not None,
        outputs=outputs or (len(told.classes) if told.classes else None),
        model=told.model,
        classes=told.classes,
        class_names=told.class_names,
        mean=told.mean,
        std=told.std,
        resize=told.resize,
        interpolation=told.interpolation,
        epochs=told.epochs,
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
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's errors are of several libraries
        raise DamagedData(
            f"{path} is no ONNX file, or is truncated; export it again (`resnet export`)"
        ) from error
    if not model.graph.node:
        raise DamagedData(f"{path} is no ONNX file of a network: its graph is empty")
    return model


def runtime_library(name: str) -> Any:
    """A library of the extra `export`. Raises ToolError where it is not installed."""
    return load_extra(name, needed_by="an ONNX file", extra="export")


# --- nodes ---


def _nodes(model: Any) -> Iterator[Any]:
    """The nodes of the graph and of the file's own functions."""
    return itertools.chain(model.graph.node, *(each.node for each in model.functions))


def _check_nodes(path: Path, model: Any) -> None:
    """Refuse what may compute without end: graphs in nodes, functions that multiply each other."""
    defaults = (each for function in model.functions for each in function.attribute_proto)
    inside = (each for node in _nodes(model) for each in node.attribute)
    for attribute in itertools.chain(inside, defaults):
        if attribute.HasField("g") or attribute.graphs:
            raise DamagedData(
                f"{path} has a graph in a graph ({attribute.name!r} of a loop or a branch), which "
                "a classifier does not need, and was refused; export it again (`resnet export`)"
            )
    names = {(each.domain, each.name) for each in model.functions}
    for function in model.functions:
        if any((node.domain, node.op_type) in names for node in function.node):
            raise DamagedData(
                f"{path} has functions that call each other ({function.name!r}) and was refused; "
                "write it again without them (onnx.inliner.inline_local_functions)"
            )


# --- tensors ---


def _check_tensors(path: Path, model: Any) -> None:
    """Refuse weights that lie outside the file's folder, or claim to be enormous."""
    for tensor in _tensors(model):
        if math.prod(tensor.dims) > _LARGEST_TENSOR or any(each < 0 for each in tensor.dims):
            raise DamagedData(
                f"{path}: the weights {tensor.name!r} claim the shape {list(tensor.dims)}; "
                "the file is damaged or hostile"
            )
        if tensor.data_location == _EXTERNAL:
            _check_place(path, tensor)


def _check_place(path: Path, tensor: Any) -> None:
    """Refuse weights of another file that is not in the folder."""
    folder = path.resolve().parent
    location = {each.key: each.value for each in tensor.external_data}.get("location", "")
    try:
        place = (folder / location).resolve()
        inside = folder in place.parents
        found = inside and place.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a zero
        raise DamagedData(
            f"{path} keeps the weights {tensor.name!r} in {location[:80]!r}, which cannot be the "
            "name of a file, and was refused"
        ) from error
    if not inside:
        raise DamagedData(
            f"{path} keeps the weights {tensor.name!r} outside its folder, in {location!r}, and "
            "was refused"
        )
    if not found:
        raise DamagedData(
            f"{path} keeps its weights in {place}, which is not there; copy both files"
        )


def _tensors(model: Any) -> Iterator[Any]:
    """All stored tensors."""
    yield from model.graph.initializer
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (each for node in _nodes(model) for each in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _has_half_weights(model: Any) -> bool:
    """What it computes in, whatever it takes and gives (`resnet export --keep-io-types`)."""
    kinds = runtime_library("onnx").TensorProto
    sizes = {kinds.FLOAT: 0, kinds.FLOAT16: 0}
    for tensor in _tensors(model):
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += math.prod(tensor.dims)
    return bool(sizes[kinds.FLOAT16] > sizes[kinds.FLOAT])


# --- what goes in and comes out ---


def _ends(path: Path, graph: Any) -> tuple[Any, Any]:
    """(what it takes, what it gives); weights may be among the inputs."""
    stored = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise DamagedData(
            f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; a classifier has "
            "one picture in and its logits out"
        )
    return inputs[0], graph.output[0]


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
    if len(sides) != 1 or any(each is not None and not 1 <= each <= LARGEST_SIDE for each in sides):
        raise DamagedData(
            f"{path} takes {shown}; pictures are squares here, of 1 to {LARGEST_SIDE} pixels"
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
