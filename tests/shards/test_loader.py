"""The loader: every sample exactly once, the same batches for everyone, torchvision's pixels."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from shards.augment import flips, random_resized_crops
from shards.dataset import Dataset
from shards.decode import decode_rgb
from shards.errors import DamagedData, UsageError
from shards.index import INDEX_NAME, Index
from shards.loader import Batch, Loader
from shards.order import epoch_order
from shards.transform import EvalTransform, TrainTransform

SMALL = TrainTransform(image_size=24)


@pytest.fixture(scope="module")
def train(shards: Path) -> Iterator[Dataset]:
    with Dataset.open(shards / "train") as dataset:
        yield dataset


def load(dataset: Dataset, **changes: Any) -> list[Batch]:
    """The batches of an epoch, copied out of the ring."""
    epoch, first = changes.pop("epoch", 0), changes.pop("first_step", 0)
    transform = changes.pop("transform", SMALL)
    options = {"global_batch": 8, "shuffle": "full", "drop_last": False, "threads": 2}
    with Loader(dataset, transform, **(options | changes)) as loader:
        return [replace(batch, images=batch.images.clone()) for batch in loader.epoch(epoch, first)]


def pixels(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


def numbers(batches: list[Batch]) -> list[int]:
    return [int(sample) for batch in batches for sample in batch.samples]


# --- which samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("batch", [8, 13, 51, 100])
def test_every_sample_comes_exactly_once_over_all_ranks(
    world: int, batch: int, train: Dataset
) -> None:
    ranks = [
        load(train, world=world, rank=rank, global_batch=batch, threads=1,
             transform=TrainTransform(image_size=2))
        for rank in range(world)
    ]  # fmt: skip
    assert len({len(each) for each in ranks}) == 1
    order = epoch_order(0, 0, len(train), shuffle="full")
    for step, parts in enumerate(zip(*ranks, strict=True)):
        expected = order[step * batch : (step + 1) * batch]
        assert np.concatenate([part.samples for part in parts]).tolist() == expected.tolist()
        sizes = [len(part.samples) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert {part.global_size for part in parts} == {len(expected)}
        assert {part.step for part in parts} == {step}
    assert sorted(sample for each in ranks for sample in numbers(each)) == list(range(len(train)))


def test_positions_and_labels_belong_to_the_samples(train: Dataset) -> None:
    order = epoch_order(0, 4, len(train), shuffle="full")
    for batch in load(train, epoch=4, rank=1, world=2):
        assert order[batch.positions].tolist() == batch.samples.tolist()
        assert batch.labels.tolist() == train.labels[batch.samples].tolist()
        assert batch.labels.dtype == torch.int64
        assert (batch.images.dtype, batch.images.shape[1:]) == (torch.uint8, (24, 24, 3))


def test_a_short_last_batch_is_dropped_on_demand(train: Dataset) -> None:
    assert [len(batch.samples) for batch in load(train)] == [8, 8, 8, 8, 8, 8, 3]
    assert [len(batch.samples) for batch in load(train, drop_last=True)] == [8] * 6
    assert load(train, drop_last=True, global_batch=52) == []


def test_without_shuffling_samples_come_in_key_order(train: Dataset) -> None:
    assert numbers(load(train, shuffle="none")) == list(range(len(train)))


def test_epochs_differ_in_order_and_pixels(train: Dataset) -> None:
    one, other = load(train, epoch=0), load(train, epoch=1)
    assert numbers(one) != numbers(other)
    where = {sample: place for place, sample in enumerate(numbers(other))}
    again = pixels(other)[[where[sample] for sample in numbers(one)]]
    same = (pixels(one) == again).flatten(1).all(1)
    assert same.float().mean() < 0.1


# --- the same for everyone --------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 3, 6, 7])
def test_starting_late_is_the_tail_of_the_epoch(first: int, train: Dataset) -> None:
    whole, tail = load(train, epoch=2), load(train, epoch=2, first_step=first)
    assert [batch.step for batch in tail] == list(range(first, 7))
    assert numbers(tail) == numbers(whole)[first * 8 :]
    assert all(
        torch.equal(one.images, other.images)
        for one, other in zip(whole[first:], tail, strict=True)
    )


@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"threads": 5}, {"prefetch": 1}, {"prefetch": 9}]
)
def test_pixels_do_not_depend_on_threads_or_prefetching(
    options: dict[str, int], train: Dataset
) -> None:
    assert torch.equal(pixels(load(train, **options)), pixels(load(train)))


@pytest.mark.parametrize("world", [2, 3])
def test_pixels_do_not_depend_on_the_world(world: int, train: Dataset) -> None:
    ranks = [load(train, world=world, rank=rank) for rank in range(world)]
    parts = [part.images for step in zip(*ranks, strict=True) for part in step]
    assert torch.equal(torch.cat(parts), pixels(load(train)))


def test_pixels_do_not_depend_on_the_shards(
    train: Dataset, archives: Any, build: Callable[..., Any], tmp_path: Path
) -> None:
    build(archives.train, out=tmp_path, seed=5, samples_per_shard=3)
    with Dataset.open(tmp_path / "train") as other:
        assert torch.equal(pixels(load(other)), pixels(load(train)))


# --- the right pixels -------------------------------------------------------------------------


def nearly_all_within_one(found: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (found.int() - expected.int()).abs()
    return bool((difference <= 1).float().mean() >= 0.999)


def decoded(dataset: Dataset, sample: int) -> torch.Tensor:
    encoded = dataset.read(sample)
    return torch.from_numpy(decode_rgb(encoded.data, encoded.info).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("size", [1, 32, 65])
def test_a_training_crop_is_torchvision_s(size: int, train: Dataset) -> None:
    transform = TrainTransform(image_size=size)
    for batch in load(train, transform=transform, seed=7, epoch=1):
        samples = batch.samples
        boxes = random_resized_crops(
            7,
            1,
            samples,
            train.widths[samples],
            train.heights[samples],
            scale=transform.scale,
            ratio=transform.ratio,
        )
        mirrored = flips(7, 1, samples, 0.5)
        for image, sample, box, mirror in zip(batch.images, samples, boxes, mirrored, strict=True):
            expected = v2.functional.resized_crop(
                decoded(train, sample), *box.tolist(), [size, size], antialias=True
            )
            if mirror:
                expected = v2.functional.horizontal_flip(expected)
            assert nearly_all_within_one(image, expected.permute(1, 2, 0))


@pytest.mark.parametrize(("resize", "crop"), [(40, 32), (37, 37), (33, 20), (150, 147), (2, 1)])
def test_evaluation_is_torchvision_s(resize: int, crop: int, shards: Path) -> None:
    expected_of = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(crop)])
    with Dataset.open(shards / "val") as dataset:
        transform = EvalTransform(image_size=crop, resize=resize)
        for batch in load(dataset, transform=transform, shuffle="none"):
            for image, sample in zip(batch.images, batch.samples, strict=True):
                expected = expected_of(decoded(dataset, sample)).permute(1, 2, 0)
                assert nearly_all_within_one(image, expected)


@pytest.fixture
def odd_pictures(
    picture: Callable[[str], bytes],
    build: Callable[..., Any],
    write_folders: Callable[..., Path],
    tmp_path: Path,
) -> Iterator[Dataset]:
    """Grey, CMYK, progressive, and a PNG in JPEG's clothing."""
    names = ["grey.jpg", "cmyk.jpg", "progressive.jpg", "picture.png", "colour.jpg"]
    images = {f"{number}.JPEG": picture(name) for number, name in enumerate(names)}
    build(write_folders(tmp_path / "train", {"cat": images}), out=tmp_path / "out")
    with Dataset.open(tmp_path / "out" / "train") as dataset:
        yield dataset


def test_odd_pictures_are_loaded_like_any_other(odd_pictures: Dataset) -> None:
    transform = EvalTransform(image_size=16, resize=16)
    (batch,) = load(odd_pictures, transform=transform, shuffle="none")
    expected_of = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(16)])
    for image, sample in zip(batch.images, batch.samples, strict=True):
        expected = expected_of(decoded(odd_pictures, sample)).permute(1, 2, 0)
        assert nearly_all_within_one(image, expected)
    assert len(pixels(load(odd_pictures))) == 5


# --- the ring and the threads -----------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [1, 3])
def test_images_stay_until_the_batch_after_the_next_is_asked_for(
    prefetch: int, train: Dataset
) -> None:
    expected = [batch.images for batch in load(train, global_batch=4)]
    with Loader(train, SMALL, global_batch=4, shuffle="full", drop_last=False, threads=2,
                prefetch=prefetch) as loader:  # fmt: skip
        held: list[Batch] = []
        for batch in loader.epoch(0):
            held = [*held, batch][-2:]
            for each in held:
                assert torch.equal(each.images, expected[each.step])


def test_images_stay_over_the_end_of_an_epoch(train: Dataset) -> None:
    """A copy to a device may still be under way when the next epoch begins."""
    with Loader(
        train, SMALL, global_batch=51, shuffle="full", drop_last=False, threads=2
    ) as loader:
        (last,) = loader.epoch(0)
        before = last.images.clone()
        first = next(following := loader.epoch(1))
        assert torch.equal(last.images, before)
        assert not torch.equal(first.images, before)
        following.close()


def test_an_epoch_left_early_does_not_disturb_the_next(train: Dataset) -> None:
    expected = pixels(load(train, epoch=1))
    with Loader(train, SMALL, global_batch=8, shuffle="full", drop_last=False, threads=3) as loader:
        for epoch in (0, 5, 6):
            for batch in loader.epoch(epoch):
                if batch.step == 2:
                    break
        found = [batch.images.clone() for batch in loader.epoch(1)]
    assert torch.equal(torch.cat(found), expected)


def test_an_epoch_that_is_still_held_is_not_mixed_into_the_next(train: Dataset) -> None:
    """Two live epochs share a ring: the older one must end, or the second be refused."""
    with Loader(train, SMALL, global_batch=8, shuffle="full", drop_last=False, threads=2) as loader:
        older = loader.epoch(0)
        held = next(older)
        before = held.images.clone()
        newer = loader.epoch(1)
        with contextlib.suppress(RuntimeError, UsageError):
            next(newer)
        assert torch.equal(held.images, before)
        older.close()
        newer.close()


@pytest.mark.usefixtures("deadline")
def test_a_loader_can_be_closed_in_the_middle_of_an_epoch(train: Dataset) -> None:
    """Images that wait for a thread when the threads end are waited for by nobody."""
    loader = Loader(train, SMALL, global_batch=10, shuffle="full", drop_last=False, threads=1,
                    prefetch=5)  # fmt: skip
    batches = loader.epoch(0)
    next(batches)
    loader.close()
    batches.close()
    assert next(batches, None) is None


def test_no_thread_outlives_the_loader(train: Dataset) -> None:
    before = set(threading.enumerate())
    with Loader(train, SMALL, global_batch=8, shuffle="full", drop_last=False, threads=4) as loader:
        next(loader.epoch(0))
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before


THREADS = """
import sys
import threading
from pathlib import Path
import torch
from shards.dataset import Dataset
from shards.loader import Loader, TrainTransform

counts = []
asking = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
asking.start()
asking.join()
with (
    Dataset.open(Path(sys.argv[1])) as dataset,
    Loader(dataset, TrainTransform(image_size=8), global_batch=8, shuffle="full",
           drop_last=False, threads=2) as loader,
):
    next(loader.epoch(0))
assert counts == [torch.get_num_threads()], (counts, torch.get_num_threads())
"""


def test_the_loader_takes_no_threads_from_the_model(shards: Path) -> None:
    """A thread's first question to torch is answered by what any thread has set before."""
    command = [sys.executable, "-c", THREADS, shards / "train"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


ONE_CORE = """
import torch
from shards.crew import Crew, Job

torch.set_num_threads(3)
crew, counts = Crew(4, "test"), []
job = Job(lambda part: counts.append(torch.get_num_threads()) or 1, [slice(0, 1)] * 50)
crew.begin(job)
assert job.result() == 50
crew.close()
assert set(counts) == {1}, counts
assert torch.get_num_threads() == 3
"""


def test_each_of_its_threads_uses_one_core() -> None:
    """torch gives a thread the number that was set last anywhere, when it first asks for it."""
    command = [sys.executable, "-c", ONE_CORE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_was_done_is_counted(train: Dataset) -> None:
    size = sum(len(train.read(number).data) for number in range(len(train)))
    with Loader(train, SMALL, global_batch=8, shuffle="full", drop_last=False, threads=2) as loader:
        for epoch in (1, 2):
            list(loader.epoch(epoch - 1))
            assert (loader.stats().samples, loader.stats().bytes) == (epoch * 51, epoch * size)
        assert loader.stats().wait_seconds >= 0


# --- damage and nonsense ----------------------------------------------------------------------


def test_a_damaged_image_is_named_with_shard_key_and_offset(shards_copy: Path) -> None:
    folder = shards_copy / "train"
    index = Index.read(folder / INDEX_NAME)
    row = 20
    shard = folder / index.header["files"][index["shard"][row]]
    offset, size = int(index["offset"][row]), int(index["size"][row])
    data = bytearray(shard.read_bytes())
    data[offset : offset + size] = bytes(size)
    shard.write_bytes(data)
    with Dataset.open(folder) as dataset, pytest.raises(DamagedData) as raised:
        load(dataset)
    key = index["key"][row].decode()
    assert str(raised.value).startswith(f"{shard}: sample {key} at byte {offset}: ")


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("size", lambda value: value // 2),
        ("offset", lambda value: value + 512),
        ("width", lambda value: value + 1),
        ("height", lambda value: value * 1000),
    ],
)
def test_an_index_that_lies_is_an_error_and_no_wrong_image(
    column: str, change: Callable[[int], int], shards_copy: Path
) -> None:
    folder = shards_copy / "train"
    index = Index.read(folder / INDEX_NAME)
    values = index[column].copy()
    values[9] = change(int(values[9]))
    other = folder / "other"
    with other.open("wb") as file:
        replace(index, columns=index.columns | {column: values}).write(file)
    other.replace(folder / INDEX_NAME)
    key = index["key"][9].decode()
    with Dataset.open(folder) as dataset:
        for transform in (SMALL, EvalTransform(image_size=16, resize=16)):
            with pytest.raises(DamagedData, match=f"sample {key} at byte"):
                load(dataset, transform=transform)


def test_after_an_error_the_loader_can_be_closed_or_used(shards_copy: Path, train: Dataset) -> None:
    folder = shards_copy / "train"
    with Dataset.open(folder) as dataset, Loader(
        dataset, SMALL, global_batch=8, shuffle="full", drop_last=False, threads=2
    ) as loader:  # fmt: skip
        names = sorted(folder.glob("*.tar"))
        whole = [path.read_bytes() for path in names]
        for path in names:
            path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(DamagedData):
            list(loader.epoch(0))
        for path, data in zip(names, whole, strict=True):
            path.write_bytes(data)
        found = torch.cat([batch.images.clone() for batch in loader.epoch(0)])
    assert torch.equal(found, pixels(load(train)))


@pytest.mark.parametrize(
    "options",
    [
        {"global_batch": 0},
        {"threads": 0},
        {"prefetch": 0},
        {"rank": 2, "world": 2},
        {"rank": -1},
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], train: Dataset) -> None:
    with pytest.raises(UsageError):
        load(train, **options)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="--image-size"):
        TrainTransform(image_size=0)
    with pytest.raises(UsageError, match="short side of 223"):
        EvalTransform(image_size=224, resize=223)
    with pytest.raises(UsageError):
        EvalTransform(image_size=0, resize=1)
