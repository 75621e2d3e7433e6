"""Images read from their own files: the same batches as from shards, and never another picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import run_extract

from prep.index_part import IndexOptions
from prep.indexing import index_tars
from shards.dataset import Dataset
from shards.errors import DamagedData, UsageError
from shards.index import INDEX_NAME, Index
from shards.loader import Loader
from shards.map_style import ShardDataset
from shards.progress import Silent
from shards.transform import TrainTransform

TRANSFORM = TrainTransform(image_size=32)


@pytest.fixture(scope="module")
def whole(archives: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ with the class folders of `archives`, index/ with their index. Not to be written."""
    root = tmp_path_factory.mktemp("loose")
    run_extract(archives.train.parent, out=root / "images")
    index_tars([root / "images"], root / "index", IndexOptions(), workers=2, progress=Silent())
    return root


@pytest.fixture
def loose(whole: Path, tmp_path: Path) -> Path:
    """The same, for a test that damages it."""
    shutil.copytree(whole / "images", tmp_path / "images")
    index_tars(
        [tmp_path / "images"], tmp_path / "index", IndexOptions(), workers=2, progress=Silent()
    )
    return tmp_path


def epoch(folder: Path, **options: Any) -> list[tuple[bytes, list[int], list[int]]]:
    """Pictures, labels and sample numbers of the batches of an epoch."""
    with (
        Dataset.open(folder) as dataset,
        Loader(dataset, TRANSFORM, global_batch=8, threads=2, seed=3, **options) as loader,
    ):
        return [
            (each.images.numpy().tobytes(), each.labels.tolist(), each.samples.tolist())
            for each in loader.epoch(1)
        ]


def test_batches_are_those_of_the_shards(whole: Path, shards: Path) -> None:
    assert epoch(whole / "index" / "train") == epoch(shards / "train")


def test_no_file_stays_open(whole: Path) -> None:
    from trees import open_files

    with Dataset.open(whole / "index" / "train") as dataset:
        for number in range(len(dataset)):
            dataset.read(number)
        assert not [path for path in open_files() if path.suffix == ".JPEG"]


def test_a_dataset_for_dataloader_has_its_pictures(whole: Path, shards: Path) -> None:
    one = ShardDataset(whole / "index" / "train")
    other = ShardDataset(shards / "train")
    for number in (0, 17, 50):
        assert np.array_equal(one[number][0], other[number][0])
        assert one[number][1] == other[number][1]
    assert one.describe(3).endswith(".JPEG (sample n01440764_1015)") or ".JPEG" in one.describe(3)


def test_a_block_shuffle_is_refused(whole: Path) -> None:
    with pytest.raises(UsageError, match="a block shuffle would mix the images of 16 classes"):
        epoch(whole / "index" / "train", shuffle="block")


def gone(path: Path) -> None:
    path.unlink()


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def another(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (gone, "it is not there any more"),
        (shorter, r"it has \d+ bytes instead of \d+"),
        (emptied, r"it has 0 bytes instead of \d+"),
        (another, "its bytes are others than when it was indexed"),
        (pipe, r"it has 0 bytes instead of \d+"),
        (folder, r"it has \d+ bytes instead of \d+"),
        (dangling, "it is not there any more"),
    ],
)
def test_a_file_that_is_not_what_was_indexed_is_named(
    damage: Callable[[Path], None], said: str, loose: Path
) -> None:
    path = sorted((loose / "images" / "train").glob("*/*"))[20]
    damage(path)
    with pytest.raises(DamagedData, match=rf"^{path} \(sample {path.stem}\): {said}; put it back"):
        epoch(loose / "index" / "train")
    before, after = epoch(loose / "index" / "val"), epoch(loose / "index" / "val")
    assert before == after


def test_another_sample_stands_in_where_that_is_asked_for(loose: Path, shards: Path) -> None:
    path = sorted((loose / "images" / "train").glob("*/*"))[20]
    path.unlink()
    changed = epoch(loose / "index" / "train", on_bad="substitute")
    whole = epoch(shards / "train")
    assert len(changed) == len(whole)
    assert sum(one[2] != other[2] for one, other in zip(changed, whole, strict=True)) == 1


def test_a_class_folder_that_is_gone_is_named_at_once(loose: Path) -> None:
    lost = next((loose / "images" / "train").iterdir())
    lost.rename(loose / "moved")
    with pytest.raises(DamagedData, match=rf"leads to {lost}, which is no folder; put it back"):
        Dataset.open(loose / "index" / "train")


@pytest.mark.parametrize("name", [b"../../x", b"/etc/passwd", b"..", b"a\0b", b""])
def test_an_index_whose_names_lead_elsewhere_is_refused(name: bytes, loose: Path) -> None:
    path = loose / "index" / "train" / INDEX_NAME
    index = Index.read(path)
    names = index["name"].copy()
    names[-1] = name
    size = path.stat().st_size
    altered = Index(header=index.header, columns={**index.columns, "name": names})
    with path.with_name("new").open("wb") as file:
        altered.write(file)
    path.with_name("new").replace(path)
    assert path.stat().st_size == size  # or it would be refused for that
    with pytest.raises(DamagedData, match="a name could lead out of its folder"):
        Dataset.open(loose / "index" / "train")
