"""One picture of a batch: torchvision's pixels by either decoder, and its own augmentation."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from jpegs import find_jpegtran, jpegtran, made
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pictures
from torchvision.transforms.v2 import functional as tensors

from shards.cutting import Box
from shards.dataset import Dataset
from shards.decode import Way, decode_rgb
from shards.image import read_info
from shards.loader import Loader
from shards.order import draws
from shards.render import Choice, Renderer, targets_of
from shards.transform import EvalTransform, TrainTransform

NOTHING = np.empty(0)
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def rendered(
    transform: TrainTransform | EvalTransform, data: bytes, choice: Choice | None, size: int
) -> torch.Tensor:
    images = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    (target,) = targets_of(images)
    Renderer(transform).render(memoryview(bytearray(data)), read_info(data), target, choice)
    return images[0]


def pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def tensor(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(pillow(data))).permute(2, 0, 1)


@pytest.fixture(params=["420", "444", "grey", "cmyk", "progressive", "png"])
def image(request: pytest.FixtureRequest, picture: Callable[[str], bytes]) -> bytes:
    names = {"grey": "grey.jpg", "cmyk": "cmyk.jpg", "progressive": "progressive.jpg",
             "png": "picture.png"}  # fmt: skip
    return picture(names[request.param]) if request.param in names else made(90, 70, request.param)


def boxes(data: bytes) -> list[Box]:
    """The whole, a part, a corner of one pixel, a strip."""
    _, width, height, _ = read_info(data)
    return [Box(0, 0, height, width), Box(2, 3, height // 2, width // 2),
            Box(height - 1, width - 1, 1, 1), Box(height // 3, 0, height // 2, 5)]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_reference_decoder_makes_torchvision_s_pictures(
    mirrored: bool, interpolation: Any, image: bytes
) -> None:
    for size in (16, 48):
        transform = TrainTransform(image_size=size, decoder="pil", interpolation=interpolation)
        for box in boxes(image):
            expected = pictures.resized_crop(
                pillow(image), *box, [size, size], MODES[interpolation]
            )
            expected = pictures.hflip(expected) if mirrored else expected
            found = rendered(transform, image, Choice(box, mirrored, NOTHING), size)
            assert np.array_equal(found.numpy(), np.array(expected))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(32, 28), (29, 29), (80, 64), (5, 1)])
def test_the_reference_decoder_evaluates_as_torchvision(
    resize: int, crop: int, interpolation: Any, image: bytes
) -> None:
    transform = EvalTransform(
        image_size=crop, resize=resize, decoder="pil", interpolation=interpolation
    )
    expected = pictures.center_crop(
        pictures.resize(pillow(image), resize, MODES[interpolation]), [crop, crop]
    )
    assert np.array_equal(rendered(transform, image, None, crop).numpy(), np.array(expected))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_fast_decoder_is_within_one_grey_level_of_torchvision(
    interpolation: Any, image: bytes
) -> None:
    for size in (16, 48):
        transform = TrainTransform(image_size=size, interpolation=interpolation)
        for box in boxes(image):
            expected = tensors.resized_crop(
                tensor(image), *box, [size, size], MODES[interpolation], antialias=True
            ).permute(1, 2, 0)
            found = rendered(transform, image, Choice(box, False, NOTHING), size)
            difference = (found.int() - expected.int()).abs()
            assert (difference <= 1).float().mean() >= 0.999


def test_real_pictures_are_within_one_grey_level_of_torchvision(real_data: Path) -> None:
    differences = []
    with tarfile.open(real_data / "imagenet-sample-250.tar") as archive:
        for member in [each for each in archive.getmembers() if each.isfile()][::5]:
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            info = read_info(data)
            box = Box(info.height // 5, info.width // 7, info.height // 2, info.width * 2 // 3)
            for interpolation in ("bilinear", "bicubic"):
                transform = TrainTransform(image_size=224, interpolation=interpolation)
                expected = tensors.resized_crop(
                    tensor(data), *box, [224, 224], MODES[interpolation], antialias=True
                ).permute(1, 2, 0)
                found = rendered(transform, data, Choice(box, False, NOTHING), 224)
                differences.append((found.int() - expected.int()).abs().flatten())
    assert (torch.cat(differences) <= 1).float().mean() >= 0.999


def test_with_dct_scaling_large_crops_are_decoded_smaller() -> None:
    y, x = np.mgrid[:400, :400]
    smooth = np.stack([x * 255 // 399, y * 255 // 399, (x + y) * 255 // 798], axis=2)
    file = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(file, "JPEG", quality=95)
    data = file.getvalue()
    plain = TrainTransform(image_size=40)
    scaled = TrainTransform(image_size=40, dct_scaling=True)
    for side in (79, 80, 159, 160, 319, 320, 400):
        choice = Choice(Box((400 - side) // 3, (400 - side) // 2, side, side), True, NOTHING)
        expected, found = (rendered(each, data, choice, 40).int() for each in (plain, scaled))
        assert torch.equal(expected, found) == (side < 80)
        assert (expected - found).abs().float().mean() < 4


def test_evaluation_is_never_decoded_smaller() -> None:
    data = made(400, 400)
    expected = tensors.resize(tensor(data), [20, 20], antialias=True).permute(1, 2, 0)
    found = rendered(EvalTransform(image_size=20, resize=20), data, None, 20)
    assert ((found.int() - expected.int()).abs() <= 1).float().mean() >= 0.999


@pytest.mark.parametrize("decoder", ["fast", "pil"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_decodes_less_and_makes_the_whole_image_s_picture(
    interpolation: Any, decoder: Any
) -> None:
    """One renderer for all, so that what an image leaves in its memory would show in the next."""
    find_jpegtran()
    sizes = [(500, 375), (375, 500), (333, 500), (256, 256), (97, 331), (640, 65), (33, 40), (9, 3)]
    transform = EvalTransform(
        image_size=56, resize=64, interpolation=interpolation, decoder=decoder
    )
    renderer = Renderer(transform)
    images = torch.zeros((2, 56, 56, 3), dtype=torch.uint8)
    for size in sizes:
        ordinary = made(*size, "420")
        whole = decode_rgb(ordinary, read_info(ordinary))
        for data in (ordinary, jpegtran(ordinary, "-restart", "4B")):
            for crop in (56, 17):
                found, expected = targets_of(images[:, :crop, :crop])
                renderer.render(memoryview(bytearray(data)), read_info(data), found, None)
                Renderer(transform).centre(whole, expected)
                assert torch.equal(found, expected), (size, crop)
    ways = {way for way, count in zip(Way, renderer.tally().ways, strict=True) if count}
    fast = {Way.CUT, Way.SHORTENED, Way.WHOLE}
    assert ways == ({Way.PILLOW} if decoder == "pil" else fast)


# --- the loader's pictures do not depend on how they are stored -------------------------------


@pytest.fixture
def two_ways(
    build: Callable[..., Any], write_folders: Callable[..., Path], tmp_path: Path
) -> Iterator[tuple[Dataset, Dataset]]:
    """The same pictures as ordinary JPEGs and with restart markers."""
    find_jpegtran()
    images = {f"{number}.JPEG": made(90 + 7 * number, 60 + 5 * number) for number in range(12)}
    gridded = {name: jpegtran(data, "-restart", "1B") for name, data in images.items()}
    for name, each in (("plain", images), ("grid", gridded)):
        build(write_folders(tmp_path / name / "train", {"cat": each}), out=tmp_path / "out" / name)
    with (
        Dataset.open(tmp_path / "out" / "plain" / "train") as plain,
        Dataset.open(tmp_path / "out" / "grid" / "train") as grid,
    ):
        yield plain, grid


def batches(dataset: Dataset, transform: TrainTransform) -> tuple[torch.Tensor, dict[str, int]]:
    with Loader(dataset, transform, global_batch=5, threads=2) as loader:
        images = torch.cat([batch.images.clone() for epoch in range(4)
                            for batch in loader.epoch(epoch)])  # fmt: skip
        return images, dict(loader.stats().ways)


def test_restart_markers_change_the_way_and_no_pixel(two_ways: tuple[Dataset, Dataset]) -> None:
    transform = TrainTransform(image_size=32)
    (plain, ways), (grid, cut) = (batches(each, transform) for each in two_ways)
    assert torch.equal(plain, grid)
    assert sum(ways.values()) == sum(cut.values()) == 48
    assert (ways["cut"], cut["shortened"]) == (0, 0)
    assert min(ways["shortened"], cut["cut"]) > 12
    _, reference = batches(two_ways[1], TrainTransform(image_size=32, decoder="pil"))
    assert reference[Way.PILLOW.name.lower()] == 48


# --- augmentation by the sample's own numbers -------------------------------------------------


@dataclass(frozen=True)
class Stamp:
    """Writes its numbers into the first pixels; in place, or into a new picture."""

    draws: int
    in_place: bool

    def __call__(
        self, pixels: npt.NDArray[np.uint8], uniform: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.uint8]:
        result = pixels if self.in_place else pixels.copy()
        assert uniform.shape == (self.draws,)
        result[self.draws, : self.draws, 0] = (uniform * 256).astype(np.uint8)
        return result


def test_augmentations_get_the_numbers_of_their_sample(shards: Path) -> None:
    transform = TrainTransform(image_size=16, augment=(Stamp(3, True), Stamp(5, False)))
    with (
        Dataset.open(shards / "train") as dataset,
        Loader(dataset, transform, global_batch=10, seed=3, threads=3) as loader,
    ):
        for batch in loader.epoch(2):
            numbers = (draws(3, 2, batch.samples, 64, 8) * 256).astype(np.uint8)
            images = batch.images.numpy()
            assert np.array_equal(images[:, 3, :3, 0], numbers[:, :3])
            assert np.array_equal(images[:, 5, :5, 0], numbers[:, 3:])
        assert loader.stats().augment_seconds > 0
