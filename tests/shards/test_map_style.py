"""Random access: ImageFolder's pictures and names, parts, lists, workers of both kinds."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trees import open_files

from shards.dataset import Dataset
from shards.errors import DamagedData, UsageError
from shards.map_style import ShardDataset


def unpickled(data: bytes) -> ShardDataset:
    return pickle.loads(data)  # noqa: S301 - the test's own


def pixels_of(dataset: ShardDataset) -> list[np.ndarray]:
    return [np.asarray(picture) for picture, _ in dataset]


@pytest.fixture
def mixed(
    picture: Callable[[str], bytes],
    write_folders: Callable[..., Path],
    build: Callable[..., Any],
    tmp_path: Path,
) -> tuple[Path, Path]:
    """Class folders with a colour, grey, CMYK, progressive JPEG and a PNG; and their shards."""
    names = ("colour.jpg", "grey.jpg", "cmyk.jpg", "progressive.jpg", "picture.png")
    images = {name: picture(name) for name in names}
    folders = write_folders(tmp_path / "train", {"cat": images, "dog": images})
    build(folders, out=tmp_path / "out")
    return folders, tmp_path / "out" / "train"


def test_it_gives_what_imagefolder_gives(mixed: tuple[Path, Path]) -> None:
    from torchvision.datasets import ImageFolder  # slow to import

    folders, split = mixed
    theirs, ours = ImageFolder(str(folders)), ShardDataset(split)
    assert len(ours) == len(theirs) == 10
    assert ours.classes == theirs.classes
    assert ours.class_to_idx == theirs.class_to_idx
    assert ours.targets.tolist() == theirs.targets
    for (picture, label), (expected, expected_label) in zip(ours, theirs, strict=True):
        assert isinstance(picture, Image.Image)
        assert picture.mode == expected.mode == "RGB"
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
        assert label == expected_label


def test_a_transform_makes_the_first_of_the_pair(shards: Path) -> None:
    plain = ShardDataset(str(shards / "train"))
    sized = ShardDataset(shards / "train", lambda picture: picture.size)
    assert sized[7] == (plain[7][0].size, plain[7][1])
    assert type(sized[7][1]) is int


def test_numbers_count_from_both_ends_and_no_further(shards: Path) -> None:
    dataset = ShardDataset(shards / "train", np.array)
    assert np.array_equal(dataset[-1][0], dataset[50][0])
    assert np.array_equal(dataset[np.int64(3)][0], dataset[3][0])
    for beyond in (51, -52):
        with pytest.raises(IndexError):
            dataset[beyond]
    with pytest.raises(TypeError):
        dataset[1.0]  # type: ignore[call-overload]
    assert len(list(dataset)) == 51


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(10, 20), range(10, 20)),
        (slice(None, None, -7), range(50, -1, -7)),
        ([4, 2, 2, -1], [4, 2, 2, 50]),
        (np.array([5]), [5]),
        ([], []),
        (np.arange(51) % 10 == 3, [3, 13, 23, 33, 43]),
    ],
)
def test_a_part_has_the_samples_that_its_rows_name(
    rows: Any, expected: list[int], shards: Path
) -> None:
    dataset = ShardDataset(shards / "train", np.array)
    part = dataset[rows]
    assert isinstance(part, ShardDataset)
    assert len(part) == len(list(expected))
    assert part.keys.tolist() == [dataset.keys[row] for row in expected]
    assert part.targets.tolist() == [dataset.targets[row] for row in expected]
    assert part.classes == dataset.classes
    for found, row in zip(part, expected, strict=True):
        assert np.array_equal(found[0], dataset[row][0])
        assert found[1] == dataset[row][1]


def test_a_part_of_a_part_counts_from_its_own_beginning(shards: Path) -> None:
    dataset = ShardDataset(shards / "train")
    part = dataset[10:40][::3][[2, 0]]
    assert part.keys.tolist() == [dataset.keys[16], dataset.keys[10]]
    assert part.describe(0) == dataset.describe(16)


def test_classes_keys_and_a_block_list_narrow_each_other(shards: Path) -> None:
    whole = ShardDataset(shards / "train")
    two = [whole.classes[2], whole.classes[0]]
    dataset = ShardDataset(shards / "train", classes=two)
    assert sorted(set(dataset.targets.tolist())) == [0, 2]  # labels stay what they are
    assert len(dataset) == 34
    assert dataset.classes == whole.classes

    keys = [whole.keys[row] for row in (40, 3, 20)]
    dataset = ShardDataset(shards / "train", classes=two, keys=[key.decode() for key in keys])
    assert dataset.keys.tolist() == [keys[1], keys[0]]  # 20 is of the class between
    dataset = ShardDataset(shards / "train", keys=keys, blocked=[keys[1]])
    assert dataset.keys.tolist() == [keys[2], keys[0]]
    dataset = ShardDataset(shards / "train", blocked=whole.keys.tolist())
    assert len(dataset) == 0
    assert len(ShardDataset(shards / "train", keys=[])) == 0


@pytest.mark.parametrize(
    ("lists", "named"),
    [
        ({"classes": ["n00000000"]}, "no class 'n00000000'"),
        ({"keys": ["n01440764_1", "nothing"]}, "no sample '"),
        ({"keys": ["zzz"]}, "no sample 'zzz'"),
        ({"blocked": [b"a\0"]}, "no sample 'a"),
    ],
)
def test_what_a_list_has_and_the_split_has_not_is_named(
    lists: dict[str, Any], named: str, shards: Path
) -> None:
    with pytest.raises(UsageError, match=named) as raised:
        ShardDataset(shards / "train", **lists)
    assert str(shards / "train") in str(raised.value)


def test_tars_as_they_lie_are_opened_alike(
    archives: Any, run: Callable[..., Any], shards: Path, tmp_path: Path
) -> None:
    done = run("imagenet-prep", "index", archives.train, "--out", tmp_path / "index")
    assert done.returncode == 0, done.stderr
    indexed = ShardDataset(tmp_path / "index" / "train", np.array)
    dataset = ShardDataset(shards / "train", np.array)
    assert indexed.keys.tolist() == dataset.keys.tolist()
    assert all(
        np.array_equal(*pair) for pair in zip(pixels_of(indexed), pixels_of(dataset), strict=True)
    )


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_workers_give_every_sample_once(method: str, shards: Path) -> None:
    from torch.utils.data import DataLoader

    dataset = ShardDataset(shards / "train", np.array)[1:]
    expected = [dataset[row] for row in range(50)]  # its files are open when workers begin
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
    for _ in range(2):
        found = list(loader)
        assert len(found) == 50
        for (picture, label), (pixels, expected_label) in zip(found, expected, strict=True):
            assert np.array_equal(np.asarray(picture), pixels)
            assert label == expected_label


def test_random_split_and_samplers_take_it(shards: Path) -> None:
    import torch
    from torch.utils.data import DataLoader, WeightedRandomSampler, random_split

    dataset = ShardDataset(shards / "train", lambda picture: picture.width)
    one, other = random_split(dataset, [41, 10], generator=torch.Generator().manual_seed(0))
    assert (len(one), len(other)) == (41, 10)
    assert one[3] == dataset[one.indices[3]]
    weights = (dataset.targets == 1).astype(float)
    loader = DataLoader(dataset, 8, sampler=WeightedRandomSampler(weights.tolist(), 16))
    assert [labels.tolist() for _, labels in loader] == [[1] * 8] * 2
    assert len(dataset[torch.tensor([3, 4])]) == 2


def test_a_pickle_opens_its_files_again_and_is_small(shards_copy: Path) -> None:
    dataset = ShardDataset(shards_copy / "train", np.array)[5:9]
    pixels = pixels_of(dataset)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    again = unpickled(data)
    assert again.keys.tolist() == dataset.keys.tolist()
    assert again.targets.tolist() == dataset.targets.tolist()
    assert all(np.array_equal(*pair) for pair in zip(pixels_of(again), pixels, strict=True))


def test_a_relative_folder_is_the_same_wherever_it_is_unpickled(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards)
    data = pickle.dumps(ShardDataset("train"))
    monkeypatch.chdir(tmp_path)
    assert len(unpickled(data)) == 51


def test_a_pickle_refuses_a_split_that_holds_other_samples(
    shards_copy: Path,
) -> None:
    data = pickle.dumps(ShardDataset(shards_copy / "train"))
    shutil.rmtree(shards_copy / "train")
    (shards_copy / "val").rename(shards_copy / "train")
    with pytest.raises(DamagedData, match="holds other samples than when"):
        unpickled(data)


def test_files_are_closed_when_the_last_part_is_gone(shards: Path) -> None:
    def opened() -> int:
        return sum("imagenet-train-0" in path.name for path in open_files())

    gc.collect()
    before = opened()
    dataset = ShardDataset(shards / "train", np.array)
    part = dataset[::5]
    pixels_of(part)
    assert opened() > before
    del dataset
    part[0]
    assert opened() > before
    part.close()
    assert opened() == before
    part[0]
    del part
    gc.collect()
    assert opened() == before


def test_there_is_nothing_for_each_sample_but_numbers(shards: Path) -> None:
    dataset = ShardDataset(shards / "train")
    held = [value for value in vars(dataset).values() if hasattr(value, "__len__")]
    assert {type(value) for value in held if len(value) == len(dataset)} <= {
        Dataset,
        np.ndarray,
    } | {type(dataset._dataset)}
    assert not any(value.dtype == object for value in held if isinstance(value, np.ndarray))


@pytest.mark.parametrize("start", [bytes(2), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_damaged_picture_is_named_and_not_given(start: bytes, shards_copy: Path) -> None:
    dataset = ShardDataset(shards_copy / "train")
    path, rest = dataset.describe(9).split(": sample ")
    offset = int(rest.rsplit(" ", 1)[1])
    with Path(path).open("r+b") as file:
        file.seek(offset)
        file.write(start)
    with pytest.raises(DamagedData, match="cannot be decoded") as raised:
        dataset[9]
    assert str(raised.value).startswith(dataset.describe(9))


def test_a_picture_of_another_size_than_its_index_says_is_refused(
    shards_copy: Path, picture: Callable[[str], bytes]
) -> None:
    dataset = ShardDataset(shards_copy / "train")
    path, rest = dataset.describe(9).split(": sample ")
    with Path(path).open("r+b") as file:
        file.seek(int(rest.rsplit(" ", 1)[1]))
        file.write(picture("grey.jpg"))
    with pytest.raises(DamagedData, match="the index says"):
        dataset[9]


def test_a_shard_that_became_shorter_is_named(shards_copy: Path) -> None:
    dataset = ShardDataset(shards_copy / "train")
    path = dataset.describe(9).split(": sample ")[0]
    os.truncate(path, 512)
    with pytest.raises(DamagedData, match="ends at byte 512"):
        dataset[9]


def test_it_needs_no_torch(shards: Path) -> None:
    code = (
        "import sys; from shards.map_style import ShardDataset\n"
        f"ShardDataset({str(shards / 'train')!r})[0]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
