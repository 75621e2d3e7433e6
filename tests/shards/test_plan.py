"""Plans: which sample goes where, pinned, and a fingerprint over content alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UsageError
from shards.order import Stream, permutation
from shards.plan import Plan, PlanOptions, canonical_json, join_lines
from shards.sample import Class, FoundImage, Layout, Samples

CLASSES = (Class("n01440764", "tench"), Class("n01443537", "goldfish"))


def samples(places: tuple[str, ...] = ("/a", "/b"), *, size: int = 100) -> Samples:
    images = [
        FoundImage(f"{CLASSES[n % 2].id}_{n}.JPEG", n % 2, n % 2, 0, size + n) for n in range(10)
    ]
    return Samples.collect(Layout.FOLDER, map(Path, places), images)


def plan(**changes: object) -> Plan:
    options = {"split": "train", "seed": 0, "samples_per_shard": 4} | changes
    return Plan(samples=samples(), classes=CLASSES, options=PlanOptions(**options))


def test_a_fingerprint_is_pinned() -> None:
    assert plan().fingerprint == "f30a01494d90de483fa6a9659e3c6972b78ca0814b08454a53187bbb83ad5575"


def test_paths_are_no_part_of_the_fingerprint() -> None:
    moved = replace(plan(), samples=samples(("/elsewhere", "/b2")))
    assert moved.fingerprint == plan().fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        plan(seed=1),
        plan(samples_per_shard=5),
        plan(split="val"),
        replace(plan(), samples=samples(size=101)),
        replace(plan(), classes=CLASSES[::-1]),
        replace(plan(), samples=replace(samples(), labels=np.zeros(10, np.int32))),
        replace(plan(), samples=replace(samples(), keys=np.char.add(samples().keys, b"x"))),
    ],
)
def test_all_that_decides_the_bytes_is_part_of_the_fingerprint(changed: Plan) -> None:
    assert changed.fingerprint != plan().fingerprint


def test_shards_are_full_but_the_last_and_hold_every_sample_once() -> None:
    members = [plan().members(shard).tolist() for shard in range(plan().shards)]
    assert [len(each) for each in members] == [4, 4, 2]
    in_order = [number for each in members for number in each]
    assert in_order == permutation(0, Stream.PLAN, 0, 10).tolist()


def test_shards_are_named_by_split_and_number() -> None:
    assert plan().shard_name(12) == "imagenet-train-000012.tar"


@pytest.mark.parametrize("count", [0, -1])
def test_a_shard_needs_a_sample(count: int) -> None:
    with pytest.raises(UsageError, match="--samples-per-shard"):
        PlanOptions(split="train", samples_per_shard=count)


@pytest.mark.parametrize("split", ["", "../train", "a b", "a/b", "a.b"])
def test_a_split_is_a_plain_word(split: str) -> None:
    with pytest.raises(UsageError, match="plain word"):
        PlanOptions(split=split)


def test_json_is_canonical() -> None:
    assert canonical_json({"b": [1, "\u00e9"], "a": None}) == rb'{"a":null,"b":[1,"\u00e9"]}'


def test_lines_end_with_a_newline() -> None:
    assert join_lines([b"a", b"b"]) == b"a\nb\n"
    assert join_lines(np.array([b"a", b"bc"])) == b"a\nbc\n"
