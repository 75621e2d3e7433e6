"""What is known of ILSVRC2012 before a byte of it is read: archives, counts, classes, labels.

The tables ship with the package (`prep/data/`, 125 kB), so the official validation images get
their labels without the devkit. Two orders of the 1000 classes are in use and agree nowhere:

- the class index (0..999) is the rank of the wnid in sorted order: torchvision, timm, Keras,
  Hugging Face and the shards made here;
- the ILSVRC2012_ID (1..1000) is the devkit's own order, in which its ground truth is written.

Training with one and evaluating with the other gives 0.1 % accuracy, so both are named here.
"""

from __future__ import annotations

import enum
import functools
import importlib.resources
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt


class ArchiveKind(enum.Enum):
    """What an official archive holds."""

    TRAIN = "train"
    VALIDATION = "val"
    TEST = "test"
    DEVKIT = "devkit"
    TRAIN_DOGS = "train-dogs"
    TRAIN_BOXES = "train-boxes"
    VALIDATION_BOXES = "val-boxes"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One official file as published; `bytes` is None where only a rounded size is known."""

    name: str
    kind: ArchiveKind
    bytes: int | None
    md5: str


# MD5 sums: torchvision/datasets/imagenet.py (ARCHIVE_META) for train, val and devkit, the
# download page's list (quoted in tmbdev-archive/webdataset-lightning issue 4) for the others.
# The two sizes are those that download logs report; both are multiples of tar's 10,240.
ARCHIVES: Final = (
    Archive(
        name="ILSVRC2012_img_train.tar",
        kind=ArchiveKind.TRAIN,
        bytes=147_897_477_120,
        md5="1d675b47d978889d74fa0da5fadfb00e",
    ),
    Archive(
        name="ILSVRC2012_img_val.tar",
        kind=ArchiveKind.VALIDATION,
        bytes=6_744_924_160,
        md5="29b22e2961454d5413ddabcf34fc5622",
    ),
    Archive(
        name="ILSVRC2012_devkit_t12.tar.gz",
        kind=ArchiveKind.DEVKIT,
        bytes=None,
        md5="fa75699e90414af021442c21a62c3abf",
    ),
    Archive(
        name="ILSVRC2012_img_test_v10102019.tar",
        kind=ArchiveKind.TEST,
        bytes=None,
        md5="e1b8681fff3d63731c599df9b4b6fc02",
    ),
    Archive(
        name="ILSVRC2012_img_train_t3.tar",
        kind=ArchiveKind.TRAIN_DOGS,
        bytes=None,
        md5="ccaf1013018ac1037801578038d370da",
    ),
    Archive(
        name="ILSVRC2012_bbox_train_v2.tar.gz",
        kind=ArchiveKind.TRAIN_BOXES,
        bytes=None,
        md5="9271167e2176350e65cfe4e546f14b17",
    ),
    Archive(
        name="ILSVRC2012_bbox_val_v3.tgz",
        kind=ArchiveKind.VALIDATION_BOXES,
        bytes=None,
        md5="f4cd18b5ea29fe6bbea62ec9c20d80f0",
    ),
)

# Counts: the devkit's readme.txt.
CLASSES: Final = 1_000
TRAIN_IMAGES: Final = 1_281_167
TRAIN_IMAGES_A_CLASS: Final = (732, 1_300)
VALIDATION_IMAGES: Final = 50_000
VALIDATION_IMAGES_A_CLASS: Final = 50
TEST_IMAGES: Final = 100_000

# All three oddities are in the training set; keys are names without their ending.
# A PNG under a JPEG's name.
PNG_IMAGE: Final = "n02105855_2933"
# JPEG, but its EXIF block is damaged: decoders warn, the pixels are sound (horovod issue 333).
BROKEN_EXIF_IMAGE: Final = "n04152593_17460"
# CMYK (Adobe-inverted) JPEGs: github.com/cytsai/ilsvrc-cmyk-image-list, and the same list in
# TensorFlow's build_imagenet_data.py and in TFDS.
CMYK_IMAGES: Final = frozenset(
    (
        "n01739381_1309",
        "n02077923_14822",
        "n02447366_23489",
        "n02492035_15739",
        "n02747177_10752",
        "n03018349_4028",
        "n03062245_4620",
        "n03347037_9675",
        "n03467068_12171",
        "n03529860_11437",
        "n03544143_17228",
        "n03633091_5218",
        "n03710637_5125",
        "n03961711_5286",
        "n04033995_2932",
        "n04258138_17003",
        "n04264628_27969",
        "n04336792_7448",
        "n04371774_5854",
        "n04596742_4225",
        "n07583066_647",
        "n13037406_4650",
    )
)


@dataclass(frozen=True, kw_only=True)
class IlsvrcClass:
    """One of the 1000 classes; `name` is the first of its words, unique over all classes."""

    wnid: str
    name: str


@functools.cache
def classes() -> tuple[IlsvrcClass, ...]:
    """The 1000 classes in sorted wnid order: the position is the class index."""
    return tuple(IlsvrcClass(wnid=wnid, name=name) for wnid, _, name in _class_table())


@functools.cache
def id_to_wnid() -> tuple[str, ...]:
    """The wnid of every ILSVRC2012_ID; IDs count from 1, so element 0 is that of ID 1."""
    by_id = sorted((int(ilsvrc_id), wnid) for wnid, ilsvrc_id, _ in _class_table())
    return tuple(wnid for _, wnid in by_id)


@functools.cache
def validation_labels() -> npt.NDArray[np.int16]:
    """Class index of ILSVRC2012_val_00000001 .. _00050000, shape (50000,), read-only."""
    labels = np.frombuffer(_data("validation_labels.u16"), dtype="<u2").astype(np.int16)
    labels.flags.writeable = False
    return labels


def _class_table() -> list[list[str]]:
    """Rows wnid, ILSVRC2012_ID, name in sorted wnid order."""
    lines = _data("classes.tsv").decode("ascii").splitlines()
    return [line.split("\t") for line in lines[1:]]


def _data(name: str) -> bytes:
    return (importlib.resources.files("prep") / "data" / name).read_bytes()
