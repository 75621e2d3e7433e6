"""The loader over shards that change, lie or are damaged, and when it is interrupted.

Whatever happens: pictures that are right, or an error that names the place; never a crash, a
hang, or a picture of something else.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jpegs import find_jpegtran, made
from PIL import Image
from torchvision.transforms import v2

from shards.augment import flips, random_resized_crops
from shards.columns import Column
from shards.dataset import Dataset
from shards.durable import atomic_write_bytes
from shards.errors import DamagedData, UsageError
from shards.index import INDEX_NAME, Index
from shards.loader import Batch, Loader
from shards.manifest import MANIFEST_NAME, SUMS_NAME, Manifest
from shards.order import epoch_order
from shards.rebuild import file_of, index_bytes
from shards.sample import LARGEST_IMAGE
from shards.transcode import make_encoder
from shards.transform import EvalTransform, TrainTransform

SMALL = TrainTransform(image_size=16)
EVAL = EvalTransform(image_size=16, resize=20)
SECONDS = 120  # until a process that hangs fails its test
Change = Callable[[dict[str, Column]], object]


@pytest.fixture
def folder(shards_copy: Path) -> Path:
    """A split of 51 samples in four shards that a test may damage."""
    return shards_copy / "train"


def loader(dataset: Dataset, **options: Any) -> Loader:
    chosen = {"global_batch": 8, "threads": 2} | options
    return Loader(dataset, chosen.pop("transform", SMALL), **chosen)


def kept(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.clone())


def copied(batches: Iterator[Batch] | Loader) -> list[Batch]:
    return [kept(batch) for batch in batches]


def pictures(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


def numbers(batches: list[Batch]) -> list[int]:
    return [int(sample) for batch in batches for sample in batch.samples]


def labels(batches: list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def shard_of(dataset: Dataset, number: int) -> Path:
    return Path(dataset.describe(number).partition(": sample ")[0])


def overwrite(dataset: Dataset, number: int, data: bytes) -> None:
    """Change bytes of a sample in its shard, which stays the file that it is."""
    (place,) = dataset.places(np.array([number]))
    with shard_of(dataset, number).open("r+b") as file:
        file.seek(place.offset)
        file.write(data)


def outcomes(
    dataset: Dataset, transform: TrainTransform | EvalTransform, epoch: int = 0
) -> list[torch.Tensor | str]:
    """Of every sample its picture, or what is said of it instead."""
    found: list[torch.Tensor | str] = []
    options = {"transform": transform, "global_batch": 1, "shuffle": "none", "threads": 1}
    with loader(dataset, **options) as batches:
        while len(found) < len(dataset):
            try:
                found.extend(batch.images[0].clone() for batch in batches.epoch(epoch, len(found)))
            except DamagedData as error:
                found.append(str(error))
    for number, each in enumerate(found):
        if isinstance(each, str):
            assert each.startswith(f"{dataset.describe(number)}: ")
    return found


def is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (found.int() - expected.int()).abs()
    return bool((difference <= 1).float().mean() >= 0.999)


# --- shards that change -----------------------------------------------------------------------


@pytest.mark.parametrize(("prefetch", "threads"), [(1, 1), (3, 2), (6, 4)])
def test_a_shard_that_is_cut_in_mid_epoch_is_named_and_when_it_is_back_all_goes_on(
    prefetch: int, threads: int, folder: Path
) -> None:
    options = {"global_batch": 4, "prefetch": prefetch, "threads": threads}
    with Dataset.open(folder) as dataset, loader(dataset, **options) as batches:
        expected = copied(batches.epoch(0))
        last = int(expected[-1].samples[-1])
        shard, (place,) = shard_of(dataset, last), dataset.places(np.array([last]))
        whole, end = shard.read_bytes(), place.offset + place.size - 1
        running = batches.epoch(0)
        found = [kept(next(running))]
        os.truncate(shard, end)
        with pytest.raises(DamagedData) as raised:
            found.extend(map(kept, running))
        shard.write_bytes(whole)
        found += copied(batches)
    said = str(raised.value)
    assert said.startswith(f"{shard}: sample ")
    assert f"{shard} ends at byte {end}, but an image should reach to " in said
    assert torch.equal(pictures(found), pictures(expected))
    assert numbers(found) == numbers(expected)


def test_what_a_shard_lost_in_mid_epoch_is_replaced_on_request(folder: Path) -> None:
    options = {"global_batch": 4, "on_bad": "substitute"}
    with Dataset.open(folder) as dataset, loader(dataset, **options) as batches:
        running = batches.epoch(0)
        next(running)
        order = epoch_order(0, 0, len(dataset), shuffle="full")
        os.truncate(shard_of(dataset, order[-1]), 0)
        rest = copied(running)
        assert len(numbers(rest)) == len(dataset) - 4
        assert numbers(rest)[-1] != order[-1]
        lost = sum(sample != order[at] for batch in rest
                   for sample, at in zip(batch.samples, batch.positions, strict=True))  # fmt: skip
        assert batches.stats().substituted == lost > 0


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda path: atomic_write_bytes(path, b"something else")]
)
def test_a_shard_that_is_open_may_be_removed_or_replaced(
    change: Callable[[Path], object], folder: Path
) -> None:
    with Dataset.open(folder) as dataset, loader(dataset) as batches:
        expected = pictures(copied(batches.epoch(1)))
        for shard in folder.glob("*.tar"):
            change(shard)
        assert torch.equal(pictures(copied(batches.epoch(1))), expected)


@pytest.mark.parametrize("on_bad", ["raise", "substitute"])
def test_a_shard_that_was_removed_before_it_was_opened_is_named(on_bad: str, folder: Path) -> None:
    """That is no damage of single samples, which others could stand in for."""
    shard = folder / "imagenet-train-000002.tar"
    with Dataset.open(folder) as dataset, loader(dataset, on_bad=on_bad) as batches:
        shard.unlink()
        with pytest.raises(FileNotFoundError) as raised:
            copied(batches)
    assert raised.value.filename == str(shard)


@pytest.mark.parametrize("length", [0, 700, None])
def test_a_shard_that_was_replaced_before_it_was_opened_is_named(
    length: int | None, folder: Path
) -> None:
    shard = folder / "imagenet-train-000002.tar"
    with Dataset.open(folder) as dataset, loader(dataset) as batches:
        atomic_write_bytes(shard, bytes(shard.stat().st_size if length is None else length))
        with pytest.raises(DamagedData) as raised:
            copied(batches)
    assert str(raised.value).startswith(f"{shard}: sample ")


# --- single bits ------------------------------------------------------------------------------


def by_pillow(
    data: bytes,
    number: int,
    dataset: Dataset,
    transform: TrainTransform | EvalTransform,
    epoch: int,
) -> torch.Tensor:
    """What torchvision makes of the pixels that Pillow decodes."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    size = transform.image_size
    if isinstance(transform, EvalTransform):
        resized = v2.functional.resize(pixels, [transform.resize], antialias=True)
        return v2.functional.center_crop(resized, [size, size]).permute(1, 2, 0)
    only = np.array([number])
    (box,) = random_resized_crops(
        0, epoch, only, dataset.widths[only], dataset.heights[only],
        scale=transform.scale, ratio=transform.ratio,
    ).tolist()  # fmt: skip
    picture = v2.functional.resized_crop(pixels, *box, [size, size], antialias=True)
    return (picture.flip(2) if flips(0, epoch, only, 0.5)[0] else picture).permute(1, 2, 0)


@pytest.fixture(params=["keep", "restart"])
def any_jpegs(
    request: pytest.FixtureRequest, archives: Any, build: Callable[..., Any], tmp_path: Path
) -> Path:
    """A split as it comes, and one whose pictures are decoded in parts."""
    write = {}
    if request.param == "restart":
        find_jpegtran()
        write["encoder"] = make_encoder("restart")
    build(archives.train, out=tmp_path, write=write)
    return tmp_path / "train"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged headers
@pytest.mark.parametrize("transform", [SMALL, EVAL])
def test_a_flipped_bit_is_an_error_or_what_pillow_makes_of_it(
    transform: TrainTransform | EvalTransform, any_jpegs: Path
) -> None:
    """Every sample has one, half of them within its headers."""
    seen = {"refused": 0, "decoded": 0}
    with Dataset.open(any_jpegs) as dataset:
        whole = [bytes(dataset.read(number).data) for number in range(len(dataset))]
        for seed in range(8):
            generator = np.random.default_rng(seed)
            flipped = []
            for number, data in enumerate(whole):
                image = bytearray(data)
                end = min(len(image), 650) if generator.integers(2) else len(image)
                image[generator.integers(end)] ^= 1 << int(generator.integers(8))
                overwrite(dataset, number, image)
                flipped.append(bytes(image))
            for number, found in enumerate(outcomes(dataset, transform, seed)):
                seen["refused" if isinstance(found, str) else "decoded"] += 1
                if not isinstance(found, str):
                    expected = by_pillow(flipped[number], number, dataset, transform, seed)
                    assert is_near(found, expected), (seed, number)
    assert min(seen.values()) > 20


# --- indexes that lie -------------------------------------------------------------------------


def forge(folder: Path, change: Change) -> None:
    """Change an index, and the digests of all that vouches for it."""
    old, manifest = Index.read(folder / INDEX_NAME), Manifest.read(folder)
    columns = {name: column.copy() for name, column in old.columns.items()}
    change(columns)
    index = replace(old, columns=columns)
    data = index_bytes(index)
    manifest = replace(
        manifest,
        content=index.content_digest(),
        index=file_of(INDEX_NAME, data, len(index)),
        shards=tuple(
            replace(shard, bytes=(folder / shard.name).stat().st_size) for shard in manifest.shards
        ),
    )
    atomic_write_bytes(folder / INDEX_NAME, data)
    atomic_write_bytes(folder / SUMS_NAME, manifest.sums())
    atomic_write_bytes(folder / MANIFEST_NAME, manifest.to_bytes())


def put(column: str, row: int, value: int) -> Change:
    def change(columns: dict[str, Column]) -> None:
        columns[column][row] = value

    return change


@pytest.mark.parametrize(
    ("column", "value"),
    [("offset", 2**64 - 1), ("offset", 2**40), ("offset", 2**20), ("size", 10**6), ("shard", 3)],
)
def test_an_index_that_leads_out_of_its_shards_is_not_opened(
    column: str, value: int, folder: Path
) -> None:
    """The last sample of the first shard; the last shard is too short for it."""
    (row,) = np.flatnonzero(Index.read(folder / INDEX_NAME)["shard"] == 0)[-1:]
    forge(folder, put(column, int(row), value))
    with pytest.raises(DamagedData, match="would lie outside its shard"):
        Dataset.open(folder)


@pytest.mark.parametrize("size", [LARGEST_IMAGE + 1, 2**31, 2**32 - 1])
def test_an_image_of_gigabytes_takes_no_memory(size: int, folder: Path) -> None:
    """Its shard is as long as that, and takes no room on the disk either."""
    os.truncate(folder / "imagenet-train-000000.tar", 2**33)
    forge(folder, put("size", 0, size))
    tracemalloc.start()
    with pytest.raises(DamagedData, match=f"an image has more than {LARGEST_IMAGE} bytes"):
        Dataset.open(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


@pytest.mark.parametrize("transform", [SMALL, EVAL])
def test_a_picture_of_gigabytes_takes_no_memory(
    transform: TrainTransform | EvalTransform, folder: Path
) -> None:
    forge(
        folder, lambda columns: (put("width", 0, 2**14)(columns), put("height", 0, 2**13)(columns))
    )
    number = int(Index.read(folder / INDEX_NAME)["rank"][0])
    with Dataset.open(folder) as dataset:
        tracemalloc.start()
        found = outcomes(dataset, transform)[number]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert "the index says 16384 x 8192" in str(found)
    assert peak < 1 << 24


def test_a_sample_in_a_hole_of_its_shard_is_named(folder: Path) -> None:
    os.truncate(folder / "imagenet-train-000000.tar", 2**33)
    forge(folder, put("offset", 0, 2**32))
    number = int(Index.read(folder / INDEX_NAME)["rank"][0])
    with Dataset.open(folder) as dataset:
        found = outcomes(dataset, SMALL)
    assert "neither a JPEG nor a PNG" in str(found[number])
    assert [number for number, each in enumerate(found) if isinstance(each, str)] == [number]


@pytest.mark.parametrize("columns", [("offset",), ("offset", "size")])
def test_the_place_of_another_image_is_told_by_its_size_in_pixels(
    columns: tuple[str, ...], build: Callable[..., Any], write_folders: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Every sample gets the next one's place. Only the same size is not told, or all would be."""
    sizes = [(40, 30), (40, 30), (41, 30), (41, 30), (40, 31)]
    images = {f"{n}{q}.JPEG": made(*size, quality=70 + q)
              for n, size in enumerate(sizes) for q in range(3)}  # fmt: skip
    build(write_folders(tmp_path / "train", {"cat": images}), out=tmp_path / "out")
    split = tmp_path / "out" / "train"
    with Dataset.open(split) as dataset:
        expected = outcomes(dataset, EVAL)
    index = Index.read(split / INDEX_NAME)
    following = np.roll(np.arange(len(index)), -1)

    def rotate(found: dict[str, Column]) -> None:
        for column in columns:
            found[column] = found[column][following]
        found["size"] = np.minimum(found["size"], index["size"][following])  # or it may reach out

    forge(split, rotate)
    other = {int(index["rank"][row]): int(index["rank"][following[row]]) for row in following}
    same = 0
    with Dataset.open(split) as dataset:
        shapes = list(zip(dataset.widths.tolist(), dataset.heights.tolist(), strict=True))
        for number, found in enumerate(outcomes(dataset, EVAL)):
            there = other[number]
            if isinstance(found, str):
                told = f"the index says {shapes[number][0]} x {shapes[number][1]}" in found
                assert told or "truncated" in found
                assert told or columns == ("offset",)
            else:
                assert shapes[number] == shapes[there]
                assert torch.equal(found, expected[there])
                same += 1
    assert 0 < same < len(index)


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns["width"].__iadd__(1),
        lambda columns: columns["height"].__isub__(1),
        lambda columns: columns.update(width=columns["height"] * 2, height=columns["width"]),
    ],
)
@pytest.mark.parametrize("transform", [SMALL, EVAL])
def test_wrong_sizes_are_no_wrong_crops(
    transform: TrainTransform | EvalTransform, change: Change, folder: Path
) -> None:
    forge(folder, change)
    with Dataset.open(folder) as dataset:
        assert all("pixels, the index says " in str(each) for each in outcomes(dataset, transform))


@pytest.mark.parametrize(
    ("column", "value"),
    [("format", 2), ("format", 3), ("components", 0), ("components", 1), ("components", 4)],
)
def test_what_a_wrong_kind_of_image_is_decoded_by_does_not_matter(
    column: str, value: int, folder: Path
) -> None:
    with Dataset.open(folder) as dataset:
        expected = outcomes(dataset, SMALL)
    forge(folder, lambda columns: columns[column].fill(value))
    with Dataset.open(folder) as dataset:
        for found, right in zip(outcomes(dataset, SMALL), expected, strict=True):
            assert isinstance(found, torch.Tensor)
            assert isinstance(right, torch.Tensor)
            assert torch.equal(found, right)


def test_a_picture_too_thin_to_be_resized_is_named(
    build: Callable[..., Any], write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    """256 x 15,360,000 pixels would take 12 GB; a strip that takes less is taken as it is."""
    images = {"thin.JPEG": made(60_000, 1), "plain.JPEG": made(40, 30), "long.JPEG": made(4000, 2)}
    build(write_folders(tmp_path / "train", {"cat": images}), out=tmp_path / "out")
    with Dataset.open(tmp_path / "out" / "train") as dataset:
        found = outcomes(dataset, EvalTransform(image_size=224, resize=256))
        thin = found.pop(int(dataset.widths.argmax()))
        assert "it has 60000 x 1 pixels, which is too thin to be resized" in str(thin)
        assert not any(isinstance(each, str) for each in found)
        assert not any(isinstance(each, str) for each in outcomes(dataset, SMALL))


# --- interrupted ------------------------------------------------------------------------------


@pytest.fixture
def whole(shards: Path) -> Iterator[Dataset]:
    with Dataset.open(shards / "train") as dataset:
        yield dataset


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("step", [0, 5, 50])
def test_what_is_raised_in_the_loop_leaves_no_thread(
    kind: type[BaseException], step: int, whole: Dataset
) -> None:
    before = set(threading.enumerate())
    options = {"global_batch": 1, "threads": 4, "prefetch": 20}

    def train() -> None:
        with loader(whole, **options) as batches:
            for batch in batches:
                if batch.step == step:
                    raise kind

    with pytest.raises(kind):
        train()
    assert set(threading.enumerate()) == before


@pytest.mark.usefixtures("deadline")
def test_a_loader_may_be_closed_at_any_time_and_twice(whole: Dataset) -> None:
    before = set(threading.enumerate())
    for steps in range(8):
        batches = loader(whole, threads=3)
        running = batches.epoch(0)
        assert len(list(itertools.islice(running, steps))) == min(steps, len(batches))
        for _ in range(2):
            batches.close()
            assert set(threading.enumerate()) == before


class Interrupting:
    """Ctrl-C while a thread is at work on the picture of that number."""

    draws = 1

    def __init__(self, number: int) -> None:
        self._calls = itertools.count()
        self._number = number

    def __call__(self, pixels: Any, _uniform: Any) -> Any:
        if next(self._calls) == self._number:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
        return pixels


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises here, even where this process was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c", "deadline")
@pytest.mark.parametrize("number", [3, 11, 19, 47])
def test_after_ctrl_c_while_a_batch_is_waited_for_the_loader_may_be_closed_or_used(
    number: int, whole: Dataset
) -> None:
    """As in a notebook, where the next cell takes the same loader."""
    before = set(threading.enumerate())
    transform = replace(SMALL, augment=(Interrupting(number),))
    with loader(whole, transform=transform, global_batch=4, prefetch=1) as batches:
        with pytest.raises(KeyboardInterrupt):
            copied(batches)
        for epoch in (0, 1):
            order = epoch_order(0, epoch, len(whole), shuffle="full")
            assert numbers(copied(batches.epoch(epoch))) == order.tolist()
    assert set(threading.enumerate()) == before


class InterruptedWhileAsked:
    """Ctrl-C while a batch is being prepared, the number of those that are left."""

    def __init__(self) -> None:
        self.left = -1

    @property
    def draws(self) -> int:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return 1

    def __call__(self, pixels: Any, _uniform: Any) -> Any:
        return pixels


@pytest.mark.usefixtures("ctrl_c", "deadline")
def test_ctrl_c_while_batches_are_prepared_takes_none_of_the_memory(whole: Dataset) -> None:
    augment = InterruptedWhileAsked()
    with loader(whole, transform=replace(SMALL, augment=(augment,))) as batches:
        expected = copied(batches.epoch(0))
        for left in (1, 2, 3, 4, 5, 6, 7):
            augment.left = left
            with pytest.raises(KeyboardInterrupt):
                copied(batches.epoch(0))
            assert torch.equal(pictures(copied(batches.epoch(0))), pictures(expected))


def test_an_image_size_that_fails_in_mid_epoch_can_be_tried_again(whole: Dataset) -> None:
    sizes = {3: 17}  # more than the transform's
    with loader(whole, image_size=lambda _, step: sizes.get(step, 8)) as batches:
        for _ in range(10):  # more often than there are places for batches
            with pytest.raises(UsageError, match="step 3 is 17"):
                copied(batches.epoch(0))
        sizes.clear()
        done = batches.state_dict()["step"] * 8  # before the step that was being prepared
        assert 0 < done <= 24
        order = epoch_order(0, 0, len(whole), shuffle="full")
        assert numbers(copied(batches)) == order[done:].tolist()


ENDLESS = """
import itertools
import sys
from pathlib import Path
from shards.dataset import Dataset
from shards.loader import Loader
from shards.transform import TrainTransform

dataset = Dataset.open(Path(sys.argv[1]))
loader = Loader(dataset, TrainTransform(image_size=64), global_batch=16, threads=3, prefetch=4)
if sys.argv[2] == "closed":
    loader.__enter__()
try:
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            if epoch == batch.step == 1:
                print("running", flush=True)
finally:
    if sys.argv[2] == "closed":
        loader.close()
"""


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("how", ["closed", "left open"])
def test_ctrl_c_ends_a_process_that_loads(how: str, shards: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(shards / "train"), how]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode in (130, -signal.SIGINT)
    assert said.rstrip().endswith("KeyboardInterrupt")


# --- several loaders --------------------------------------------------------------------------


ANYWHERE = """
import random, signal, sys, threading
from pathlib import Path
import torch
from shards.dataset import Dataset
from shards.loader import Loader
from shards.transform import TrainTransform

def interrupt(*_):
    raise KeyboardInterrupt

options = {"global_batch": 5, "threads": 2}
dataset, generator = Dataset.open(Path(sys.argv[1])), random.Random(7)
with Loader(dataset, TrainTransform(image_size=8), **options) as loader:
    expected = [batch.images.clone() for batch in loader.epoch(1)]
loader = Loader(dataset, TrainTransform(image_size=8), **options)
signal.signal(signal.SIGALRM, interrupt)
interrupts = 0
while interrupts < 120:
    try:
        signal.setitimer(signal.ITIMER_REAL, generator.uniform(0.0001, 0.02))
        for epoch in range(1000):
            for batch in loader.epoch(epoch):
                pass
    except KeyboardInterrupt:
        interrupts += 1
    found = [batch.images.clone() for batch in loader.epoch(1)]
    assert all(map(torch.equal, found, expected)) and len(found) == len(expected), interrupts
loader.close()
assert threading.enumerate() == [threading.main_thread()]
"""


def test_ctrl_c_at_hundreds_of_moments_leaves_the_loader_usable(shards: Path) -> None:
    command = [sys.executable, "-c", ANYWHERE, shards / "train"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_loaders_over_one_dataset_do_not_disturb_each_other(whole: Dataset) -> None:
    options = [{"seed": 1}, {"transform": EVAL, "shuffle": "none", "threads": 1}]
    expected = []
    for each in options:
        with loader(whole, **each) as batches:
            expected.append(pictures(copied(batches)))
    with loader(whole, **options[0]) as one, loader(whole, **options[1]) as other:
        pairs = [(kept(a), kept(b)) for a, b in zip(one, other, strict=True)]
        for number, found in enumerate(zip(*pairs, strict=True)):
            assert torch.equal(pictures(list(found)), expected[number])
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda each: copied(each.epoch(0)), (one, other)))
        for number, batches_of in enumerate(both):
            assert torch.equal(pictures(batches_of), expected[number])


# --- others stand in --------------------------------------------------------------------------


def over_ranks(
    dataset: Dataset, world: int, epoch: int, **options: Any
) -> tuple[list[Batch], int, int]:
    """The parts of all batches by steps and ranks, how many were replaced, and the bytes of all."""
    parts, substituted, taken = [], 0, 0
    for rank in range(world):
        with loader(dataset, rank=rank, world=world, on_bad="substitute", **options) as batches:
            parts.append(copied(batches.epoch(epoch)))
            substituted += batches.stats().substituted
            taken += batches.stats().bytes
    return [part for step in zip(*parts, strict=True) for part in step], substituted, taken


@pytest.mark.parametrize("transform", [SMALL, EVAL])
@pytest.mark.parametrize("damaged", [1, 7, 20])
def test_a_damaged_sample_has_the_same_substitute_for_everyone(
    damaged: int, transform: TrainTransform | EvalTransform, folder: Path
) -> None:
    bad = set(np.random.default_rng(damaged).permutation(51)[:damaged].tolist())
    with Dataset.open(folder) as dataset:
        for number in bad:
            overwrite(dataset, number, b"no image")
        for epoch in (0, 1):
            options = {"epoch": epoch, "transform": transform}
            alone, substituted, taken = over_ranks(dataset, 1, threads=1, **options)
            order = epoch_order(0, epoch, len(dataset), shuffle="full")
            found = np.array(numbers(alone))
            assert taken == sum(place.size for place in dataset.places(found))
            assert substituted == damaged
            assert set(order[found != order].tolist()) == bad
            assert bad.isdisjoint(found.tolist())
            assert labels(alone) == dataset.labels[found].tolist()
            for world, threads in ((1, 4), (2, 1), (2, 4), (3, 1), (3, 4)):
                parts, *counts = over_ranks(dataset, world, threads=threads, **options)
                assert counts == [damaged, taken]
                assert (numbers(parts), labels(parts)) == (found.tolist(), labels(alone))
                assert torch.equal(pictures(parts), pictures(alone))


@pytest.mark.parametrize("transform", [SMALL, EVAL])
def test_a_substitute_looks_as_it_does_in_its_own_place(
    transform: TrainTransform | EvalTransform, folder: Path
) -> None:
    with Dataset.open(folder) as dataset:
        for number in range(0, 51, 3):
            overwrite(dataset, number, b"no image")
        found, _, _ = over_ranks(dataset, 1, epoch=2, transform=transform)
    seen: dict[int, torch.Tensor] = {}
    for number, picture in zip(numbers(found), pictures(found), strict=True):
        assert torch.equal(seen.setdefault(number, picture), picture)
    assert len(seen) == 51 - 17


@pytest.mark.parametrize("first", [1, 4])
def test_an_epoch_with_substitutes_can_begin_anywhere(first: int, folder: Path) -> None:
    with Dataset.open(folder) as dataset:
        for number in range(0, 51, 4):
            overwrite(dataset, number, b"no image")
        with loader(dataset, on_bad="substitute") as batches:
            whole, tail = copied(batches.epoch(3)), copied(batches.epoch(3, first))
    assert numbers(tail) == numbers(whole[first:])
    assert torch.equal(pictures(tail), pictures(whole[first:]))


@pytest.mark.parametrize("transform", [SMALL, EVAL])
def test_where_every_sample_is_damaged_nothing_can_stand_in(
    transform: TrainTransform | EvalTransform, folder: Path
) -> None:
    before = set(threading.enumerate())
    with Dataset.open(folder) as dataset:
        for number in range(len(dataset)):
            overwrite(dataset, number, b"no image")
        with loader(dataset, on_bad="substitute", transform=transform) as batches:
            with pytest.raises(DamagedData, match="could stand in for it") as raised:
                copied(batches)
            assert batches.stats().substituted == 0
        first = set(epoch_order(0, 0, len(dataset), shuffle="full")[:8].tolist())
        assert any(str(raised.value).startswith(dataset.describe(each)) for each in first)
    assert set(threading.enumerate()) == before
