"""The doctor says what is there and what to do, and imports nothing heavy to find out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.doctor.data import DataReport, examine_data
from prep.doctor.examine import Examination, examine
from prep.sample.data import SampleData
from shards.finding import Finding, Status

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def by_name(report: Examination | DataReport) -> dict[str, Finding]:
    return {finding.what: finding for finding in report.findings}


def judged(report: DataReport) -> dict[str, str]:
    """The status of every line on the data itself: the disk's depends on the machine."""
    return {
        each.what: each.status.value
        for each in report.findings
        if each.what not in ("disk", "speed")
    }


# --- the machine ------------------------------------------------------------------------------


def test_every_part_of_the_machine_is_looked_at() -> None:
    found = by_name(examine(None))
    wanted = "Python torch torchvision PIL simplejpeg jpegtran packages cores memory"
    assert {*wanted.split(), "open files", "/dev/shm"} < set(found)  # noqa: S108 - a name


def test_every_line_that_is_not_ok_has_a_remedy(archives: SampleData, tmp_path: Path) -> None:
    for path in (None, archives.train.parent, tmp_path / "not" / "yet"):
        report = examine(path)
        assert report.next
        for finding in report.findings:
            assert finding.found, finding
            assert (finding.status is Status.OK) is (finding.remedy == ""), finding


def test_looking_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from prep.doctor.examine import examine; "
        "examine(Path()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_python_without_numpy_still_has_a_doctor(tmp_path: Path) -> None:
    """`-S` leaves out all that is installed; what would read data is not even tried."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
        "from pathlib import Path; from prep.doctor.examine import examine; "
        f"print(examine(Path({str(tmp_path)!r})).next)"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "make install\n"


# --- data, from nothing to shards -------------------------------------------------------------


def test_where_nothing_is_the_way_begins_with_the_archives(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet"
    report = examine_data(path)
    found = by_name(report)
    assert "mkdir -p" in found[str(path)].remedy
    assert "image-net.org" in found[TRAIN].remedy
    assert {found[name].status for name in (TRAIN, VAL)} == {Status.NOTE}
    assert [each.name for each in report.routes] == ["shards", "index", "class folders"]
    assert "GB in 3,964 files" in found["route: shards"].found
    assert "186.4 MB in 20 files" in found["route: index"].found
    assert report.next.startswith("fetch ")
    assert list(tmp_path.iterdir()) == []


def test_archives_are_listed_with_their_routes(archives: SampleData) -> None:
    folder = archives.train.parent
    before = sorted(folder.iterdir())
    report = examine_data(folder)
    assert judged(report) == {
        archives.devkit.name: "ok",
        TRAIN: "note",  # a sample: whole, but not ILSVRC2012's
        VAL: "note",
        "route: shards": "ok",
        "route: index": "ok",
        "route: class folders": "ok",
    }
    found = by_name(report)
    assert "ILSVRC2012's has 147,897,477,120" in found[TRAIN].found
    assert "about 1 s here besides " in found["route: shards"].found
    command = f"imagenet-prep index {archives.train} {archives.val} --out {folder / 'index'}"
    assert found["route: index"].found.endswith(f" small reads of headers: {command}")
    assert report.rates is not None
    assert report.next.startswith(f"imagenet-prep shard {archives.train} {archives.val} --out ")
    assert sorted(folder.iterdir()) == before
    assert examine_data(archives.val).next == report.next


def test_a_truncated_archive_is_a_problem_with_its_remedy(
    archives: SampleData, tmp_path: Path
) -> None:
    for archive in (archives.train, archives.val):
        shutil.copy(archive, tmp_path)
    size = archives.train.stat().st_size // 2
    os.truncate(tmp_path / TRAIN, size)
    report = examine_data(tmp_path)
    found = by_name(report)[TRAIN]
    assert found.status is Status.PROBLEM
    assert found.found.startswith(f"{size:,} bytes of 147,897,477,120: ")
    assert "go on with the download" in found.remedy
    assert report.next.startswith(f"fetch {TRAIN} to ")


def test_a_download_that_only_reserved_its_room_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / TRAIN).touch()
    os.truncate(tmp_path / TRAIN, 147_897_477_120)
    found = by_name(examine_data(tmp_path))[TRAIN]
    assert found.status is Status.PROBLEM
    assert "bytes 0 to 147,897,477,120 were never written" in found.found


def test_what_is_extracted_already_is_a_source(
    archives: SampleData,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    done = run("imagenet-prep", "extract", archives.train, archives.val, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    report = examine_data(tmp_path)
    assert judged(report) == {"train": "note", "val": "note"}
    assert by_name(report)["val"].found == "val images in 3 class folders; ILSVRC2012 has 1,000"
    assert report.next == (
        f"imagenet-prep shard {tmp_path}/train {tmp_path}/val --out {tmp_path}/shards"
    )


def test_shards_are_what_training_takes(shards: Path) -> None:
    report = examine_data(shards)
    assert judged(report) == {"train": "ok", "val": "ok"}
    assert by_name(report)["train"].found == "51 train images in 4 shards, finished"
    assert report.routes == []
    assert report.next == f"resnet train --shards {shards}"


def test_damaged_and_unfinished_shards_are_told_apart(shards_copy: Path) -> None:
    (shards_copy / "train" / "imagenet-train-000000.tar").unlink()
    (shards_copy / "val" / "manifest.json").unlink()
    (shards_copy / "val" / ".imagenet-prep" / "shards").mkdir(parents=True)
    found = by_name(examine_data(shards_copy))
    assert found["train"].status is Status.PROBLEM
    assert found["train"].found.endswith("imagenet-train-000000.tar is missing (1 such files)")
    assert found["val"].status is Status.NOTE
    assert found["val"].found == "unfinished, 1 shard so far"


@pytest.fixture
def indexed(
    archives: SampleData,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> Path:
    """A copy of the archives, and beside it an index of them in `index`."""
    place = Path(shutil.copytree(archives.train.parent, tmp_path / "data"))
    done = run("imagenet-prep", "index", place, "--out", tmp_path / "index")
    assert done.returncode == 0, done.stderr
    return tmp_path / "index"


def test_an_index_is_what_training_takes(indexed: Path) -> None:
    report = examine_data(indexed)
    assert judged(report) == {"train": "ok", "val": "ok"}
    assert by_name(report)["val"].found == "15 val images in 1 tar as they lie, indexed"
    assert (report.routes, report.next) == ([], f"resnet train --shards {indexed}")


@pytest.mark.parametrize("command", ["doctor", "inspect", "verify"])
def test_an_index_that_lost_its_tar_wants_it_back_or_another_index(
    indexed: Path, run: Callable[..., subprocess.CompletedProcess[str]], command: str
) -> None:
    """Not `shard`: it did not make this, and would refuse the folder."""
    lost = indexed.parent / "data" / VAL
    lost.unlink()
    done = run("imagenet-prep", command, indexed)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"it is a link to {lost}, which is not there" in said
    assert "`imagenet-prep index`" in said
    assert "imagenet-prep shard" not in said
    if command == "doctor":
        assert "put missing ones back where their links lead" in said
        assert f"next: imagenet-prep index TARS --out {indexed}, " in said
        assert "fetch" not in said
        assert "route: " not in said


def test_an_index_whose_tars_are_at_hand_is_made_again_by_the_next_command(
    indexed: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    data = indexed.parent / "data"
    shutil.move(data / VAL, data / "validation.tar")
    indexed.rename(data / "index")
    report = examine_data(data)
    assert [each.name for each in report.routes] == ["index"]
    assert report.next == (f"imagenet-prep index {data / 'validation.tar'} --out {data / 'index'}")
    assert run(*report.next.split()).returncode == 0
    assert examine_data(data).next == f"resnet train --shards {data / 'index'}"


def test_an_index_that_was_stopped_is_gone_on_with_by_index(tmp_path: Path) -> None:
    (tmp_path / "train" / ".imagenet-prep" / "index").mkdir(parents=True)
    found = by_name(examine_data(tmp_path))["train"]
    assert (found.status, found.found) == (Status.NOTE, "unfinished")
    assert "`imagenet-prep index`" in found.remedy


def test_images_of_an_unnamed_split_are_said_to_be_so(
    write_folders: Callable[..., Path], tmp_path: Path
) -> None:
    place = write_folders(tmp_path / "mine", {"cat": {"1.jpg": b""}, "dog": {"1.jpg": b""}})
    found = by_name(examine_data(place))[str(place)]
    assert found.status is Status.NOTE
    assert "--split" not in found.found  # which is no option of the doctor's
    assert f"imagenet-prep shard {place} --split train --out DIR" in found.remedy


@pytest.mark.parametrize("records", ["shards", "index"])
@pytest.mark.parametrize("command", ["doctor", "inspect", "verify"])
def test_every_command_names_what_is_unfinished_and_what_completes_it(
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    command: str,
    records: str,
) -> None:
    (tmp_path / "train" / ".imagenet-prep" / records).mkdir(parents=True)
    for place in (tmp_path, tmp_path / "train"):
        done = run("imagenet-prep", command, place)
        said = done.stdout + done.stderr
        assert "unfinished" in said, (place, said)
        wanted, other = ("index", "shard") if records == "index" else ("shard", "index")
        assert f"`imagenet-prep {wanted}` command" in said
        assert f"`imagenet-prep {other}`" not in said


# --- room -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status"), [("size=300k", Status.OK), ("size=300k,nr_inodes=20", Status.NOTE)]
)
def test_a_disk_without_room_for_shards_is_a_problem(
    archives: SampleData, small_disk: Callable[[str], Any], options: str, status: Status
) -> None:
    place = small_disk(options).path
    for archive in (archives.train, archives.val):
        (place / archive.name).symlink_to(archive)
    report = examine_data(place)
    found = by_name(report)
    assert found["disk"].found.startswith(f"tmpfs at {place}, 0.3 MB and ")
    assert found["speed"].status is Status.NOTE
    assert found["route: shards"].status is Status.PROBLEM
    assert "more room is needed" in found["route: shards"].found
    assert found["route: index"].status is status
    indexable = status is Status.OK
    assert ("the route index" in found["route: shards"].remedy) is indexable
    assert "about" not in found["route: shards"].found  # no time without a measurement
    # Class folders are no problem: nobody needs them.
    assert found["route: class folders"].status is Status.NOTE
    assert report.next.endswith("--out DIR-ON-ANOTHER-DISK")
    assert {each.name for each in place.iterdir()} == {TRAIN, VAL}


def test_a_disk_without_room_for_files_has_room_for_shards(
    archives: SampleData, small_disk: Callable[[str], Any]
) -> None:
    place = small_disk("size=100m,nr_inodes=60").path
    for archive in (archives.train, archives.val):
        (place / archive.name).symlink_to(archive)
    found = by_name(examine_data(place))
    assert found["route: shards"].status is Status.OK
    assert found["route: class folders"].status is Status.NOTE
    assert "more files (inodes) are needed" in found["route: class folders"].found


def test_a_disk_that_cannot_be_written_to_is_no_place_for_output(
    archives: SampleData, small_disk: Callable[[str], Any]
) -> None:
    disk = small_disk("size=1g")
    for archive in (archives.train, archives.val):
        shutil.copy(archive, disk.path)
    disk.resize("ro")
    report = examine_data(disk.path)
    found = by_name(report)
    assert found["disk"].found.endswith("not writable")
    assert found["speed"].found == f"not measured: {disk.path}: Read-only file system"
    assert found["route: shards"].status is Status.NOTE
    assert report.next.endswith("--out DIR-ON-ANOTHER-DISK")


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_a_line_each_and_what_to_run(
    archives: SampleData, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run("imagenet-prep", "doctor", archives.train.parent)
    lines = done.stdout.splitlines()
    starts = ("ok ", "note ", "problem ", " " * 9)
    assert all(line.startswith(starts) for line in lines[:-2])
    assert any(line.strip().startswith("-> right for a sample") for line in lines)
    assert lines[-1].startswith("next: imagenet-prep shard ")
    assert done.returncode == ("problem " in done.stdout)


def test_the_command_ends_with_1_where_there_is_a_problem(
    archives: SampleData,
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    (tmp_path / VAL).write_bytes(archives.val.read_bytes()[:-5_000])
    done = run("imagenet-prep", "doctor", tmp_path, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert set(report) == {"findings", "rates", "routes", "next"}
    assert set(report["rates"]) == {"read", "write", "create", "hash"}
    assert [each["name"] for each in report["routes"]] == ["shards", "index", "class folders"]
    assert all(each["command"].startswith("imagenet-prep ") for each in report["routes"])
    problems = {each["what"] for each in report["findings"] if each["status"] == "problem"}
    assert VAL in problems


def test_the_command_works_without_a_path(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    report = json.loads(run("imagenet-prep", "doctor", "--json").stdout)
    assert (report["rates"], report["routes"]) == (None, [])
    assert report["next"].startswith("imagenet-prep doctor PATH")
