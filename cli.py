"""The two commands, imagenet-prep and resnet: options in, one call, the result out.

Only this module knows click and rich. Every command imports its work inside the function, so
`--help` needs neither torch nor NumPy. The result goes to stdout (`--json`: one object), all
else to stderr. Exit codes: 0 done, 1 a failure or a failed check, 2 wrong usage, 75 a training
that was stopped and saved, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import math
import os
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from prep.build import BuildOptions
    from prep.extraction.plan import Planned
    from prep.inspection.contents import ClassCount, Contents
    from prep.inspection.plan import Range, ShardPlan
    from prep.organizing.organize import Organized
    from prep.verification.verify import Verified
    from shards.bench import LoaderBench
    from shards.errors import ToolError
    from shards.finding import Finding
    from shards.progress import Progress
    from shards.sidecars import ForReader
    from shards.transcode import JpegMode
    from shards.writer import Check, OnBad, Written
    from training.affinity import Affinity
    from training.config import OnNonfinite, Stem
    from training.device import AmpRequest, DeviceRequest
    from training.engines import EngineRequest
    from training.export import ExportReport
    from training.recipes import Recipe
    from training.results.agreement import Agreement
    from training.results.by_class import ClassResult
    from training.results.evaluation import How, Result, Results
    from training.results.predict import Prediction
    from training.results.saved import Saved
    from training.results.sheet import Shown

_REFRESH_SECONDS = 0.1
_INTERRUPTED = 130
_WORST = 10  # classes shown by `resnet eval --per-class`
_DIFFERING = 20  # images shown where two models differ
_ON_SHEET = 5  # answers drawn for a picture

Function = TypeVar("Function", bound=Callable[..., Any])


# --- how commands end -------------------------------------------------------------------------


class _Command(click.Command):
    """A command whose foreseeable failures are one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        _refuse_strangers()
        # Broken EXIF makes Pillow warn for images that it reads well.
        warnings.filterwarnings("ignore", module="PIL")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if not _joined_a_launch():
                _say("interrupted; the same command goes on from here")
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            failure = _foreseen(error)
            if failure is None or ctx.meta.get("traceback"):
                raise
            _report(failure)
            ctx.exit(failure.exit_code)


class _TrainCommand(_Command):
    """`resnet train`, which takes the command lines of the vendor's launcher as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell completes a line that is not whole yet
            return super().parse_args(ctx, args)
        _refuse_strangers()
        from shards.errors import UsageError
        from training.vendor import translate

        try:
            translated, speaks = translate(args), _speaks_first()
        except UsageError as error:
            _report(error)
            ctx.exit(error.exit_code)
        if translated.notices and speaks:
            for notice in translated.notices:
                _say(f"note: {notice}")
        return super().parse_args(ctx, translated.argv)


def _refuse_strangers() -> None:
    """Our packages have common names: say so where another distribution's would be imported."""
    ours = Path(__file__).resolve().parent
    for name in ("prep", "shards", "training"):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or [])
        if [Path(place).resolve() for place in places] != [ours / name]:
            _say(
                f"error: the package {name!r} is found at {places[0] if places else 'no place'} "
                f"instead of {ours / name}; install imagenet-resnet into a virtual environment "
                "of its own, without PYTHONPATH"
            )
            sys.exit(1)


def _foreseen(error: Exception) -> ToolError | None:
    """A failure as a sentence and an exit code; None for a programming error."""
    from shards.errors import ToolError

    if isinstance(error, ToolError):
        return error
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        return ToolError(f"{error.filename}: {os.strerror(error.errno)}{_remedy(error.errno)}")
    return None


def _joined_a_launch() -> bool:
    """Whether this process is one of several, whose launcher speaks for them."""
    from training.place import inside_launch

    return inside_launch()


def _speaks_first() -> bool:
    """Whether this process tells of the command line: a launcher's processes leave it to ours."""
    from training.place import OURS, place_of

    place = place_of(os.environ)
    return place is None or (place.launcher != OURS and place.rank == 0)


def _report(failure: ToolError) -> None:
    """Say a failure once: one of several processes hands it to their launcher."""
    from training.children import report_failure
    from training.stopping import Stopped

    if not report_failure(failure):
        _say(str(failure) if isinstance(failure, Stopped) else f"error: {failure}")


def _remedy(code: int) -> str:
    remedies = {
        errno.ENOSPC: "; make room and run the same command again, what is whole stays",
        errno.EDQUOT: "; make room in your quota and run the same command again",
        errno.EACCES: "; check its owner and permissions",
        errno.EPERM: "; check its owner and permissions",
        errno.EROFS: "; choose a folder that can be written",
        errno.EIO: "; the disk or its connection is failing, what is whole stays",
    }
    return remedies.get(code, "")


def _say(message: str) -> None:
    click.echo(message, err=True)


def _emit(as_json: bool, data: Mapping[str, object], lines: list[str]) -> None:
    """Print a result: one JSON object, or lines for people."""
    click.echo(json.dumps(data, default=_primitive) if as_json else "\n".join(lines))


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; numbers stand at the right of their column."""
    from rich.console import Console
    from rich.table import Table

    body = [list(row) for row in rows]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        numbers = all(isinstance(row[place], int | float) for row in body)
        table.add_column(name, justify="right" if numbers and body else "left")
    for row in body:
        table.add_row(*(f"{each:,}" if isinstance(each, int) else str(each) for each in row))
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _primitive(value: object) -> object:
    """What JSON has in the place of a value: an object for a result's parts, else its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def _set_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["traceback"] = value


def _command(
    group: click.Group, name: str, cls: type[_Command] = _Command
) -> Callable[[Function], click.Command]:
    """Add a command to a group, with the options that every command has."""

    def add(function: Function) -> click.Command:
        json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        traceback_option = click.option(
            "--traceback",
            is_flag=True,
            expose_value=False,
            callback=_set_traceback,
            help="Show the whole traceback of a failure.",
        )
        return group.command(name, cls=cls)(json_option(traceback_option(function)))

    return add


# --- progress ---------------------------------------------------------------------------------


class _LiveProgress:
    """Progress as one live line on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._unit = ""
        self._done = 0
        self.beside = ""  # what else the line shows
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> _LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a phase."""
        with self._lock:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(what, total=total, rate="")
            self._unit, self._done = unit, 0
            self._started = self._shown = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count work as done; the display follows ten times a second."""
        from shards.progress import quantity

        with self._lock:
            self._done += amount
            now = time.monotonic()
            if self._task is not None and now - self._shown >= _REFRESH_SECONDS:
                self._shown = now
                rate = quantity(self._done / (now - self._started), self._unit)
                self._live.update(self._task, completed=self._done, rate=f"{rate}/s{self.beside}")

    def note(self, message: str) -> None:
        """Say a line; rich puts what is written to stderr above the display."""
        _say(f"note: {message}")


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Progress for people on a terminal, and for logs elsewhere."""
    from shards.progress import LineProgress

    if not sys.stderr.isatty():
        yield LineProgress(_say)
        return
    with _LiveProgress() as live:
        yield live


def _rate(images: int, seconds: float) -> str:
    return f"{seconds:.1f} s, {images / seconds:,.0f} images/s"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# --- options shared by several commands -------------------------------------------------------

_PATH = click.Path(path_type=Path, readable=False)  # reading says it with the remedy
_workers = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Threads that work side by side.  [default: by the cores]",
)
_labels = click.option(
    "--labels",
    type=_PATH,
    help="Labels of the validation images: a devkit archive, Kaggle's LOC_val_solution.csv, lines "
    "of `IMAGE-NAME WNID`, or one wnid a line in order of image number.  [default: Kaggle's file "
    "or a devkit beside the images, else the built-in list for the official ones]",
)


def _threads(workers: int | None) -> int:
    from shards.cores import available_cores

    return workers or available_cores()


# --- imagenet-prep ----------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="imagenet-resnet")
def imagenet_prep() -> None:
    """Prepare ImageNet: from the ILSVRC2012 archives to checked WebDataset shards.

    \b
    The usual way, straight from the archives (extraction is optional):
      imagenet-prep shard /data/archives --out /data/shards
      imagenet-prep verify /data/shards
      resnet train --shards /data/shards --model resnet50 --cards 1

    Every command can be stopped at any time; the same command goes on where it ended.
    """


@_command(imagenet_prep, "sample-data")
@click.option("--out", type=_PATH, required=True, help="Folder for the archives.")
@click.option("--classes", type=click.IntRange(1, 1000), help="How many.  [default: 10]")
@click.option(
    "--train-per-class",
    type=click.IntRange(min=1),
    help="Training images of each class.  [default: 100]",
)
@click.option(
    "--val-per-class",
    type=click.IntRange(min=1),
    help="Validation images of each class.  [default: 20]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the pictures."
)
@click.option(
    "--quirks",
    is_flag=True,
    help="Among the training images have sound ones that trip naive tools, as the real data has: "
    "a PNG named .JPEG, CMYK, grey, broken EXIF, EXIF orientation, progressive, 1 x 1 and 3000 x 8 "
    "pixels. They are listed.",
)
@click.option(
    "--full-scale",
    is_flag=True,
    help="ILSVRC2012's own structure and counts instead: 1000 classes, 1,281,167 and 50,000 "
    "images, the true validation labels. The pictures are tiny: 1.4 GB, written in some 12 s.",
)
def sample_data(
    out: Path,
    classes: int | None,
    train_per_class: int | None,
    val_per_class: int | None,
    seed: int,
    quirks: bool,
    full_scale: bool,
    as_json: bool,
) -> None:
    """Write archives shaped and named like ILSVRC2012's.

    Train, validation and devkit, with drawn pictures that a network can learn to tell apart:
    enough to try every other command on. The same options give the same bytes. Whole archives
    of an earlier run are kept; files that are not sample-data's are never touched.

    \b
      imagenet-prep sample-data --out demo
      imagenet-prep sample-data --out odd --classes 4 --train-per-class 10 --quirks
      imagenet-prep sample-data --out full --full-scale

    --json has out, classes, images, train_images, val_images, quirks (kinds by image name),
    bytes, written (how many of the three archives were made now) and seconds.
    """
    from prep.sample.data import write_sample_data

    started = time.perf_counter()
    with _progress() as progress:
        made = write_sample_data(
            out,
            classes=classes,
            train_per_class=train_per_class,
            val_per_class=val_per_class,
            seed=seed,
            quirks=quirks,
            full_scale=full_scale,
            progress=progress,
        )
    seconds = time.perf_counter() - started
    images = made.train_images + made.val_images
    rate = _rate(images, seconds) if made.written else "were whole already"
    odd = {name: quirk.value for name, quirk in made.quirks.items()}
    _emit(
        as_json,
        {
            "out": out,
            "classes": made.classes,
            "images": images,
            "train_images": made.train_images,
            "val_images": made.val_images,
            "quirks": odd,
            "bytes": made.bytes,
            "written": made.written,
            "seconds": seconds,
        },
        [f"{out}: {images} images in {made.classes} classes ({rate})"]
        + (_table(("image", "quirk"), odd.items()) if odd else []),
    )


@_command(imagenet_prep, "extract")
@click.argument("archives", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help="Folder for train/, val/ and test/.")
@_labels
@click.option("--flat", is_flag=True, help="Leave validation images in one folder.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Where images go whose archive does not say: a tar of class folders.",
)
@click.option("--md5", is_flag=True, help="Take each archive's MD5 while it is read.")
@click.option(
    "--remove-archive",
    is_flag=True,
    help="Remove each archive when all that came out of it was synced and read back.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it needs.")
@_workers
def extract(
    archives: tuple[Path, ...],
    out: Path,
    labels: Path | None,
    flat: bool,
    split: str | None,
    md5: bool,
    remove_archive: bool,
    dry_run: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Extract archives into class folders.

    ARCHIVES are told apart by what is in them; of a folder, all archives of images are taken.

    \b
    ILSVRC2012_img_train.tar              OUT/train/WNID/   its inner tars are read in place
    ILSVRC2012_img_val.tar                OUT/val/WNID/     or OUT/val/ with --flat
    ILSVRC2012_img_test*.tar              OUT/test/
    ILSVRC2012_img_train_t3.tar (dogs)    OUT/train_t3/WNID/
    ILSVRC2012_bbox_*.tar.gz              OUT/annotations/
    ILSVRC2012_devkit_t12.tar.gz          OUT/ILSVRC2012_devkit_t12/
    Hugging Face's *_images*.tar.gz       as the archives above, under ILSVRC2012's names
    a tar of class folders, or .tar.gz    OUT/SPLIT/CLASS/

    Killed or stopped, the same command completes it and reads again only what is not whole.
    You do not need this to train: `imagenet-prep shard` reads uncompressed archives as they are.
    """
    from prep.extraction.extract import extract as run
    from prep.extraction.extract import plan
    from prep.extraction.extraction import Options

    options = Options(
        labels=labels, split=split, flat=flat, md5=md5, remove_archives=remove_archive
    )
    if dry_run:
        with _progress() as progress:
            planned = plan(archives, out, options, progress)
        _emit(as_json, *_extraction_plan(out, planned))
        return
    started = time.perf_counter()
    with _progress() as progress:
        results = run(archives, out, options, workers=_threads(workers), progress=progress)
    seconds = time.perf_counter() - started
    new = sum(each.written for each in results)
    lines = []
    for each in results:
        places = ", ".join(str(out / folder) for folder in each.folders)
        more = [f"MD5 {each.md5}"] if each.md5 else []
        more += [] if each.written else ["whole already"]
        more += ["archive removed"] if each.removed else []
        lines.append(
            ", ".join([f"{places}: {each.files:,} files, {each.bytes / 1e6:,.1f} MB", *more])
        )
    lines += [f"{new:,} files in {_rate(new, seconds)}"] if new else []
    _emit(as_json, {"archives": [vars(each) for each in results], "seconds": seconds}, lines)


def _extraction_plan(out: Path, planned: Sequence[Planned]) -> tuple[dict[str, object], list[str]]:
    """What an extraction would do, and whether the disk has room, as data and as lines."""
    existing = next(each for each in (out.absolute(), *out.absolute().parents) if each.exists())
    disk = os.statvfs(existing)
    free, inodes = disk.f_bavail * disk.f_frsize, disk.f_favail
    needed = sum(each.missing.bytes for each in planned)
    needed_inodes = sum(each.inodes for each in planned)
    rows = [
        (each.archive.name, ", ".join(each.folders), each.files, each.missing.files,
         f"{each.missing.bytes / 1e6:,.1f} MB") for each in planned
    ]  # fmt: skip
    fits = needed <= free and (needed_inodes <= inodes or inodes == 0)
    lines = [
        *_table(("archive", "to", "files", "missing", "bytes missing"), rows),
        f"needs {needed / 1e9:,.3f} GB and {needed_inodes:,} inodes; {existing} has "
        f"{free / 1e9:,.3f} GB and {inodes:,} free" + ("" if fits else ": it does not fit"),
    ]
    data = {
        "archives": [vars(each) for each in planned],
        "bytes_needed": needed,
        "bytes_free": free,
        "inodes_needed": needed_inodes,
        "inodes_free": inodes,
        "fits": fits,
    }
    return data, lines


@_command(imagenet_prep, "organize-val")
@click.argument("folder", metavar="DIR", type=_PATH)
@_labels
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and change nothing.")
def organize_val(folder: Path, labels: Path | None, dry_run: bool, as_json: bool) -> None:
    """Put the flat validation images in DIR into class folders, in place.

    For archives extracted by hand: what valprep.sh does, in a second, and from wherever that
    ended. DIR holds ILSVRC2012_val_*.JPEG, Hugging Face's names too, or is what holds that
    folder, such as Kaggle's tree. Images are renamed, never copied, replaced or deleted. What
    is no validation image is named and left alone, and so is what lies in a wrong folder: move
    that back into DIR and run the same command again.

    \b
    Labels are those of --labels, else of
      LOC_val_solution.csv in DIR or up to four folders above,
      a devkit archive in DIR or beside it,
      the built-in list, where the names and sizes of all 50,000 images are the official ones.

    Exits with 1 when an image has no label, lies in a wrong folder or is there twice with
    different bytes; strays are no failure. --json has folder, labels, dry_run, moved, in_place,
    classes, doubles, strays, problems (path and reason each), ok and seconds.
    """
    from prep.organizing.organize import organize_validation

    with _progress() as progress:
        done = organize_validation(folder, labels=labels, dry_run=dry_run, progress=progress)
    for line in _first_ten("problem", done.problems):
        _say(line)
    _emit(as_json, {**vars(done), "ok": not done.problems}, _organized_lines(done))
    if done.problems:
        sys.exit(1)


def _organized_lines(done: Organized) -> list[str]:
    images, where = _count(done.moved, "image"), f"in {_count(done.classes, 'class folder')}"
    if not done.moved:
        head = f"nothing to move, {_count(done.in_place, 'image')} {where}"
    elif done.dry_run:
        head = f"{images} would be moved, {done.in_place:,} in place already, {where}"
    else:
        rate = _rate(done.moved, done.seconds)
        head = f"{images} moved, {done.in_place:,} in place already, {where} ({rate})"
    lines = [f"{done.folder}: {head}", f"labels: {done.labels or 'not needed'}"]
    lines += _first_ten("twice", done.doubles) + _first_ten("stray", done.strays)
    traps = sum(each.disturbs for each in done.strays)
    if traps:
        lines.append(
            f"{traps:,} of the strays would be taken for data by readers of class folders, such "
            "as torchvision's ImageFolder: move them away"
        )
    return lines


def _first_ten(what: str, found: Sequence[object]) -> list[str]:
    """The first findings of a kind as lines, and how many more there are."""
    more = len(found) - 10
    rest = [f"{what}: {more:,} more, all of them with --json"] if more > 0 else []
    return [f"{what}: {each}" for each in found[:10]] + rest


@_command(imagenet_prep, "shard")
@click.argument("sources", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help="Folder for train/ and val/.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="This split alone.")
@_labels
@click.option(
    "--classes",
    type=_PATH,
    help="File with one class id a line, in the order of labels; images of other classes are left "
    "out.  [default: sorted class names]",
)
@click.option("--per-class", type=click.IntRange(min=1), help="So many images of each class.")
@click.option(
    "--samples-per-shard",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Images of a shard.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    metavar="MB",
    help="Instead: as many images as fit into so many million bytes.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the shuffle, and of --per-class.",
)
@click.option(
    "--jpeg",
    type=click.Choice(["keep", "restart", "reencode"]),
    default="keep",
    show_default=True,
    help="keep: the source's bytes. restart: the same pixels with restart markers, which lets the "
    "loader decode less (needs jpegtran). reencode: smaller pictures.",
)
@click.option("--max-side", type=click.IntRange(min=1), help="reencode: longest side in pixels.")
@click.option("--short-side", type=click.IntRange(min=1), help="reencode: shorter side in pixels.")
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    help="reencode: JPEG quality.",
)
@click.option("--restart", is_flag=True, help="reencode: with restart markers too.")
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What becomes of an image that cannot be read: the run ends, or it is left out and listed "
    "in the manifest.",
)
@click.option(
    "--for",
    "for_readers",
    default="timm,dali",
    show_default=True,
    metavar="LIST",
    help="Also write what these readers want: timm, dali, wids; or none.",
)
@click.option(
    "--check",
    type=click.Choice(["fast", "full"]),
    default="fast",
    show_default=True,
    help="How shards of an earlier run are known to be whole: by size, or by SHA-256 too.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written and how long it takes.")
@_workers
def shard(
    sources: tuple[Path, ...],
    out: Path,
    split: str | None,
    labels: Path | None,
    classes: Path | None,
    per_class: int | None,
    samples_per_shard: int,
    shard_size: int | None,
    seed: int,
    jpeg: JpegMode,
    max_side: int | None,
    short_side: int | None,
    quality: int,
    restart: bool,
    on_bad: OnBad,
    for_readers: str,
    check: Check,
    dry_run: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Write WebDataset shards straight from archives or class folders.

    SOURCES are ILSVRC2012's tars, a folder that holds them, Kaggle's tree, Hugging Face's
    archives, or folders of class folders (DIR/train/CLASS/*.jpg). Makes OUT/train/ and OUT/val/,
    each with its shards, an index, a manifest and SHA256SUMS.

    The same images and options give the same bytes, whatever they lie in and however many
    workers write them. Killed or stopped, the same command goes on.
    """
    from prep.build import BuildOptions, build_shards
    from shards.parallel import threads_that_write
    from shards.transcode import make_encoder
    from shards.writer import WriteOptions

    options = BuildOptions(
        labels=labels,
        classes=classes,
        per_class=per_class,
        seed=seed,
        samples_per_shard=samples_per_shard,
        shard_size=None if shard_size is None else shard_size * 1_000_000,
        write=WriteOptions(
            encoder=make_encoder(
                jpeg, max_side=max_side, short_side=short_side, quality=quality, restart=restart
            ),
            on_bad=on_bad,
            for_readers=_readers(for_readers),
            check=check,
        ),
    )
    workers = workers or threads_that_write()
    if dry_run:
        _plan_shards(sources, split, options, workers, as_json)
        return
    with _progress() as progress:
        written = build_shards(sources, split, out, options, workers=workers, progress=progress)
    lines = []
    for each in written:
        manifest = each.manifest
        rate = _rate(each.images, each.seconds) if each.written else "was whole already"
        lines.append(
            f"{each.folder}: {manifest.samples} images in {_count(len(manifest.shards), 'shard')}, "
            f"{len(manifest.classes)} classes ({rate})"
        )
        if manifest.kept is not None:
            lines.append(f"{each.folder}: {_count(manifest.kept, 'image')} kept as they were")
        if manifest.skipped:
            lines.append(
                f"{each.folder}: {_count(len(manifest.skipped), 'image')} left out, "
                f"{manifest.skipped[0].name} first ({manifest.skipped[0].reason})"
            )
    _emit(as_json, {"splits": [_written_data(each) for each in written]}, lines)


def _written_data(written: Written) -> dict[str, object]:
    manifest = written.manifest
    return {
        "folder": written.folder,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "written": written.written,
        "fingerprint": manifest.plan["fingerprint"],
        "content": manifest.content,
        "kept": manifest.kept,
        "skipped": [each._asdict() for each in manifest.skipped],
        "seconds": written.seconds,
    }


def _readers(names: str) -> tuple[ForReader, ...]:
    """The readers that --for names."""
    from typing import get_args

    from shards.errors import UsageError
    from shards.sidecars import ForReader

    wanted = [name for name in names.split(",") if name != "none"]
    strangers = [name for name in wanted if name not in get_args(ForReader)]
    if strangers:
        raise UsageError(
            f"--for takes {', '.join(get_args(ForReader))} or none, not {strangers[0]!r}"
        )
    return tuple(reader for reader in get_args(ForReader) if reader in wanted)


def _plan_shards(
    sources: Sequence[Path], split: str | None, options: BuildOptions, workers: int, as_json: bool
) -> None:
    """Print what `shard` would write, and how long at the rate of a trial."""
    from prep.build import plan_shards
    from prep.sources import find_sources
    from shards.trial import trial

    with _progress() as progress:
        plans = plan_shards(find_sources(sources, split), options, progress)
        rates = [trial(plan, options.write.encoder, workers) for plan in plans]
    splits = [
        {
            "split": plan.options.split,
            "samples": len(plan.samples),
            "shards": plan.shards,
            "bytes": plan.bytes,
            "seconds": len(plan.samples) / rate,
            "fingerprint": plan.fingerprint,
        }
        for plan, rate in zip(plans, rates, strict=True)
    ]
    rows = [
        (plan.options.split, len(plan.samples), plan.shards, f"{plan.bytes / 1e9:,.3f} GB",
         f"{rate:,.0f}", f"{len(plan.samples) / rate / 60:,.1f} min")
        for plan, rate in zip(plans, rates, strict=True)
    ]  # fmt: skip
    names = ("split", "images", "shards", "bytes", "images/s here, unwritten", "time")
    _emit(as_json, {"splits": splits}, _table(names, rows))


@_command(imagenet_prep, "index")
@click.argument("sources", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help="Folder for train/ and val/.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="This split alone; also says which one it is where no name does.",
)
@_labels
@click.option(
    "--classes",
    type=_PATH,
    help="File with one class id a line, in the order of labels.  [default: ILSVRC2012's where "
    "labels and names are, else for shards the numbers, for archives the sorted class names]",
)
@click.option(
    "--label-field",
    metavar="NAME",
    help="Field of each sample's .json that has its label, for shards without a .cls; `a.b` is b "
    "in the object a.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What becomes of a sample that cannot be used: the run fails, or the sample is left out "
    "and listed in the manifest.",
)
@_workers
def index(
    sources: tuple[Path, ...],
    out: Path,
    split: str | None,
    labels: Path | None,
    classes: Path | None,
    label_field: str | None,
    on_bad: OnBad,
    workers: int | None,
    as_json: bool,
) -> None:
    """Make data trainable as it lies: shards of others, ILSVRC2012's archives, class folders.

    \b
    SOURCES are shards or archives (tars, folders that hold tars, or patterns), or class folders
      imagenet-prep index /data/archives --out /data/index
      imagenet-prep index /data/imagenet --out /data/index
      imagenet-prep index '/data/wds/imagenet1k-train-{0000..1023}.tar' --out /data/index
      imagenet-prep index /data/img2dataset --split train --label-field class --out /data/index
      resnet train --shards /data/index

    Nothing is copied or extracted. OUT/train/ and OUT/val/ get a link to each tar or class folder,
    an index, a manifest and SHA256SUMS; every byte is read once. Shards are any WebDataset tars of
    JPEGs and PNGs with a .cls, or a .json and --label-field; the split stands in their names. What
    is odd is refused with the member's name. The same command completes a killed run and knows a
    finished one by the sizes and times of its files: when one has moved or changed, run it again.
    Of class folders only those are read again that have changed.
    """
    from prep.index_part import IndexOptions
    from prep.indexing import index_tars

    options = IndexOptions(
        split=split, labels=labels, classes=classes, label_field=label_field, on_bad=on_bad
    )
    with _progress() as progress:
        done = index_tars(sources, out, options, workers=_threads(workers), progress=progress)
    lines = []
    for each in done:
        size = sum(tar.bytes for tar in each.manifest.shards)
        rate = f"{each.seconds:.1f} s, {size / 1e6 / each.seconds:,.0f} MB/s"
        lines.append(
            f"{each.folder}: {each.manifest.samples} images in "
            f"{_count(len(each.manifest.shards), 'folder' if each.manifest.is_loose else 'tar')}, "
            f"{len(each.manifest.classes)} classes "
            f"({rate if each.written else 'was whole already'})"
        )
    _emit(
        as_json,
        {
            "splits": [
                {
                    "folder": each.folder,
                    "samples": each.manifest.samples,
                    "tars": 0 if each.manifest.is_loose else len(each.manifest.shards),
                    "folders": len(each.manifest.shards) if each.manifest.is_loose else 0,
                    "skipped": [bad._asdict() for bad in each.manifest.skipped],
                    "written": each.written,
                    "content": each.manifest.content,
                    "seconds": each.seconds,
                }
                for each in done
            ],
        },
        lines,
    )


@_command(imagenet_prep, "verify")
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@click.option(
    "--md5",
    metavar="FILE|SUM",
    help="MD5 sums of archives that are not ILSVRC2012's: a file as md5sum or BSD's md5 writes it, "
    "or for one archive the 32 digits.",
)
@click.option("--decode", is_flag=True, help="Decode every image to its last pixel.")
@click.option(
    "--deep",
    is_flag=True,
    help="Shards: also hold every image against its digest in the index (XXH3), whatever the "
    "SHA-256 of its shard says.",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Shards: make what is missing or damaged again, byte for byte as it was.",
)
@click.option(
    "--source",
    "sources",
    type=_PATH,
    multiple=True,
    help="What the shards were made of (archives or folders, as for `shard`), for --repair; may be "
    "given several times.",
)
@_labels
@_workers
def verify(
    paths: tuple[Path, ...],
    md5: str | None,
    decode: bool,
    deep: bool,
    repair: bool,
    sources: tuple[Path, ...],
    labels: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Check that archives, folders of images and shards are whole.

    PATHS are archives, class folders, shards, or folders that hold any of them.

    \b
    Archives  size, then MD5 against the published sum, or that of --md5; without
              one every header of the tar and of the tars in it is checked
    Folders   number of images of each class, names against folders and labels,
              and of every image its header and its end; every byte is read
    Shards    size and SHA-256 of every file, every tar header, label and padding
              against the index, the index against itself and the manifest, the
              sums; shard, sample and byte are named where something differs

    \b
      imagenet-prep verify /data/archives
      imagenet-prep verify /data/images --decode
      imagenet-prep verify mine.tar --md5 MD5SUMS
      imagenet-prep verify /data/shards --repair --source /data/archives

    --repair rewrites exactly the files that are missing or damaged, and only where the result is
    proven to be what was there: by a digest that was written down, or sample by sample. Shards
    need --source (and the --labels that they were made with); manifest, sums, files for other
    readers, and as a rule the index, follow from the rest. Killed, the same command goes on.

    What is missing, damaged or altered is named and the command exits with 1; nothing that is
    found ends the check. ILSVRC2012's own oddities are listed and no damage. --json has archives,
    folders, splits (of shards: findings, damaged files, damage by sample and offset, repaired,
    notes), missing (listed in --md5 and not there), ok and seconds.
    """
    from prep.verification.md5sums import NO_SUMS, read_sums
    from prep.verification.shards import ShardChecks
    from prep.verification.verify import verify as run
    from shards.errors import UsageError

    if sources and not repair:
        raise UsageError("--source is what --repair makes shards from; give both")
    started = time.perf_counter()
    with _progress() as progress:
        found = run(
            paths,
            sums=NO_SUMS if md5 is None else read_sums(md5),
            labels=labels,
            decode=decode,
            shards=ShardChecks(deep=deep, repair=repair, sources=sources),
            workers=_threads(workers),
            progress=progress,
        )
    seconds = time.perf_counter() - started
    for line in found.findings:
        _say(f"damaged: {line}")
    for line in found.notes:
        _say(f"note: {line}")
    for split in found.splits:
        for name in split.repaired:
            _say(f"repaired: {split.folder / name}")
    _emit(
        as_json,
        {
            "archives": [vars(each) for each in found.archives],
            "folders": [vars(each) for each in found.folders],
            "splits": [vars(each) for each in found.splits],
            "missing": found.missing,
            "ok": not found.findings,
            "seconds": seconds,
        },
        _verified_lines(found, seconds),
    )
    if found.findings:
        sys.exit(1)


def _verified_lines(found: Verified, seconds: float) -> list[str]:
    """A table for each kind of data, what is odd in it, and the rate."""
    archives = [
        (each.path, each.kind or "-", _megabytes(each.bytes),
         "-" if each.images is None else f"{each.images:,}", each.md5 or "-",
         _result(each.findings, each.checked_by))
        for each in found.archives
    ]  # fmt: skip
    folders = [
        (each.path, each.split or "-", _megabytes(each.bytes), each.classes, each.images,
         _result(each.findings, each.compared, part=each.part))
        for each in found.folders
    ]  # fmt: skip
    shards = [
        (each.folder, each.split, _megabytes(each.bytes), each.files, each.samples,
         _result(each.findings, "the manifest"))
        for each in found.splits
    ]  # fmt: skip
    lines = []
    for columns, rows in (
        (("archive", "kind", "MB", "images", "MD5", "result"), archives),
        (("folder", "split", "MB", "classes", "images", "result"), folders),
        (("shards", "split", "MB", "files", "samples", "result"), shards),
    ):
        lines += _table(columns, rows) if rows else []
    for odd in found.oddities:
        known = "known of ILSVRC2012" if odd.known else "odd"
        count = _count(len(odd.images), "image")
        lines.append(f"{known}: {odd.what}: {count}, {odd.images[0]} first")
    rate = f"{seconds:.1f} s, {found.bytes / 1e6 / seconds:,.0f} MB/s"
    return [*lines, f"{_megabytes(found.bytes)} MB in {rate}"]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _result(findings: Sequence[str], checked_by: str | None, *, part: bool = False) -> str:
    if findings:
        return _count(len(findings), "finding")
    if checked_by is None:
        return "sound"
    return f"sound, a part of {checked_by}" if part else f"whole, by {checked_by}"


@_command(imagenet_prep, "inspect")
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@_labels
@click.option("--preview", type=_PATH, metavar="FILE.png", help="Draw a contact sheet there.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the images that the contact sheet shows.",
)
def inspect(
    paths: tuple[Path, ...], labels: Path | None, preview: Path | None, seed: int, as_json: bool
) -> None:
    """Say what PATHS hold: classes, image sizes, formats, bytes, oddities; of shards their plan.

    PATHS are archives as they lie, folders of images or of archives, or shards. Headers alone are
    read, of shards the index alone, so 50,000 images take seconds. Exits with 1 when an image has
    no sound header, and names it; pixels are not looked at.

    Of shards, and of tars that `index` linked, it also says how they were made: seed, size, what
    was drawn and left out, whether images have their original bytes, fingerprint, other readers.

    --json has an object a split in `splits`, with the number of images of every class, the
    distributions that the table draws and `plan` (null but for shards), and `ok`.
    """
    from prep.inspection.inspect import inspect as run
    from shards.errors import UsageError

    if preview is not None and (preview.suffix.lower() != ".png" or preview.is_dir()):
        raise UsageError(f"--preview {preview}: give the name of a file that ends in .png")
    started = time.perf_counter()
    with _progress() as progress:
        found = list(run(paths, labels=labels, progress=progress))
        if preview is not None:
            from prep.inspection.preview import write_preview

            write_preview(preview, found, seed=seed, progress=progress)
    contents = [each.contents for each in found]
    unreadable = [image for each in contents for image in each.unreadable]
    for line in _first_ten("unreadable", unreadable):
        _say(line)
    lines = [line for each in contents for line in _contents_lines(each)]
    if preview is not None:
        lines.append(f"{preview}: a contact sheet")
    seconds = time.perf_counter() - started
    data = {"splits": contents, "preview": preview, "ok": not unreadable, "seconds": seconds}
    _emit(as_json, data, lines)
    if unreadable:
        sys.exit(1)


def _contents_lines(found: Contents) -> Iterator[str]:
    """What a split holds: a line, a table of sizes, and what else there is to say."""
    where = f"{found.path}: {found.split or 'split unknown'}, {found.form}"
    yield f"{where}, {_count(found.images, 'image')}, {found.bytes / 1e6:,.1f} MB"
    rows = [
        [name, *map(_figure, (each.min, each.median, each.mean, each.max)), _bars(each.counts)]
        for name, each in (
            ("images a class", found.images_a_class),
            ("width", found.width),
            ("height", found.height),
            ("megapixels", found.megapixels),
            ("bytes", found.image_bytes),
        )
        if each is not None
    ]
    for line in _table(("", "min", "median", "mean", "max", "from min to max"), rows):
        yield f"  {line}"
    yield f"  formats: {_counts(found.formats)}; channels: {_counts(found.channels)}"
    if found.classes:
        yield f"  classes: {_classes(found.classes)}"
    if found.labels_missing is not None:
        yield f"  without a label: {_count(found.unlabelled, 'image')}; {found.labels_missing}"
    for odd in found.oddities:
        names = ", ".join(odd.images[:3]) + (", ..." if len(odd.images) > 3 else "")
        known = "known of ILSVRC2012" if odd.known else "odd"
        yield f"  {known}: {odd.what}: {_count(len(odd.images), 'image')} ({names})"
    if found.plan is not None:
        yield from (f"  {line}" for line in _plan_lines(found.plan))


_STORED = {
    None: "as they came, this tool did not write them",
    "keep": "keep, the original bytes",
    "restart": "restart, not the original bytes: the same pixels with restart markers",
    "reencode": "reencode, not the original bytes: other pictures, reduced and encoded anew",
}


def _plan_lines(plan: ShardPlan) -> Iterator[str]:
    """How shards were made, and what else is in their folder."""
    if plan.seed is None:
        what = "class folders" if plan.layout == "folders" else "foreign tars"
        yield f"plan: {what}, linked as they lie; {_classes_planned(plan)}"
    else:
        count, size = plan.samples_per_shard, plan.shard_size
        each = f"{count:,} images" if size is None else f"up to {_megabytes(size)} MB"
        drawn = (
            "all images" if plan.per_class is None else f"at most {plan.per_class:,} images each"
        )
        yield (
            f"plan: shards of this tool, seed {plan.seed}, {each} a shard; {drawn} of "
            f"{_classes_planned(plan)}"
        )
    images = _span(plan.shard_samples, "{:,}".format)
    megabytes = _span(plan.shard_bytes, lambda size: f"{_figure(size / 1e6):,}")
    what = "folders" if plan.layout == "folders" else "shards"
    yield f"{what}: {plan.shards:,}, each of {images} images and {megabytes} MB"
    settings = ((name, value) for name, value in plan.encoder.items() if value is not None)
    yield "; ".join(
        [
            f"jpeg: {_STORED.get(plan.jpeg, plan.jpeg)}",
            *(f"{name.replace('_', ' ')} {value}" for name, value in settings),
        ]
    )
    if plan.kept is not None:
        yield f"kept as they were: {_count(plan.kept, 'image')}"
    names = ", ".join(each["name"] for each in plan.skipped[:3])
    more = ", ..." if len(plan.skipped) > 3 else ""
    yield f"left out: {_count(len(plan.skipped), 'image')}" + (f" ({names}{more})" if names else "")
    yield f"files for other readers: {', '.join(plan.for_readers) or 'none'}"
    yield f"fingerprint: {plan.fingerprint}"


def _classes_planned(plan: ShardPlan) -> str:
    """How many classes, and whether they are a part of ILSVRC2012's."""
    if 0 < plan.known_classes == plan.classes:
        return f"{plan.classes:,} of ILSVRC2012's 1,000 classes"
    return "1 class" if plan.classes == 1 else f"{plan.classes:,} classes"


def _span(span: Range, say: Callable[[int], str]) -> str:
    low, high = say(span.min), say(span.max)
    return low if low == high else f"{low} to {high}"


def _figure(value: float) -> float:
    """A number to three digits or, where it has more, to the whole."""
    return round(value) if value >= 100 or value == round(value) else float(f"{value:.3g}")


def _bars(counts: Sequence[int]) -> str:
    """A distribution in one line, where an empty interval alone is blank."""
    marks = "▁▂▃▄▅▆▇█"
    try:
        marks.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        marks = ".:-=+*%#"
    top = max(counts)
    return "".join(marks[-(-count * 8 // top) - 1] if count else " " for count in counts)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "none"


def _classes(classes: Sequence[ClassCount]) -> str:
    """How many classes, and which have the fewest and the most images."""
    fewest = sorted(classes, key=lambda each: (each.images, each.id))
    most = sorted(classes, key=lambda each: (-each.images, each.id))
    if fewest[0].images == most[0].images:
        return f"{len(classes):,}"
    return f"{len(classes):,}; fewest images: {_first(fewest)}; most: {_first(most)}"


def _first(ranked: Sequence[ClassCount]) -> str:
    """The first three classes by name, unless more of them share the first place."""
    same = sum(each.images == ranked[0].images for each in ranked)
    if same > 3:
        return f"{ranked[0].images:,} ({same:,} classes)"
    return ", ".join(f"{each.name} ({each.id}) {each.images:,}" for each in ranked[:3])


@_command(imagenet_prep, "doctor")
@click.argument("path", type=_PATH, required=False)
def prep_doctor(path: Path | None, as_json: bool) -> None:
    """Say what this machine and the data at PATH have and lack, and what to run next.

    Looks at Python, torch, decoders, cores, memory, limits and cards. With PATH also at its disk
    (which is measured for about two seconds), at the archives, class folders and shards there,
    at what is missing, and at the room, the time and the command of each way to data that can be
    trained on: shards, an index of the archives as they lie, class folders.

    Every line is ok, a note or a problem, with a remedy. Exits with 1 when there is a problem.
    """
    from prep.doctor.examine import examine

    found = examine(path)
    _show_findings(as_json, vars(found), found.findings, found.next)


def _show_findings(
    as_json: bool, data: Mapping[str, object], findings: Sequence[Finding], following: str
) -> None:
    """A doctor's findings and the command to run next; exits with 1 where there is a problem.

    `data` is the JSON object, whose `findings` are written as they are read.
    """
    from shards.finding import Status

    width = max(len(each.what) for each in findings)
    written = [{**vars(each), "status": each.status.value} for each in findings]
    lines = [*(_finding_line(each, width) for each in findings), "", f"next: {following}"]
    _emit(as_json, {**data, "findings": written}, lines)
    if any(each.status is Status.PROBLEM for each in findings):
        sys.exit(1)


def _finding_line(finding: Finding, width: int) -> str:
    """Status, what and found in columns; a remedy stands below, ready to be copied."""
    line = f"{finding.status.value:9}{finding.what:{width}}  {finding.found}"
    return f"{line}\n{'':{11 + width}}-> {finding.remedy}" if finding.remedy else line


# --- resnet -----------------------------------------------------------------------------------

_device = click.option(
    "--device",
    type=click.Choice(["auto", "sdaa", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto tries them in that order and says why.",
)
_amp = click.option(
    "--amp",
    type=click.Choice(["auto", "off", "fp16", "bf16"]),
    help="Mixed precision. auto: fp16 with a gradient scaler on sdaa and cuda, off on the CPU.",
)
_image_size = click.option(
    "--image-size", type=int, help="Side of the crop in pixels.  [default: the recipe's, 224]"
)
_batch_size = click.option(
    "--batch-size", type=int, help="Samples a process and step.  [default: the recipe's, 64]"
)
_loader_threads = click.option(
    "--workers", type=int, help="Decoding threads a process.  [default: its share of the cores]"
)
_shards = click.option(
    "--shards",
    type=_PATH,
    required=True,
    help="Folder of `imagenet-prep shard` or `imagenet-prep index`: train/ and val/; or one with "
    "class folders, which are indexed once.",
)
_nproc = click.option(
    "--nproc", type=click.IntRange(min=1), help="Processes on this machine (instead of --cards)."
)
_cards = click.option(
    "--cards",
    type=click.IntRange(min=1),
    help="Cards of this machine: 4 processes each on sdaa, 1 on cuda.  [default: one]",
)
_nodes = click.option(
    "--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Machines."
)
_node_rank = click.option(
    "--node-rank", type=int, default=0, show_default=True, help="Number of this machine."
)
_master = click.option("--master", help="HOST:PORT of machine 0, for --nodes above 1.")
_join_timeout = click.option(
    "--join-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="How long to wait for machines and processes that do not come.",
)
_affinity = click.option(
    "--affinity",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: each of several processes runs on its own share of the machine's cores.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="imagenet-resnet")
def resnet() -> None:
    """Train and evaluate ResNets from shards, on SDAA cards, CUDA GPUs or the CPU.

    \b
      resnet train --shards /data/shards --model resnet50 --cards 4 --out runs/r50
      resnet eval runs/r50/best.pt --shards /data/shards
      resnet export runs/r50/best.pt --out r50.onnx

    A run that was stopped, killed or finished is gone on with by the same command.
    """
    from training.device import prepare_environment

    prepare_environment()  # before whichever command imports torch


@_command(resnet, "doctor")
@_device
@click.option("--cards", type=click.IntRange(min=1), help="Cards to try.  [default: all]")
@click.option(
    "--nproc", type=click.IntRange(min=1), help="Processes, one a device, to try instead of cards."
)
@_nodes
@_node_rank
@_master
@_join_timeout
@click.option(
    "--report",
    type=_PATH,
    hidden=True,
    help="As a process of the doctor's own: leave what was measured in that folder.",
)
def resnet_doctor(
    device: DeviceRequest,
    cards: int | None,
    nproc: int | None,
    nodes: int,
    node_rank: int,
    master: str | None,
    join_timeout: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Say what is wrong with this machine's devices, and between machines.

    Looks at what `imagenet-prep doctor` does, at SDAA cards most closely: their health, driver,
    toolkit and processes. Then every device multiplies matrices and takes copies, against the
    clock and against the CPU, and all of them add up a tensor together, each in a process of its
    own as in training. Between machines run it on each, with the options of `resnet train`:

    \b
        resnet doctor --nodes 2 --node-rank K --master HOST:29500

    Every line is ok, a note or a problem, with a remedy. Exits with 1 when there is a problem.
    """
    from training.doctor.examine import Asked, examine_devices, take_part

    asked = Asked(
        device=device,
        cards=cards,
        nproc=nproc,
        nodes=nodes,
        node_rank=node_rank,
        master=master,
        join_seconds=join_timeout,
    )
    if report is not None:
        _take_place("auto", join_timeout)
        take_part(asked, report)
        return
    from prep.doctor.examine import examine
    from prep.doctor.sdaa import sdaa_cards

    machine = examine(None).findings  # before our own processes hold the cards
    found = examine_devices(asked, before=machine, cards_there=len(sdaa_cards()))
    _show_findings(as_json, vars(found), found.findings, found.next)


def _settings(function: Function) -> Function:
    """Options that set single values of the recipe, and --config, which can set all of them."""
    texts: dict[str, tuple[object, str]] = {
        "--optimizer": (click.Choice(["sgd", "lars", "lamb"]), "lars, lamb: timm's."),
        "--momentum": (float, ""),
        "--weight-decay": (float, ""),
        "--schedule": (
            click.Choice(["cosine-by-epoch", "cosine", "step", "poly", "triangular"]),
            "Form of the learning rate after warm-up.",
        ),
        "--warmup-epochs": (int, "All of them, instead of the recipe's."),
        "--label-smoothing": (float, ""),
        "--mixup": (float, "Alpha; 0 for none. With --cutmix too, a batch gets one of the two."),
        "--cutmix": (float, "Alpha; 0 for none."),
        "--rand-augment": (float, "Magnitude, 0 to 10, of timm's rand-m...-mstd0.5-inc1."),
        "--ema-decay": (float, "Average the weights with this decay a step, as 0.9999."),
        "--eval-size": (int, "Pixels a side of the evaluation crop."),
    }
    for option, (kind, text) in reversed(texts.items()):
        said = f"{text}  [default: the recipe's]".strip()
        function = click.option(option, type=kind, help=said)(function)
    return click.option(
        "--config",
        "config_file",
        type=_PATH,
        metavar="FILE.toml",
        is_eager=True,
        callback=_read_config,
        help="Take options and any value of the recipe from FILE, by their names, as `lr = 0.5`. "
        "The command line goes before it.",
    )(function)


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> dict[str, object]:
    """The recipe's values in a file; options that are in it become these options' defaults."""
    if path is None or ctx.resilient_parsing:
        return {}
    from shards.errors import ToolError
    from training.config_file import read_config

    options = {
        str(each.name): _kind(each)
        for each in ctx.command.params
        if isinstance(each, click.Option)
        and each.expose_value
        and each.name not in ("config_file", "as_json")
    }
    try:
        values = read_config(path, options)
    except ToolError as error:
        _report(error)
        ctx.exit(error.exit_code)
    ctx.default_map = {name: value for name, value in values.items() if name in options}
    return {name: value for name, value in values.items() if name not in options}


def _kind(option: click.Option) -> type:
    """What an option's value is in a file."""
    if option.is_flag:
        return bool
    if isinstance(option.type, click.types.IntParamType):
        return int
    return float if isinstance(option.type, click.types.FloatParamType) else str


@_command(resnet, "recipes")
@click.argument("name", required=False)
def recipes(name: str | None, as_json: bool) -> None:
    """Show the recipes, or every value of the recipe NAME and where it is from.

    Any of these values can be set otherwise: by options of `resnet train`, or in a file of its
    option --config. The cost is in epochs of 224 x 224 pixels. What was published is what the
    sources report; none of it was trained again here.
    """
    from training.recipes import RECIPES, find_recipe, recipe_values

    chosen = RECIPES.values() if name is None else [find_recipe(name)]
    data = [
        {
            **recipe_values(each),
            "source": each.source,
            "published": dict(each.published),
            "remarks": each.remarks,
            "notes": dict(each.notes),
            "eq224": each.eq224,
        }
        for each in chosen
    ]
    lines = _recipe_table(chosen) if name is None else _recipe_lines(find_recipe(name))
    _emit(as_json, {"recipes": data} if name is None else data[0], lines)


def _recipe_table(chosen: Iterable[Recipe]) -> list[str]:
    rows = [
        (
            each.name,
            ", ".join(f"{model} {top1:g}" for model, top1 in each.published) or "none",
            each.epochs,
            f"{each.eq224:.1f}",
            each.optimizer,
            f"{each.size_at(0, each.epochs)}-{each.image_size}"
            if each.start_size
            else str(each.image_size),
            each.eval_size,
            each.remarks,
        )
        for each in chosen
    ]
    columns = ("recipe", "published top-1, %", "epochs", "cost", "by", "train", "eval", "remarks")
    return _table(columns, rows)


def _recipe_lines(recipe: Recipe) -> list[str]:
    from training.recipes import recipe_values

    notes = dict(recipe.notes)
    published = ", ".join(f"{model} {top1:g} %" for model, top1 in recipe.published)
    rows = [
        (name, json.dumps(value), notes.get(name, ""))  # as in a file of --config
        for name, value in recipe_values(recipe).items()
        if name != "name"
    ]
    return [
        f"{recipe.name}: {recipe.source}",
        f"published  {published or 'nothing'}: {recipe.remarks}",
        f"cost       {recipe.eq224:.1f} epochs of 224 x 224 pixels",
        "",
        *_table(("value", "is", "not of that source, or to know"), rows),
    ]


@_command(resnet, "train", _TrainCommand)
@click.option(
    "--shards",
    required=True,
    help="Folder of `imagenet-prep shard` or `imagenet-prep index`: train/ and val/; or one with "
    "class folders, which are indexed once. With --steps-per-epoch shards without an index: "
    "'DIR/x-{000..099}.tar', 'pipe:COMMAND', -.",
)
@click.option(
    "--steps-per-epoch",
    type=int,
    help="Train from shards without an index, inexactly: they are drawn with replacement, and so "
    "many steps are an epoch.",
)
@click.option(
    "--val",
    type=_PATH,
    help="With --steps-per-epoch: the folder that has val/, for evaluation and the classes.",
)
@click.option(
    "--label-field",
    help="With --steps-per-epoch: the label's field in each sample's .json.  [default: .cls]",
)
@click.option("--out", type=_PATH, help="The run's folder.  [default: runs/MODEL]")
@click.option("--model", default="resnet50", show_default=True, help="resnet18, 34, 50, 101, 152.")
@click.option(
    "--stem",
    type=click.Choice(["imagenet", "small"]),
    default="imagenet",
    show_default=True,
    help="How the network begins; small is for pictures of about 32 pixels.",
)
@click.option(
    "--init-weights",
    type=_PATH,
    metavar="FILE",
    help="Begin with weights of torchvision, timm, the vendor's trainer or another run.",
)
@click.option(
    "--recipe",
    default="seed",
    show_default=True,
    help="Values to start from; `resnet recipes` shows them.",
)
@_settings
@click.option("--epochs", type=int, help="[default: the recipe's, 50 in seed]")
@_batch_size
@click.option(
    "--lr",
    type=float,
    help="Peak learning rate for the global batch, never rescaled.  [default: the recipe's, 0.256 "
    "x global batch / 256 in seed]",
)
@_image_size
@_device
@_amp
@_cards
@_nproc
@_nodes
@_node_rank
@_master
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    help="When a process is killed or crashes, start all of them again from the last checkpoint, "
    "so many times.  [default: 3 with several processes]",
)
@_join_timeout
@click.option(
    "--grace",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=120.0,
    show_default=True,
    help="Time that several processes have to save and end after SIGTERM or SIGUSR1.",
)
@_affinity
@click.option(
    "--resume",
    default="auto",
    show_default=True,
    help="auto goes on from the run's last whole checkpoint; never; or a checkpoint's path.",
)
@click.option("--seed", type=int, default=1234, show_default=True, help="Of order and weights.")
@_loader_threads
@click.option("--max-steps", type=int, help="Stop, saved, after so many steps of the run.")
@click.option("--save-steps", type=int, help="Also save every so many steps.  [default: epochs]")
@click.option("--save-minutes", type=float, help="Also save whenever so many are over.")
@click.option("--keep", type=int, default=3, show_default=True, help="Checkpoints to keep.")
@click.option("--log-every", type=int, default=20, show_default=True, help="Steps a log line.")
@click.option(
    "--max-time",
    metavar="MINUTES|HH:MM:SS",
    help="Stop, saved, after that long, with exit code 75; the same command goes on.",
)
@click.option("--patience", type=int, help="End after so many epochs without a better top-1.")
@click.option(
    "--accumulate",
    type=int,
    default=1,
    show_default=True,
    help="Compute each process's share of a step in so many parts, to need less memory.",
)
@click.option("--compile", is_flag=True, help="Compile the network (torch.compile).")
@click.option(
    "--deterministic", is_flag=True, help="The same bits again on the same device; slower."
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["abort", "skip", "rollback"]),
    default="abort",
    show_default=True,
    help="When the loss is no number: stop; skip such steps (waits for the device in each step); "
    "or go back to the last checkpoint and leave out the steps since the last log line.",
)
@click.option("--tensorboard", is_flag=True, help="Write OUT/tensorboard too (extra tensorboard).")
@click.option("--profile", type=_PATH, metavar="DIR", help="Write a torch.profiler trace there.")
def train(
    shards: str,
    steps_per_epoch: int | None,
    val: Path | None,
    label_field: str | None,
    out: Path | None,
    model: str,
    stem: Stem,
    init_weights: Path | None,
    recipe: str,
    config_file: dict[str, object],
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    image_size: int | None,
    device: DeviceRequest,
    amp: AmpRequest | None,
    cards: int | None,
    nproc: int | None,
    nodes: int,
    node_rank: int,
    master: str | None,
    max_restarts: int | None,
    join_timeout: float,
    grace: float,
    affinity: Affinity,
    resume: str,
    seed: int,
    workers: int | None,
    max_steps: int | None,
    save_steps: int | None,
    save_minutes: float | None,
    keep: int,
    log_every: int,
    max_time: str | None,
    patience: int | None,
    accumulate: int,
    compile: bool,  # noqa: A002 - as the option is called
    deterministic: bool,
    on_nonfinite: OnNonfinite,
    tensorboard: bool,
    profile: Path | None,
    as_json: bool,
    **settings: object,
) -> None:
    """Train a ResNet from shards; evaluate exactly after every epoch.

    \b
    One card (4 SPAs: 4 processes)   resnet train --shards DIR --cards 1
    Four, eight cards                resnet train --shards DIR --cards 4
    Two machines                     on each, with its own number K:
        resnet train --shards DIR --cards 4 --nodes 2 --node-rank K --master HOST:29500

    The run's folder gets checkpoints, best.pt, last.pt and log.jsonl (one object a line). Killed
    or stopped, the same command goes on with exactly the samples that are left. SIGTERM and
    SIGUSR1 stop it after a step, saved, with exit code 75; a second one ends it at once.

    Options of the vendor's run_resnet.py (--model_name, --dataset_path, ...) are taken as well.
    """
    from training.config import minutes_of, resolve
    from training.processes import processes_here, world_size

    share = _take_place(affinity, join_timeout)
    processes = processes_here(device, cards, nproc)
    folder = _folder_to_train_on(shards, steps_per_epoch, val, label_field)
    config = resolve(
        shards=folder,
        stream=None if steps_per_epoch is None else shards,
        steps_per_epoch=steps_per_epoch,
        label_field=label_field,
        out=out or Path("runs") / model,
        world=world_size(processes, nodes),
        threads=workers or share,
        model=model,
        stem=stem,
        init_weights=init_weights,
        recipe=recipe,
        settings=config_file | {name: each for name, each in settings.items() if each is not None},
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        image_size=image_size,
        amp=amp or "auto",
        seed=seed,
        device=device,
        max_steps=max_steps,
        log_every=log_every,
        save_steps=save_steps,
        save_minutes=save_minutes,
        max_minutes=None if max_time is None else minutes_of(max_time),
        patience=patience,
        accumulate=accumulate,
        compile=compile,
        deterministic=deterministic,
        on_nonfinite=on_nonfinite,
        tensorboard=tensorboard,
        profile=profile,
        keep=keep,
        resume="auto" if resume == "auto" else "never" if resume == "never" else Path(resume),
    )
    splits = ("train", "val") if steps_per_epoch is None else ("val",)
    config = dataclasses.replace(config, shards=_with_index(folder, splits))
    _launch_if_several(
        processes,
        nodes=nodes,
        node_rank=node_rank,
        master=master,
        max_restarts=max_restarts,
        join_seconds=join_timeout,
        grace=grace,
    )
    from training.trainer import train as run

    with _progress() as progress:
        result = run(config, progress=progress, on_record=partial(_show, progress))
    if not result.is_main:
        return
    lines = [f"{result.last_checkpoint}: {result.epoch} of {config.epochs} epochs, {result.reason}"]
    if result.best is not None:
        lines.append(
            f"{result.best_checkpoint}: top-1 {result.best.top1:.2f} % (epoch {result.best.epoch})"
        )
    _emit(as_json, vars(result), [*lines, f"{result.log}: metrics, one JSON object a line"])


def _folder_to_train_on(
    shards: str, steps_per_epoch: int | None, val: Path | None, label_field: str | None
) -> Path:
    """The folder of the splits that have an index; of shards without one, that of val/."""
    from shards.errors import UsageError

    if steps_per_epoch is not None:
        if val is None:
            raise UsageError(
                "shards without an index need --val DIR, a folder of `imagenet-prep shard` or "
                "`imagenet-prep index` with val/: it names the classes, and evaluation is exact"
            )
        return val
    if val is not None or label_field is not None:
        raise UsageError(
            "--val and --label-field are for --steps-per-epoch; a folder of shards has its val/ "
            "and its labels"
        )
    if not Path(shards).is_dir() and (shards == "-" or shards.endswith(".tar") or ":" in shards):
        raise UsageError(
            f"{shards} has no index: `imagenet-prep index '{shards}' --out DIR` makes one, for "
            "--shards DIR, or give --steps-per-epoch and --val to train without, inexactly"
        )
    return Path(shards)


def _with_index(shards: Path, splits: Sequence[str]) -> Path:
    """The folder of finished splits: that of the shards, or an index of class folders.

    That is made here when there is none, before processes are started: each of them finds it.
    """
    from prep.folders import cache_place, find_folders, keep_index
    from shards.manifest import Manifest

    sources = find_folders(shards, splits)
    if not sources:
        for split in splits:
            Manifest.read(shards / split)
        return shards
    place = cache_place(shards)
    with _progress() as progress:
        counts = keep_index(sources, splits, place, workers=_threads(None), progress=progress)
    if _speaks_first():
        beside = f"{shards.absolute()}-shards"
        command = shlex.join(["imagenet-prep", "shard", str(shards), "--out", beside])
        _say(
            f"note: {shards} holds {_count(sum(counts.values()), 'image')} in class folders, which "
            f"are read one by one by the index in {place}; shards are easier on disks and copied "
            f"faster, and a run goes on with them: `{command}`"
        )
    return place


def _take_place(affinity: Affinity, join_seconds: float) -> int:
    """What a process of a launch does before anything else; the threads that it is to use."""
    from training.affinity import settle
    from training.children import follow_launcher
    from training.launch import JOIN_VARIABLE
    from training.place import place_of

    follow_launcher()
    os.environ[JOIN_VARIABLE] = str(join_seconds)
    return settle(place_of(os.environ), affinity)


def _launch_if_several(
    processes: int, *, nodes: int = 1, max_restarts: int | None = 0, **options: Any
) -> None:
    """Start this command once for each process and exit, unless this is one of them already."""
    from training.launch import RESTARTS, launch

    if _joined_a_launch() or (processes * nodes == 1 and not max_restarts):
        return
    restarts = RESTARTS if max_restarts is None else max_restarts
    try:
        code = launch(
            sys.argv[1:], nproc=processes, nodes=nodes, max_restarts=restarts, say=_say, **options
        )
    finally:
        if sys.stderr.isatty():  # a process that was killed may have left the cursor hidden
            click.echo("\x1b[?25h", nl=False, err=True)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    click.get_current_context().exit(code)


def _show(progress: Progress, record: dict[str, Any]) -> None:
    """Tell what a reader of the log would look for: the plan, and each epoch's result."""
    if record["kind"] == "step" and isinstance(progress, _LiveProgress):
        progress.beside = f", loss {record['loss']:.4f}, lr {record['lr']:.4g}"
    if record["kind"] == "start":
        _say(f"device: {record['device']} ({record['device_reason']}), {record['precision']}")
        if record["resumed_from"] is not None:
            _say(f"goes on from: {record['resumed_from']}")
        for name, value in record["plan"].items():
            _say(f"{name.replace('_', ' ')}: {_plain(value)}")
    if record["kind"] == "eval":
        _say(
            f"epoch {record['epoch']}: top-1 {record['top1']:.2f} %, top-5 {record['top5']:.2f} %, "
            f"loss {record['loss']:.4f}" + (", the best so far" if record["best"] else "")
        )


def _plain(value: object) -> str:
    """A value of the plan: the corners of the learning rate as `epoch 6: 0.032`."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return ", ".join(f"epoch {epoch}: {lr:.4g}" for epoch, lr in value)
    return str(value)


_engine = click.option(
    "--engine",
    "engines",
    type=click.Choice(["auto", "torch", "onnxruntime", "teco"]),
    multiple=True,
    help="What computes: auto is onnxruntime for .onnx and torch for all else; teco is the "
    "vendor's inference engine. Of two models each may have its own: give it twice.",
)


def _model_options(function: Function) -> Function:
    """How a saved model is asked, and on what; None is as it was trained."""
    options = (
        click.option(
            "--image-size", "--crop", type=int, help="Crop in pixels.  [default: its own]"
        ),
        click.option(
            "--resize",
            type=int,
            help="Short side before the crop.  [default: its own, as 256 of 224]",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(["bilinear", "bicubic"]),
            help="Of the resize, antialiased.  [default: its own, else bilinear]",
        ),
        click.option(
            "--ema/--no-ema",
            default=None,
            help="Averaged weights of a checkpoint, or not.  [default: where it has any]",
        ),
        click.option(
            "--model", "network", help="Network of weights that do not tell it: resnet50."
        ),
        _device,
        _amp,
        _loader_threads,
    )
    for option in reversed(options):
        function = option(function)
    return function


def _how(threads: int, batch_size: int | None, options: Mapping[str, Any]) -> How:
    """What `_model_options` took."""
    from training.results.evaluation import How
    from training.results.saved import View

    names = ("image_size", "resize", "interpolation")
    return How(
        threads=threads,
        device=options["device"],
        batch_size=batch_size,
        amp=options["amp"],
        view=View(**{name: options[name] for name in names}),
        ema=options["ema"],
        model=options["network"],
    )


@_command(resnet, "eval")
@click.argument("models", metavar="MODEL [OTHER]", type=_PATH, nargs=-1, required=True)
@_shards
@_engine
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Samples a process.  [default: as trained, 64]"
)
@_model_options
@_cards
@_nproc
@_join_timeout
@_affinity
@click.option(
    "--per-class", is_flag=True, help="Show the worst classes and what they are taken for."
)
@click.option(
    "--save-predictions",
    type=_PATH,
    metavar="FILE",
    help="Write key, label and the best five classes of every image, a JSON line each.",
)
def evaluate(
    models: tuple[Path, ...],
    shards: Path,
    engines: tuple[EngineRequest, ...],
    batch_size: int | None,
    cards: int | None,
    nproc: int | None,
    join_timeout: float,
    affinity: Affinity,
    per_class: bool,
    save_predictions: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate MODEL on every image of DIR/val, exactly; or compare it with OTHER.

    \b
      resnet eval runs/r50/best.pt --shards /data/shards
      resnet eval resnet50.pth --shards /data/shards --per-class
      resnet eval r50.onnx runs/r50/best.pt --shards /data/shards

    MODEL is a checkpoint of `resnet train`, a state dict of torchvision, timm or the vendor's
    trainer (.pt, .pth, .safetensors), or an ONNX file. Each image is counted once at any number of
    processes: nothing is padded, nothing dropped.

    Two models are asked about the same pictures. Exits with 1 where their top-1 differs by more
    than the vendor accepts: 1 % of it, or 0.1 % between its engine and onnxruntime.
    """
    from shards.errors import UsageError
    from training.processes import processes_here

    share = _take_place(affinity, join_timeout)
    if len(models) > 2 or len(engines) > len(models):
        raise UsageError(
            "eval takes one model, or two to compare, and at most one --engine for each"
        )
    if save_predictions is not None and len(models) > 1:
        raise UsageError("--save-predictions is for one model; evaluate each by itself")
    processes = processes_here(options["device"], cards, nproc or (None if cards else 1))
    shards = _with_index(shards, ("val",))
    _launch_if_several(processes, join_seconds=join_timeout)
    from shards.durable import check_writable
    from training.results.evaluation import evaluate_saved
    from training.results.predictions import write_predictions

    if save_predictions is not None:
        check_writable(save_predictions)
    auto: EngineRequest = "auto"
    requests = [*engines, *[auto] * len(models)]
    with _progress() as progress:
        results = evaluate_saved(
            list(zip(models, requests, strict=False)),
            shards / "val",
            _how(options["workers"] or share, batch_size, options),
            keep_answers=per_class or save_predictions is not None,
            progress=progress,
        )
    if not results.world.is_main:
        return
    if save_predictions is not None:
        write_predictions(save_predictions, results, results.models[0])
    _show_results(results, save_predictions, per_class=per_class, as_json=as_json)


def _show_results(
    results: Results, predictions: Path | None, *, per_class: bool, as_json: bool
) -> None:
    """What an evaluation found; exits with 1 where two models do not agree."""
    from training.results.agreement import agreement_of
    from training.results.by_class import by_class

    first = results.models[0]
    data: dict[str, object] = {
        **_result_data(first),
        "image_size": results.transform.image_size,
        "short_side": results.transform.resize,
        "interpolation": results.transform.interpolation,
        "device": str(results.device.torch_device),
        "device_reason": results.device.reason,
        "world": results.world.size,
        **_spent_data(results),
    }
    lines = [line for each in results.models for line in _result_lines(each)]
    lines.append(_spent_line(results))
    if per_class and first.answers is not None:
        found = by_class(first.answers, results.labels, results.classes, results.class_names)
        data["per_class"] = [{**vars(each), "top1": each.top1, "top5": each.top5} for each in found]
        lines += ["", *_class_lines(found, results.class_names)]
    if predictions is not None:
        data["predictions"] = predictions
        lines.append(f"{predictions}: the answers, a JSON line an image")
    agreement = agreement_of(results) if len(results.models) > 1 else None
    if agreement is not None:
        data["other"] = _result_data(results.models[1])
        data["agreement"] = {
            **vars(agreement),
            "error": _finite(agreement.error),
            "within": agreement.within,
        }
        lines += ["", *_agreement_lines(results, agreement)]
    _emit(as_json, data, lines)
    if agreement is not None and not agreement.within:
        click.get_current_context().exit(1)


def _result_data(result: Result) -> dict[str, object]:
    """One model's evaluation, and what it is, for JSON."""
    saved, found = result.saved, result.evaluation
    return {
        "evaluation": {
            **vars(found),
            "loss": _finite(found.loss),
            "top1": found.top1,
            "top5": found.top5,
        },
        "path": saved.path,
        "form": saved.form,
        "what": saved.said,
        "model": saved.model,
        "epoch": saved.epoch,
        "engine": result.engine,
        "precision": result.precision,
    }


def _result_lines(result: Result) -> Iterator[str]:
    found = result.evaluation
    yield (
        f"{result.saved.path}: top-1 {found.top1:.2f} % ({found.top1_count} of {found.samples}), "
        f"top-5 {found.top5:.2f} %, loss {found.loss:.4f}"
    )
    yield f"  {result.saved.said}; {result.engine}, {result.precision}"


def _spent_data(results: Results) -> dict[str, object]:
    spent = results.spent
    return {
        **vars(spent),
        "device_seconds": spent.device_seconds,
        "images_per_second": len(results.labels) / spent.seconds,
    }


def _spent_line(results: Results) -> str:
    """Where the time went: of this process, where there are several."""
    spent, transform = results.spent, results.transform
    return (
        f"  {transform.image_size} px of {transform.resize} px ({transform.interpolation}) on "
        f"{results.device.torch_device}; {_rate(len(results.labels), spent.seconds)}: "
        f"{spent.device_seconds:.1f} s computing, {spent.wait_seconds:.1f} s waiting for pictures "
        f"({spent.decode_seconds:.1f} s of decoding by {_count(spent.threads, 'thread')})"
    )


def _class_lines(found: Sequence[ClassResult], names: Sequence[str]) -> list[str]:
    """The worst classes and what each is taken for most."""
    rows = [
        (
            each.name,
            f"{each.top1:.1f} %",
            f"{each.top5:.1f} %",
            each.samples,
            ", ".join(f"{names[other]} {times}" for other, times in each.confused[:3]),
        )
        for each in found[:_WORST]
    ]
    title = f"the worst {len(rows)} of {len(found):,} classes (--json has all):"
    return [title, *_table(("class", "top-1", "top-5", "images", "taken for"), rows)]


def _agreement_lines(results: Results, agreement: Agreement) -> list[str]:
    reference = results.models[agreement.reference]
    other = results.models[1 - agreement.reference]
    names = results.class_names
    rows = [
        (
            each.key,
            *(names[index] for index in (each.label, each.first, each.second)),
            _difference(each.logit),
        )
        for each in agreement.differing[:_DIFFERING]
    ]
    kept = "within" if agreement.within else "OUT OF"
    share = 100 * agreement.same_top1 / agreement.samples
    largest = _difference(agreement.largest_difference)
    lines = [
        (
            f"equal top-1: {agreement.same_top1} of {agreement.samples} images ({share:.2f} %), "
            f"largest difference of a logit {largest}"
        ),
        (
            f"{other.engine} against {reference.engine}: top-1 differs by {agreement.error:.3%} of "
            f"it, {kept} the {agreement.allowed:.1%} that the vendor accepts"
        ),
    ]
    if rows:
        lines += ["", *_table(("differs", "is", "first", "second", "by"), rows)]
    if len(agreement.differing) > len(rows):
        lines.append(f"and {len(agreement.differing) - len(rows)} more (--json has all)")
    return lines


def _difference(logits: float | None) -> str:
    return "not finite" if logits is None else f"{logits:.2g}"


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


@_command(resnet, "predict")
@click.argument("model", type=_PATH)
@click.argument("images", metavar="IMAGE|DIR|-...", type=_PATH, nargs=-1, required=True)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown."
)
@click.option(
    "--sheet", type=_PATH, metavar="FILE.png", help="Draw the pictures with their answers there."
)
@click.option("--exif", is_flag=True, help="Turn pictures as their EXIF says; evaluations do not.")
@click.option(
    "--classes",
    type=_PATH,
    help="Class ids, one a line in the order of the logits, for a model that names none.  "
    "[default: ILSVRC2012's, for 1000 logits]",
)
@click.option(
    "--labels",
    type=_PATH,
    help="What the pictures are, as `imagenet-prep shard --labels` takes it.  [default: by the "
    "name of their folder, or their own]",
)
@_engine
@click.option("--batch-size", type=click.IntRange(min=1), help="Pictures at a time.")
@_model_options
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
    if sheet is not None:
        check_writable(sheet)
    how = _how(_threads(options["workers"]), batch_size, options)
    paths = find_pictures(images)
    opened = open_saved(model, view=how.view, ema=how.ema, model=how.model)
    saved = _with_classes(opened, classes)
    given = _standard_input() if STANDARD_INPUT in paths else b""
    engine = engines[0] if engines else "auto"
    with _progress() as progress:
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
    _say(f"note: {saved.path} names no classes; its 1000 are taken for ILSVRC2012's (--classes)")
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
            {"class": index, "name": saved.class_name(index), "probability": _finite(chance)}
            for index, chance in each.prediction.top[:top]
        ]
        pictures.append(
            {"path": path, "top": answers, "known": each.known, "known_name": name}
            | ({} if problem is None else {"problem": problem})
        )
        if problem is not None:
            _say(f"error: {path}: {problem}")
        for place, (index, chance) in enumerate(each.prediction.top[:top]):
            first = (path, name or "") if place == 0 else ("", "")
            rows.append((first[0], saved.class_name(index), f"{100 * chance:.1f} %", first[1]))
    columns: Sequence[str] = ("picture", "class", "probability", "is")
    if not any(each.known is not None for each in shown):
        columns, rows = columns[:3], [row[:3] for row in rows]
    lines = _table(columns, rows) if rows else []
    if sheet is not None:
        lines.append(f"{sheet}: {_count(len(shown), 'picture')}")
    _emit(as_json, {"model": saved.path, "pictures": pictures, "sheet": sheet}, lines)


@_command(resnet, "export")
@click.argument("model", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="The file to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "state-dict", "safetensors"]),
    help="[default: by --out: .pt and .pth are a state dict, .safetensors, else onnx]",
)
@click.option("--opset", type=int, default=12, show_default=True, help="ONNX: 9 to 20.")
@click.option("--batch", type=int, default=1, show_default=True, help="ONNX: fixed batch size.")
@click.option("--dynamic-batch", is_flag=True, help="ONNX: leave the batch size open.")
@click.option("--fp16", is_flag=True, help="ONNX: float16 weights, input and output.")
@click.option("--keep-io-types", is_flag=True, help="With --fp16: float32 input and output.")
@click.option("--input-name", default="input", show_default=True, help="ONNX: name of the input.")
@click.option(
    "--ema/--no-ema",
    default=None,
    help="Averaged weights, or those that were trained.  [default: what the best result was "
    "measured with]",
)
@click.option("--model", "network", help="Network of weights that do not tell it: resnet50, ...")
@click.option("--image-size", type=int, help="Side of the pictures.  [default: as evaluated]")
@click.option(
    "--shards", type=_PATH, help="ONNX: compare with torch on images of DIR/val, not on noise."
)
@click.option(
    "--images", type=click.IntRange(min=1), default=64, show_default=True, help="So many of them."
)
def export(
    model: Path,
    out: Path,
    form: str | None,
    opset: int,
    batch: int,
    dynamic_batch: bool,
    fp16: bool,
    keep_io_types: bool,
    input_name: str,
    ema: bool | None,
    network: str | None,
    image_size: int | None,
    shards: Path | None,
    images: int,
    as_json: bool,
) -> None:
    """Write MODEL for other programs: as ONNX, a state dict of torch, or safetensors.

    \b
      resnet export runs/r50/best.pt --out r50.onnx --shards /data/shards
      resnet export runs/r50/best.pt --out r50.onnx --fp16 --dynamic-batch
      resnet export runs/r50/best.pt --out r50.safetensors

    MODEL is a checkpoint, or weights of torchvision, timm or the vendor's trainer. ONNX takes
    normalised RGB (batch, 3, S, S) as `input` and gives logits as `output`, batch norm folded in,
    in one file that the vendor's engine reads; before it appears onnxruntime and torch must agree.
    Weights have torchvision's names. Class names, normalisation, resize and crop are in the
    metadata of ONNX and safetensors. Needs the extra `export`.
    """
    from shards.durable import check_writable
    from shards.errors import UsageError
    from training.export import OnnxOptions, export_onnx
    from training.export_weights import export_weights, format_of
    from training.results.saved import View, open_saved

    chosen = format_of(out) if form is None else form
    options = OnnxOptions(
        opset=opset,
        batch=batch,
        dynamic_batch=dynamic_batch,
        fp16=fp16,
        keep_io_types=keep_io_types,
        input_name=input_name,
    )
    if chosen == "onnx":
        options.check()
    elif options != OnnxOptions() or shards is not None:
        raise UsageError(
            "--opset, --batch, --dynamic-batch, --fp16, --keep-io-types, --input-name and --shards "
            f"are for ONNX, not for {chosen}; leave them out, or give --format onnx"
        )
    check_writable(out)
    if shards is not None:
        shards = _with_index(shards, ("val",))
    saved = open_saved(model, view=View(image_size=image_size), ema=ema, model=network)
    if saved.onnx is not None:
        raise UsageError(f"{model} is ONNX already; give the checkpoint that it was made from")
    if chosen == "onnx":
        written = export_onnx(
            saved,
            out,
            options=options,
            split=None if shards is None else shards / "val",
            images=images,
            threads=_threads(None),
        )
        _emit(as_json, vars(written), _export_lines(written))
        return
    weights = export_weights(saved, out, "safetensors" if chosen == "safetensors" else "state-dict")
    line = f"{out}: {weights.said}, {weights.tensors} tensors, {weights.bytes / 1e6:.1f} MB"
    _emit(as_json, vars(weights), [line])


def _export_lines(written: ExportReport) -> list[str]:
    batch = "any batch" if written.batch is None else f"batch {written.batch}"
    lines = [
        f"{written.out}: {written.said}, {written.image_size} px, {batch}, {written.input_type} in",
        f"opset {written.opset}, IR version {written.ir_version}, {written.bytes / 1e6:.1f} MB",
    ]
    found = written.agreement
    if found is None:
        return [*lines, "not compared with torch: onnxruntime is not installed"]
    what = "images" if found.real else "pictures of noise (give --shards for real ones)"
    lines.append(
        f"onnxruntime against torch: {found.same_top1} of {found.pictures} {what} with equal "
        f"top-1, largest difference of a logit {found.largest_difference:.2g} of "
        f"{found.largest_logit:.3g}"
    )
    return lines + _first_ten("with another top-1", found.different)


@_command(resnet, "info")
@click.argument("path", type=_PATH)
def info(path: Path, as_json: bool) -> None:
    """Say what a checkpoint, a run's folder, weights or an ONNX file holds.

    Model, epochs, best result, data, configuration and versions; for a run also its history.
    Made for files of any origin: nothing in them is executed, and no device is used.
    """
    from training.info import describe

    found = describe(path)
    lines = {"weights": _weights_lines, "onnx": _onnx_lines}.get(found["kind"], _checkpoint_lines)
    _emit(as_json, found, lines(found))


def _checkpoint_lines(found: dict[str, Any]) -> list[str]:
    best, position, config = found["best"], found["position"], found["config"]
    averaged = ", averaged weights too" if found["averaged_weights"] else ""
    step = f" and {position['step']} steps" if position["step"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    digests = ", ".join(
        f"{split} {str(found['data'].get(split))[:12]}" for split in ("train", "val")
    )
    lines = [
        f"checkpoint  {found['checkpoint']} ({found['bytes'] / 1e6:.1f} MB)",
        f"model       {found['model']}, {found['parameters']:,} parameters{averaged}",
        f"trained     {position['epoch']} of {config['epochs']} epochs{step}",
        f"recipe      {found['recipe']}, {config['image_size']} px, lr {config['lr']}",
        f"batch       {config['global_batch']}",
        f"data        {config['shards']}, {found['classes']} classes ({digests})",
        f"versions    {versions}",
    ]
    if best is not None:
        lines.append(
            f"best        top-1 {best['top1']:.2f} % ({best['top1_count']} of {best['samples']}) "
            f"after epoch {best['epoch']}"
            + (", averaged weights" if best["weights"] == "ema" else "")
        )
    if found["kind"] == "run":
        lines.append(f"best file   {found['best_checkpoint']}")
        lines.append(f"metrics     {found['log']}")
        lines.append(f"state       {found['state']}, {found['hours']:.2f} hours")
        if found["images_per_second"] is not None:
            lines.append(f"rate        {found['images_per_second']:,.0f} images/s in training")
    return lines


def _weights_lines(found: dict[str, Any]) -> list[str]:
    return [
        f"weights     {found['file']} ({found['bytes'] / 1e6:.1f} MB), no checkpoint of ours",
        f"layout      {found['layout']}, {found['tensors']} tensors, {', '.join(found['types'])}",
        f"model       {found['model'] or 'unknown'}, {found['parameters']:,} parameters",
        f"classes     {found['classes']}",
    ]


def _onnx_lines(found: dict[str, Any]) -> list[str]:
    batch = "any batch" if found["batch"] is None else f"batch {found['batch']}"
    size = "any size" if found["image_size"] is None else f"{found['image_size']} px"
    return [
        f"ONNX        {found['file']} ({found['bytes'] / 1e6:.1f} MB), by {found['producer']}",
        f"format      opset {found['opset']}, IR version {found['ir_version']}",
        f"input       {found['input']}: {found['type']}, {batch}, {size}",
        f"output      {found['output']}: {found['classes'] or 'any number of'} logits",
        f"model       {found['model'] or 'unknown'}, "
        + (f"{found['class_names']} class names" if found["class_names"] else "no class names"),
        f"resize      short side {found['resize'] or 'unknown'}, {found['interpolation']}",
        f"normalise   mean {found['mean']}, std {found['std']}",
    ]


@_command(resnet, "report")
@click.argument("runs", metavar="RUN...", type=_PATH, nargs=-1, required=True)
@click.option("--out", type=_PATH, required=True, help="The page to write, FILE.html.")
@click.option("--png", type=_PATH, metavar="FILE.png", help="Draw the curves there as well.")
@click.option(
    "--predictions",
    type=_PATH,
    multiple=True,
    metavar="FILE",
    help="What `resnet eval --save-predictions FILE` wrote: accuracy by class, the most confused "
    "pairs, the worst mistakes. May be given several times.",
)
@click.option("--shards", type=_PATH, help="Take the pictures of the worst mistakes from there.")
@click.option(
    "--mistakes", type=click.IntRange(0, 500), default=24, show_default=True, help="So many."
)
def report(
    runs: tuple[Path, ...],
    out: Path,
    png: Path | None,
    predictions: tuple[Path, ...],
    shards: Path | None,
    mistakes: int,
    as_json: bool,
) -> None:
    """Draw the history of one or several runs on one page.

    \b
      resnet report runs/r50 --out r50.html
      resnet report runs/r50 runs/r50-ema --out both.html --png both.png
      resnet eval runs/r50/best.pt --shards /data/shards --save-predictions best.jsonl
      resnet report runs/r50 --predictions best.jsonl --shards /data/shards --out r50.html

    Loss, accuracy, learning rate, speed, waiting for data and memory by epoch and by time; the
    configurations with what differs in front. RUN is a run's folder, also while it is under way.
    The page needs no network and no other file. Needs the extra `report`.
    """
    from training.report.report import write_report

    if shards is not None:
        shards = _with_index(shards, ("val",))
    written = write_report(
        runs, out, png=png, predictions=predictions, shards=shards, mistakes=mistakes
    )
    names = [run.name for run in written.runs]
    parts = [_count(len(names), "run"), _count(len(written.figures), "figure")]
    parts += [_count(written.pictures, "picture")] if written.pictures else []
    lines = [f"{out}: {', '.join(parts)}, {written.bytes / 1e6:.1f} MB"]
    lines += [] if png is None else [f"{png}: the curves"]
    _emit(as_json, {**vars(written), "runs": names}, lines)


@resnet.group("bench")
def bench() -> None:
    """Measure this machine, on your own data."""


@_command(bench, "loader")
@_shards
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    default=224,
    show_default=True,
    help="Side of the crop in pixels.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Images a batch.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="To measure each number of threads for.",
)
@click.option(
    "--cards",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Cards of this machine that are to be fed.",
)
@click.option(
    "--images-per-second",
    type=click.FloatRange(min=0, min_open=True),
    default=1125.0,
    show_default=True,
    help="What one card trains on; the default is ResNet-50 with mixed precision on an SDAA card, "
    "as its vendor publishes it.",
)
def bench_loader(
    shards: Path,
    image_size: int,
    batch_size: int,
    seconds: float,
    cards: int,
    images_per_second: float,
    as_json: bool,
) -> None:
    """Say how many images a second this machine can load, and whether that feeds your cards.

    \b
      resnet bench loader --shards /data/shards
      resnet bench loader --shards /data/shards --cards 4 --images-per-second 2500

    Reads the training split as training does (random crops, mirrored, antialiased) and throws the
    batches away: with 1, 2, 4, ... threads, up to one for each core, then by decoding alone. Only
    reads, and needs no card; takes --seconds for each line.

    \b
    Too slow? In the order of what it usually brings:
      smaller pictures   imagenet-prep shard --jpeg reencode --short-side 256
      restart markers    imagenet-prep shard --jpeg restart (the same pixels)
      more cores, or fewer cards a machine
    Far below the decode limit with all threads: other work on this machine, or a disk that is
    slower than the processors. Run it twice: the second time finds the data in memory.
    """
    from shards import bench as benches

    shards = _with_index(shards, ("train",))
    options = benches.BenchOptions(image_size=image_size, batch_size=batch_size, seconds=seconds)
    with _progress() as progress:
        found = benches.bench_loader(shards / "train", options, progress)
    wanted = cards * images_per_second
    cores = found.cores_for(wanted)
    demand = {
        "cards": cards,
        "images_per_second_a_card": images_per_second,
        "images_per_second": wanted,
        "cores": cores,
        "enough": found.images_per_second >= wanted,
    }
    data = {**vars(found), "images_per_second": found.images_per_second, "wanted": demand}
    _emit(as_json, data, [*_bench_lines(found), _demand_line(found, cards, images_per_second)])


def _bench_lines(found: LoaderBench) -> list[str]:
    one = found.points[0].images_per_second
    rows = [
        (each.threads, round(each.images_per_second), f"{each.images_per_second / one:.2f}x")
        for each in found.points
    ]
    total = sum(found.ways.values())
    shares = (f"{count / total:.1%} {_WAYS[way]}" for way, count in found.ways.items() if count)
    what = (
        f"{found.split}: {found.images:,} images; crops of {found.image_size} pixels in batches "
        f"of {found.batch_size}; {_count(found.cores, 'core')}"
    )
    limit = (
        f"decode limit: {found.decode_limit:,.0f} images/s with {_count(found.cores, 'thread')} "
        "that read and decode what the crops need, without resizing and batches"
    )
    table = _table(["threads", "images/s", "of one thread"], rows)
    return [what, *table, limit, f"pictures: {', '.join(shares)}"]


_WAYS = {
    "cut": "cut at restart markers",
    "shortened": "decoded down to the crop's last row",
    "whole": "decoded whole",
    "pillow": "decoded by Pillow",
}


def _demand_line(found: LoaderBench, cards: int, a_card: float) -> str:
    wanted = cards * a_card
    cores, here = found.cores_for(wanted), _count(found.cores, "core")
    if found.images_per_second >= wanted:
        verdict = f"this machine has that: {cores:,} of its {here} would do"
    else:
        verdict = (
            f"this machine's {here} load {found.images_per_second / wanted:.0%} of it; "
            f"it takes {_count(cores, 'core')} like these"
        )
    return (
        f"{_count(cards, 'card')} at {a_card:,.0f} images/s "
        f"{'wants' if cards == 1 else 'want'} {wanted:,.0f} images/s: {verdict}"
    )


_bench_model = click.option(
    "--model", default="resnet50", show_default=True, help="resnet18, 34, 50, 101, 152."
)


@_command(bench, "model")
@_bench_model
@click.option(
    "--batch-sizes",
    default="16,32,64,128",
    show_default=True,
    help="Images a step of one device, separated by commas.",
)
@click.option(
    "--image-size", type=click.IntRange(min=32), default=224, show_default=True, help="Pixels."
)
@_device
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="To measure each line for.",
)
def bench_model(
    model: str,
    batch_sizes: str,
    image_size: int,
    device: DeviceRequest,
    seconds: float,
    as_json: bool,
) -> None:
    """Say how many images a second one device trains on when nothing has to be loaded.

    Whole training steps on made-up pictures that lie on the device, by batch size, precision and
    memory format: what to give as --batch-size and --amp to `resnet train`, and the most that it
    can reach. On SDAA a card has four devices.
    """
    from training.bench import bench_model as run

    with _progress() as progress:
        found = run(
            model,
            batch_sizes=_sizes(batch_sizes),
            image_size=image_size,
            device=device,
            seconds=seconds,
            progress=progress,
        )
    rows = [
        (
            point.kind.precision,
            "channels last" if point.kind.channels_last else "channels first",
            point.kind.batch_size,
            _or(point.images_per_second, "out of memory"),
            "" if point.peak_memory is None else f"{point.peak_memory / 1e9:.2f} GB",
        )
        for point in found.points
    ]
    what = f"{model} at {image_size} pixels on {found.device} ({found.device_name})"
    table = _table(["precision", "memory format", "batch", "images/s", "peak memory"], rows)
    points = [{**vars(point), "kind": vars(point.kind)} for point in found.points]
    _emit(as_json, {**vars(found), "points": points}, [what, *table])


def _sizes(text: str) -> list[int]:
    """Batch sizes of an option."""
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is not a list of numbers as 32,64,128")
    return sizes


def _or(rate: float | None, otherwise: str) -> str:
    return otherwise if rate is None else f"{rate:,.1f}"


@_command(bench, "train")
@_shards
@_bench_model
@click.option("--recipe", default="seed", show_default=True, help="Hyperparameters to start from.")
@_batch_size
@_image_size
@_device
@_amp
@_loader_threads
@click.option(
    "--steps", type=click.IntRange(min=10), default=60, show_default=True, help="To train, twice."
)
def bench_train(
    shards: Path,
    model: str,
    recipe: str,
    batch_size: int | None,
    image_size: int | None,
    device: DeviceRequest,
    amp: AmpRequest | None,
    workers: int | None,
    steps: int,
    as_json: bool,
) -> None:
    """Say what limits training on one device of this machine: the device or the loader.

    Trains on made-up pictures, then on yours, then only loads yours, with one process and all
    cores, and says how many cores a card would need. Nothing is kept.
    """
    from training.bench import bench_train as run

    indexed = _with_index(shards, ("train", "val"))
    with _progress() as progress:
        found = run(
            indexed,
            model=model,
            recipe=recipe,
            batch_size=batch_size,
            image_size=image_size,
            amp=amp or "auto",
            device=device,
            threads=_threads(workers),
            steps=steps,
            progress=progress,
        )
    rows = [
        ("training on made-up pictures", f"{found.synthetic:,.1f}"),
        (f"loading with {_count(found.cores, 'core')}", f"{found.loader:,.1f}"),
        ("training on yours", f"{found.whole:,.1f}"),
    ]
    what = (
        f"{model}, batch {found.batch_size}, {found.image_size} pixels, {found.precision} on "
        f"{found.device} ({found.device_name})"
    )
    verdict = (
        f"the {found.bound} is the limit; training waited for the loader {found.wait_share:.1%} of "
        f"the time; a card's {_count(found.processes_per_card, 'device')} would take "
        f"{_count(found.cores_a_card, 'core')} like these to load"
    )
    data = {**vars(found), "bound": found.bound, "cores_a_card": found.cores_a_card}
    _emit(as_json, data, [what, *_table(["", "images/s"], rows), verdict])
