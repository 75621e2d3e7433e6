"""Asking a network about pictures: files, folders, what a program writes to our input.

Pictures are decoded and cut as an evaluation does it, by threads, a batch ahead of the engine.
One that cannot be read is named and the others are answered.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from shards.crew import Crew, Job
from shards.errors import DamagedData, ToolError, UsageError
from shards.pictures import LARGEST_FILE, endings, read_picture
from shards.progress import Progress
from shards.render import Renderer, targets_of
from shards.transform import EvalTransform
from training.engines import Engine, EngineRequest, engine_for
from training.results.evaluation import How
from training.results.saved import Saved, device_for, open_engine

STANDARD_INPUT: Final = Path("-")
_AHEAD: Final = 2  # batches in the making
_NO_NUMBERS: Final = "the model gives logits that are not finite for it; use other weights"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network says of a picture, or why there is no answer."""

    path: Path
    top: tuple[tuple[int, float], ...] = ()  # (class index, probability), the best first
    problem: str | None = None


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """The files that are meant: those given, and of folders all pictures beneath, in order.

    A file is taken whatever its name; in a folder, hidden files and those that are not named as
    pictures are passed over. Raises ToolError for a place that is not there, UsageError for a
    folder without pictures.
    """
    found: list[Path] = []
    for place in places:
        if place == STANDARD_INPUT:
            found.append(place)
        elif place.is_dir():
            inside = sorted(_beneath(place, endings()))
            if not inside:
                raise UsageError(f"{place} has no pictures in it; give a folder of images")
            found += inside
        elif place.exists():
            found.append(place)
        else:
            raise ToolError(f"{place} does not exist; give a picture, a folder of them, or -")
    if found.count(STANDARD_INPUT) > 1:
        raise UsageError("- is standard input, which can be read once; give it once")
    return found


def _beneath(folder: Path, known: frozenset[str]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place) / name
            if not name.startswith(".") and path.suffix.lower() in known:
                yield path


@dataclass
class _Batch:
    """Pictures in the making: the threads fill in images and problems."""

    paths: list[Path]
    images: Tensor  # uint8 (n, S, S, 3)
    targets: tuple[Tensor, ...]
    problems: dict[int, str] = field(default_factory=dict)


def predict(
    saved: Saved,
    paths: Sequence[Path],
    engine: EngineRequest,
    how: How,
    *,
    top: int,
    exif: bool,
    standard_input: bytes = b"",
    progress: Progress,
) -> Iterator[Prediction]:
    """Ask a saved model about pictures, in one process: an answer each, in their order.

    Raises UsageError where the model's class list is not as long as its answers.
    """
    device = device_for(saved.path, how.device, engine, 0)
    device.activate()
    batch_size = saved.batch_size if how.batch_size is None else how.batch_size
    name = engine_for(engine, onnx=saved.onnx is not None)
    opened = open_engine(
        saved, name, device, amp=how.amp, threads=how.threads, batch_size=batch_size
    )
    with contextlib.closing(opened):
        if saved.class_names is not None and len(saved.class_names) != opened.classes:
            raise UsageError(
                f"the class list has {len(saved.class_names)} classes and {saved.path} gives "
                f"{opened.classes} logits; give the list that it was trained with"
            )
        asker = Asker(
            opened,
            saved.transform,
            threads=how.threads,
            batch_size=batch_size,
            top=top,
            exif=exif,
            standard_input=standard_input,
        )
        yield from asker.ask(paths, progress)


class Asker:
    """Decodes pictures and asks an engine about them, batch by batch."""

    def __init__(
        self,
        engine: Engine,
        transform: EvalTransform,
        *,
        threads: int,
        batch_size: int,
        top: int,
        exif: bool,
        standard_input: bytes = b"",
    ) -> None:
        """`standard_input` is the picture -."""
        self._engine = engine
        self._size = transform.image_size
        self._renderer = Renderer(transform)
        self._threads = threads
        self._batch_size = batch_size
        self._top = min(top, engine.classes)
        self._exif = exif
        self._standard_input = standard_input

    def ask(self, paths: Sequence[Path], progress: Progress) -> Iterator[Prediction]:
        """One answer a picture, in their order."""
        progress.start("predict", len(paths), "images")
        crew = Crew(self._threads, "predict")
        pending: collections.deque[tuple[_Batch, Job]] = collections.deque()
        try:
            for at in range(0, len(paths), self._batch_size):
                pending.append(self._begin(crew, list(paths[at : at + self._batch_size])))
                if len(pending) == _AHEAD:
                    yield from self._finish(*pending.popleft(), progress)
            while pending:
                yield from self._finish(*pending.popleft(), progress)
        finally:
            crew.abandon([job for _, job in pending])
            crew.close()

    def _begin(self, crew: Crew, paths: list[Path]) -> tuple[_Batch, Job]:
        images = torch.zeros((len(paths), self._size, self._size, 3), dtype=torch.uint8)
        batch = _Batch(paths=paths, images=images, targets=targets_of(images))
        parts = [slice(at, at + 1) for at in range(len(paths))]
        job = Job(lambda part: self._make(batch, part.start), parts)
        crew.begin(job)
        return batch, job

    def _make(self, batch: _Batch, at: int) -> int:
        """Make one picture of a batch, or note why there is none."""
        path = batch.paths[at]
        try:
            pixels = read_picture(content_of(path, self._standard_input), exif=self._exif)
            self._renderer.centre(pixels, batch.targets[at])
        except DamagedData as error:
            batch.problems[at] = str(error)
        except OSError as error:
            batch.problems[at] = f"it cannot be read ({error.strerror or error})"
        return 0

    def _finish(self, batch: _Batch, job: Job, progress: Progress) -> Iterator[Prediction]:
        job.result()
        images = batch.images.permute(0, 3, 1, 2).to(self._engine.device.torch_device)
        chances, best = self._engine.logits(images).softmax(1).cpu().topk(self._top, dim=1)
        for at, path in enumerate(batch.paths):
            progress.advance(1)
            if at in batch.problems:
                yield Prediction(path=path, problem=batch.problems[at])
                continue
            if not chances[at].isfinite().all():
                yield Prediction(path=path, problem=_NO_NUMBERS)
                continue
            answer = zip(best[at].tolist(), chances[at].tolist(), strict=True)
            yield Prediction(path=path, top=tuple(answer))


def content_of(path: Path, standard_input: bytes = b"") -> bytes:
    """What is in a file. Raises DamagedData for what is no picture's file."""
    if path == STANDARD_INPUT:
        return standard_input
    if not path.is_file():  # a pipe would be waited for, a device has no end
        raise DamagedData("it is not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise DamagedData(f"it has {path.stat().st_size} bytes, at most {LARGEST_FILE} are read")
    return path.read_bytes()
