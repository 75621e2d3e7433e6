"""Sample archives: shaped like the official ones, reproducible, and never in anyone's way."""

from __future__ import annotations

import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prep import ilsvrc
from prep.devkit import read_devkit
from prep.sample.data import SampleData, write_sample_data
from prep.sample.pictures import Draws, Purpose, Texture, class_look, draw_jpeg
from shards.durable import RECORDS
from shards.errors import ToolError, UsageError
from shards.progress import Silent

CLASSES, TRAIN, VAL = 4, 12, 5


def make(out: Path, *, seed: int = 0) -> SampleData:
    return write_sample_data(
        out,
        classes=CLASSES,
        train_per_class=TRAIN,
        val_per_class=VAL,
        seed=seed,
        progress=Silent(),
    )


def sums(out: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.is_file()
    }


class Counted(Silent):
    """Progress that adds up what it is told."""

    total = 0
    done = 0

    def start(self, what: str, total: int, unit: str) -> None:
        assert (what, unit) == ("sample data", "images")
        self.total += total

    def advance(self, amount: int) -> None:
        self.done += amount


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    return make(tmp_path_factory.mktemp("sample"))


def test_what_is_reported_is_what_lies_there(sample: SampleData) -> None:
    paths = (sample.train, sample.val, sample.devkit)
    assert [path.name for path in paths] == [archive.name for archive in ilsvrc.ARCHIVES[:3]]
    assert sample.bytes == sum(path.stat().st_size for path in paths)
    assert (sample.classes, sample.train_images, sample.val_images, sample.written) == (
        CLASSES,
        CLASSES * TRAIN,
        CLASSES * VAL,
        3,
    )


def test_train_is_a_tar_of_tars_of_jpegs(sample: SampleData) -> None:
    wnids = [ilsvrc.classes()[index].wnid for index in (0, 250, 500, 750)]
    sizes, modes = set(), Counter[str]()
    with tarfile.open(sample.train, "r:") as outer:
        assert outer.getnames() == [f"{wnid}.tar" for wnid in wnids]
        for wnid, member in zip(wnids, outer, strict=True):
            assert member.isreg()
            assert member.size % tarfile.RECORDSIZE == 0
            with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                numbers = []
                for image in inner:
                    match = re.fullmatch(rf"{wnid}_(\d+)\.JPEG", image.name)
                    assert match
                    numbers.append(int(match[1]))
                    file = inner.extractfile(image)
                    assert file
                    with Image.open(file) as picture:
                        picture.load()
                        assert picture.format == "JPEG"
                        sizes.add(picture.size)
                        modes[picture.mode] += 1
            assert len(set(numbers)) == TRAIN
            assert numbers == sorted(numbers)
            assert numbers[-1] - numbers[0] >= TRAIN, "numbers are not consecutive"
    assert sample.train.stat().st_size % tarfile.RECORDSIZE == 0
    assert all(96 <= min(size) <= 160 for size in sizes)
    assert len(sizes) > CLASSES
    assert modes["RGB"] > modes["L"]


def test_headers_look_like_2012(sample: SampleData) -> None:
    for path in (sample.train, sample.val):
        with tarfile.open(path) as archive:
            for member in archive:
                assert time.gmtime(member.mtime)[:2] == (2012, 6)
                assert (member.mode, member.uname) == (0o644, "imagenet")
                assert not member.pax_headers


def test_validation_is_flat_mixed_and_labelled_by_the_devkit(sample: SampleData) -> None:
    with tarfile.open(sample.val, "r:") as archive:
        names = archive.getnames()
    numbered = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, CLASSES * VAL + 1)]
    assert sorted(names) == numbered
    assert names != numbered
    wnids = read_devkit(sample.devkit).validation_wnids()
    assert set(Counter(wnids).values()) == {VAL}
    assert list(wnids) != sorted(wnids)


def test_labels_are_those_of_what_was_drawn(sample: SampleData) -> None:
    index = {entry.wnid: number for number, entry in enumerate(ilsvrc.classes())}
    with tarfile.open(sample.val, "r:") as archive:
        for number, wnid in enumerate(read_devkit(sample.devkit).validation_wnids(), start=1):
            file = archive.extractfile(f"ILSVRC2012_val_{number:08d}.JPEG")
            assert file
            draws = Draws(0, Purpose.VALIDATION_PICTURE, number)
            assert file.read() == draw_jpeg(class_look(0, index[wnid]), draws)


def test_names_and_labels_are_pinned(sample: SampleData) -> None:
    kit = read_devkit(sample.devkit)
    assert kit.ground_truth[:8].tolist() == [713, 713, 976, 976, 3, 3, 3, 449]
    with tarfile.open(sample.train) as outer, tarfile.open(sample.val) as val:
        first = outer.next()
        assert first
        with tarfile.open(fileobj=outer.extractfile(first)) as inner:
            assert [name.split("_")[1] for name in inner.getnames()[:4]] == [
                "16.JPEG",
                "38.JPEG",
                "55.JPEG",
                "70.JPEG",
            ]
        assert [int(name[15:23]) for name in val.getnames()[:8]] == [1, 12, 15, 7, 17, 13, 16, 9]


def test_devkit_has_all_classes_under_their_true_ids(sample: SampleData) -> None:
    synsets = read_devkit(sample.devkit).synsets
    assert tuple(synset.wnid for synset in synsets) == ilsvrc.id_to_wnid()
    assert sum(synset.num_train_images for synset in synsets) == CLASSES * TRAIN
    names = {entry.wnid: entry.name for entry in ilsvrc.classes()}
    assert all(synset.words == names[synset.wnid] for synset in synsets)
    with tarfile.open(sample.devkit) as archive:
        assert [name.partition("/")[2] for name in archive.getnames()] == [
            "readme.txt",
            "COPYING",
            "data/meta.mat",
            "data/ILSVRC2012_validation_ground_truth.txt",
        ]


def test_same_parameters_same_bytes_and_another_seed_other_bytes(
    sample: SampleData, tmp_path: Path
) -> None:
    make(tmp_path / "again")
    make(tmp_path / "other", seed=1)
    expected = sums(sample.train.parent)
    assert sums(tmp_path / "again") == expected
    assert not set(expected.values()) & set(sums(tmp_path / "other").values())


def test_second_run_redoes_nothing_and_a_lost_archive_comes_back(tmp_path: Path) -> None:
    make(tmp_path)
    before = sums(tmp_path)
    inodes = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert make(tmp_path).written == 0
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == inodes
    (tmp_path / "ILSVRC2012_img_val.tar").unlink()
    progress = Counted()
    again = write_sample_data(
        tmp_path, classes=CLASSES, train_per_class=TRAIN, val_per_class=VAL, progress=progress
    )
    assert again.written == 1
    assert progress.total == progress.done == CLASSES * VAL
    assert sums(tmp_path) == before


def test_the_record_names_what_was_asked_for(tmp_path: Path) -> None:
    make(tmp_path / "plain")
    write_sample_data(tmp_path / "odd", classes=2, seed=3, quirks=True, progress=Silent())
    recorded = [
        json.loads((tmp_path / folder / RECORDS / "sample-data.json").read_bytes())["parameters"]
        for folder in ("plain", "odd")
    ]
    # Keys that are absent mean the same as before there were quirks: old folders stay valid.
    assert recorded == [
        {"classes": CLASSES, "train_per_class": TRAIN, "val_per_class": VAL, "seed": 0},
        {"classes": 2, "train_per_class": 100, "val_per_class": 20, "seed": 3, "quirks": True},
    ]


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    before = sums(tmp_path)
    with pytest.raises(ToolError, match=r"seed 0, not with .*seed 7; remove it or choose"):
        make(tmp_path, seed=7)
    assert sums(tmp_path) == before


@pytest.mark.parametrize("name", [archive.name for archive in ilsvrc.ARCHIVES[:3]])
def test_archives_of_others_are_never_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"138 GB of somebody's work")
    with pytest.raises(ToolError, match=f"{name} is there but is not what sample-data wrote"):
        make(tmp_path)
    assert sums(tmp_path) == {name: hashlib.sha256(b"138 GB of somebody's work").hexdigest()}


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    archive = make(tmp_path).val
    data = bytearray(archive.read_bytes())
    data[5_000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ToolError, match="is not what sample-data wrote"):
        make(tmp_path)
    assert archive.read_bytes() == data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version": 1}',
        b'{"version": 1, "parameters": 3, "archives": {}}',
        b"\xff",
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: bytes) -> None:
    record = tmp_path / RECORDS / "sample-data.json"
    record.parent.mkdir()
    record.write_bytes(content)
    with pytest.raises(ToolError, match="is damaged"):
        make(tmp_path)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    record = tmp_path / RECORDS / "sample-data.json"
    record.write_text(json.dumps(json.loads(record.read_bytes()) | {"version": 2}))
    with pytest.raises(ToolError, match="has version 2, this program writes 1"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("classes", "train", "val", "seed"),
    [(0, 1, 1, 0), (1001, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 1, 1, -1), (9, 1, 10**8, 0)],
)
def test_impossible_counts_are_wrong_usage(
    tmp_path: Path, classes: int, train: int, val: int, seed: int
) -> None:
    with pytest.raises(UsageError):
        write_sample_data(
            tmp_path / "out",
            classes=classes,
            train_per_class=train,
            val_per_class=val,
            seed=seed,
            progress=Silent(),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["classes", "train_per_class", "val_per_class"])
def test_full_scale_has_its_own_counts(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match="leave out --full-scale, or --classes"):
        write_sample_data(tmp_path / "out", full_scale=True, progress=Silent(), **{option: 1})
    assert not (tmp_path / "out").exists()


def test_a_killed_run_is_completed_by_the_next(sample: SampleData, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from prep.sample.data import write_sample_data\n"
        "from shards.progress import Silent\n"
        "class Deadly(Silent):\n"
        "    left = int(sys.argv[2])\n"
        "    def advance(self, amount):\n"
        "        self.left -= amount\n"
        "        if self.left <= 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_sample_data(Path(sys.argv[1]), classes={CLASSES}, train_per_class={TRAIN},\n"
        f"                  val_per_class={VAL}, progress=Deadly())\n"
    )
    # In the train archive, then in the validation archive.
    for images, whole in ((5, 0), (CLASSES * TRAIN + 3, 1)):
        killed = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), str(images)], check=False
        )
        assert killed.returncode == -signal.SIGKILL
        names = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
        assert len(names) == whole
    assert make(tmp_path).written == 2
    assert sums(tmp_path) == sums(sample.train.parent)


def test_the_command_says_what_it_made(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    options = ("--classes", 2, "--train-per-class", 4, "--val-per-class", 1)
    command = ("imagenet-prep", "sample-data", "--out", tmp_path, "--quirks", *options)
    first, second = run(*command), run(*command, "--json")
    lines = first.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path}: 10 images in 2 classes (")
    assert lines[1].split() == ["image", "quirk"]
    found = json.loads(second.stdout)
    assert dict(line.split() for line in lines[2:]) == found["quirks"]
    assert len(found["quirks"]) == 8
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("ILSVRC2012_*"))
    assert {name: found[name] for name in ("classes", "images", "train_images", "val_images")} == {
        "classes": 2, "images": 10, "train_images": 8, "val_images": 2
    }  # fmt: skip
    assert (found["out"], found["written"]) == (str(tmp_path), 0)
    other = run("imagenet-prep", "sample-data", "--out", tmp_path, *options)
    assert other.returncode == 1
    assert "quirks True, not with" in other.stderr
    wrong = run("imagenet-prep", "sample-data", "--out", tmp_path, "--full-scale", *options)
    assert wrong.returncode == 2
    assert "full scale has ILSVRC2012's own numbers" in wrong.stderr


def test_looks_of_ten_classes_use_every_texture_and_differ() -> None:
    looks = [class_look(0, index) for index in range(0, 1000, 100)]
    assert {look.texture for look in looks} == set(Texture)
    assert len({class_look(0, index) for index in range(1000)}) == 1000


@pytest.mark.parametrize("index", range(0, 1000, 49))
def test_texture_shows_without_colour(index: int) -> None:
    data = draw_jpeg(class_look(0, index), Draws(0, Purpose.TRAIN_PICTURE, index, 1))
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    centre = pixels[pixels.shape[0] // 4 : -pixels.shape[0] // 4]
    assert centre.std() > 12


def test_draws_are_pinned() -> None:
    draws = Draws(0, Purpose.LOOK, 5, 6)
    found = (
        draws.integer(1_000_000),
        draws.bytes(4).tolist(),
        draws.permutation(6).tolist(),
    )
    assert found == (244_443, [178, 36, 215, 37], [1, 4, 3, 0, 2, 5])
