"""The runtimes of ONNX files: onnxruntime on the CPU, and the vendor's engine on its cards.

Both take float pictures, channels first, in the type that the file asks for. A file with a fixed
batch gets full ones: the last is padded with its first picture, and what comes of that is cut off.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.errors import DamagedData, ToolError, UsageError
from training.batches import Normalizer
from training.device import Device, Precision, Sdaa
from training.device.sdaa import stdout_to_stderr
from training.engines import EngineName
from training.results.onnx_file import OnnxFile, runtime_library

Run: TypeAlias = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

# The vendor's example runs one replica on each SPA of a card; its variable, its default.
_REPLICAS_VARIABLE: Final = "MAX_ENGINE_NUMS"
_REPLICAS: Final = 4
# The vendor's passes over the graph, in the folder of PASS_PATH: the one made for ResNets, and
# the one for networks that have none of their own.
_PASSES: Final = ("resnet/resnet_pass.py", "default_pass.py")
_QUIET: Final = 4  # of onnxruntime: what it fails of is said by us


class OnnxEngine:
    """A runtime that takes one numpy batch and gives one; `batch` is its size where fixed."""

    def __init__(
        self,
        name: EngineName,
        file: OnnxFile,
        run: Run,
        *,
        batch: int | None,
        close: Callable[[], None],
    ) -> None:
        self.name = name
        self.device = Device(index=0, reason="it takes its pictures on the host")
        self.precision: Precision = "fp16" if file.half_weights else "fp32"
        self._file = file
        self._run = run
        self._batch = batch
        self._close = close
        self._normalize = Normalizer(torch.device("cpu"), file.mean, file.std)
        self._type = torch.float16 if file.half else torch.float32
        self.classes = self._count_classes()

    def _count_classes(self) -> int:
        """What a black picture gets, which also tells early what the runtime cannot do."""
        size = self._file.image_size or 224
        black = torch.zeros((1, 3, size, size), dtype=torch.uint8)
        (logits,) = self.logits(black)
        if self._file.outputs not in (None, len(logits)):
            raise DamagedData(
                f"{self._file.path} gave {len(logits)} logits for a picture and says "
                f"{self._file.outputs}; export it again"
            )
        return len(logits)

    def logits(self, images: Tensor) -> Tensor:
        """See `Engine`."""
        pictures = self._normalize(images).to(self._type).contiguous()
        step = self._batch or max(len(pictures), 1)
        parts = [self._answer(pictures[at : at + step]) for at in range(0, len(pictures), step)]
        return torch.cat(parts) if parts else torch.empty((0, self.classes))

    def _answer(self, pictures: Tensor) -> Tensor:
        """float32 logits of no more pictures than a batch."""
        missing = 0 if self._batch is None else self._batch - len(pictures)
        full = torch.cat([pictures, pictures[:1].expand(missing, -1, -1, -1)])
        try:
            found = np.asarray(self._run(full.numpy()))
        except Exception as error:
            raise ToolError(
                f"{self._file.path}: {self.name} failed on a batch of {tuple(full.shape)} "
                f"({_first_line(error)})"
            ) from error
        if found.ndim != 2 or len(found) != len(full):
            raise DamagedData(
                f"{self._file.path} gave numbers of the shape {found.shape} for {len(full)} "
                "pictures; a classifier gives pictures x classes"
            )
        return torch.from_numpy(found[: len(pictures)].astype(np.float32))

    def close(self) -> None:
        """Release the runtime's session."""
        self._close()


def open_onnxruntime(file: OnnxFile, *, threads: int) -> OnnxEngine:
    """The file in onnxruntime on the CPU. Raises DamagedData where it does not take it."""
    runtime = runtime_library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _QUIET
    try:
        session = runtime.InferenceSession(
            str(file.path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise DamagedData(
            f"onnxruntime does not take {file.path} ({_first_line(error)}); export it again"
        ) from error

    pool = ThreadPoolExecutor(1, "onnxruntime")

    def run(pictures: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """In a thread, since a signal that comes meanwhile is waited for by nobody else."""
        options = runtime.RunOptions()
        try:
            answer = pool.submit(session.run, [file.output], {file.input: pictures}, options)
            found: npt.NDArray[Any] = answer.result()[0]
        except BaseException:
            options.terminate = True  # looked at between nodes
            raise
        return found

    return OnnxEngine("onnxruntime", file, run, batch=file.batch, close=pool.shutdown)


def open_teco(file: OnnxFile, *, batch_size: int, image_size: int) -> OnnxEngine:
    """The file compiled by the vendor's TecoInferEngine, one replica on each SPA of a card.

    A batch is divided among the replicas: the file's own, where it is fixed, is that of one. The
    vendor's class compiles and runs as its examples do; training/INFERENCE.md says what must be
    installed. Raises ToolError where it is not, or does not take the file.
    """
    engine, passes = _teco()
    replicas = _replicas()
    each = file.batch or max(batch_size // replicas, 1)
    try:
        with stdout_to_stderr():  # it says what it compiles, and stdout is for results
            pipeline = engine(
                ckpt=str(file.path),
                batch_size=each * replicas,
                input_size=[[each, 3, image_size, image_size]],
                input_name=file.input,
                target=Sdaa.kind,
                dtype="float16" if file.half else "float32",
                pass_path=passes,
            )
    except Exception as error:
        raise ToolError(
            f"the vendor's engine does not take {file.path} ({_first_line(error)}); "
            "training/INFERENCE.md says how to export for it"
        ) from error

    def run(pictures: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with stdout_to_stderr():
            found = pipeline(pictures)
        return np.asarray(found[0] if isinstance(found, list | tuple) else found)

    return OnnxEngine(
        "teco",
        file,
        run,
        batch=each * replicas,
        close=getattr(pipeline, "release", _nothing),
    )


def _teco() -> tuple[Any, Path]:
    """(the vendor's class, its file of passes)."""
    try:
        with stdout_to_stderr():
            importlib.import_module("tvm")
            engine = importlib.import_module("engine.tecoinfer_pytorch").TecoInferEngine
            folder = Path(importlib.import_module("engine.base").PASS_PATH)
    except (ImportError, AttributeError) as error:
        raise ToolError(
            f"--engine teco needs the vendor's inference engine ({_first_line(error)}): its tvm, "
            "and on PYTHONPATH the folder of its examples that holds engine/ "
            "(training/INFERENCE.md)"
        ) from error
    return engine, next((folder / name for name in _PASSES if (folder / name).is_file()), folder)


def _replicas() -> int:
    """How many replicas of an engine a batch is divided among."""
    text = os.environ.get(_REPLICAS_VARIABLE, str(_REPLICAS))
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise UsageError(f"{_REPLICAS_VARIABLE}={text}: it must be a whole number from 1 to 64")
    return int(text)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _nothing() -> None:
    pass
