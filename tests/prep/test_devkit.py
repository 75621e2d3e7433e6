"""The devkit reader against SciPy, in both directions, and against hostile archives."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from prep import devkit, ilsvrc
from prep.matfile import read_struct_array, write_struct_array
from shards.errors import DamagedData

FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)
# Two classes and their parent, as the real file has them: leaves first, then inner nodes.
ROWS: tuple[tuple[Any, ...], ...] = (
    (1, "n02119789", "kit fox, Vulpes macrotis", "small grey fox", 0, (), 0, 1300),
    (2, "n02100735", "English setter", "", 0, (), 0, 732),
    (3, "n00001740", "entity", "that which is perceived", 2, (1, 2), 1, 0),
)


def our_meta(rows: tuple[tuple[Any, ...], ...] = ROWS) -> bytes:
    def field(value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    return write_struct_array(
        "synsets", [dict(zip(FIELDS, map(field, row), strict=True)) for row in rows]
    )


def scipy_meta(
    rows: tuple[tuple[Any, ...], ...] = ROWS, *, compressed: bool = True, number: type = float
) -> bytes:
    synsets = np.zeros((len(rows), 1), dtype=[(name, object) for name in FIELDS])
    for position, row in enumerate(rows):
        synsets[position, 0] = tuple(
            value if isinstance(value, str) else np.array(value, dtype=number, ndmin=2)
            for value in row
        )
    file = io.BytesIO()
    variables = {"before": np.arange(3.0), "synsets": synsets}
    scipy.io.savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def make_devkit(
    path: Path, *, meta: bytes | None = None, truth: bytes = b"2\n1\n1\n", root: str = "kit"
) -> Path:
    members = {f"{root}/data/meta.mat": our_meta() if meta is None else meta}
    members[f"{root}/data/ILSVRC2012_validation_ground_truth.txt"] = truth
    return pack(path, members)


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_scipy_reads_what_we_write() -> None:
    synsets = scipy.io.loadmat(io.BytesIO(our_meta()), squeeze_me=True)["synsets"]
    assert synsets.dtype.names == FIELDS
    assert [entry["ILSVRC2012_ID"] for entry in synsets] == [1, 2, 3]
    assert all(isinstance(entry["ILSVRC2012_ID"], int) for entry in synsets)
    assert [str(entry["WNID"]) for entry in synsets] == [row[1] for row in ROWS]
    assert str(synsets[0]["words"]) == "kit fox, Vulpes macrotis"
    assert [entry["gloss"].size for entry in synsets[1:2]] == [0]
    assert [entry["num_train_images"] for entry in synsets] == [1300, 732, 0]
    assert synsets[0]["children"].size == 0
    assert synsets[2]["children"].tolist() == [1, 2]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("number", [float, np.uint16, np.int16, np.int64])
def test_we_read_what_scipy_writes(compressed: bool, number: type) -> None:
    data = scipy_meta(compressed=compressed, number=number)
    records = read_struct_array(data, "synsets", max_bytes=100_000)
    assert [tuple(record) for record in records] == [FIELDS] * len(ROWS)
    for record, row in zip(records, ROWS, strict=True):
        for name, expected in zip(FIELDS, row, strict=True):
            value = record[name]
            if isinstance(expected, str):
                assert value == expected
            else:
                assert isinstance(value, np.ndarray)
                assert value.tolist() == list(np.atleast_1d(expected))


def test_fields_of_other_kinds_read_as_none() -> None:
    synsets = np.zeros((1, 1), dtype=[("nested", object), ("cells", object), ("words", object)])
    synsets[0, 0] = ({"a": 1.0}, np.array(["x", 2.0], dtype=object), "entity")
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets})
    records = read_struct_array(file.getvalue(), "synsets", max_bytes=0)
    assert records == [{"nested": None, "cells": None, "words": "entity"}]


@pytest.mark.parametrize("meta", [our_meta(), scipy_meta()], ids=["ours", "scipy's"])
def test_reads_synsets_and_ground_truth(tmp_path: Path, meta: bytes) -> None:
    kit = devkit.read_devkit(make_devkit(tmp_path / "kit.tar.gz", meta=meta))
    assert [synset.ilsvrc_id for synset in kit.synsets] == [1, 2, 3]
    assert kit.synsets[0] == devkit.Synset(
        ilsvrc_id=1,
        wnid="n02119789",
        words="kit fox, Vulpes macrotis",
        gloss="small grey fox",
        num_children=0,
        num_train_images=1300,
    )
    assert kit.ground_truth.dtype == np.int16
    assert kit.ground_truth.tolist() == [2, 1, 1]
    assert kit.validation_wnids() == ("n02100735", "n02119789", "n02119789")


@pytest.mark.parametrize("write_meta", [our_meta, scipy_meta])
def test_a_whole_devkit_gives_the_built_in_labels(
    write_meta: Callable[..., bytes], tmp_path: Path
) -> None:
    """Read by us and by SciPy, as torchvision reads it: IDs of leaves, looked up in meta.mat.

    The ground truth is the built-in table in IDs; tests/prep/test_ilsvrc.py pins its digest.
    """
    wnids = ilsvrc.id_to_wnid()
    ids = {wnid: number for number, wnid in enumerate(wnids, start=1)}
    expected = [ilsvrc.classes()[label].wnid for label in ilsvrc.validation_labels()]
    truth = "".join(f"{ids[wnid]}\n" for wnid in expected).encode()
    leaves = tuple((number, wnid, "a, b", "", 0, (), 0, 1300) for wnid, number in ids.items())
    root = (1001, "n00001740", "entity", "", 2, (1, 2), 1, 0)
    meta = write_meta((*leaves, root))
    path = make_devkit(tmp_path / "kit.tgz", meta=meta, truth=truth)
    assert list(devkit.read_devkit(path).validation_wnids()) == expected

    synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"].tolist()
    wnid_of = {int(entry[0]): str(entry[1]) for entry in synsets if int(entry[4]) == 0}
    assert len(wnid_of) == ilsvrc.CLASSES
    assert [wnid_of[int(line)] for line in truth.splitlines()] == expected


def refusal(path: Path) -> str:
    with pytest.raises(DamagedData) as caught:
        devkit.read_devkit(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("download the devkit again")
    assert "\n" not in message
    return message


def test_missing_file_is_an_ordinary_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        devkit.read_devkit(tmp_path / "none.tar.gz")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "there is no sound tar in its gzip"),
        (b"<html>login</html>", "it is not a sound gzip file"),
        (gzip.compress(b"<html>login</html>" * 99), "there is no sound tar in its gzip"),
        (gzip.compress(bytes(10_240)), "it has no member data/meta.mat"),
    ],
    ids=["empty", "not gzip", "not tar", "no members"],
)
def test_refuses_what_is_no_devkit(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "kit.tar.gz"
    path.write_bytes(content)
    assert reason in refusal(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_refuses_a_truncated_archive(tmp_path: Path, share: float) -> None:
    path = make_devkit(tmp_path / "kit.tar.gz", truth=b"1\n" * 20_000)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in refusal(path)


def test_refuses_an_altered_archive(tmp_path: Path) -> None:
    path = make_devkit(tmp_path / "kit.tar.gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the checksum: nothing else tells
    path.write_bytes(data)
    assert "not a sound gzip file" in refusal(path)


def test_refuses_missing_double_oversized_and_linked_members(tmp_path: Path) -> None:
    path = tmp_path / "kit.tar.gz"
    pack(path, {"kit/data/meta.mat": our_meta()})
    assert f"has no member {devkit.GROUND_TRUTH}" in refusal(path)
    pack(path, {"a/data/meta.mat": our_meta(), "b/data/meta.mat": our_meta()})
    assert "holds data/meta.mat twice" in refusal(path)
    pack(path, {"kit/data/meta.mat": bytes(devkit.MAX_MEMBER + 1)})
    assert "kit/data/meta.mat claims 8,388,609 bytes" in refusal(path)
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("kit/data/meta.mat")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "kit/data/meta.mat is not a regular file" in refusal(path)


def test_refuses_a_gzip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "kit.tar.gz"
    pack(path, {"kit/padding": bytes(devkit.MAX_UNPACKED)})
    assert path.stat().st_size < 200_000
    assert "unpacks to more than 67,108,864 bytes" in refusal(path)


def test_refuses_a_tar_of_headers_only(tmp_path: Path) -> None:
    path = tmp_path / "kit.tar.gz"
    pack(path, {f"kit/{number}": b"" for number in range(devkit.MAX_MEMBERS + 1)})
    assert "more than 1,000 members" in refusal(path)
    extended = tarfile.TarInfo("x")
    extended.type = tarfile.XHDTYPE
    path.write_bytes(gzip.compress(extended.tobuf(tarfile.USTAR_FORMAT) * 5_000))
    assert "no sound tar" in refusal(path)


def test_refuses_a_matlab_bomb(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(devkit.MAX_VARIABLES + 1), 9)
    meta = our_meta()[:128] + struct.pack("<II", 15, len(packed)) + packed
    message = refusal(make_devkit(tmp_path / "kit.tar.gz", meta=meta))
    assert "data/meta.mat: a compressed variable is larger than 16,777,216 bytes" in message


@pytest.mark.parametrize(
    ("truth", "line"),
    [
        (b"1\n1001\n", "line 2 is '1001'"),
        (b"0\n", "line 1 is '0'"),
        (b"1\n3\n", "line 2 is '3'"),
        (b"1\n-1\n", "line 2 is '-1'"),
        (b"1\n\n2\n", "line 2 is ''"),
        (b"\xff\xfe1\n", "line 1 is "),
        (b"9" * 5_000, "line 1 is '99999999999999999999'"),
    ],
    ids=["too high", "zero", "inner node", "negative", "blank", "binary", "huge"],
)
def test_refuses_ids_that_are_no_class(tmp_path: Path, truth: bytes, line: str) -> None:
    message = refusal(make_devkit(tmp_path / "kit.tar.gz", truth=truth))
    assert f"{devkit.GROUND_TRUTH}: {line}" in message


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((5, "n00000001", "", "", 0, (), 0, 0), "the ILSVRC2012_IDs are not 1 to 1"),
        ((1, "../../etc", "", "", 0, (), 0, 0), "'../../etc' is not a wnid"),
        (((1.5,), "n00000001", "", "", 0, (), 0, 0), "ILSVRC2012_ID is 1.5, not a count"),
        (((1, 2), "n00000001", "", "", 0, (), 0, 0), "ILSVRC2012_ID is not one number"),
        ((1, (7,), "", "", 0, (), 0, 0), "WNID is not a text"),
        ((1, "n00000001", "", "", (float("nan"),), (), 0, 0), "num_children is nan"),
    ],
)
def test_refuses_impossible_synsets(tmp_path: Path, row: tuple[Any, ...], reason: str) -> None:
    path = make_devkit(tmp_path / "kit.tar.gz", meta=our_meta((row,)))
    message = refusal(path)
    assert devkit.META in message
    assert reason in message


def uncompressed(meta: bytes) -> bytes:
    return meta[:128] + zlib.decompress(meta[136:])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:200],
        lambda data: b"MATLAB 7.3 MAT-file" + data[19:124] + b"\x00\x02IM" + data[128:],
        lambda data: data.replace(b"synsets", b"synsetz"),
        lambda data: data[:128] + struct.pack("<II", 14, 2**32 - 1) + data[136:],
        lambda data: data.replace(struct.pack("<ii", 1, 3), struct.pack("<ii", 1, 2**31 - 1)),
        lambda data: data.replace(struct.pack("<ii", 1, 3), struct.pack("<ii", 1, 99_999)),
        lambda data: data.replace(struct.pack("<ii", 1, 3), struct.pack("<ii", -1, 3)),
    ],
    ids=["cut", "7.3", "other name", "long", "very many", "many", "negative"],
)
def test_refuses_damaged_matlab_files(damage: Callable[[bytes], bytes]) -> None:
    data = uncompressed(our_meta())
    assert len(read_struct_array(data, "synsets", max_bytes=0)) == 3
    with pytest.raises(DamagedData):
        read_struct_array(damage(data), "synsets", max_bytes=0)


def test_no_altered_byte_escapes_as_another_exception() -> None:
    data = uncompressed(our_meta())
    refused = 0
    for position in range(124, len(data)):
        value = (0, 7, 255)[position % 3]
        altered = data[:position] + bytes([value]) + data[position + 1 :]
        try:
            read_struct_array(altered, "synsets", max_bytes=10_000)
        except DamagedData:
            refused += 1
    assert refused > 100
