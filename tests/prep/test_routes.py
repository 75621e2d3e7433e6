"""What a route is said to take is what it takes, and the next command is one that works."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.doctor.disk import Disk, Rates, disk_of
from prep.doctor.holdings import HeldArchive, Holdings, State, find_holdings
from prep.doctor.routes import Plan, load_of, published_load
from prep.ilsvrc import ArchiveKind
from prep.sample.data import SampleData
from shards.index import INDEX_NAME, Index

RATES = Rates(read=100e6, write=50e6, create=1000.0, hash=200e6)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return disk_of(tmp_path)


def test_the_published_archives_hold_what_is_known_of_them() -> None:
    train, val = published_load(ArchiveKind.TRAIN), published_load(ArchiveKind.VALIDATION)
    assert (train.images, val.images) == (1_281_167, 50_000)
    # The mean sizes that are reported: 115 kB and 135 kB.
    assert round(train.image_bytes / train.images, -3) == 115_000
    assert round(val.image_bytes / val.images, -3) == 134_000


def test_archives_of_another_size_are_estimated_from_their_first_images(
    archives: SampleData,
) -> None:
    held = find_holdings(archives.train.parent)
    train, val = (load_of(each) for each in held.archives if each.usable)
    assert train.archive_bytes == archives.train.stat().st_size
    assert train.images == pytest.approx(archives.train_images, rel=0.35)
    assert val.images == pytest.approx(archives.val_images, rel=0.35)


def test_shards_take_the_room_that_was_said(archives: SampleData, shards: Path, disk: Disk) -> None:
    """The estimate counts the padding of inner tars as images: it errs to the safe side."""
    plan = Plan(archives.train.parent, find_holdings(archives.train.parent))
    route = plan.routes(disk, None, 1)[0]
    taken = sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())
    assert (route.name, route.seconds) == ("shards", None)
    assert taken * 0.9 < route.bytes < taken * 1.5


def test_shards_take_as_many_files_as_were_said(
    archives: SampleData,
    disk: Disk,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """At the end, without the records of the run: two folders, the plan, one of each shard."""
    place = Path(shutil.copytree(archives.train.parent, tmp_path / "data"))
    route = Plan(place, find_holdings(place)).routes(disk, None, 1)[0]
    assert run(*shlex.split(route.command)).returncode == 0
    files = [place / "shards", *(place / "shards").rglob("*")]
    assert len([path for path in files if path.suffix == ".idx"]) == 2
    assert len(files) == route.inodes - len(["records", "plan"]) * 2 - 1


def test_class_folders_take_the_room_that_was_said(
    archives: SampleData,
    disk: Disk,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    plan = Plan(archives.train.parent, find_holdings(archives.train.parent))
    route = plan.routes(disk, None, 1)[2]
    done = run("imagenet-prep", "extract", archives.train, archives.val, "--out", tmp_path)
    assert done.returncode == 0
    files = [path for path in tmp_path.glob("*/n*/*") if path.is_file()]
    taken = sum(path.stat().st_blocks * 512 for path in files)
    assert route.name == "class folders"
    assert taken * 0.9 < route.bytes < taken * 1.5
    assert len(files) < route.inodes < len(files) * 2 + 2_002


def test_an_index_takes_the_room_that_was_said(
    archives: SampleData,
    disk: Disk,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Followed to the letter, its command leads to data that training takes."""
    place = Path(shutil.copytree(archives.train.parent, tmp_path / "data"))
    route = Plan(place, find_holdings(place)).routes(disk, None, 1)[1]
    assert (route.name, route.seconds) == ("index", None)
    train, val = place / archives.train.name, place / archives.val.name
    assert route.command == f"imagenet-prep index {train} {val} --out {place / 'index'}"
    assert run(*shlex.split(route.command)).returncode == 0
    # What has the same size for any number of images is left out: headers, lists of classes.
    indexes = [Index.read(path) for path in (place / "index").rglob(INDEX_NAME)]
    taken = sum(column.nbytes for each in indexes for column in each.columns.values())
    assert taken < route.bytes < 3 * taken
    assert len(list((place / "index").rglob("*"))) <= route.inodes
    assert next_of(place) == f"resnet train --shards {place / 'index'}"


def test_every_route_is_gone_by_its_command(
    archives: SampleData,
    disk: Disk,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    place = Path(shutil.copytree(archives.train.parent, tmp_path / "my data"))
    routes = Plan(place, find_holdings(place)).routes(disk, None, 1)
    assert [each.name for each in routes] == ["shards", "index", "class folders"]
    for route in routes:
        done = run(*shlex.split(route.command))
        assert done.returncode == 0, done.stderr
    made = {str(path.relative_to(place)) for path in place.glob("**/val")}
    assert made == {"shards/val", "index/val", "val"}


def test_shards_that_were_begun_are_not_completed_by_an_index(
    archives: SampleData, disk: Disk, shards: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(archives.train.parent, tmp_path / "data"))
    shutil.copytree(shards / "train", place / "shards" / "train")
    routes = Plan(place, find_holdings(place)).routes(disk, RATES, 1)
    assert [each.name for each in routes] == ["shards", "class folders"]


def test_folders_of_images_have_no_route_of_tars(
    disk: Disk, write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        folders = {f"n{number:08d}": {"1.jpg": b""} for number in range(1000)}
        write_folders(tmp_path / split, folders)
    routes = Plan(tmp_path, find_holdings(tmp_path)).routes(disk, RATES, 1)
    assert [each.name for each in routes] == ["shards"]


def test_times_follow_from_the_rates(disk: Disk, tmp_path: Path) -> None:
    plan = Plan(tmp_path, find_holdings(tmp_path))
    shards, index, folders = plan.routes(disk, RATES, 4)
    # 154.6 GB are read at 100 MB/s and 156 GB written at 50, and 1.33 million files made.
    assert shards.seconds == pytest.approx(154.64e9 / 100e6 + shards.bytes / 50e6, rel=1e-3)
    assert folders.seconds == pytest.approx(1_546 + 153.6e9 / 50e6 + 1_331.2, rel=1e-2)
    # An index writes next to nothing; of tiny images 1,331,167 took it 21 s.
    assert index.seconds == pytest.approx(154.64e9 / 100e6 + 21.5, rel=1e-3)
    slow = Rates(read=1e9, write=1e9, create=1e6, hash=10e6)
    shards, index, _ = plan.routes(disk, slow, 4)
    assert shards.seconds == pytest.approx(153.6e9 / 40e6, rel=1e-2)
    # Archives are read one after the other, and the sum of each is one core's work.
    assert index.seconds == pytest.approx(154.64e9 / 10e6, rel=1e-2)
    assert (shards.headers, index.headers, folders.headers) == (1_331_167, 1_331_167, 0)


# --- the next command -------------------------------------------------------------------------


def next_of(path: Path, *, room: bool = True) -> str:
    return Plan(path, find_holdings(path)).next(room=room)


def test_where_nothing_is_the_archives_are_to_be_fetched(tmp_path: Path) -> None:
    said = next_of(tmp_path)
    assert said.startswith("fetch ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar to ")
    assert said.endswith(f"imagenet-prep doctor {tmp_path}")


def test_what_is_missing_alone_is_to_be_fetched(archives: SampleData, tmp_path: Path) -> None:
    shutil.copy(archives.train, tmp_path)
    assert next_of(tmp_path).startswith(f"fetch ILSVRC2012_img_val.tar to {tmp_path} ")


def test_archives_are_to_be_sharded(archives: SampleData) -> None:
    folder = archives.train.parent
    command = f"imagenet-prep shard {archives.train} {archives.val} --out {folder / 'shards'}"
    assert next_of(folder) == command
    assert next_of(folder, room=False).endswith(" --out DIR-ON-ANOTHER-DISK")


def test_names_with_blanks_are_quoted(archives: SampleData, tmp_path: Path) -> None:
    place = tmp_path / "my data"
    shutil.copytree(archives.train.parent, place)
    assert f"--out '{place}/shards'" in next_of(place)


@pytest.mark.parametrize("begin", ["archives", "class folders"])
def test_the_next_command_does_what_it_says(
    archives: SampleData,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    begin: str,
) -> None:
    """Followed step by step, with a shard lost in between, it leads to training."""
    place = tmp_path / "data"
    shutil.copytree(archives.train.parent, place)
    if begin == "class folders":
        assert run("imagenet-prep", "extract", place, "--out", place).returncode == 0
        for archive in (archives.train, archives.val):
            (place / archive.name).unlink()
    steps = []
    for _ in range(3):
        tool, *arguments = shlex.split(next_of(place))
        steps.append((tool, arguments[0]))
        if tool == "resnet":
            break
        assert run(tool, *arguments).returncode == 0
        if len(steps) == 1:
            (place / "shards" / "val" / "imagenet-val-000000.tar").unlink()
    assert steps == [("imagenet-prep", "shard")] * 2 + [("resnet", "train")]
    assert next_of(place) == f"resnet train --shards {place / 'shards'}"


def test_class_folders_are_sharded_as_they_are(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        write_folders(tmp_path / split, {"cat": {"1.jpg": b""}, "dog": {"1.jpg": b""}})
    train, val, out = (tmp_path / name for name in ("train", "val", "shards"))
    assert next_of(tmp_path) == f"imagenet-prep shard {train} {val} --out {out}"


def test_a_published_archive_is_verified_first(archives: SampleData, tmp_path: Path) -> None:
    train = HeldArchive(
        path=tmp_path / "train.tar",
        kind=ArchiveKind.TRAIN,
        split="train",
        bytes=147_897_477_120,
        state=State.PUBLISHED,
    )
    val = find_holdings(archives.val).archives[0]
    said = Plan(tmp_path, Holdings(archives=(val, train))).next(room=True)
    assert said == (
        f"imagenet-prep verify {train.path} && "
        f"imagenet-prep shard {train.path} {val.path} --out {tmp_path / 'shards'}"
    )
