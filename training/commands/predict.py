"""`resnet predict`: what a model sees in pictures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prep.commands.options import threads_or_cores
from shards.console import PATH, command, counted, emit, say, showing_progress, table_lines
from training.commands.models import engine_option, finite, how_to_evaluate, model_options

if TYPE_CHECKING:
    from shards.progress import Progress
    from training.engines import EngineRequest
    from training.results.predict import Prediction
    from training.results.saved import Saved
    from training.results.sheet import Shown

_ON_SHEET = 5  # answers drawn for a picture


@command("predict")
@click.argument("model", type=PATH)
@click.argument("images", metavar="IMAGE|DIR|-...", type=PATH, nargs=-1, required=True)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown."
)
@click.option(
    "--sheet", type=PATH, metavar="FILE.png", help="Draw the pictures with their answers there."
)
@click.option("--exif", is_flag=True, help="Turn pictures as their EXIF says; evaluations do not.")
@click.option(
    "--classes",
    type=PATH,
    help="Class ids, one a line in the order of the logits, for a model that names none.  "
    "[default: ILSVRC2012's, for 1000 logits]",
)
@click.option(
    "--labels",
    type=PATH,
    help="What the pictures are, as `imagenet-prep shard --labels` takes it.  [default: by the "
    "name of their folder, or their own]",
)
@engine_option
@click.option("--batch-size", type=click.IntRange(min=1), help="Pictures at a time.")
@model_options
def predict(
    model: Path,
    images: tuple[Path, ...],
    top: int,
    sheet: Path | None,
    exif: bool,
    classes: Path | None,
    labels: Path | None,
    engines: tuple[EngineRequest, ...],
    batch_size: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what MODEL takes pictures for: files, folders of them, or - for standard input.

    \b
      resnet predict runs/r50/best.pt cat.jpg
      resnet predict r50.onnx holiday/ --sheet holiday.png
      curl -s https://example.org/dog.webp | resnet predict resnet50.pth -

    MODEL is whatever `resnet eval` takes. Pictures are anything that Pillow reads, prepared as in
    an evaluation. One that cannot be read is named, the others are answered, and it exits with 1.
    """
    from shards.durable import check_writable
    from shards.errors import UsageError
    from training.results.predict import STANDARD_INPUT, find_pictures
    from training.results.predict import predict as ask
    from training.results.saved import open_saved

    if len(engines) > 1:
        raise UsageError("predict asks one model: give --engine once")
    how = how_to_evaluate(threads_or_cores(options["workers"]), batch_size, options)
    paths = find_pictures(images)
    if sheet is not None:
        read = [each for each in (model, classes, labels, *paths) if each is not None]
        check_writable(sheet, besides=read)
        if sheet.suffix.lower() != ".png":
            raise UsageError(f"--sheet {sheet}: it is drawn as PNG; give a name that ends in .png")
    opened = open_saved(model, view=how.view, ema=how.ema, model=how.model)
    if opened.form == "weights":  # which say little themselves, so that some of it was found out
        say(f"note: {model} is {opened.said}")
    saved = _with_classes(opened, classes)
    given = _standard_input() if STANDARD_INPUT in paths else b""
    engine = engines[0] if engines else "auto"
    with showing_progress() as progress:
        asked = ask(
            saved,
            paths,
            engine,
            how,
            top=max(top, _ON_SHEET) if sheet is not None else top,
            exif=exif,
            standard_input=given,
            progress=progress,
        )
        shown = _shown(list(asked), saved, labels)
        if sheet is not None:
            _write_sheet(sheet, shown, saved, exif=exif, given=given, progress=progress)
    _show_predictions(shown, saved, sheet, top=top, as_json=as_json)
    if any(each.prediction.problem is not None for each in shown):
        click.get_current_context().exit(1)


def _with_classes(saved: Saved, given: Path | None) -> Saved:
    """The model with the class list that its user gives, or ILSVRC2012's where it fits."""
    from prep import ilsvrc
    from prep.labels import class_list

    if given is not None:
        listed = class_list(set(), given)
        ids, names = zip(*listed, strict=True)
        return saved.named(ids, names)
    if saved.classes is not None or saved.outputs != ilsvrc.CLASSES:
        return saved
    say(f"note: {saved.path} names no classes; its 1000 are taken for ILSVRC2012's (--classes)")
    known = ilsvrc.classes()
    return saved.named(tuple(each.wnid for each in known), tuple(each.name for each in known))


def _standard_input() -> bytes:
    """A picture that another program writes, or as much of one as is too much."""
    from shards.pictures import LARGEST_FILE

    return sys.stdin.buffer.read(LARGEST_FILE + 1)


def _shown(predictions: Iterable[Prediction], saved: Saved, labels: Path | None) -> list[Shown]:
    """Predictions with the classes that are known: told, or of a folder's or a file's name."""
    from prep.labels import class_in_name, read_labels
    from shards.errors import ToolError
    from training.results.sheet import Shown

    places = {each: place for place, each in enumerate(saved.classes or ())}
    told = None if labels is None else read_labels(labels).by_stem

    def known(path: Path) -> int | None:
        if told is not None:
            return places.get(told.get(path.stem, ""))
        if path.parent.name in places:
            return places[path.parent.name]
        with contextlib.suppress(ToolError):  # a name with two classes in it
            return places.get(class_in_name(path.name) or "")
        return None

    return [Shown(prediction=each, known=known(each.path)) for each in predictions]


def _write_sheet(
    sheet: Path,
    shown: Sequence[Shown],
    saved: Saved,
    *,
    exif: bool,
    given: bytes,
    progress: Progress,
) -> None:
    from shards.pictures import read_picture
    from training.results.predict import content_of
    from training.results.sheet import write_sheet

    write_sheet(
        sheet,
        shown,
        saved.class_name,
        f"{saved.path.name}: {saved.said}",
        pixels=lambda path: read_picture(content_of(path, given), exif=exif),
        progress=progress,
    )


def _show_predictions(
    shown: Sequence[Shown], saved: Saved, sheet: Path | None, *, top: int, as_json: bool
) -> None:
    """A table of the answers; what could not be read is said on stderr."""
    rows: list[tuple[object, ...]] = []
    pictures: list[dict[str, object]] = []
    for each in shown:
        path, problem = each.prediction.path, each.prediction.problem
        name = None if each.known is None else saved.class_name(each.known)
        answers = [
            {"class": index, "name": saved.class_name(index), "probability": finite(chance)}
            for index, chance in each.prediction.top[:top]
        ]
        pictures.append(
            {"path": path, "top": answers, "known": each.known, "known_name": name}
            | ({} if problem is None else {"problem": problem})
        )
        if problem is not None:
            say(f"error: {path}: {problem}")
        for place, (index, chance) in enumerate(each.prediction.top[:top]):
            first = (path, name or "") if place == 0 else ("", "")
            rows.append((first[0], saved.class_name(index), f"{100 * chance:.1f} %", first[1]))
    columns: Sequence[str] = ("picture", "class", "probability", "is")
    if not any(each.known is not None for each in shown):
        columns, rows = columns[:3], [row[:3] for row in rows]
    lines = table_lines(columns, rows) if rows else []
    if sheet is not None:
        lines.append(f"{sheet}: {counted(len(shown), 'picture')}")
    emit(as_json, {"model": saved.path, "pictures": pictures, "sheet": sheet}, lines)
