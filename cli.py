"""The two commands, imagenet-prep and resnet: options in, one call, the result out.

Only this module knows click and rich. Every command imports its work inside the function, so
`--help` needs neither torch nor NumPy. The result goes to stdout (`--json`: one object), all
else to stderr. Exit codes: 0 done, 1 a failure or a failed check, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from prep.build import BuildOptions
    from prep.doctor.finding import Finding
    from prep.extraction.plan import Planned
    from prep.inspection.contents import ClassCount, Contents
    from prep.inspection.plan import Range, ShardPlan
    from prep.organizing.organize import Organized
    from prep.verification.verify import Verified
    from shards.bench import LoaderBench
    from shards.errors import ToolError
    from shards.progress import Progress
    from shards.sidecars import ForReader
    from shards.transcode import JpegMode
    from shards.writer import Check, OnBad, Written
    from training.device import AmpRequest, DeviceRequest

_REFRESH_SECONDS = 0.1
_INTERRUPTED = 130

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
            translated = translate(args)
        except UsageError as error:
            _report(error)
            ctx.exit(error.exit_code)
        if translated.notices and _speaks_first():
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
    from training.launch import inside_launch

    return inside_launch()


def _speaks_first() -> bool:
    """Whether this process tells of the command line: a launcher's processes leave it to ours."""
    from training.launch import LAUNCHER_VARIABLE

    return not _joined_a_launch() or (
        LAUNCHER_VARIABLE not in os.environ and os.environ["RANK"] == "0"
    )


def _report(failure: ToolError) -> None:
    """Say a failure once: one of several processes hands it to their launcher."""
    from training.launch import report_failure

    if not report_failure(failure):
        _say(f"error: {failure}")


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
                self._live.update(self._task, completed=self._done, rate=f"{rate}/s")

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
    from shards.parallel import available_cores

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
    """Make tars trainable as they lie: shards of others, or ILSVRC2012's archives.

    \b
    SOURCES are shards or archives: tars, folders that hold tars, or patterns
      imagenet-prep index /data/archives --out /data/index
      imagenet-prep index '/data/wds/imagenet1k-train-{0000..1023}.tar' --out /data/index
      imagenet-prep index /data/img2dataset --split train --label-field class --out /data/index
      resnet train --shards /data/index

    Nothing is copied or extracted. OUT/train/ and OUT/val/ get a link to each tar, an index, a
    manifest and SHA256SUMS; each tar is read once. Shards are any WebDataset tars of JPEGs and PNGs
    with a .cls, or a .json and --label-field; the split stands in their names. What is odd is
    refused with the member's name. The same command completes a killed run and knows a finished
    one by the sizes and times of its tars: when one has moved or changed, run it again.
    """
    from prep.indexing import IndexOptions, index_tars

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
            f"{_count(len(each.manifest.shards), 'tar')}, {len(each.manifest.classes)} classes "
            f"({rate if each.written else 'was whole already'})"
        )
    _emit(
        as_json,
        {
            "splits": [
                {
                    "folder": each.folder,
                    "samples": each.manifest.samples,
                    "tars": len(each.manifest.shards),
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
        yield f"plan: foreign tars, linked as they lie; {_classes_planned(plan)}"
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
    yield f"shards: {plan.shards:,}, each of {images} images and {megabytes} MB"
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
    from prep.doctor.finding import Status

    found = examine(path)
    width = max(len(each.what) for each in found.findings)
    _emit(
        as_json,
        {
            **vars(found),
            "findings": [{**vars(each), "status": each.status.value} for each in found.findings],
        },
        [*(_finding_line(each, width) for each in found.findings), "", f"next: {found.next}"],
    )
    if any(each.status is Status.PROBLEM for each in found.findings):
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
    help="Folder of `imagenet-prep shard` or `imagenet-prep index`: train/ and val/.",
)
_nproc = click.option(
    "--nproc", type=click.IntRange(min=1), help="Processes on this machine (instead of --cards)."
)
_cards = click.option(
    "--cards",
    type=click.IntRange(min=1),
    help="Cards of this machine: 4 processes each on sdaa, 1 on cuda.  [default: one]",
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


@_command(resnet, "train", _TrainCommand)
@click.option(
    "--shards",
    required=True,
    help="Folder of `imagenet-prep shard` or `imagenet-prep index`: train/ and val/. With "
    "--steps-per-epoch shards without an index: 'DIR/x-{000..099}.tar', 'pipe:COMMAND', -.",
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
@click.option("--recipe", default="seed", show_default=True, help="Hyperparameters to start from.")
@click.option("--epochs", type=int, help="[default: the recipe's, 50]")
@_batch_size
@click.option(
    "--lr",
    type=float,
    help="Peak learning rate for the global batch, never rescaled.  [default: the recipe's, 0.256 "
    "x global batch / 256]",
)
@_image_size
@_device
@_amp
@_cards
@_nproc
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Machines.")
@click.option("--node-rank", type=int, default=0, show_default=True, help="Number of this machine.")
@click.option("--master", help="HOST:PORT of machine 0, for --nodes above 1.")
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
@click.option("--keep", type=int, default=3, show_default=True, help="Checkpoints to keep.")
@click.option("--log-every", type=int, default=20, show_default=True, help="Steps a log line.")
def train(
    shards: str,
    steps_per_epoch: int | None,
    val: Path | None,
    label_field: str | None,
    out: Path | None,
    model: str,
    recipe: str,
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
    resume: str,
    seed: int,
    workers: int | None,
    max_steps: int | None,
    save_steps: int | None,
    keep: int,
    log_every: int,
    as_json: bool,
) -> None:
    """Train a ResNet from shards; evaluate exactly after every epoch.

    \b
    One card (4 SPAs: 4 processes)   resnet train --shards DIR --cards 1
    Four, eight cards                resnet train --shards DIR --cards 4
    Two machines                     on each, with its own number K:
        resnet train --shards DIR --cards 4 --nodes 2 --node-rank K --master HOST:29500

    The run's folder gets checkpoints, best.pt, last.pt and log.jsonl (one object a line). Killed
    or stopped, the same command goes on with exactly the samples that are left.

    Options of the vendor's run_resnet.py (--model_name, --dataset_path, ...) are taken as well.
    """
    from shards.parallel import cores_each
    from training.config import resolve
    from training.processes import processes_here, world_size

    processes = processes_here(device, cards, nproc)
    folder = _folder_to_train_on(shards, steps_per_epoch, val, label_field)
    config = resolve(
        shards=folder,
        stream=None if steps_per_epoch is None else shards,
        steps_per_epoch=steps_per_epoch,
        label_field=label_field,
        out=out or Path("runs") / model,
        world=world_size(processes, nodes),
        threads=workers or cores_each(processes),
        model=model,
        recipe=recipe,
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
        keep=keep,
        resume="auto" if resume == "auto" else "never" if resume == "never" else Path(resume),
    )
    _require_splits(folder, *(("train", "val") if steps_per_epoch is None else ("val",)))
    _launch_if_several(processes, nodes, node_rank, master)
    from training.trainer import train as run

    with _progress() as progress:
        result = run(config, progress=progress, on_record=_show)
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


def _require_splits(shards: Path, *splits: str) -> None:
    """Refuse what is no finished shard folder before processes are started."""
    from shards.manifest import Manifest

    for split in splits:
        Manifest.read(shards / split)


def _launch_if_several(processes: int, nodes: int, node_rank: int, master: str | None) -> None:
    """Start this command once for each process and exit, unless this is one of them already."""
    from training.launch import inside_launch, launch

    if inside_launch() or processes * nodes == 1:
        return
    code = launch(sys.argv[1:], nproc=processes, nodes=nodes, node_rank=node_rank, master=master)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    click.get_current_context().exit(code)


def _show(record: dict[str, Any]) -> None:
    """Tell what a reader of the log would look for: the plan, and each epoch's result."""
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


@_command(resnet, "eval")
@click.argument("model", type=_PATH)
@_shards
@_batch_size
@_image_size
@_device
@_amp
@_cards
@_nproc
@_loader_threads
def evaluate(
    model: Path,
    shards: Path,
    batch_size: int | None,
    image_size: int | None,
    device: DeviceRequest,
    amp: AmpRequest | None,
    cards: int | None,
    nproc: int | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Evaluate the checkpoint MODEL on every image of DIR/val, exactly.

    Each image is counted once at any number of processes: nothing is padded, nothing dropped.
    Batch size, image size and precision are the training run's unless given.
    """
    from shards.parallel import cores_each
    from training.processes import processes_here

    processes = processes_here(device, cards, nproc or (None if cards else 1))
    _require_splits(shards, "val")
    _launch_if_several(processes, 1, 0, None)
    from training.evaluate import evaluate_checkpoint

    started = time.perf_counter()
    with _progress() as progress:
        result = evaluate_checkpoint(
            model,
            shards / "val",
            threads=workers or cores_each(processes),
            device=device,
            batch_size=batch_size,
            image_size=image_size,
            amp=amp,
            progress=progress,
        )
    if not result.is_main:
        return
    seconds = time.perf_counter() - started
    found = result.evaluation
    rate = _rate(found.samples, seconds)
    _emit(
        as_json,
        {
            **vars(result),
            "evaluation": {**vars(found), "top1": found.top1, "top5": found.top5},
            "seconds": seconds,
        },
        [
            (
                f"{model}: top-1 {found.top1:.2f} % ({found.top1_count} of {found.samples}), "
                f"top-5 {found.top5:.2f} %, loss {found.loss:.4f} ({rate})"
            )
        ],
    )


@_command(resnet, "export")
@click.argument("checkpoint", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="The ONNX file to write.")
@click.option("--opset", type=int, default=12, show_default=True, help="ONNX operator set.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Fixed batch size."
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open.")
@click.option("--fp16", is_flag=True, help="float16 weights, input and output.")
def export(
    checkpoint: Path,
    out: Path,
    opset: int,
    batch: int,
    dynamic_batch: bool,
    fp16: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT as ONNX and check it against torch.

    Input `input` (batch, 3, S, S), normalised RGB; output `output`, logits. Class names,
    normalisation, resize and crop are in the file's metadata. Needs the extra `export`.
    """
    from training.export import export_onnx

    report = export_onnx(
        checkpoint, out, opset=opset, batch=batch, dynamic_batch=dynamic_batch, fp16=fp16
    )
    agreement = report.agreement
    lines = [f"{out}: {report.model}, opset {opset}, {report.bytes / 1e6:.1f} MB"]
    if agreement is not None:
        lines.append(
            f"onnxruntime against torch: {agreement.same_top1} of {agreement.pictures} equal "
            f"top-1, largest difference of a logit {agreement.largest_difference:.2g}"
        )
    _emit(
        as_json,
        vars(report),
        lines,
    )


@_command(resnet, "info")
@click.argument("path", type=_PATH)
def info(path: Path, as_json: bool) -> None:
    """Say what a checkpoint, or a run's folder, holds.

    Model, epochs, best result, data and configuration; for a run also its history. Nothing in
    the file is executed.
    """
    from training.info import describe

    found = describe(path)
    best, position, config = found["best"], found["position"], found["config"]
    recipe = config["recipe"]["name"]
    lines = [
        f"checkpoint  {found['checkpoint']} ({found['bytes'] / 1e6:.1f} MB)",
        f"model       {found['model']}, {found['parameters']:,} parameters",
        f"trained     {position['epoch']} of {config['epochs']} epochs, {config['image_size']} px",
        f"recipe      {recipe}, batch {config['global_batch']}, lr {config['lr']}",
        f"data        {config['shards']}, {found['classes']} classes",
    ]
    if best is not None:
        lines.append(
            f"best        top-1 {best['top1']:.2f} % ({best['top1_count']} of {best['samples']}) "
            f"after epoch {best['epoch']}"
        )
    if "log" in found:
        lines.append(f"best file   {found['best_checkpoint']}")
        lines.append(f"metrics     {found['log']}")
        if found["images_per_second"] is not None:
            lines.append(f"rate        {found['images_per_second']:,.0f} images/s in training")
    _emit(as_json, found, lines)


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
