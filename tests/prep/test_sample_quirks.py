"""What trips naive tools is there, is listed, is sound, and changes nothing else."""

from __future__ import annotations

import io
import itertools
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prep import ilsvrc
from prep.sample.data import SampleData, write_sample_data
from prep.sample.plan import full_scale_plan, small_plan
from prep.sample.quirks import Quirk
from shards.dataset import Dataset
from shards.decode import decode_rgb
from shards.errors import UsageError
from shards.image import Format, ImageInfo, read_info
from shards.progress import Silent

CLASSES, TRAIN = 3, 5


def make(out: Path, *, quirks: bool) -> SampleData:
    return write_sample_data(
        out,
        classes=CLASSES,
        train_per_class=TRAIN,
        val_per_class=2,
        quirks=quirks,
        progress=Silent(),
    )


def train_images(archive: Path) -> dict[str, bytes]:
    images = {}
    with tarfile.open(archive) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                for image in inner:
                    file = inner.extractfile(image)
                    assert file
                    images[image.name] = file.read()
    return images


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    return make(tmp_path_factory.mktemp("odd"), quirks=True)


@pytest.fixture(scope="module")
def images(odd: SampleData) -> dict[str, bytes]:
    return train_images(odd.train)


@pytest.fixture(scope="module")
def by_quirk(odd: SampleData, images: dict[str, bytes]) -> dict[Quirk, bytes]:
    return {quirk: images[name] for name, quirk in odd.quirks.items()}


def test_every_kind_is_there_once_and_nothing_else_changes(
    odd: SampleData, images: dict[str, bytes], tmp_path: Path
) -> None:
    assert sorted(quirk.value for quirk in odd.quirks.values()) == sorted(
        quirk.value for quirk in Quirk
    )
    plain = make(tmp_path, quirks=False)
    assert not plain.quirks
    ordinary = train_images(plain.train)
    assert list(images) == list(ordinary)
    assert {name for name in images if images[name] != ordinary[name]} == set(odd.quirks)
    assert odd.val.read_bytes() == plain.val.read_bytes()
    assert odd.devkit.read_bytes() == plain.devkit.read_bytes()


def test_all_are_sound(images: dict[str, bytes]) -> None:
    for data in images.values():
        info = read_info(data)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Corrupt EXIF")
            assert decode_rgb(data, info).shape == (info.height, info.width, 3)


def test_they_are_what_they_are_called(by_quirk: dict[Quirk, bytes]) -> None:
    found = {quirk: read_info(data) for quirk, data in by_quirk.items()}
    assert found[Quirk.PNG].format is Format.PNG
    assert found[Quirk.PNG].components == 4
    assert (found[Quirk.CMYK].format, found[Quirk.CMYK].components) == (Format.JPEG, 4)
    assert found[Quirk.GREY].components == 1
    assert found[Quirk.PROGRESSIVE].format is Format.JPEG_OTHER
    assert found[Quirk.ONE_PIXEL] == ImageInfo(Format.JPEG, 1, 1, 3)
    assert found[Quirk.WIDE] == ImageInfo(Format.JPEG, 3000, 8, 3)


def test_cmyk_is_inverted_under_adobes_marker(by_quirk: dict[Quirk, bytes]) -> None:
    data = by_quirk[Quirk.CMYK]
    at = data.index(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.info["adobe"]) == ("CMYK", 100)
        # Pillow undoes the inversion. Taken as it is stored, the picture would be near black.
        assert np.asarray(image.convert("RGB")).mean() > 60
        assert np.asarray(image)[..., 3].mean() < 60


def test_broken_exif_warns_and_changes_no_pixel(
    by_quirk: dict[Quirk, bytes], odd: SampleData, tmp_path: Path
) -> None:
    data = by_quirk[Quirk.BROKEN_EXIF]
    with pytest.warns(UserWarning, match="Expecting to read 4 bytes but only got 0"):
        broken = pixels_after_exif(data)
    name = next(name for name, quirk in odd.quirks.items() if quirk is Quirk.BROKEN_EXIF)
    ordinary = train_images(make(tmp_path, quirks=False).train)[name]
    assert broken == pixels_after_exif(ordinary)


def pixels_after_exif(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        image.getexif()
        return image.tobytes()


def test_orientation_is_asked_for(by_quirk: dict[Quirk, bytes]) -> None:
    with Image.open(io.BytesIO(by_quirk[Quirk.ORIENTATION])) as image:
        assert image.getexif()[0x0112] == 6
        assert image.mode == "RGB"


def test_they_pass_through_shards(
    odd: SampleData, images: dict[str, bytes], build: Callable[..., Any], tmp_path: Path
) -> None:
    build(odd.train.parent, out=tmp_path)
    dataset = Dataset.open(tmp_path / "train")
    assert len(dataset) == CLASSES * TRAIN == len(images)


@pytest.mark.parametrize(("classes", "train"), [(1, 7), (7, 1), (2, 3)])
def test_too_few_images_for_all_kinds_are_wrong_usage(classes: int, train: int) -> None:
    with pytest.raises(UsageError, match="8 kinds of quirks need as many training images"):
        small_plan(classes=classes, train_per_class=train, val_per_class=1, seed=0, quirks=True)


@pytest.mark.parametrize(("classes", "train"), [(1, 8), (8, 1), (3, 3), (1000, 1)])
def test_they_fit_where_there_are_as_many_images(classes: int, train: int) -> None:
    plan = small_plan(classes=classes, train_per_class=train, val_per_class=1, seed=0, quirks=True)
    names = {
        f"{ilsvrc.classes()[index].wnid}_{number}.JPEG"
        for index in plan.train_counts
        for number in plan.train_numbers(index)
    }
    assert len(plan.quirks) == len(Quirk)
    assert set(plan.quirks) <= names
    assert len(names) == classes * train


@pytest.mark.parametrize("seed", [0, 1])
def test_at_full_scale_the_known_ones_have_their_true_names(seed: int) -> None:
    plan = full_scale_plan(seed=seed, quirks=True)
    plain = full_scale_plan(seed=seed, quirks=False)
    kinds = list(plan.quirks.values())
    assert plan.quirks[f"{ilsvrc.PNG_IMAGE}.JPEG"] is Quirk.PNG
    assert plan.quirks[f"{ilsvrc.BROKEN_EXIF_IMAGE}.JPEG"] is Quirk.BROKEN_EXIF
    assert {
        name.removesuffix(".JPEG") for name, quirk in plan.quirks.items() if quirk is Quirk.CMYK
    } == ilsvrc.CMYK_IMAGES
    assert all(kinds.count(quirk) == 1 for quirk in Quirk if quirk is not Quirk.CMYK)
    assert plan.train_counts == plain.train_counts
    left = set(plan.quirks)
    for index in plan.train_counts:
        numbers = plan.train_numbers(index).tolist()
        assert len(numbers) == plan.train_counts[index]
        assert all(before < after for before, after in itertools.pairwise(numbers))
        assert len(set(numbers) - set(plain.train_numbers(index).tolist())) <= 1
        left -= {f"{ilsvrc.classes()[index].wnid}_{number}.JPEG" for number in numbers}
    assert not left
