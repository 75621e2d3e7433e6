"""Folders of links: names that are always the same, tars read once, and nothing else touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.contents import Contents, Step
from shards.dataset import Dataset
from shards.durable import TEMPORARY_PREFIX
from shards.errors import DamagedData, ToolError, UsageError
from shards.foreign import Reading, foreign_keys, read_shard
from shards.index import INDEX_NAME
from shards.linked import Source, Split, claim_of, read_all
from shards.linked import whole_split as whole
from shards.linked import write_split as write
from shards.links import Link, name_links
from shards.manifest import MANIFEST_NAME, SUMS_NAME, Manifest
from shards.progress import Silent
from shards.sample import Class

CLASSES = tuple(Class(str(label), str(label)) for label in range(10))


@pytest.fixture
def tars(
    write_tar: Callable[..., Path], jpeg: Callable[[int], bytes], tmp_path: Path
) -> list[Path]:
    """Three shards of four samples."""
    return [
        write_tar(
            tmp_path / "tars" / f"x-{tar}.tar",
            {
                f"{tar}{number}.{ending}": data
                for number in range(4)
                for ending, data in (("jpg", jpeg(tar * 4 + number)), ("cls", b"%d" % number))
            },
        )
        for tar in range(3)
    ]


def read(path: Path, step: Step) -> Contents:
    return read_shard(path, Reading(), step)


def split_of(folder: Path, tars: Sequence[Path], **options: Any) -> Split:
    folder.mkdir(exist_ok=True)  # as its lock does
    links = name_links(tars)
    contents = [read(link.target, lambda _: None) for link in links]
    keys, _ = foreign_keys(contents)
    whole = {"name": "train", "folder": folder, "links": links, "contents": contents,
             "keys": keys, "classes": CLASSES, "claim": claim_of(links, {})}  # fmt: skip
    return Split(**(whole | options))


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/b.tar", "/e/a.tar"], ["a.tar", "b.tar"]),
        (["/d/x/0.tar", "/d/y/0.tar", "/d/1.tar"], ["1.tar", "x-0.tar", "y-0.tar"]),
        (["/d/a/x/0.tar", "/d/b/x/0.tar", "/d/x-0.tar"], ["a-x-0.tar", "b-x-0.tar", "d-x-0.tar"]),
        (["/d/x/0.tar", "/e/x/0.tar", "/f/x-0.tar"], ["d-x-0.tar", "e-x-0.tar", "f-x-0.tar"]),
        (["/d/a b\u00e9.tar", "/d/.h.tar", "/d/-m.tar"], ["_h.tar", "_m.tar", "a_b_.tar"]),
        (["/d/train", "/d/val.TAR"], ["train.tar", "val.TAR.tar"]),
    ],
)
def test_links_have_plain_names_that_are_all_different(paths: list[str], names: list[str]) -> None:
    links = name_links([Path(path) for path in paths])
    assert [link.name for link in links] == names
    assert name_links([Path(path) for path in reversed(paths)]) == links
    assert sorted(str(link.target) for link in links) == sorted(paths)


def test_names_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(UsageError, match=r"/d/a b.tar and /d/a_b.tar have names too alike"):
        name_links([Path("/d/a b.tar"), Path("/d/a_b.tar")])


def test_a_tar_that_is_given_twice_has_one_link(tars: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("tars")
    again = tmp_path / "link" / ".." / "tars" / "x-0.tar"
    assert name_links([tars[0], again, tmp_path / "link" / "x-0.tar"]) == [Link("x-0.tar", tars[0])]


# --- reading ----------------------------------------------------------------------------------


def test_what_was_read_is_not_read_again_unless_it_has_changed(
    tars: list[Path], tmp_path: Path
) -> None:
    calls: list[str] = []

    def sources(**asked: object) -> list[Source]:
        def noted(path: Path, step: Step) -> Contents:
            calls.append(path.name)
            return read(path, step)

        return [
            Source(folder=tmp_path / "out", path=path, asked=asked, read=noted) for path in tars
        ]

    def again(**asked: object) -> list[str]:
        calls.clear()
        found = read_all(sources(**asked), workers=2, progress=Silent())
        expected = [read(path, lambda _: None) for path in tars]
        assert [each.sha256 for each in found] == [each.sha256 for each in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.columns.keys() == other.columns.keys()
            assert all(
                np.array_equal(one.columns[name], other.columns[name]) for name in one.columns
            )
        return sorted(calls)

    assert again() == ["x-0.tar", "x-1.tar", "x-2.tar"]
    assert again() == []
    assert again(labels="other") == ["x-0.tar", "x-1.tar", "x-2.tar"]
    shutil.copyfile(tars[0], tars[1])
    assert again() == ["x-1.tar"]
    for record in (tmp_path / "out" / ".imagenet-prep" / "index").iterdir():
        record.write_bytes(record.read_bytes()[:-1])
    assert again() == ["x-0.tar", "x-1.tar", "x-2.tar"]


def test_a_tar_that_changes_while_it_is_read_is_refused(tars: list[Path], tmp_path: Path) -> None:
    def disturbed(path: Path, step: Step) -> Contents:
        contents = read(path, step)
        with path.open("ab") as file:
            file.write(b"\0")
        return contents

    source = Source(folder=tmp_path / "out", path=tars[0], asked={}, read=disturbed)
    with pytest.raises(DamagedData, match=r"x-0.tar changed while it was read"):
        read_all([source], workers=1, progress=Silent())
    assert not (tmp_path / "out").exists()


# --- writing ----------------------------------------------------------------------------------


def test_a_split_is_links_and_what_stands_beside_shards(tars: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    manifest = write(split_of(folder, tars))
    assert manifest == Manifest.read(folder)
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "x-0.tar", "x-1.tar", "x-2.tar", INDEX_NAME, SUMS_NAME, MANIFEST_NAME,
    }  # fmt: skip
    assert [(folder / path.name).readlink() for path in tars] == tars
    with Dataset.open(folder) as dataset:
        assert dataset.keys.tolist() == [b"%d%d" % (a, b) for a in range(3) for b in range(4)]
        assert dataset.labels.tolist() == [0, 1, 2, 3] * 3


def test_the_bytes_follow_from_the_tars_alone(
    tars: list[Path], sums: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    write(split_of(tmp_path / "one", tars))
    moved = [Path(shutil.copyfile(path, tmp_path / path.name)) for path in tars]
    write(split_of(tmp_path / "other", moved[::-1], claim="another"))
    assert sums(tmp_path / "one") == sums(tmp_path / "other")


def test_writing_again_replaces_links_and_removes_those_that_are_not_wanted(
    tars: list[Path], sums: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    write(split_of(folder, tars))
    moved = tmp_path / "moved.d" / "x-0.tar"
    moved.parent.mkdir()
    tars[0].rename(moved)
    (folder / f"{TEMPORARY_PREFIX}1-x").touch()
    (folder / "notes.txt").write_text("mine")
    write(split_of(folder, [moved, tars[2]]))
    assert (folder / "x-0.tar").readlink() == moved
    assert not (folder / "x-1.tar").is_symlink()
    assert not (folder / f"{TEMPORARY_PREFIX}1-x").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    write(split_of(tmp_path / "fresh", [moved, tars[2]]))
    (folder / "notes.txt").unlink()
    assert sums(folder) == sums(tmp_path / "fresh")


def test_tars_that_lie_in_the_folder_itself_need_no_links(tars: list[Path]) -> None:
    folder = tars[0].parent
    write(split_of(folder, tars))
    assert not any(path.is_symlink() for path in folder.iterdir())
    with Dataset.open(folder) as dataset:
        assert len(dataset) == 12
    write(split_of(folder, tars))  # and again


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_with_other_tars_is_left_alone(
    kind: str, tars: list[Path], sums: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if kind == "file":
        (folder / "x-1.tar").write_bytes(b"somebody's")
    else:
        (folder / "y.tar").symlink_to(tars[0])
    before = sums(folder)
    with pytest.raises(ToolError, match=r"holds [xy].*tar, which is not among the tars"):
        write(split_of(folder, tars))
    assert sums(folder) == before


@pytest.mark.parametrize("lost", [(), (MANIFEST_NAME,), (INDEX_NAME,)])
def test_our_own_shards_keep_their_index(
    lost: tuple[str, ...], shards_copy: Path, sums: Callable[[Path], dict[str, str]]
) -> None:
    folder = shards_copy / "train"
    for name in lost:
        (folder / name).unlink()
    before = sums(folder)
    with pytest.raises(ToolError, match="`imagenet-prep shard` wrote"):
        write(split_of(folder, sorted(folder.glob("*.tar"))))
    assert sums(folder) == before


def test_the_same_bytes_twice_are_refused(tars: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copyfile(tars[0], tars[0].with_name("y.tar")))
    with pytest.raises(ToolError, match=r"x-0.tar and .*y.tar have the same bytes"):
        write(split_of(tmp_path / "out", [*tars, copy]))


def test_no_sample_at_all_is_refused(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"README": b""})
    with pytest.raises(ToolError, match=r"x.tar holds no image that could be used"):
        write(split_of(tmp_path / "out", [path]))


def test_a_damaged_manifest_is_written_again(
    tars: list[Path], sums: Callable[[Path], dict[str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    write(split_of(folder, tars))
    before = sums(folder)
    for name in (MANIFEST_NAME, INDEX_NAME):
        (folder / name).write_bytes(b"{}")
    write(split_of(folder, tars))
    assert sums(folder) == before


# --- an unchanged split -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, _: (folder / "x-1.tar").unlink(),
        lambda folder, tars: (
            (folder / "x-1.tar").unlink() or (folder / "x-1.tar").symlink_to(tars[0])
        ),
        lambda folder, _: (folder / INDEX_NAME).unlink(),
        lambda folder, _: (folder / SUMS_NAME).unlink(),
        lambda folder, _: (folder / MANIFEST_NAME).write_bytes(b"{"),
        lambda _, tars: tars[1].write_bytes(tars[1].read_bytes()[:-1]),
        lambda _, tars: tars[1].write_bytes(tars[1].read_bytes()),  # another time
    ],
)
def test_what_has_changed_is_not_taken_for_whole(
    change: Callable[[Path, list[Path]], object], tars: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    split = split_of(folder, tars)
    assert whole(folder, split.links, split.claim) is None
    manifest = write(split)
    assert whole(folder, split.links, claim_of(split.links, {})) == manifest
    assert whole(folder, split.links, claim_of(split.links, {"on_bad": "skip"})) is None
    change(folder, tars)
    assert whole(folder, split.links, claim_of(split.links, {})) is None


def test_a_tar_that_has_gone_is_named_with_the_remedy(tars: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(split_of(folder, tars))
    tars[1].unlink()
    with pytest.raises(DamagedData) as caught:
        Dataset.open(folder)
    assert str(caught.value) == (
        f"{folder}/x-1.tar is missing: it is a link to {tars[1]}, which is not there; put that "
        "back, or run `imagenet-prep index` again on the tar where it lies now"
    )


def test_a_tar_that_was_cut_is_named_with_the_remedy(tars: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(split_of(folder, tars))
    size = tars[1].stat().st_size
    os.truncate(tars[1], size - 512)
    with pytest.raises(DamagedData) as caught:
        Dataset.open(folder)
    assert str(caught.value) == (
        f"{folder}/x-1.tar has {size - 512} bytes instead of {size}; run `imagenet-prep index` "
        "again on the tars where they lie now"
    )
