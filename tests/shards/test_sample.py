"""Keys and canonical order."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import DamagedData, ToolError
from shards.sample import FoundImage, Layout, Samples, make_keys


def keys(names: list[str], labels: list[int] | None = None) -> list[str]:
    return [key.decode() for key in make_keys(names, labels or [0] * len(names)).tolist()]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("n01440764_10026.JPEG", "n01440764_10026"),
        ("n01440764_10026.jpg", "n01440764_10026"),
        ("n02105855_2933.png", "n02105855_2933"),
        ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001"),
        ("ILSVRC2012_test_00100000.JPEG", "ILSVRC2012_test_00100000"),
        ("n01440764_10026_n01440764.JPEG", "n01440764_10026"),
        ("ILSVRC2012_val_00000293_n01440764.JPEG", "ILSVRC2012_val_00000293"),
    ],
)
def test_a_name_of_ilsvrc_gives_its_own_key(name: str, key: str) -> None:
    assert keys([name]) == [key]


@pytest.mark.parametrize(
    "name",
    [
        "cat.jpg",
        "n01440764_10026",
        "n1440764_10026.JPEG",
        "n01440764_10026.JPEG.jpg",
        "xn01440764_10026.JPEG",
        "n01440764_10026.JPEG\n",
        "n01440764_10026_n014407640.JPEG",
        "n\u0660\u0661\u0664\u0664\u0660\u0667\u0666\u0664_\u0661.JPEG",
        "IL\u017fVRC2012_val_00000001.JPEG",
        "\u56fe.jpg",
        "a.b.jpg",
        "",
    ],
)
def test_any_other_name_is_ranked_in_its_class(name: str) -> None:
    assert keys([name], [7]) == ["00007_0000000"]


def test_ranks_follow_the_bytes_of_the_names_class_by_class() -> None:
    names = ["b.jpg", "a.jpg", "\u00e9.jpg", "Z.jpg", "a.jpg"]
    assert keys(names, [0, 0, 0, 0, 1]) == [
        "00000_0000002",
        "00000_0000001",
        "00000_0000003",
        "00000_0000000",
        "00001_0000000",
    ]


def test_every_name_of_the_class_counts_for_the_ranks() -> None:
    assert keys(["a.jpg", "n01440764_1.JPEG", "z.jpg"]) == [
        "00000_0000000",
        "n01440764_1",
        "00000_0000002",
    ]


def test_keys_are_ascii_without_dots_and_fit_ustar() -> None:
    found = keys(["\u00fc.jpg", "x" * 255, "n01440764_" + "1" * 80 + ".JPEG"])
    assert all(key.isascii() and "." not in key and len(key) <= 90 for key in found)


def test_a_name_too_long_for_a_key_is_the_one_named() -> None:
    too_long = "n01440764_" + "1" * 81 + ".JPEG"
    with pytest.raises(DamagedData, match=too_long):
        make_keys(["y" * 200 + ".jpg", too_long], [0, 0])


def collect(names: list[str]) -> Samples:
    images = [FoundImage(name, 0, 0, number, 10) for number, name in enumerate(names)]
    return Samples.collect(Layout.FOLDER, [Path("/data/n01440764")], images)


def test_samples_stand_in_the_order_of_their_keys() -> None:
    samples = collect(["n01440764_9.JPEG", "n01440764_10.JPEG", "n01440764_1.JPEG"])
    assert samples.keys.tolist() == [b"n01440764_1", b"n01440764_10", b"n01440764_9"]
    assert samples.offsets.tolist() == [2, 1, 0]
    assert samples[0].path == Path("/data/n01440764/n01440764_1.JPEG")


def test_two_images_of_one_key_are_refused_by_both_names() -> None:
    with pytest.raises(ToolError) as raised:
        collect(["n01440764_1.JPEG", "n01440764_2.JPEG", "n01440764_1.jpg"])
    assert "n01440764_1.JPEG" in str(raised.value)
    assert "n01440764_1.jpg" in str(raised.value)


def test_no_images_are_no_samples() -> None:
    assert len(collect([])) == 0
