"""Tars: what we write others read, what others write we find, what is hostile is refused."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import DamagedData, ToolError
from shards.tar import BLOCK, FileBytes, Member, header, padding, scan, trailer

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def members_of(path: Path, start: int = 0, end: int | None = None) -> list[Member]:
    """All members; a scan that yields more than the file has blocks never ends."""
    found = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for member in scan(FileBytes(descriptor), path, start, end):
            found.append(member)
            assert len(found) <= path.stat().st_size // BLOCK
    finally:
        os.close(descriptor)
    return found


def raw(name: bytes, data: bytes = b"", kind: bytes = b"0", size: bytes | None = None) -> bytes:
    """A member with any fields and a right checksum."""
    block = bytearray(header("x", len(data)))
    block[:100] = name.ljust(100, b"\0")
    if size is not None:
        block[124:136] = size
    block[156:157] = kind
    return summed(block) + data + bytes(padding(len(data)))


def summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(key: bytes, value: bytes) -> bytes:
    """A pax header with one record."""
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return raw(b"pax", b"%d %s=%s\n" % (length, key, value), b"x")


END = bytes(2 * BLOCK)
SOUND = raw(b"sound.jpg", b"sound")


@pytest.fixture
def tar_with(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "archive.tar"
        path.write_bytes(data)
        return path

    return write


# --- what we write ----------------------------------------------------------------------------


def test_a_header_is_pinned() -> None:
    block = header("n01440764_10026.jpg", 13697)
    assert block[:157].rstrip(b"\0") == (
        b"n01440764_10026.jpg".ljust(100, b"\0") + b"0000444\0" + b"0000000\0" * 2
        + b"00000032601\0" + b"00000000000\0" + b"011526\0 " + b"0"
    )  # fmt: skip
    assert block[157:] == (
        bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    )  # fmt: skip


def test_our_tar_is_read_by_tarfile_and_by_gnu_tar(tar_with: Callable[[bytes], Path]) -> None:
    names = ["a.jpg", "b" * 96 + ".jpg"]
    body = b"".join(header(name, 700) + bytes(700) + bytes(padding(700)) for name in names)
    path = tar_with(body + trailer(len(body)))
    assert path.stat().st_size % (20 * BLOCK) == 0
    with tarfile.open(path) as archive:
        for member, name in zip(archive, names, strict=True):
            assert (member.name, member.size, member.mode) == (name, 700, 0o444)
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
    if shutil.which("tar"):
        listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
        assert (listed.stdout.split(), listed.stderr) == (names, "")


@pytest.mark.parametrize("used", [0, 512, 9216, 9728, 10240])
def test_a_trailer_is_two_zero_blocks_and_fills_the_record(used: int) -> None:
    end = trailer(used)
    assert not any(end)
    assert 2 * BLOCK <= len(end) < 22 * BLOCK
    assert (used + len(end)) % (20 * BLOCK) == 0


# --- what others write ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FORMATS)
def test_a_scan_finds_what_tarfile_finds(
    layout: str, tmp_path: Path, write_tar: Callable[..., Path]
) -> None:
    long = "folder-with-a-long-name-" * 4 + "/" + "file-with-a-long-name-" * 4 + ".JPEG"
    names = ["a.JPEG", "with space.jpg", "x" * 100, "./dotted.jpg", long]
    if layout != "ustar":
        names += ["y" * 200 + ".jpg", "a/b/" + "z" * 250, "gr\u00fc\u00dfe-\u56fe.jpg"]
    files = {name: bytes(number * 300) for number, name in enumerate(names)}
    path = write_tar(tmp_path / "archive.tar", files, FORMATS[layout])
    with tarfile.open(path) as archive:
        expected = [(each.name, each.offset_data, each.size) for each in archive]
    found = [tuple(each) for each in members_of(path)]
    assert found == [(name.removeprefix("./"), *rest) for name, *rest in expected]
    assert len(found) == len(names)


def test_gnu_tar_s_own_archives_are_read(tmp_path: Path) -> None:
    if not shutil.which("tar"):
        pytest.skip("there is no tar command here")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ("l" * 180 + ".JPEG")).write_bytes(b"long")
    (folder / "a.JPEG").write_bytes(b"short")
    for layout in ("gnu", "posix", "v7"):
        if layout == "v7":
            (folder / ("l" * 180 + ".JPEG")).unlink()
        path = tmp_path / f"{layout}.tar"
        command = ["tar", f"--format={layout}", "--sort=name", "-cf", path, "-C", folder, "."]
        subprocess.run(command, check=True)
        data = path.read_bytes()
        bodies = {each.name[:2]: data[each.offset :][: each.size] for each in members_of(path)}
        assert bodies == ({"a.": b"short"} | ({} if layout == "v7" else {"ll": b"long"}))


def test_directories_are_passed_over(tar_with: Callable[[bytes], Path]) -> None:
    path = tar_with(raw(b"./", kind=b"5") + raw(b"old/") + SOUND + END)
    assert [each.name for each in members_of(path)] == ["sound.jpg"]


def test_places_in_an_inner_tar_are_places_in_the_outer_one(
    tmp_path: Path, write_train_tar: Callable[..., Path]
) -> None:
    bodies = {"a.JPEG": b"first" * 200, "b.JPEG": b"second"}
    path = write_train_tar(tmp_path / "train.tar", {"n00000001": {}, "n00000002": bodies})
    data = path.read_bytes()
    outer = members_of(path)
    assert [each.name for each in outer] == ["n00000001.tar", "n00000002.tar"]
    inner = members_of(path, outer[1].offset, outer[1].offset + outer[1].size)
    assert {each.name: data[each.offset :][: each.size] for each in inner} == bodies


def test_sizes_may_be_written_in_base_256(tar_with: Callable[[bytes], Path]) -> None:
    size = b"\x80" + (5).to_bytes(11, "big")
    path = tar_with(raw(b"a.jpg", b"hello", size=size) + END)
    assert members_of(path) == [Member("a.jpg", BLOCK, 5)]


def test_a_pax_size_wins_over_the_header_s(tar_with: Callable[[bytes], Path]) -> None:
    lying = raw(b"a.jpg", size=b"00000000000\0") + b"hello" + bytes(padding(5))
    path = tar_with(pax(b"size", b"5") + lying + SOUND + END)
    assert [(each.name, each.size) for each in members_of(path)] == [
        ("a.jpg", 5),
        ("sound.jpg", 5),
    ]


def test_an_empty_archive_has_no_members(tar_with: Callable[[bytes], Path]) -> None:
    assert members_of(tar_with(END)) == []


# --- what is hostile --------------------------------------------------------------------------

HOSTILE = {
    "absolute": (raw(b"/etc/passwd"), "outside its folder"),
    "parent": (raw(b"../a.jpg"), "outside its folder"),
    "parent inside": (raw(b"a/../../b.jpg"), "outside its folder"),
    "only a parent": (raw(b".."), "outside its folder"),
    "parent by pax": (pax(b"path", b"../a.jpg") + raw(b"a.jpg"), "outside its folder"),
    "parent by long name": (raw(b"L", b"../a.jpg\0", b"L") + raw(b"a.jpg"), "outside its folder"),
    "no name": (raw(b""), "refused"),
    "a dot for a name": (raw(b"."), "refused"),
    "hard link": (raw(b"a.jpg", kind=b"1"), "a hard link"),
    "symbolic link": (raw(b"a.jpg", kind=b"2"), "a symbolic link"),
    "character device": (raw(b"a.jpg", kind=b"3"), "a character device"),
    "block device": (raw(b"a.jpg", kind=b"4"), "a block device"),
    "FIFO": (raw(b"a.jpg", kind=b"6"), "a FIFO"),
    "sparse": (raw(b"a.jpg", kind=b"S"), "a sparse file"),
    "sparse by pax": (pax(b"GNU.sparse.major", b"1") + raw(b"a.jpg"), "sparse"),
    "multi-volume": (raw(b"a.jpg", kind=b"M"), "multi-volume"),
    "unknown type": (raw(b"a.jpg", kind=b"Z"), "unknown type"),
    "long link": (raw(b"K", b"/etc/passwd\0", b"K") + raw(b"a.jpg"), "unknown type"),
    "control character": (raw(b"a\x1b[2J.jpg"), "control characters"),
    "newline": (raw(b"a\nb.jpg"), "control characters"),
    "right to left": (raw("a\u202egpj.exe".encode()), "control characters"),
    "NUL by pax": (pax(b"path", b"a.jpg\0b") + raw(b"a.jpg"), "control characters"),
    "not UTF-8": (raw(b"a\xff.jpg"), "not UTF-8"),
    "256 bytes": (pax(b"path", b"a" * 256) + raw(b"a"), "too long"),
    "256 bytes in UTF-8": (pax(b"path", "\u00e9".encode() * 128) + raw(b"a"), "too long"),
    "size no number": (raw(b"a.jpg", size=b"0000000009z\0"), "size is no number"),
    "size negative": (raw(b"a.jpg", size=b"-0000001000\0"), "size is no number"),
    "long name negative": (raw(b"L", kind=b"L", size=b"-0000001000\0"), "size is no number"),
    "size with a sign": (raw(b"a.jpg", size=b"+0000000005\0"), "size is no number"),
    "size negative in base 256": (raw(b"a.jpg", size=b"\xff" * 12), "size is no number"),
    "size huge in base 256": (raw(b"a.jpg", size=b"\x80" + b"\xff" * 11), "its archive ends"),
    "size past the end": (raw(b"a.jpg", size=b"77777777777\0"), "its archive ends"),
    "pax size past the end": (pax(b"size", b"9" * 12) + raw(b"a.jpg"), "its archive ends"),
    "pax size negative": (pax(b"size", b"-5") + raw(b"a.jpg"), "no (valid )?size"),
    "pax size no number": (pax(b"size", b"0x5") + raw(b"a.jpg"), "no (valid )?size"),
    "pax size of 5,000 digits": (
        pax(b"size", b"9" * 5000) + raw(b"a.jpg"),
        "size|its archive ends",
    ),
    "pax length of 5,000 digits": (raw(b"p", b"1" * 5000 + b" a=b\n", b"x"), "damaged"),
    "pax length zero": (raw(b"p", b"0 path=a\n", b"x"), "damaged"),
    "pax length short": (raw(b"p", b"3 path=a\n", b"x"), "damaged"),
    "pax without a value": (raw(b"p", b"7 path\n", b"x"), "damaged"),
    "pax of a megabyte": (raw(b"p", bytes(1 << 20), b"x"), "claims 1048576 bytes"),
    "long name of a megabyte": (raw(b"L", b"a" * (1 << 20), b"L"), "claims 1048576 bytes"),
    "long name past the end": (raw(b"L", kind=b"L", size=b"00000077777\0"), "claims 32767"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.usefixtures("deadline")
def test_a_hostile_member_is_refused(case: str, tar_with: Callable[[bytes], Path]) -> None:
    data, reason = HOSTILE[case]
    path = tar_with(SOUND + data + SOUND + END)
    with pytest.raises(DamagedData, match=reason) as raised:
        members_of(path)
    assert str(raised.value).startswith(str(path))
    assert len(str(raised.value)) < 1000


@pytest.mark.usefixtures("deadline")
def test_a_directory_of_negative_size_is_no_endless_loop(
    tar_with: Callable[[bytes], Path],
) -> None:
    path = tar_with(raw(b"a/", kind=b"5", size=b"-0000001000\0") + END)
    with pytest.raises(DamagedData):
        members_of(path)


def test_a_name_of_255_bytes_is_taken(tar_with: Callable[[bytes], Path]) -> None:
    path = tar_with(pax(b"path", b"a" * 255) + raw(b"a") + END)
    assert [each.name for each in members_of(path)] == ["a" * 255]


def test_a_long_name_serves_one_member_only(tar_with: Callable[[bytes], Path]) -> None:
    path = tar_with(raw(b"L", b"long.jpg\0", b"L") + raw(b"a.jpg") + raw(b"b.jpg") + END)
    assert [each.name for each in members_of(path)] == ["long.jpg", "b.jpg"]


# --- what is damaged --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, write_tar: Callable[..., Path]) -> Path:
    files = {"a.jpg": b"a" * 700, "l" * 150 + ".jpg": b"long", "c.jpg": b""}
    return write_tar(tmp_path_factory.mktemp("three") / "three.tar", files, tarfile.GNU_FORMAT)


def test_every_truncation_is_noticed_and_what_came_before_is_sound(
    three: Path, tmp_path: Path
) -> None:
    data, whole = three.read_bytes(), members_of(three)
    end = whole[-1].offset
    cut = tmp_path / "cut.tar"
    for size in {*range(0, end + BLOCK, 100), *range(0, end + BLOCK, BLOCK)}:
        cut.write_bytes(data[:size])
        found: list[Member] = []
        with cut.open("rb") as file, pytest.raises(DamagedData, match=r"cut\.tar") as raised:
            found.extend(scan(FileBytes(file.fileno()), cut))  # keeps what came before the error
        assert found == whole[: len(found)]
        assert len(found) == sum(each.offset + each.size <= size for each in whole)
        assert "truncated" in str(raised.value) or "claims" in str(raised.value)


def test_an_archive_without_its_end_mark_is_truncated(tar_with: Callable[[bytes], Path]) -> None:
    with pytest.raises(DamagedData, match="end-of-archive mark"):
        members_of(tar_with(SOUND))


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_hole_of_zeros_is_not_taken_for_the_end(
    blocks: int, tar_with: Callable[[bytes], Path]
) -> None:
    """What a download leaves that allocated its file first and lost a part of it."""
    lost = (SOUND * 5)[: blocks * BLOCK]
    path = tar_with(SOUND + bytes(len(lost)) + (SOUND * 5)[len(lost) :] + END)
    with pytest.raises(DamagedData, match=str(path)):
        members_of(path)


def test_an_archive_whose_second_half_never_came_is_not_whole(
    tar_with: Callable[[bytes], Path],
) -> None:
    path = tar_with(SOUND)
    os.truncate(path, 4 << 20)  # zeros, as a file has that was allocated before it was fetched
    with pytest.raises(DamagedData, match=str(path)):
        members_of(path)


def test_an_inner_tar_cannot_reach_beyond_its_own_end(tar_with: Callable[[bytes], Path]) -> None:
    inside = raw(b"a.jpg", size=b"00000002000\0")
    path = tar_with(raw(b"inner.tar", inside) + raw(b"secret", b"s" * 2000) + END)
    outer = members_of(path)[0]
    with pytest.raises(DamagedData, match=f"its archive ends at {outer.offset + outer.size}"):
        members_of(path, outer.offset, outer.offset + outer.size)


@pytest.mark.parametrize(
    "data", [b"x", b"<html>404</html>" * 100, bytes(range(256)) * 4, b"\x1f\x8b" + bytes(600)]
)
def test_what_is_no_tar_is_said_to_be_none(data: bytes, tar_with: Callable[[bytes], Path]) -> None:
    with pytest.raises(DamagedData, match=r"is not a tar archive|is truncated"):
        members_of(tar_with(data))


def test_a_byte_flipped_in_a_header_is_noticed(three: Path, tmp_path: Path) -> None:
    data = bytearray(three.read_bytes())
    path = tmp_path / "flipped.tar"
    generator = random.Random(0)
    starts = [0, *(each.offset - BLOCK for each in members_of(three))]
    for _ in range(300):
        place = generator.choice(starts) + generator.randrange(BLOCK)
        flipped = data.copy()
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedData, match=r"checksum|size is no number"):
            members_of(path)


@pytest.mark.usefixtures("deadline")
def test_headers_with_any_bytes_and_a_right_checksum_do_no_harm(
    three: Path, tmp_path: Path
) -> None:
    data = bytearray(three.read_bytes())
    path = tmp_path / "random.tar"
    generator = random.Random(1)
    starts = [0, *(each.offset - BLOCK for each in members_of(three))]
    fields = [0, 99, 100, 124, 125, 135, 156, 257, 262, 345, 499]
    refused = 0
    for _ in range(2000):
        changed, start = data.copy(), generator.choice(starts)
        for _ in range(generator.randint(1, 3)):
            place = start + generator.choice([*fields, generator.randrange(BLOCK)])
            changed[place] = generator.choice([*b"-+_ 0179/.xLgS5\0", 0x80, 0xFF])
        changed[start : start + BLOCK] = summed(changed[start : start + BLOCK])
        path.write_bytes(changed)
        try:
            found = members_of(path)
        except ToolError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert all(0 <= each.size <= len(data) - each.offset for each in found)
            assert all(each.name not in {"", ".", ".."} for each in found)
    assert 200 < refused < 1900


def test_the_shorter_way_through_usual_headers_finds_what_the_longer_one_does(
    monkeypatch: pytest.MonkeyPatch, tar_with: Callable[[bytes], Path]
) -> None:
    generator = random.Random(3)
    fields = [0, 1, 99, 100, 106, 107, 124, 134, 135, 156, 257, 345]
    archives = [SOUND + SOUND + END]
    for _ in range(3000):
        changed = bytearray(SOUND + SOUND + END)
        place = generator.choice([*fields, generator.randrange(BLOCK)])
        changed[place] = generator.choice([*b"-+_ 0179/.xLgS5\0", 0x80, 0xFF])
        if generator.random() < 0.9:
            changed[:BLOCK] = summed(changed[:BLOCK])
        archives.append(bytes(changed))

    def outcomes() -> list[object]:
        found: list[object] = []
        for archive in archives:
            try:
                found.append(members_of(tar_with(archive)))
            except ToolError as error:
                found.append(str(error))
        return found

    usual = outcomes()
    monkeypatch.setattr("shards.tar._USUAL_NAME", re.compile(rb"(?!)"))
    assert outcomes() == usual
    assert len({str(outcome) for outcome in usual}) > 50


@pytest.mark.usefixtures("deadline")
def test_pax_headers_of_random_bytes_do_no_harm(tar_with: Callable[[bytes], Path]) -> None:
    generator = random.Random(2)
    pieces = [b"path=", b"size=", b"10 ", b"12 ", b"\n", b"=", b"9" * 8, b"a", b"..", b"/", b"\0"]
    for _ in range(1000):
        body = b"".join(generator.choices(pieces, k=generator.randint(1, 12)))
        path = tar_with(raw(b"pax", body, b"x") + SOUND + END)
        try:
            found = members_of(path)
        except DamagedData:
            continue
        assert [each.size for each in found] in ([5], [10], [12])


def test_the_same_bytes_are_read_as_by_a_stream(three: Path) -> None:
    """A scan by position agrees with tarfile reading the same archive front to back."""
    data = three.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as archive:
        streamed = [(each.name, archive.extractfile(each).read()) for each in archive]
    assert [(each.name, data[each.offset :][: each.size]) for each in members_of(three)] == streamed
