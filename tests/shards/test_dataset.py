"""An opened split: samples by canonical number, and damage that is named."""

from __future__ import annotations

import io
import os
import random
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trees import open_files

from shards.dataset import Dataset
from shards.decode import decode_rgb
from shards.errors import DamagedData, ToolError
from shards.image import read_info
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, Manifest


def test_samples_stand_in_key_order_with_their_labels(shards: Path) -> None:
    with Dataset.open(shards / "train") as dataset:
        assert len(dataset) == 51
        keys = dataset.keys.tolist()
        assert keys == sorted(keys)
        assert dataset.labels.dtype == np.int32
        wnids = [key.split(b"_")[0].decode() for key in keys]
        assert [dataset.classes[label] for label in dataset.labels] == wnids
        assert dataset.classes == tuple(sorted(set(wnids)))
        assert dataset.class_names[0] == "tench"
        assert dataset.split == "train"
        assert dataset.digest == Manifest.read(shards / "train").content


def test_every_sample_is_read_as_the_index_describes_it(shards: Path) -> None:
    with Dataset.open(shards / "train") as dataset:
        for number in range(len(dataset)):
            encoded = dataset.read(number)
            assert encoded.info == read_info(encoded.data)
            assert encoded.info.width == dataset.widths[number]
            assert encoded.info.height == dataset.heights[number]


def test_numbers_mean_the_same_image_in_any_layout(
    shards: Path, archives: Any, build: Callable[..., Any], tmp_path: Path
) -> None:
    build(archives.train, out=tmp_path, seed=3, samples_per_shard=7)
    with Dataset.open(shards / "train") as one, Dataset.open(tmp_path / "train") as other:
        assert one.digest == other.digest
        for number in range(len(one)):
            assert one.read(number) == other.read(number)


def test_a_place_is_described_by_shard_key_and_offset(shards: Path) -> None:
    with Dataset.open(shards / "val") as dataset:
        text = dataset.describe(0)
    assert text.startswith(f"{shards}/val/imagenet-val-000000.tar: sample ILSVRC2012_val_00000001 ")
    offset = int(text.rsplit(" ", 1)[1])
    data = (shards / "val" / "imagenet-val-000000.tar").read_bytes()
    assert data[offset : offset + 2] == b"\xff\xd8"
    assert data[offset - 512 :].startswith(b"ILSVRC2012_val_00000001.jpg\0")


def test_a_closed_dataset_leaves_no_file_open(shards: Path) -> None:
    with Dataset.open(shards / "val") as dataset:
        dataset.read(0)
        assert any("imagenet-val" in path.name for path in open_files())
    assert not any("imagenet-val" in path.name for path in open_files())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / MANIFEST_NAME).unlink(), "no manifest.json"),
        (lambda folder: (folder / "imagenet-train-000001.tar").unlink(), "is missing"),
        (lambda folder: os.truncate(folder / "imagenet-train-000001.tar", 512), "has 512 bytes"),
        (lambda folder: (folder / INDEX_NAME).unlink(), "is missing"),
        (lambda folder: os.truncate(folder / INDEX_NAME, 100), "has 100 bytes"),
    ],
)
def test_what_does_not_fit_together_is_not_opened(
    damage: Callable[[Path], object], reason: str, shards_copy: Path
) -> None:
    damage(shards_copy / "train")
    with pytest.raises(ToolError, match=reason) as raised:
        Dataset.open(shards_copy / "train")
    assert str(shards_copy / "train") in str(raised.value)
    assert "`imagenet-prep verify" in str(raised.value)


def test_what_is_lost_is_counted(shards_copy: Path) -> None:
    folder = shards_copy / "train"
    for number in (1, 3):
        (folder / f"imagenet-train-{number:06d}.tar").unlink()
    with pytest.raises(DamagedData) as raised:
        Dataset.open(folder)
    assert str(raised.value) == (
        f"{folder}/imagenet-train-000001.tar is missing; 2 files are missing or of another "
        f"size in all; `imagenet-prep verify {folder} --repair --source PATH`, with what the "
        "shards were made of, makes it again"
    )


def change_index(folder: Path, column: str, row: int, value: object) -> None:
    """Change one value of an index in place, which leaves its length as it was."""
    index = Index.read(folder / INDEX_NAME)
    values = index[column].copy()
    values[row] = value
    other = folder / "other"
    with other.open("wb") as file:
        replace(index, columns=index.columns | {column: values}).write(file)
    other.replace(folder / INDEX_NAME)


@pytest.mark.parametrize("value", [0, 2**31])
def test_an_index_whose_ranks_are_damaged_is_named(value: int, shards_copy: Path) -> None:
    change_index(shards_copy / "train", "rank", 5, value)
    with pytest.raises(DamagedData, match=str(shards_copy / "train")):
        Dataset.open(shards_copy / "train")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_flips_anywhere_in_an_index_raise_our_error_or_nothing(
    jpeg: Callable[[int], bytes],
    build: Callable[..., Any],
    write_folders: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Opening checks sizes and not digests, so a flipped bit can come this far."""
    source = write_folders(tmp_path / "train", {"cat": {f"{n}.jpg": jpeg(n) for n in range(4)}})
    build(source, out=tmp_path / "out", samples_per_shard=2)
    path = tmp_path / "out" / "train" / INDEX_NAME
    data = path.read_bytes()
    columns = 8 + int.from_bytes(data[:8], "little")
    generator = random.Random(0)
    refused = 0
    for _ in range(600):
        flipped = bytearray(data)
        first = generator.choice([0, columns, columns, columns])
        flipped[generator.randrange(first, len(data))] ^= 1 << generator.randrange(8)
        path.unlink()  # the map of the one before must keep its bytes
        path.write_bytes(flipped)
        try:
            with Dataset.open(path.parent) as dataset:
                for number in range(len(dataset)):
                    assert dataset.describe(number)
                    encoded = dataset.read(number)
                    assert decode_rgb(encoded.data, encoded.info).shape == (29, 37, 3)
        except DamagedData as error:
            refused += 1
            assert str(error)  # noqa: PT017
    assert 50 < refused < 600


def test_a_shard_that_shrinks_while_it_is_open_is_named(shards_copy: Path) -> None:
    with Dataset.open(shards_copy / "val") as dataset:
        shard = shards_copy / "val" / "imagenet-val-000000.tar"
        os.truncate(shard, 600)
        for number in range(len(dataset)):
            with pytest.raises(DamagedData, match=re.escape(f"{shard} ends at byte 600")):
                dataset.read(number)


def test_real_pictures_come_through_unchanged(
    real_data: Path, build: Callable[..., Any], tmp_path: Path
) -> None:
    """250 photographs of ImageNet, named n01440764_tench.JPEG: keys are ranks."""
    originals: dict[str, bytes] = {}
    with tarfile.open(real_data / "imagenet-sample-250.tar") as archive:
        for member in archive:
            if member.isreg():
                name = Path(member.name).name
                originals[name] = archive.extractfile(member).read()
    for name, data in originals.items():
        folder = tmp_path / "train" / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    build(tmp_path / "train", out=tmp_path / "out", samples_per_shard=60)
    with Dataset.open(tmp_path / "out" / "train") as dataset:
        assert len(dataset) == len(originals) == 250
        found = {bytes(dataset.read(number).data) for number in range(len(dataset))}
        assert found == set(originals.values())
        for number in range(0, len(dataset), 10):
            encoded = dataset.read(number)
            pixels = decode_rgb(encoded.data, encoded.info)
            with Image.open(io.BytesIO(encoded.data)) as image:
                expected = np.array(image.convert("RGB")).astype(int)
            assert np.abs(pixels - expected).max() <= 1
