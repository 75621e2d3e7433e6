"""What claims to be whole must be; what is evidently a part may lack what it likes."""

from __future__ import annotations

from typing import Any

import pytest

from prep import ilsvrc
from prep.devkit import read_devkit
from prep.verification.expected import Expected, compare, from_devkit, listed, published

WNIDS = [each.wnid for each in ilsvrc.classes()]


def true_train() -> dict[str, int]:
    """Counts within the published range that add up to the published total."""
    counts = dict.fromkeys(WNIDS, 1300)
    for wnid in WNIDS[:33]:
        counts[wnid] -= 568  # 732, the fewest
    counts[WNIDS[33]] -= 1_300_000 - 33 * 568 - ilsvrc.TRAIN_IMAGES
    return counts


def findings(counts: dict[str, int], split: str, *, whole: bool = False) -> tuple[str, ...]:
    expected = published(split)
    assert expected is not None
    return compare(counts, sum(counts.values()), expected, whole=whole).findings


def test_the_published_counts_are_whole() -> None:
    assert sum(true_train().values()) == 1_281_167
    assert findings(true_train(), "train") == ()
    assert findings(dict.fromkeys(WNIDS, 50), "val") == ()


def test_one_image_too_few_is_found() -> None:
    counts = true_train()
    counts[WNIDS[500]] -= 1
    (finding,) = findings(counts, "train")
    assert finding == "has 1,281,166 images, ILSVRC2012 has 1,281,167: 1 are missing"
    val = dict.fromkeys(WNIDS, 50)
    val[WNIDS[7]] = 49
    assert findings(val, "val")[0] == f"has 49 images of {WNIDS[7]}, ILSVRC2012 has 50"


def test_an_image_in_a_wrong_class_is_found_by_both_counts() -> None:
    val = dict.fromkeys(WNIDS, 50) | {WNIDS[0]: 51, WNIDS[999]: 49}
    assert len(findings(val, "val")) == 2


def test_a_missing_class_is_named() -> None:
    counts = true_train()
    del counts[WNIDS[12]], counts[WNIDS[900]]
    found = "\n".join(findings(counts, "train"))
    assert f"lacks 2 of 1,000 classes of ILSVRC2012: {WNIDS[12]}, {WNIDS[900]}" in found


def test_classes_out_of_range_and_strangers_are_named() -> None:
    counts = true_train() | {WNIDS[3]: 700, WNIDS[4]: 1301, "n99999999": 5}
    found = "\n".join(findings(counts, "train"))
    for words in (f"700 images of {WNIDS[3]}", f"1,301 images of {WNIDS[4]}", "n99999999"):
        assert words in found


@pytest.mark.parametrize(
    "counts",
    [
        dict.fromkeys(WNIDS[:100], 1300),  # ImageNet-100
        dict.fromkeys(WNIDS, 13),  # one hundredth of each class
        dict.fromkeys(WNIDS[:499], 1281),
        {WNIDS[0]: 2000},
    ],
)
def test_a_part_is_a_note(counts: dict[str, int]) -> None:
    expected = published("train")
    assert expected is not None
    result = compare(counts, sum(counts.values()), expected, whole=False)
    assert (result.met, result.claims, result.findings) == (True, False, ())
    assert f"of 1,281,167 images in {len(counts):,} of 1,000 classes" in result.notes[0]
    assert compare(counts, sum(counts.values()), expected, whole=True).findings


def test_other_classes_are_not_compared() -> None:
    expected = published("train")
    assert expected is not None
    result = compare({"cat": 5, "dog": 9}, 14, expected, whole=False)
    assert (result.met, result.findings, result.notes) == (False, (), ())
    assert published("pictures") is None
    assert published(None) is None


def test_without_classes_the_total_alone_is_compared() -> None:
    expected = published("test")
    assert expected is not None
    assert compare({}, 100_000, expected, whole=False).findings == ()
    assert "1 are missing" in compare({}, 99_999, expected, whole=False).findings[0]
    assert "2 too many" in compare({}, 100_002, expected, whole=False).findings[0]
    assert compare({}, 10, expected, whole=False).notes


def test_a_devkit_has_exact_counts(archives: Any) -> None:
    expected = from_devkit(read_devkit(archives.devkit), "the devkit")
    assert (expected.images, len(expected.by_class)) == (51, 3)
    assert set(expected.by_class.values()) == {(17, 17)}
    counts = dict.fromkeys(expected.by_class, 17)
    assert compare(counts, 51, expected, whole=False).findings == ()
    counts[min(counts)] -= 1
    assert len(compare(counts, 50, expected, whole=False).findings) == 2


def test_a_set_of_nothing_expects_nothing() -> None:
    nothing = Expected(origin="", images=0, by_class={})
    assert not compare({}, 0, nothing, whole=False).met


def test_many_names_are_cut_short() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(1000))).endswith("18, 19 and 980 more")
