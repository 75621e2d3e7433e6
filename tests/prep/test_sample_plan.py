"""The true scale: ILSVRC2012's counts and labels, and the writer that its archives come from."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prep import ilsvrc
from prep.devkit import read_devkit
from prep.sample.data import SampleData, write_plan
from prep.sample.plan import FULL_CLASSES, full_scale_plan
from prep.sample.tar import MTIME
from shards.progress import Silent
from shards.tar import FileBytes, scan

FEW = {0: 300, 1: 7, 499: 129, 999: 128}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    """The full-scale plan with four of its classes."""
    plan = full_scale_plan(seed=0, quirks=False)
    labels = np.array([999, 0, 0, 499, 1] * 30)
    plan = dataclasses.replace(plan, train_counts=FEW, val_classes=labels)
    return write_plan(tmp_path_factory.mktemp("few"), plan, progress=Silent())


def members(data: bytes) -> dict[str, bytes]:
    """Names and contents, after a check that tarfile would write the very same archive."""
    found, again = {}, io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive,
        tarfile.open(fileobj=again, mode="w", format=tarfile.GNU_FORMAT) as copy,
    ):
        for member in archive:
            file = archive.extractfile(member)
            assert file
            found[member.name] = file.read()
            info = tarfile.TarInfo(member.name)
            info.size, info.mtime, info.mode = member.size, MTIME, 0o644
            info.uid, info.gid, info.uname, info.gname = 1000, 1000, "imagenet", "imagenet"
            copy.addfile(info, io.BytesIO(found[member.name]))
    assert again.getvalue() == data
    return found


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (16, 16))
        return image.tobytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_counts_are_those_of_ilsvrc(seed: int) -> None:
    plan = full_scale_plan(seed=seed, quirks=False)
    counts = list(plan.train_counts.values())
    assert list(plan.train_counts) == list(range(ilsvrc.CLASSES))
    assert plan.train_images == sum(counts) == ilsvrc.TRAIN_IMAGES
    assert (min(counts), max(counts)) == ilsvrc.TRAIN_IMAGES_A_CLASS
    assert counts.count(1300) == FULL_CLASSES == 895
    assert len({count for count in counts if count < 1300}) > 90
    assert plan.val_images == ilsvrc.VALIDATION_IMAGES
    assert np.array_equal(plan.val_classes, ilsvrc.validation_labels())


def test_another_seed_has_other_short_classes() -> None:
    first, second = (full_scale_plan(seed=seed, quirks=False).train_counts for seed in (0, 1))
    assert first != second
    assert first == full_scale_plan(seed=0, quirks=False).train_counts


def test_train_is_what_tarfile_would_write(few: SampleData) -> None:
    classes = members(few.train.read_bytes())
    assert list(classes) == [f"{ilsvrc.classes()[index].wnid}.tar" for index in FEW]
    seen: set[bytes] = set()
    shown: set[bytes] = set()
    for (name, data), count in zip(classes.items(), FEW.values(), strict=True):
        wnid = name.removesuffix(".tar")
        images = members(data)
        numbers = [int(re.fullmatch(rf"{wnid}_(\d+)\.JPEG", image)[1]) for image in images]
        assert len(images) == count
        assert numbers == sorted(numbers)
        assert numbers[-1] > count
        assert len({pixels(image) for image in images.values()}) == 1
        shown.add(pixels(next(iter(images.values()))))
        seen.update(images.values())
        assert len({len(image) for image in images.values()}) > min(count // 4, 50)
        # A block each, so that the size of an archive follows from its members' number.
        assert max(len(image) for image in images.values()) <= tarfile.BLOCKSIZE
    assert len(seen) == sum(FEW.values())
    assert len(shown) == len(FEW)


def test_validation_is_flat_mixed_and_labelled_by_the_devkit(few: SampleData) -> None:
    images = members(few.val.read_bytes())
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 151)]
    assert sorted(images) == names
    assert list(images) != names
    kit = read_devkit(few.devkit)
    wnids = [ilsvrc.classes()[index].wnid for index in (999, 0, 0, 499, 1)] * 30
    assert list(kit.validation_wnids()) == wnids
    by_class: dict[str, set[bytes]] = {}
    for name, wnid in zip(names, wnids, strict=True):
        by_class.setdefault(wnid, set()).add(pixels(images[name]))
    assert all(len(shown) == 1 for shown in by_class.values())
    assert len(set().union(*by_class.values())) == len(FEW)
    counts = {synset.wnid: synset.num_train_images for synset in kit.synsets}
    assert {
        index: counts[entry.wnid]
        for index, entry in enumerate(ilsvrc.classes())
        if counts[entry.wnid]
    } == FEW


PROGRAM = """
import json, sys
from pathlib import Path
from prep.sample.data import write_sample_data
from shards.progress import Silent
made = write_sample_data(Path(sys.argv[1]), full_scale=True, quirks=True, progress=Silent())
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([made.written, made.train_images, made.val_images, int(peak.split()[1])]))
"""


@pytest.fixture
def large_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose 1.4 GB go at once, not with the temporary folders of three runs later."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_full_scale_in_flat_memory(
    large_folder: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(large_folder)], capture_output=True, check=True
    )
    *counts, kibibytes = json.loads(done.stdout)
    assert counts == [3, 1_281_167, 50_000]
    assert kibibytes < 300 * 1024
    path = large_folder / "ILSVRC2012_img_train.tar"
    images = Counter[str]()
    names: set[str] = set()
    with path.open("rb") as file:
        archive = FileBytes(file.fileno())
        for inner in scan(archive, path):
            wnid = inner.name.removesuffix(".tar")
            for image in scan(archive, path, inner.offset, inner.offset + inner.size):
                assert image.name.startswith(f"{wnid}_")
                images[wnid] += 1
                names.add(image.name)
    assert list(images) == [entry.wnid for entry in ilsvrc.classes()]
    assert sum(images.values()) == len(names) == 1_281_167
    assert sorted(images.values())[::999] == [732, 1300]
    path = large_folder / "ILSVRC2012_img_val.tar"
    with path.open("rb") as file:
        assert len({image.name for image in scan(FileBytes(file.fileno()), path)}) == 50_000
    labels = [ilsvrc.classes()[index].wnid for index in ilsvrc.validation_labels()]
    assert (
        list(read_devkit(large_folder / "ILSVRC2012_devkit_t12.tar.gz").validation_wnids())
        == labels
    )
    again = run("imagenet-prep", "sample-data", "--out", large_folder, "--full-scale", "--quirks")
    assert (again.returncode, "were whole already" in again.stdout) == (0, True)
