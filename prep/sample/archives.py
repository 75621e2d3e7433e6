"""The three sample archives, written front to back from a plan, a batch of images at a time."""

from __future__ import annotations

import functools
import gzip
import io
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from prep import devkit, ilsvrc
from prep.matfile import write_struct_array
from prep.sample.pictures import Draws, Purpose, class_look, draw, draw_jpeg, tiny_jpeg
from prep.sample.plan import Plan, train_name
from prep.sample.quirks import odd_picture
from prep.sample.tar import MTIME, Sink, TarWriter
from shards.progress import Progress

_BATCH: Final = 128  # images written, and told to the progress, at once

_DEVKIT_ROOT: Final = "ILSVRC2012_devkit_t12"
_COPYING: Final = "Synthetic data: no rights are reserved in these files.\n"
_README: Final = """\
ILSVRC2012 development kit, synthetic
=====================================
Written by `imagenet-prep sample-data`: the archives beside it hold drawn patterns under the
names of real classes, none of them a photograph. data/meta.mat lists the 1000 classes with
their true ILSVRC2012_ID and WNID, without the inner nodes of the hierarchy; num_train_images
is the number of images in the sample training archive.
data/ILSVRC2012_validation_ground_truth.txt has one ILSVRC2012_ID a line, one line for each
validation image in ascending order of the images' names.
"""


def write_train(sink: Sink, plan: Plan, progress: Progress) -> None:
    """One uncompressed tar a class, flat, numbers ascending with gaps."""
    archive = TarWriter(sink)
    for class_index in plan.train_counts:
        inner = io.BytesIO()
        images = TarWriter(inner)
        for batch in _batches(plan.train_numbers(class_index)):
            names = [train_name(class_index, number) for number in batch]
            pictures = [
                _train_picture(plan, class_index, number, name)
                for number, name in zip(batch, names, strict=True)
            ]
            images.add(names, pictures)
            progress.advance(len(batch))
        images.end()
        archive.add([f"{ilsvrc.classes()[class_index].wnid}.tar"], [inner.getvalue()])
    archive.end()


def write_validation(sink: Sink, plan: Plan, progress: Progress) -> None:
    """Flat, in an order that is not that of the names."""
    archive = TarWriter(sink)
    for batch in _batches(plan.val_order()):
        names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in batch]
        pictures = [
            _validation_picture(plan, number, name)
            for number, name in zip(batch, names, strict=True)
        ]
        archive.add(names, pictures)
        progress.advance(len(batch))
    archive.end()


def write_devkit(sink: io.RawIOBase, plan: Plan, _progress: Progress) -> None:
    """The devkit's tar.gz with the members that carry meaning."""
    ids = {wnid: number for number, wnid in enumerate(ilsvrc.id_to_wnid(), start=1)}
    wnids = [cls.wnid for cls in ilsvrc.classes()]
    truth = "".join(f"{ids[wnids[label]]}\n" for label in plan.val_classes)
    members = {
        "readme.txt": _README.encode("ascii"),
        "COPYING": _COPYING.encode("ascii"),
        devkit.META: _meta(plan),
        devkit.GROUND_TRUTH: truth.encode("ascii"),
    }
    with gzip.GzipFile(filename="", mode="wb", fileobj=sink, mtime=MTIME) as packed:
        archive = TarWriter(packed)
        archive.add([f"{_DEVKIT_ROOT}/{name}" for name in members], list(members.values()))
        archive.end()


def _batches(numbers: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    """Up to `_BATCH` image numbers at a time."""
    for start in range(0, len(numbers), _BATCH):
        yield numbers[start : start + _BATCH].tolist()


def _train_picture(plan: Plan, class_index: int, number: int, name: str) -> bytes:
    quirk = plan.quirks.get(name)
    if plan.tiny and quirk is None:
        return _tiny_picture(plan.seed, class_index, number, name)
    draws = Draws(plan.seed, Purpose.TRAIN_PICTURE, class_index, number)
    look = class_look(plan.seed, class_index)
    return draw_jpeg(look, draws) if quirk is None else odd_picture(quirk, draw(look, draws))


def _validation_picture(plan: Plan, number: int, name: str) -> bytes:
    class_index = int(plan.val_classes[number - 1])
    if plan.tiny:
        return _tiny_picture(plan.seed, class_index, number, name)
    draws = Draws(plan.seed, Purpose.VALIDATION_PICTURE, number)
    return draw_jpeg(class_look(plan.seed, class_index), draws)


def _tiny_picture(seed: int, class_index: int, number: int, name: str) -> bytes:
    """A class's tiny picture with a comment: its name, then dots, for bytes of its own.

    The comment varies in length, so that neighbours differ in size too; header and image take
    1,024 bytes of the archive.
    """
    before, after = _tiny_halves(seed, class_index)
    text = b"%b %b" % (name.encode("ascii"), b"." * (number % 61))
    return b"%b\xff\xfe%b%b%b" % (before, (len(text) + 2).to_bytes(2, "big"), text, after)


@functools.cache
def _tiny_halves(seed: int, class_index: int) -> tuple[bytes, bytes]:
    """A class's tiny picture, cut where a comment may stand: after the 20 bytes of SOI and JFIF."""
    draws = Draws(seed, Purpose.TINY_PICTURE, class_index)
    data = tiny_jpeg(class_look(seed, class_index), draws)
    return data[:20], data[20:]


def _meta(plan: Plan) -> bytes:
    """meta.mat with the 1000 classes in order of their ILSVRC2012_ID, as in the real one."""
    classes = {cls.wnid: (index, cls.name) for index, cls in enumerate(ilsvrc.classes())}
    return write_struct_array(
        "synsets",
        [
            {
                "ILSVRC2012_ID": (ilsvrc_id,),
                "WNID": wnid,
                "words": classes[wnid][1],
                "gloss": "",
                "num_children": (0,),
                "children": (),
                "wordnet_height": (0,),
                "num_train_images": (plan.train_counts.get(classes[wnid][0], 0),),
            }
            for ilsvrc_id, wnid in enumerate(ilsvrc.id_to_wnid(), start=1)
        ],
    )
