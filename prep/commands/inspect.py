"""`imagenet-prep inspect`: what is in an archive, a folder, shards?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prep.commands.options import labels_option
from shards.console import (
    PATH,
    command,
    counted,
    emit,
    first_ten,
    in_megabytes,
    say,
    showing_progress,
    table_lines,
)

if TYPE_CHECKING:
    from prep.inspection.contents import ClassCount, Contents
    from prep.inspection.plan import Range, ShardPlan


@command("inspect")
@click.argument("paths", type=PATH, nargs=-1, required=True)
@labels_option
@click.option("--preview", type=PATH, metavar="FILE.png", help="Draw a contact sheet there.")
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
    with showing_progress() as progress:
        found = list(run(paths, labels=labels, progress=progress))
        if preview is not None:
            from prep.inspection.preview import write_preview

            write_preview(preview, found, seed=seed, progress=progress)
    contents = [each.contents for each in found]
    unreadable = [image for each in contents for image in each.unreadable]
    for line in first_ten("unreadable", unreadable):
        say(line)
    lines = [line for each in contents for line in _contents_lines(each)]
    if preview is not None:
        lines.append(f"{preview}: a contact sheet")
    seconds = time.perf_counter() - started
    data = {"splits": contents, "preview": preview, "ok": not unreadable, "seconds": seconds}
    emit(as_json, data, lines)
    if unreadable:
        sys.exit(1)


def _contents_lines(found: Contents) -> Iterator[str]:
    """What a split holds: a line, a table of sizes, and what else there is to say."""
    where = f"{found.path}: {found.split or 'split unknown'}, {found.form}"
    yield f"{where}, {counted(found.images, 'image')}, {found.bytes / 1e6:,.1f} MB"
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
    for line in table_lines(("", "min", "median", "mean", "max", "from min to max"), rows):
        yield f"  {line}"
    yield f"  formats: {_counts(found.formats)}; channels: {_counts(found.channels)}"
    if found.classes:
        yield f"  classes: {_classes(found.classes)}"
    if found.labels_missing is not None:
        yield f"  without a label: {counted(found.unlabelled, 'image')}; {found.labels_missing}"
    for odd in found.oddities:
        names = ", ".join(odd.images[:3]) + (", ..." if len(odd.images) > 3 else "")
        known = "known of ILSVRC2012" if odd.known else "odd"
        yield f"  {known}: {odd.what}: {counted(len(odd.images), 'image')} ({names})"
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
        each = f"{count:,} images" if size is None else f"up to {in_megabytes(size)} MB"
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
        yield f"kept as they were: {counted(plan.kept, 'image')}"
    names = ", ".join(each["name"] for each in plan.skipped[:3])
    more = ", ..." if len(plan.skipped) > 3 else ""
    yield f"left out: {counted(len(plan.skipped), 'image')}" + (
        f" ({names}{more})" if names else ""
    )
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
