"""Archives: whole ones pass, and whatever was cut off, altered or swapped is named."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.ilsvrc import ARCHIVES
from prep.verification.archives import ArchiveReport, check_archives
from prep.verification.md5sums import NO_SUMS, Sums
from shards.errors import UsageError
from shards.progress import Silent

WriteTar = Callable[..., Path]


def check(*paths: Path, sums: Sums = NO_SUMS, decode: bool = False) -> list[ArchiveReport]:
    return check_archives(paths, sums, decode=decode, workers=2, progress=Silent())


def check_one(path: Path, **options: Any) -> ArchiveReport:
    (report,) = check(path, **options)
    return report


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def sums_of(*paths: Path) -> Sums:
    return Sums(origin="MD5SUMS", by_name={path.name: md5(path) for path in paths})


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def copy(source: Path, folder: Path, length: int | None = None) -> Path:
    path = folder / source.name
    path.write_bytes(source.read_bytes()[:length])
    return path


# --- whole ------------------------------------------------------------------------------------


def test_archives_without_a_sum_are_sound_and_their_sum_is_told(archives: Any) -> None:
    paths = (archives.val, archives.devkit, archives.train)
    reports = check(*paths)
    assert [report.path for report in reports] == list(paths)
    assert [report.findings for report in reports] == [(), (), ()]
    assert [report.md5 for report in reports] == [md5(path) for path in paths]
    assert [report.images for report in reports] == [15, None, 51]
    assert [report.kind for report in reports] == ["val", "devkit", "train"]
    for report in reports:
        assert report.checked_by == "its structure"
        assert "is not the published" in report.notes[0]
        assert report.bytes == report.path.stat().st_size


def test_given_sums_are_compared(archives: Any) -> None:
    paths = (archives.train, archives.val, archives.devkit)
    reports = check(*paths, sums=sums_of(*paths))
    assert [(report.findings, report.checked_by) for report in reports] == [((), "MD5SUMS")] * 3
    alone = Sums(origin="--md5", by_name={}, alone=md5(archives.val))
    assert check_one(archives.val, sums=alone).findings == ()


def test_one_sum_is_for_one_archive(archives: Any) -> None:
    with pytest.raises(UsageError, match="for one archive, and there are 2"):
        check(archives.train, archives.val, sums=Sums(origin="", by_name={}, alone="0" * 32))


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2"])
def test_compressed_archives_are_inflated(
    ending: str, write_tar: WriteTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    compress = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[ending]
    images = {f"n01440764_{n}_n01440764.JPEG": jpeg(n) for n in range(40)}
    plain = write_tar(tmp_path / "t.tar", images).read_bytes()
    path = tmp_path / f"train_images_0.tar.{ending}"
    path.write_bytes(compress(plain))
    report = check_one(path)
    assert (report.findings, report.images, report.md5) == ((), 40, md5(path))
    assert "compressed" in check_one(path, decode=True).notes[-1]
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 6, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in check_one(path).findings[0]
    path.write_bytes(whole)
    flip(path, len(whole) // 2)
    assert str(path) in check_one(path).findings[0]


def test_a_tar_of_other_things_is_checked_too(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "notes.tar", {"a.txt": b"hello", "b.txt": bytes(100_000)})
    report = check_one(path)
    assert (report.findings, report.images, report.kind) == ((), 0, None)
    flip(path, 1024 + 5)
    assert "checksum" in check_one(path).findings[0]


# --- size first -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 700, 100_000])
@pytest.mark.parametrize("kind", ["train", "val"])
def test_a_truncated_archive_says_how_much_is_missing(
    kind: str, length: int, archives: Any, tmp_path: Path
) -> None:
    path = copy(getattr(archives, kind), tmp_path, length)
    official = next(each for each in ARCHIVES if each.kind.value == kind)
    report = check_one(path)
    (finding,) = report.findings
    assert official.bytes is not None
    for words in (str(path), f"{length:,} of the {official.bytes:,} bytes",
                  f"{official.bytes - length:,} are missing", "wget -c"):  # fmt: skip
        assert words in finding
    assert report.md5 is None


@pytest.mark.parametrize(
    "official", [each for each in ARCHIVES if each.bytes], ids=lambda a: a.name
)
@pytest.mark.parametrize("renamed", [False, True])
def test_a_download_that_reserved_its_room_is_found_without_reading_it(
    official: Any, renamed: bool, tmp_path: Path
) -> None:
    """148 GB of the right size and nothing in them: an MD5 would take minutes."""
    path = tmp_path / ("renamed.tar" if renamed else official.name)
    with path.open("wb") as file:
        file.truncate(official.bytes)
    (finding,) = check_one(path).findings
    assert "were never written" in finding


def test_a_tar_that_is_no_multiple_of_a_block_is_truncated(archives: Any, tmp_path: Path) -> None:
    path = copy(archives.val, tmp_path, -1).rename(tmp_path / "ILSVRC2012_img_test_v10102019.tar")
    assert "without a tar's end mark" in check_one(path).findings[0]


# --- damaged ----------------------------------------------------------------------------------


def places(archive: Path) -> dict[str, int]:
    """Where the parts of a training archive are: in its second class tar, its third image."""
    with tarfile.open(archive) as outer:
        member = outer.getmembers()[1]
        with tarfile.open(fileobj=outer.extractfile(member)) as inner:
            image = inner.getmembers()[2]
    start = member.offset_data
    return {
        "outer header": member.offset + 20,
        "inner header": start + image.offset + 20,
        "image": start + image.offset_data + 400,
    }


@pytest.mark.parametrize("place", ["outer header", "inner header"])
def test_a_flipped_bit_in_any_header_is_found(place: str, archives: Any, tmp_path: Path) -> None:
    path = copy(archives.train, tmp_path)
    flip(path, places(path)[place])
    (finding,) = check_one(path).findings
    assert finding.startswith(str(path))
    assert "checksum" in finding


def test_a_flipped_bit_in_an_image_is_found_by_the_sum(archives: Any, tmp_path: Path) -> None:
    path = copy(archives.train, tmp_path)
    sums = sums_of(path)
    flip(path, places(path)["image"])
    (finding,) = check_one(path, sums=sums).findings
    assert md5(path) in finding
    assert sums.by_name[path.name] in finding
    assert "by MD5SUMS" in finding
    assert check_one(path).findings == ()  # nothing can tell without a sum


def test_every_cut_of_an_archive_without_a_sum_is_found(archives: Any, tmp_path: Path) -> None:
    whole = archives.train.read_bytes()
    with tarfile.open(archives.train) as outer:
        ends = [member.offset_data + member.size for member in outer]
    for length in (*ends, ends[1] + 512, ends[0] - 1024, len(whole) - 10_240, 5 * 512):
        path = tmp_path / "t.tar"
        path.write_bytes(whole[:length])
        assert check_one(path).findings, length


def test_the_devkit_is_found_altered_unless_it_is_evidently_of_another_set(
    archives: Any, tmp_path: Path
) -> None:
    path = copy(archives.devkit, tmp_path)
    assert "15 labels and 1,000 synsets" in check_one(path).notes[0]
    flip(path, path.stat().st_size // 2)
    (finding,) = check_one(path).findings
    published = next(each for each in ARCHIVES if each.name == path.name)
    assert published.md5 in finding
    assert md5(path) in finding


@pytest.mark.parametrize("name", [each.name for each in ARCHIVES if not each.bytes])
def test_another_file_under_a_published_name_is_found(
    name: str, write_tar: WriteTar, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / name, {"a.txt": b"hello"})
    (finding,) = check_one(path).findings
    assert "(published)" in finding


def test_a_smaller_test_set_under_the_published_name_is_told_from_a_damaged_one(
    write_tar: WriteTar, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    images = {f"test/ILSVRC2012_test_{n:08d}.JPEG": jpeg(n) for n in range(1, 4)}
    path = write_tar(tmp_path / "ILSVRC2012_img_test_v10102019.tar", images)
    report = check_one(path)
    assert (report.findings, report.checked_by) == ((), "its structure")
    assert "it has 3 images, ILSVRC2012's has 100,000" in report.notes[0]


def test_an_image_in_the_tar_of_another_class_is_found(
    write_train_tar: Callable[..., Path], tmp_path: Path
) -> None:
    images = {"n01440764": {"n01440764_1.JPEG": b"x"}, "n01443537": {"n01440764_2.JPEG": b"y"}}
    path = write_train_tar(tmp_path / "t.tar", images)
    (finding,) = check_one(path).findings
    assert finding == f"{path}:n01443537.tar holds n01440764_2.JPEG, an image of n01440764"


def test_a_hostile_archive_is_a_finding(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"cat/a.jpg": b"x", "../evil.jpg": b"y"})
    assert "outside its folder" in check_one(path).findings[0]


def test_what_is_no_file_or_cannot_be_read_ends_nothing(archives: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder.tar"
    folder.mkdir()
    fifo = tmp_path / "fifo.tar"
    os.mkfifo(fifo)
    empty = tmp_path / "empty.tar"
    empty.touch()
    zstd = tmp_path / "x.tar"
    zstd.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(1000))
    reports = check(folder, fifo, empty, zstd, archives.val)
    findings = ["".join(report.findings) for report in reports]
    for words, finding in zip(
        ("is a folder", "is no regular file", "is empty", "zstd"), findings, strict=False
    ):
        assert words in finding
    assert findings[-1] == ""


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no /proc here")
def test_a_failing_disk_is_a_finding(archives: Any) -> None:
    """Reading this file fails as a dying disk does: with EIO."""
    failing = Path("/proc/self/mem")
    sums = Sums(origin="MD5SUMS", by_name={"mem": "0" * 32})
    one, other = check(failing, archives.val, sums=sums)
    assert one.findings == ("/proc/self/mem cannot be read (Input/output error)",)
    assert other.findings == ()


# --- pixels -----------------------------------------------------------------------------------


def test_images_are_decoded_in_place(
    write_train_tar: Callable[..., Path],
    picture: Callable[[str], bytes],
    jpeg: Callable[[int], bytes],
    tmp_path: Path,
) -> None:
    images = {
        "n02105855": {"n02105855_2933.JPEG": picture("picture.png"), "n02105855_1.JPEG": jpeg(1)},
        "n01739381": {"n01739381_1309.JPEG": picture("cmyk.jpg"), "n01739381_2.JPEG": b""},
        "n04152593": {"n04152593_17460.JPEG": jpeg(2), "n04152593_3.JPEG": jpeg(3)[:-60]},
    }
    path = write_train_tar(tmp_path / "t.tar", images)
    assert check_one(path).findings == ()
    report = check_one(path, decode=True)
    assert report.findings == (
        f"{path}: n01739381_2.JPEG: it is empty",
        f"{path}: n04152593_3.JPEG: it is truncated (Premature end of JPEG file)",
    )
    assert (report.decoded, report.images) == (True, 6)
    assert [(odd.what, odd.known, odd.images) for odd in report.oddities] == [
        ("CMYK", True, (f"{path}: n01739381_1309.JPEG",)),
        ("PNG under the name of a JPEG", True, (f"{path}: n02105855_2933.JPEG",)),
        ("damaged EXIF block, sound pixels", True, (f"{path}: n04152593_17460.JPEG",)),
    ]


def test_a_damaged_archive_is_decoded_up_to_the_damage(archives: Any, tmp_path: Path) -> None:
    path = copy(archives.val, tmp_path)
    with tarfile.open(path) as archive:
        third, fifth = archive.getmembers()[2], archive.getmembers()[4]
    data = bytearray(path.read_bytes())
    data[third.offset_data : third.offset_data + 4] = b"\0\0\0\0"
    data[fifth.offset + 5] ^= 1
    path.write_bytes(data)
    report = check_one(path, decode=True)
    assert report.images == 4
    assert len(report.findings) == 2
    assert "checksum" in report.findings[0]
    assert report.findings[1].startswith(f"{path}: {third.name}: it is neither a JPEG nor a PNG")


def test_the_sample_archives_decode_whole(archives: Any) -> None:
    reports = check(archives.train, archives.devkit, decode=True)
    assert [(report.findings, report.decoded) for report in reports] == [((), True), ((), False)]
