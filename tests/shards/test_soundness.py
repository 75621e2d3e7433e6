"""Whole pictures pass; every one that lost a byte of its pixels is found, and nothing else."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import simplejpeg

from shards.errors import DamagedData
from shards.image import Format
from shards.progress import Silent
from shards.soundness import Verdict, check_ends, check_pictures, check_pixels

Picture = Callable[[str], bytes]
JPEGS = ["cmyk.jpg", "colour.jpg", "grey.jpg", "progressive.jpg"]
BASELINE = JPEGS[:3]
ALL = [*JPEGS, "picture.png"]
CHECKS = [check_ends, check_pixels]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ALL)
def test_whole_pictures_pass(
    name: str, check: Callable[[bytes], Verdict], picture: Picture
) -> None:
    info, damage, warning = check(picture(name))
    assert info is not None
    assert (damage, warning) == ("", "")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ALL)
def test_a_picture_cut_off_anywhere_is_found(
    name: str, check: Callable[[bytes], Verdict], picture: Picture
) -> None:
    data = picture(name)
    # A PNG's pixels are followed by two sums of them and the part that marks its end.
    last = len(data) - (24 if name.endswith("png") else 2)
    for length in {0, 1, 2, 20, 100, last // 2, last - 60, last - 1} & set(range(last)):
        assert check(data[:length]).damage, length


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*BASELINE, "picture.png"])
def test_a_picture_that_lacks_its_end_mark_alone_is_whole(
    name: str, check: Callable[[bytes], Verdict], picture: Picture
) -> None:
    for lost in (1, 2):
        info, damage, warning = check(picture(name)[:-lost])
        assert info is not None
        assert (damage, warning) == ("", "it lacks its end mark, its pixels are whole")


def test_a_progressive_picture_without_its_end_mark_may_lack_scans(picture: Picture) -> None:
    assert "truncated" in check_ends(picture("progressive.jpg")[:-2]).damage


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ALL)
def test_bytes_after_the_end_do_no_harm(
    name: str, check: Callable[[bytes], Verdict], picture: Picture
) -> None:
    for rest in (b"\n", bytes(10), bytes(500)):
        assert check(picture(name) + rest)[1:] == ("", "")


def test_the_end_of_a_thumbnail_is_not_that_of_the_picture(picture: Picture) -> None:
    plain, thumbnail = picture("colour.jpg"), picture("grey.jpg")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = plain[:2] + segment + plain[2:]
    for check in CHECKS:
        assert check(whole)[1:] == ("", "")
        assert "truncated" in check(whole[:-100]).damage


@pytest.mark.parametrize(
    ("name", "share"),
    [("colour.jpg", 0.6), ("grey.jpg", 0.9), ("cmyk.jpg", 0.9), ("progressive.jpg", 0.9)],
)
def test_compressed_data_that_lost_bytes_is_found_by_decoding(
    name: str, share: float, picture: Picture
) -> None:
    """12 bytes taken out at each place: what is left may be valid codes, but mostly is not."""
    data = picture(name)
    first = data.rindex(b"\xff\xda") + 14
    hurt = [data[:place] + data[place + 12 :] for place in range(first, len(data) - 14)]
    found = [each for each in hurt if check_pixels(each).damage.startswith("it does not decode")]
    assert len(found) >= share * len(hurt)
    assert all(check_ends(each).damage == "" for each in hurt)


def test_a_png_with_a_flipped_bit_is_found_by_its_checksum(picture: Picture) -> None:
    data = bytearray(picture("picture.png"))
    data[len(data) // 2] ^= 1
    assert "does not decode" in check_pixels(bytes(data)).damage


def test_what_is_odd_about_metadata_is_a_warning(picture: Picture) -> None:
    data = bytearray(picture("colour.jpg"))
    data[data.index(b"JFIF\0") + 5] = 9  # major revision
    info, damage, warning = check_pixels(bytes(data))
    assert (info is not None, damage) == (True, "")
    assert "JFIF revision" in warning


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_no_picture_has_a_reason(check: Callable[[bytes], Verdict]) -> None:
    for data in (b"", b"<html>", bytes(100), b"GIF89a" + bytes(50)):
        info, damage, _ = check(data)
        assert info is None
        assert damage


def test_the_verdict_at_an_eighth_of_the_size_is_that_at_full_size(real_data: Path) -> None:
    """Faults at 4 places of 60 photographs: libjpeg complains of the same, word by word."""

    def complaint(data: bytes) -> str:
        try:
            simplejpeg.decode_jpeg(data, "RGB", strict=True)
        except ValueError as error:
            return str(error)
        return ""

    found = 0
    with tarfile.open(real_data / "imagenet-sample-250.tar") as archive:
        files = [member for member in archive if member.isfile()][:60]
        for number, member in enumerate(files):
            data = archive.extractfile(member).read()
            assert complaint(data) == check_pixels(data).damage
            for part in range(1, 5):
                place = len(data) * part // 5
                hurt = bytearray(data)
                if number % 2:
                    hurt[place] ^= 1 << part
                else:
                    del hurt[place : place + 7 * part]
                said, verdict = complaint(bytes(hurt)), check_pixels(bytes(hurt))
                if verdict.info is None:  # its header was hit
                    assert said
                else:
                    assert said in verdict.damage + verdict.warning
                found += bool(verdict.damage)
    assert found > 40


# --- many pictures ----------------------------------------------------------------------------


class Counter(Silent):
    def __init__(self) -> None:
        self.amount = 0

    def advance(self, amount: int) -> None:
        self.amount += amount


@pytest.mark.parametrize("workers", [1, 3])
def test_every_picture_has_its_verdict(
    workers: int, jpeg: Callable[[int], bytes], picture: Picture
) -> None:
    pictures = [jpeg(number) for number in range(100)]
    pictures[70] = pictures[70][:-50]
    pictures[71] = picture("picture.png")
    progress = Counter()
    verdicts = dict(
        check_pictures(
            range(100), pictures.__getitem__, check_pixels, workers=workers, progress=progress
        )
    )
    assert sorted(verdicts) == list(range(100))
    assert [number for number, verdict in verdicts.items() if verdict.damage] == [70]
    assert verdicts[71].info is not None
    assert verdicts[71].info.format is Format.PNG
    assert progress.amount == sum(map(len, pictures))


def test_a_picture_that_cannot_be_read_is_damage_of_its_own(
    tmp_path: Path, picture: Picture
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("colour.jpg"))
    (tmp_path / "b.jpg").mkdir()

    def read(name: str) -> bytes:
        if name == "changed":
            raise DamagedData("it has changed its size")
        return (tmp_path / name).read_bytes()

    verdicts = dict(
        check_pictures(
            ["a.jpg", "b.jpg", "c.jpg", "changed"], read, check_ends, workers=2, progress=Silent()
        )
    )
    assert verdicts["a.jpg"].damage == ""
    assert verdicts["b.jpg"].damage == "it cannot be read (Is a directory)"
    assert verdicts["c.jpg"].damage == "it cannot be read (No such file or directory)"
    assert verdicts["changed"].damage == "it cannot be read (it has changed its size)"


def test_pictures_are_taken_as_they_are_wanted(picture: Picture) -> None:
    """Any number of pictures takes flat memory: no more are taken than are worked on."""
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    data = io.BytesIO(picture("grey.jpg")).getvalue()
    verdicts = check_pictures(endless(), lambda _: data, check_ends, workers=2, progress=Silent())
    for _ in range(10):
        assert next(verdicts)[1].damage == ""
    verdicts.close()
    assert taken < 1000
