"""Shards of others: the samples that webdataset finds in them, and a refusal of what is odd."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from shards.contents import Contents, Place
from shards.errors import DamagedData
from shards.foreign import Reading, foreign_keys, read_archive, read_shard
from shards.image import Format
from shards.manifest import Skipped
from shards.sample import LARGEST_IMAGE, UNLABELLED

Members = Mapping[str, bytes]
WriteTar = Callable[..., Path]
Jpeg = Callable[[int], bytes]


def read(path: Path, **options: Any) -> Contents:
    return read_shard(path, Reading(**options), lambda _: None)


def rows(contents: Contents, *columns: str) -> list[tuple[Any, ...]]:
    """Rows of the columns that are asked for, names as text."""
    chosen = [contents.columns[name].tolist() for name in columns]
    rows = zip(*chosen, strict=True)
    return [tuple(x.decode() if isinstance(x, bytes) else x for x in row) for row in rows]


def stored(path: Path, contents: Contents) -> list[bytes]:
    """The images of a tar, by the places that were found."""
    data = path.read_bytes()
    return [data[start : start + size] for start, size in rows(contents, "offset", "size")]


# --- what is found ----------------------------------------------------------------------------


def test_a_row_says_where_an_image_lies_and_what_it_is(
    write_tar: WriteTar, picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    images = [picture("colour.jpg"), picture("picture.png"), picture("grey.jpg")]
    members = {
        "one.jpg": images[0], "one.cls": b"7",
        "two.cls": b"0\n", "two.PNG": images[1],
        "three.json": b"{}", "three.JPEG": images[2], "three.CLS": b" +12 ",
    }  # fmt: skip
    path = write_tar(tmp_path / "x.tar", members)
    steps: list[int] = []
    found = read_shard(path, Reading(), steps.append)
    data = path.read_bytes()
    assert (found.bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(steps) == len(data)
    assert stored(path, found) == images
    assert rows(found, "name", "label", "number") == [
        ("one.jpg", 7, 0),
        ("two.PNG", 0, 1),
        ("three.JPEG", 12, 2),
    ]
    assert rows(found, "format", "components") == [(Format.JPEG, 3), (Format.PNG, 3),
                                                   (Format.JPEG, 1)]  # fmt: skip
    assert min(found.columns["width"]) > 1
    assert min(found.columns["height"]) > 1
    assert found.columns["xxh3"].tolist() == [xxhash.xxh3_64_intdigest(each) for each in images]
    assert found.skipped == ()
    assert found.ignored == (0, "")


@pytest.mark.filterwarnings("ignore:unclosed file")  # the library leaves its shards open
def test_webdataset_s_own_shards_are_read_as_webdataset_reads_them(
    jpeg: Jpeg, tmp_path: Path
) -> None:
    import webdataset

    draw = random.Random(0)
    pattern = str(tmp_path / "s-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=40, verbose=0) as writer:
        for number in range(100):
            folder = draw.choice(["", "a/", "a.b/c d/", "\u00fc" * 60 + "/"])
            sample = {"__key__": f"{folder}img{number:04d}", "cls": draw.randrange(1000)}
            sample[draw.choice(["jpg", "jpeg", "JPEG"])] = jpeg(number)
            if draw.random() < 0.5:
                sample |= {"json": {"label": 3}, "seg.png": b"no image", "txt": "x" * number}
            writer.write(sample)
    for path in sorted(tmp_path.glob("*.tar")):
        found = read(path)
        images, expected = stored(path, found), []
        for sample in webdataset.WebDataset([str(path)], shardshuffle=False):
            image = sample["jpg" if "jpg" in sample else "jpeg"]
            expected.append((sample["__key__"], int(sample["cls"]), image))
        keys = [name.rsplit(".", 1)[0] for (name,) in rows(found, "name")]
        labels = found.columns["label"].tolist()
        assert list(zip(keys, labels, images, strict=True)) == expected


@pytest.mark.parametrize("mtime", [0, 1690000000.123456])
@pytest.mark.parametrize("width", [11, 99, 101, 160])
@pytest.mark.parametrize(
    "layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids="UGP".__getitem__
)
def test_every_layout_of_tarfile_gives_the_same_samples(
    layout: int, width: int, mtime: float, jpeg: Jpeg, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    names = [f"{'d' * (width - 10)}/{number:09d}" for number in range(5)]
    with tarfile.open(path, "w", format=layout) as archive:
        for number, name in enumerate(names):
            for ending, data in (("jpg", jpeg(number)), ("cls", b"%d" % number)):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size, info.mtime = len(data), mtime
                archive.addfile(info, io.BytesIO(data))
    found = read(path)
    assert rows(found, "name", "label") == [(f"{name}.jpg", n) for n, name in enumerate(names)]
    assert stored(path, found) == [jpeg(number) for number in range(5)]


def test_what_webdataset_passes_over_is_counted(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    members = {
        "README": b"", "__index__/x.txt": b"", "a/.hidden.jpg": b"", "one.jpg": jpeg(0),
        "LICENSE": b"", "one.cls": b"1",
    }  # fmt: skip
    found = read(write_tar(tmp_path / "x.tar", members))
    assert found.ignored == (4, "README")
    assert rows(found, "name", "label") == [("one.jpg", 1)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"label": 5}, "label"),
        ({"label": "5"}, "label"),
        ({"caption": "\u00fc", "meta": {"class": {"index": 5}}}, "meta.class.index"),
    ],
)
def test_a_label_may_be_a_field_of_the_json(
    body: dict[str, Any], field: str, write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    """As img2dataset writes them: KEY.jpg, KEY.json, KEY.txt; a .cls beside is not looked at."""
    members = {}
    for key in ("000000000", "000000031"):
        members |= {f"{key}.jpg": jpeg(1), f"{key}.json": json.dumps(body).encode(),
                    f"{key}.txt": b"a caption", f"{key}.cls": b"nonsense"}  # fmt: skip
    found = read(write_tar(tmp_path / "00000.tar", members), label_field=field)
    assert found.columns["label"].tolist() == [5, 5]


def test_a_test_set_may_have_no_labels(write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "b.cls": b"2"})
    assert read(path, labelled=False).columns["label"].tolist() == [UNLABELLED, 2]


def test_a_tar_without_samples_has_none(write_tar: WriteTar, tmp_path: Path) -> None:
    assert len(read(write_tar(tmp_path / "x.tar", {}))) == 0


# --- what is refused --------------------------------------------------------------------------

ODD = {
    "the same field twice": (["a.jpg", "a.cls", "A/b.jpg", "A/b.JPG"], {}, "'A/b.JPG' is the sec"),
    "a key that comes again": (["a.jpg", "a.cls", "b.jpg", "b.cls", "a.json"], {},
                               "'a.json' stands apart .* the key 'a' is there twice"),
}  # fmt: skip
BAD = {
    "no image": (["a.cls"], {}, r"a: it has no image \(.jpg, .jpeg, .png\), only .cls"),
    "an image of another kind": (["a.webp", "a.cls"], {}, "a: it has no image .* only .webp, .cls"),
    "no label": (["a.jpg"], {}, r"a: it has no label \(.cls\), only .jpg; pass"),
    "no label, but JSON": (["a.jpg", "a.json"], {}, "name the label's field in it by --label-fi"),
    "no JSON": (["a.jpg", "a.cls"], {"label_field": "x"}, "a: it has no .json with a label"),
    "two images": (["a.jpg", "a.png", "a.cls"], {}, "a.png: it is a second image beside 'a.jpg'"),
    "no image in it": (["a.jpg=<html>", "a.cls"], {}, "a.jpg: it is neither a JPEG nor a PNG"),
    "nothing in it": (["a.jpg=", "a.cls"], {}, "a.jpg: it is empty"),
    "a label in words": (["a.jpg", "a.cls=cat"], {}, "a.cls: its label b'cat' is no integer"),
    "no text in the label": (["a.jpg", "a.cls="], {}, "a.cls: its label b'' is no integer"),
    "a fraction": (["a.jpg", "a.cls=1.0"], {}, "a.cls: its label b'1.0' is no integer"),
    "a long label": (["a.jpg", "a.cls=" + "1" * 65], {}, "a.cls: it has 65 bytes"),
    "a huge label": (["a.jpg", "a.cls=" + "1" * 18], {}, "a.cls: its label is 1{18}; without"),
    "a negative label": (["a.jpg", "a.cls=-1"], {}, "a.cls: its label is -1; .* 0 to 99998"),
    "a label too many": (["a.jpg", "a.cls=3"], {"classes": 3}, "is 3; of 3 classes"),
    "broken JSON": (["a.jpg", "a.json={"], {"label_field": "x"}, "a.json: it is no JSON"),
    "deep JSON": (["a.jpg", "a.json=" + "[" * 100_000], {"label_field": "x"}, "a.json: it is no"),
    "another field": (["a.jpg", 'a.json={"y": 1, "z": 2}'], {"label_field": "x"},
                      "a.json: it has no field 'x' .*; it has y, z"),
    "a field of no object": (["a.jpg", 'a.json={"x": 1}'], {"label_field": "x.y"},
                             "a.json: it has no field 'x.y' .*; it has no object"),
    "a true label": (["a.jpg", 'a.json={"x": true}'], {"label_field": "x"}, "'True', no integer"),
    "no number": (["a.jpg", 'a.json={"x": null}'], {"label_field": "x"}, "is 'None', no integer"),
    "much JSON": (["a.jpg", "a.json=" + " " * (1 << 20) + "{}"], {"label_field": "x"}, "plenty"),
}  # fmt: skip


def members_of(listed: list[str], image: bytes) -> Members:
    """Members from `name` or `name=content`; by default images are whole and labels 0."""
    plain = {"jpg": image, "jpeg": image, "png": image, "cls": b"0", "json": b"{}"}
    pairs = [each.partition("=") for each in listed]
    return {
        name: data.encode() if given else plain.get(name.rpartition(".")[2].lower(), b"x")
        for name, given, data in pairs
    }


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
@pytest.mark.parametrize("what", ODD)
def test_samples_that_cannot_be_told_apart_are_refused(
    what: str, on_bad: str, write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    listed, options, message = ODD[what]
    path = write_tar(tmp_path / "x.tar", members_of(listed, jpeg(0)))
    with pytest.raises(DamagedData, match=f"x.tar: .*{message}"):
        read(path, on_bad=on_bad, **options)


@pytest.mark.parametrize("what", BAD)
def test_a_sample_that_cannot_be_used_is_refused_or_left_out(
    what: str, write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    listed, options, message = BAD[what]
    members = dict(members_of(listed, jpeg(0)))
    good = {"z.jpg": jpeg(1), "z.cls": b"2", "z.json": b'{"x": 2}'}
    if options.get("label_field") == "x.y":
        good["z.json"] = b'{"x": {"y": 2}}'
    path = write_tar(tmp_path / "x.tar", {**members, **good})
    with pytest.raises(DamagedData, match=f"x.tar: .*{message}") as caught:
        read(path, **options)
    found = read(path, on_bad="skip", **options)
    assert rows(found, "name", "label", "number") == [("z.jpg", 2, 1)]
    (skipped,) = found.skipped
    assert skipped.key == "a"
    told = f"{path}: {skipped.name}: {skipped.reason}; pass --on-bad skip to leave it out"
    assert str(caught.value) == told


def test_an_absurd_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = LARGEST_IMAGE + 1
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + -(-info.size // 512) * 512 + 1024)
    with pytest.raises(DamagedData, match=r"a.jpg: it has 1073741825 bytes, an image may have"):
        read(path)


@pytest.mark.parametrize("name", ["/a.jpg", "../a.jpg", "a/../b.jpg", "a\nb.jpg"])
def test_names_that_lead_elsewhere_are_refused(
    name: str, write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "x.tar", {name: jpeg(0), f"{name[:-3]}cls": b"0"})
    with pytest.raises(DamagedData, match=r"refused|control characters"):
        read(path)


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DamagedData, match=r"'a.jpg' is a symbolic link; refused"):
        read(path)


def test_a_truncated_shard_is_refused_wherever_it_ends(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(0), "a.cls": b"0"})
    data = path.read_bytes()
    end = 512 + -(-len(jpeg(0)) // 512) * 512 + 1024
    for size in range(0, end, 100):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedData):
            read(path)


# --- archives ---------------------------------------------------------------------------------


def test_the_images_of_an_archive_are_looked_at_where_they_lie(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{number}.JPEG": jpeg(number) for number in range(9)})
    with tarfile.open(path) as archive:
        places = [
            Place(f"k{each.name[0]}", each.name, int(each.name[0]), each.offset_data, each.size)
            for each in archive
        ]
    chosen = [place for place in places if place.label % 2]
    found = read_archive(path, chosen, "fail", lambda _: None)
    assert stored(path, found) == [jpeg(number) for number in (1, 3, 5, 7)]
    assert rows(found, "name", "label", "number") == [
        ("1.JPEG", 1, 0), ("3.JPEG", 3, 1), ("5.JPEG", 5, 2), ("7.JPEG", 7, 3),
    ]  # fmt: skip
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_image_that_is_none_is_refused_or_left_out(
    write_tar: WriteTar, jpeg: Jpeg, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.JPEG": b"<html>", "b.JPEG": jpeg(0)})
    places = [Place("a", "a.JPEG", 4, 512, 6), Place("b", "b.JPEG", 5, 1536, len(jpeg(0)))]
    with pytest.raises(DamagedData, match=r"x.tar: a.JPEG: it is neither .* --on-bad skip"):
        read_archive(path, places, "fail", lambda _: None)
    found = read_archive(path, places, "skip", lambda _: None)
    assert rows(found, "name", "label", "number") == [("b.JPEG", 5, 1)]
    reason = "it is neither a JPEG nor a PNG (it begins with b'<html>')"
    assert found.skipped == (Skipped("a", "a.JPEG", reason),)


# --- keys -------------------------------------------------------------------------------------


def named(*names: str) -> Contents:
    columns = {
        "name": np.array([name.encode() for name in names], np.bytes_),
        "number": np.arange(len(names), dtype=np.uint32) * 10,
        "offset": np.zeros(len(names), np.uint64),
    }
    return Contents(bytes=0, sha256="", columns=columns)


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["img1.jpg", "IMG-2_b.png"], ["img1", "IMG-2_b"]),
        (["n01440764_10026.JPEG", "x.jpg"], ["n01440764_10026", "x"]),
        (["a/n01440764_10026.jpg", "b c/n01440764_10027_n01440764.jpg"],
         ["n01440764_10026", "n01440764_10027"]),
        (["ILSVRC2012_val_00000001.jpg"], ["ILSVRC2012_val_00000001"]),
        (["k" * 90 + ".jpg"], ["k" * 90]),
    ],
)  # fmt: skip
def test_keys_that_will_do_stay(names: list[str], keys: list[str]) -> None:
    found, reason = foreign_keys([named(*names)])
    assert [key.decode() for key in found.tolist()] == keys
    assert reason == ""


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["ok.jpg", "a/b.jpg"], "'a/b'"),
        (["ok.jpg", "a b.jpg"], "'a b'"),
        (["ok.jpg", "\u00e9.jpg"], "'\u00e9'"),
        (["ok.jpg", "k" * 91 + ".jpg"], "more than 90"),
    ],
)
def test_otherwise_all_keys_are_positions(names: list[str], reason: str) -> None:
    found, said = foreign_keys([named("first.jpg"), named(*names)])
    assert found.tolist() == [b"000000_0000000", b"000001_0000000", b"000001_0000010"]
    assert reason in said


def test_the_same_key_in_two_tars_makes_keys_positions() -> None:
    found, said = foreign_keys([named("a.jpg", "b.jpg"), named("b.jpg", "c.jpg")])
    assert found.tolist() == [
        b"000000_0000000", b"000000_0000010", b"000001_0000000", b"000001_0000010",
    ]  # fmt: skip
    assert said == "the key 'b' is there twice"
