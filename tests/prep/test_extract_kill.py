"""Extractions that are killed at random moments and started again end with the identical tree.

`make test-all` kills 50 times; the default suite three times.
"""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trees import Tree, tar, tree

from shards.durable import RECORDS, TEMPORARY_PREFIX

Start = Callable[..., subprocess.Popen[str]]
Sign = Callable[[subprocess.Popen[str]], bool]
SECONDS = 240
JOURNAL = f"{RECORDS}/extract.jsonl"
FEW_AND_MANY = [3, pytest.param(50, marks=pytest.mark.slow)]


def content(number: int) -> bytes:
    """Bytes of the length of small pictures, others for each number."""
    return random.Random(number).randbytes(2_000 + number * 37 % 5_000)


class Corpus:
    """A training archive, a validation archive and a compressed one: 3,600 images in 36 parts."""

    def __init__(self) -> None:
        wnids = [f"n{label:08d}" for label in range(20)]
        train = {
            wnid: {f"{wnid}_{n}.JPEG": content(100 * label + n) for n in range(100)}
            for label, wnid in enumerate(wnids)
        }
        val = {f"ILSVRC2012_val_{n:08d}.JPEG": content(10_000 + n) for n in range(1, 801)}
        test = {f"ILSVRC2012_test_{n:08d}.JPEG": content(20_000 + n) for n in range(1, 801)}
        self.archives = {
            "train.tar": tar({f"{wnid}.tar": tar(images) for wnid, images in train.items()}),
            "val.tar": tar(val),
            "test.tar.gz": gzip.compress(tar(test), 1),
        }
        classes = {name: wnids[number % 20] for number, name in enumerate(val)}
        self.labels = "".join(f"{name} {wnid}\n" for name, wnid in classes.items())
        self.flat_val = val
        self.of = {
            "train.tar": {f"train/{name[:9]}/{name}": data
                          for images in train.values() for name, data in images.items()},
            "val.tar": {f"val/{classes[name]}/{name}": data for name, data in val.items()},
            "test.tar.gz": {f"test/{name}": data for name, data in test.items()},
        }  # fmt: skip
        self.tree = {name: data for part in self.of.values() for name, data in part.items()}

    def write(self, folder: Path) -> Path:
        folder.mkdir()
        for name, data in self.archives.items():
            (folder / name).write_bytes(data)
        (folder / "labels.txt").write_text(self.labels)
        return folder


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


def visible(root: Path) -> Tree:
    """What a reader of the tree sees."""
    return {name: data for name, data in tree(root).items() if "/.tmp-" not in f"/{name}"}


def count(root: Path) -> int:
    """Files and temporary files in a tree, without reading them."""
    return sum(len(names) for _, _, names in os.walk(root))


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def random_sign(chance: random.Random, out: Path, total: int) -> Sign:
    """A sign of progress that is seen at some moment of a run: none of them waits for a time."""
    there, recorded = count(out), size(out / JOURNAL)
    more = there + chance.randint(1, max(1, total - there))
    looks = chance.randint(1, 60)

    def looked(_: subprocess.Popen[str]) -> bool:
        nonlocal looks
        looks -= 1
        return looks < 0

    signs: list[Sign] = [
        lambda _: count(out) >= more,
        lambda _: count(out) > there,
        lambda _: size(out / JOURNAL) > recorded,
        lambda _: any(out.rglob(f"{TEMPORARY_PREFIX}*")),
        looked,
    ]
    return chance.choice(signs)


def killed(process: subprocess.Popen[str], sign: Sign) -> bool:
    """Kill a process when the sign is seen; False if it ended by itself before."""
    end = time.monotonic() + SECONDS
    while process.poll() is None and not sign(process):
        assert time.monotonic() < end, "it does not end"
    process.kill()
    errors = process.communicate()[1]
    assert process.returncode in {0, -9}, errors
    return process.returncode == -9


def interrupt(process: subprocess.Popen[str], out: Path) -> None:
    """Ctrl-C once something was written, so that a part of the work is recorded."""
    there = count(out)
    end = time.monotonic() + SECONDS
    while process.poll() is None and count(out) <= there + 200:
        assert time.monotonic() < end, "it does not end"
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode in {0, 130}, errors


@pytest.mark.parametrize("kills", FEW_AND_MANY)
def test_a_killed_extraction_ends_with_the_identical_tree(
    kills: int, corpus: Corpus, start: Start, tmp_path: Path
) -> None:
    archives = corpus.write(tmp_path / "archives")
    chance = random.Random(kills)
    done = finished = 0
    while done < kills or not finished:
        out = tmp_path / f"out-{finished}"
        workers = chance.choice([1, 2, 4])
        command = ("imagenet-prep", "extract", archives, "--out", out, "--labels",
                   archives / "labels.txt", "--workers", workers, "--md5")  # fmt: skip
        if chance.random() < 0.3:
            interrupt(start(*command), out)
        # Beyond the last kill the command is left alone.
        sign = random_sign(chance, out, len(corpus.tree)) if done < kills else lambda _: False
        if killed(start(*command), sign):
            done += 1
            assert visible(out).items() <= corpus.tree.items()
            continue
        assert tree(out) == corpus.tree
        assert {each.name for each in out.iterdir()} == {RECORDS, "train", "val", "test"}
        finished += 1
    assert done == kills


@pytest.mark.parametrize("kills", FEW_AND_MANY)
def test_a_killed_run_that_removes_archives_loses_no_image(
    kills: int, corpus: Corpus, start: Start, tmp_path: Path
) -> None:
    chance = random.Random(kills)
    done = finished = 0
    while done < kills or not finished:
        archives, out = tmp_path / f"archives-{finished}", tmp_path / f"out-{finished}"
        if not archives.exists():
            corpus.write(archives)
        command = ("imagenet-prep", "extract", archives, "--out", out, "--labels",
                   archives / "labels.txt", "--workers", 2, "--remove-archive")  # fmt: skip
        left = len(list(archives.glob("*.tar*")))
        signs: list[Sign] = [
            random_sign(chance, out, len(corpus.tree)),
            lambda _, folder=archives, least=left: len(list(folder.glob("*.tar*"))) < least,
            lambda _, journal=out / JOURNAL: (
                b'"removed": "' in journal.read_bytes() if journal.exists() else False
            ),
        ]
        sign = chance.choice(signs) if done < kills else lambda _: False
        if killed(start(*command), sign):
            done += 1
            there = visible(out)
            assert there.items() <= corpus.tree.items()
            for name, images in corpus.of.items():
                assert (archives / name).exists() or images.items() <= there.items()
            continue
        assert tree(out) == corpus.tree
        assert {each.name for each in archives.iterdir()} == {"labels.txt"}
        finished += 1
    assert done == kills


@pytest.mark.slow
def test_a_killed_organize_val_loses_no_image(corpus: Corpus, start: Start, tmp_path: Path) -> None:
    kills = 20
    labels = tmp_path / "labels.txt"
    labels.write_text(corpus.labels)
    expected = {name.removeprefix("val/"): data for name, data in corpus.of["val.tar"].items()}
    chance = random.Random(kills)
    done = finished = 0
    while done < kills or not finished:
        val = tmp_path / f"val-{finished}"
        if not val.exists():
            val.mkdir()
            for name, data in corpus.flat_val.items():
                (val / name).write_bytes(data)
        flat = len(list(val.glob("*.JPEG")))
        left = chance.randrange(flat) if flat and done < kills else -1

        def moved(_: subprocess.Popen[str], folder: Path = val, least: int = left) -> bool:
            return len(list(folder.glob("*.JPEG"))) <= least

        if killed(start("imagenet-prep", "organize-val", val, "--labels", labels), moved):
            done += 1
            found = {name.rpartition("/")[2]: data for name, data in tree(val).items()}
            assert found == corpus.flat_val
            assert count(val) == len(corpus.flat_val)
            continue
        assert tree(val) == expected
        finished += 1
    assert done == kills
