"""Shards without an index: batches like the loader's, equal steps, and errors instead of gaps."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trees import tar

from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError, UsageError
from shards.image import read_info
from shards.loader import Batch
from shards.render import Renderer, targets_of
from shards.stream import StreamLoader
from shards.transform import EvalTransform, TrainTransform

pytestmark = pytest.mark.usefixtures("deadline")
SMALL = TrainTransform(image_size=32)


def load(urls: Any, **options: Any) -> list[Batch]:
    """All batches of an epoch."""
    chosen = {"batch_size": 4, "steps": 3, "threads": 2, "prefetch": 2} | options
    with StreamLoader(urls, chosen.pop("transform", SMALL), **chosen) as loader:
        return list(loader.epoch(0))


def pattern(shards: Path) -> str:
    return f"{shards}/train/imagenet-train-00000{{0..3}}.tar"


@pytest.fixture
def one(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    """A shard of ten samples; sample i has label i."""
    members = {}
    for number in range(10):
        members[f"k{number}.jpg"] = jpeg(number)
        members[f"k{number}.cls"] = b"%d" % number
    path = tmp_path / "x-000.tar"
    path.write_bytes(tar(members))
    return path


def test_batches_are_the_loaders_and_hold_what_the_shards_hold(shards: Path) -> None:
    batches = load(pattern(shards), batch_size=5, steps=4, world=2, rank=1, seed=3)
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    for batch in batches:
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (5, 32, 32, 3))
        assert batch.labels.dtype == torch.int64
        assert batch.global_size == 10
        assert batch.samples.tolist() == [-1] * 5
        assert batch.positions.tolist() == list(range(batch.step * 10 + 5, batch.step * 10 + 10))
        assert set(batch.labels.tolist()) <= {0, 1, 2}


def test_pictures_are_cropped_and_decoded_as_the_loader_does_it(shards: Path) -> None:
    urls = f"{shards}/val/imagenet-val-000000.tar"
    (batch,) = load(urls, batch_size=15, steps=1, shuffle=1, seed=7)
    renderer = Renderer(SMALL)
    with Dataset.open(shards / "val") as dataset:
        stored = np.lexsort((dataset._offsets,))  # rows of one shard, as they lie
        numbers = stored.tolist()
        encoded = [dataset.read(number) for number in numbers]
        assert batch.labels.tolist() == dataset.labels[numbers].tolist()
    sizes = np.array([(each.info.width, each.info.height) for each in encoded])
    choices = renderer.choices(7, 0, np.arange(15), sizes[:, 0], sizes[:, 1])
    for found, each, choice in zip(batch.images, encoded, choices, strict=True):
        expected = torch.empty(1, 32, 32, 3, dtype=torch.uint8)
        (target,) = targets_of(expected)
        renderer.render(memoryview(each.data), each.info, target, choice)
        assert torch.equal(found, expected[0])


def test_the_same_seed_gives_the_same_and_another_rank_something_else(shards: Path) -> None:
    def digest(**options: Any) -> list[Any]:
        batches = load(pattern(shards), batch_size=8, **options)
        return [(batch.labels.tolist(), batch.images.sum().item()) for batch in batches]

    first = digest(seed=1, world=2)
    assert digest(seed=1, world=2, threads=1, prefetch=3) == first
    assert digest(seed=2, world=2) != first
    assert digest(seed=1, world=2, rank=1) != first


@pytest.mark.parametrize(("tars", "world"), [(1, 4), (3, 2), (4, 3)])
def test_all_ranks_have_the_same_steps_whatever_the_number_of_shards(
    tars: int, world: int, shards: Path
) -> None:
    urls = [f"{shards}/train/imagenet-train-00000{number}.tar" for number in range(tars)]
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(
                StreamLoader(
                    urls, SMALL, batch_size=6, steps=9, rank=rank, world=world, threads=1, seed=5
                )
            )
            for rank in range(world)
        ]
        for epoch in range(2):  # more samples than there are, by far
            steps = list(zip(*(loader.epoch(epoch) for loader in ranks), strict=True))
            assert len(steps) == len(ranks[0]) == 9
            for batches in steps:
                positions = np.concatenate([batch.positions for batch in batches])
                assert positions.tolist() == list(
                    range(batches[0].step * 6 * world, (batches[0].step + 1) * 6 * world)
                )


def test_every_sample_of_a_shard_comes_and_they_are_mixed(one: Path) -> None:
    batches = load(str(one), batch_size=10, steps=8, shuffle=10)
    counts = Counter(label for batch in batches for label in batch.labels.tolist())
    assert set(counts) == set(range(10))
    assert batches[0].labels.tolist() != list(range(10))
    stored = load(str(one), batch_size=10, steps=2, shuffle=1)
    assert [batch.labels.tolist() for batch in stored] == [list(range(10))] * 2


def test_an_epoch_goes_on_where_the_last_one_stopped(one: Path) -> None:
    with StreamLoader(str(one), SMALL, batch_size=4, steps=2, threads=1, shuffle=1) as loader:
        labels = [
            label for epoch in range(2) for each in loader.epoch(epoch) for label in each.labels
        ]
        assert [int(label) for label in labels] == [*range(10), *range(6)]
        assert [batch.step for batch in loader.epoch(2, first_step=1)] == [1]


def test_leaving_an_epoch_early_and_reading_two_at_once_is_no_trouble(one: Path) -> None:
    with (
        StreamLoader(str(one), SMALL, batch_size=2, steps=5, threads=1) as loader,
        StreamLoader(str(one), SMALL, batch_size=2, steps=5, threads=2) as other,
    ):
        for _ in loader.epoch(0):
            break
        pairs = list(zip(loader.epoch(1), other.epoch(0), strict=True))
        assert [mine.step for mine, _ in pairs] == [0, 1, 2, 3, 4]
        stats = loader.stats()
        assert stats.samples == 2 * 6
        assert stats.bytes > 0
        assert sum(stats.ways.values()) >= stats.samples


# --- labels -----------------------------------------------------------------------------------


def test_labels_are_taken_from_json(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    members = {}
    for number in range(4):
        members[f"a/{number}.JPEG"] = jpeg(number)
        members[f"a/{number}.json"] = json.dumps({"meta": {"label": number}}).encode()
        members[f"a/{number}.txt"] = b"a caption"
    path = tmp_path / "x.tar"
    path.write_bytes(tar(members))
    (batch,) = load(str(path), steps=1, shuffle=1, label_field="meta.label")
    assert batch.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("members", "options", "reason"),
    [
        ({"k.jpg": None}, {}, "it has no label (.cls), only .jpg"),
        ({"k.jpg": None, "k.json": b"{}"}, {"label_field": "label"}, "no field 'label'"),
        ({"k.jpg": None, "k.cls": b"cat"}, {}, "its label b'cat' is no integer"),
        ({"k.jpg": None, "k.cls": b"7"}, {"classes": 7}, "its label is 7"),
        ({"k.webp": b"RIFF", "k.cls": b"0"}, {}, "it has no image (.jpg, .jpeg, .png), only .webp"),
        ({"k.jpg": None, "k.png": None, "k.cls": b"0"}, {}, "it has 2 images"),
        ({"k.jpg": b"\xff\xd8nothing", "k.cls": b"0"}, {}, "JPEG markers are damaged"),
        ({"k.jpg": b"", "k.cls": b"0"}, {}, "it is empty"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named_by_url_and_key(
    members: dict[str, bytes | None],
    options: dict[str, Any],
    reason: str,
    one: Path,
    jpeg: Callable[[int], bytes],
) -> None:
    full = {name: jpeg(0) if data is None else data for name, data in members.items()}
    one.write_bytes(tar({"good.jpg": jpeg(1), "good.cls": b"0"} | full))
    with pytest.raises(DamagedData) as raised:
        load(str(one), **options)
    if "label_field" not in options:
        assert str(raised.value).startswith(f"{one}: sample k: ")
        assert reason in str(raised.value)


def test_a_picture_that_cannot_be_decoded_is_named(one: Path, picture: Any) -> None:
    whole = picture("colour.jpg")
    broken = whole[: whole.index(b"\xff\xda")] + b"\xff\xd9"
    assert read_info(broken)
    one.write_bytes(tar({"a/k.jpg": broken, "a/k.cls": b"0"}))
    with pytest.raises(DamagedData, match="cannot be decoded") as raised:
        load(str(one))
    assert str(raised.value).startswith(f"{one}: sample a/k: ")


# --- shards that are not as they must be ------------------------------------------------------


def test_a_missing_file_is_named_before_anything_is_read(one: Path) -> None:
    with pytest.raises(ToolError, match=r"x-003\.tar does not exist \(2 of 3 shards\)"):
        load([str(one), str(one.with_name("x-003.tar")), str(one.with_name("x-004.tar"))])
    with pytest.raises(ToolError, match=r"x-001\.tar does not exist \(9 of 10 shards\)"):
        load(str(one.parent / "x-{000..009}.tar"))


@pytest.mark.parametrize("urls", ["", [], "x-{000..", "${nothing}"])
def test_a_pattern_of_nothing_is_refused(urls: Any) -> None:
    with pytest.raises(ToolError):
        load(urls)


@pytest.mark.parametrize("into", ["a header", "a picture", "between members", "the end mark"])
def test_a_truncated_shard_is_named_wherever_it_was_cut(into: str, one: Path) -> None:
    with tarfile.open(one) as archive:
        members = archive.getmembers()
    size = {
        "a header": members[7].offset + 100,
        "a picture": members[8].offset_data + 50,
        "between members": members[8].offset,
        "the end mark": members[-1].offset_data + 512,
    }[into]
    os.truncate(one, size)
    with pytest.raises(DamagedData, match="truncated") as raised:
        load(str(one), batch_size=10, steps=2)
    assert str(raised.value).startswith(f"{one}: the tar ends at byte ")


def test_a_damaged_header_does_not_end_a_shard(one: Path) -> None:
    with tarfile.open(one) as archive:
        offset = archive.getmembers()[8].offset
    with one.open("r+b") as file:
        file.seek(offset + 3)
        file.write(b"\xff")
    with pytest.raises(DamagedData, match="damaged at byte"):
        load(str(one), batch_size=10, steps=2)


def test_what_follows_the_end_of_a_tar_is_not_passed_over(one: Path) -> None:
    one.write_bytes(one.read_bytes() * 2)
    with pytest.raises(DamagedData, match=str(one)):
        load(str(one), batch_size=10, steps=3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(10240), "holds no samples"),
        (b"", "truncated"),
        (b"no tar" * 1000, "is not a tar archive"),
        (tar({"readme": b"words"}), "holds no samples"),
        (tar({"../k.jpg": b"", "../k.cls": b"0"}), "outside its folder"),
    ],
)
def test_a_shard_that_is_none_is_named(content: bytes, reason: str, one: Path) -> None:
    one.write_bytes(content)
    with pytest.raises(DamagedData, match=reason) as raised:
        load(str(one))
    assert str(raised.value).startswith(str(one))


def test_a_field_that_comes_twice_is_an_error(one: Path, jpeg: Callable[[int], bytes]) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("k.jpg", "k.cls", "k.cls"):
            content = jpeg(0) if name == "k.jpg" else b"0"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    one.write_bytes(data.getvalue())
    with pytest.raises(DamagedData, match=r"k\.cls: duplicate"):
        load(str(one))


def test_after_an_error_the_next_epoch_begins_anew(one: Path) -> None:
    whole = one.read_bytes()
    with StreamLoader(str(one), SMALL, batch_size=10, steps=2, threads=1) as loader:
        os.truncate(one, 1000)
        for _ in range(2):
            with pytest.raises(DamagedData, match="truncated"):
                list(loader.epoch(0))
        one.write_bytes(whole)
        assert len(list(loader.epoch(0))) == 2


# --- commands and standard input --------------------------------------------------------------


def test_commands_are_run_and_their_patterns_expanded(one: Path) -> None:
    shutil.copy(one, one.with_name("x-001.tar"))
    subprocess.run(["gzip", one, one.with_name("x-001.tar")], check=True)
    batches = load(f"pipe:gzip -dc {one.parent}/x-{{000..001}}.tar.gz", batch_size=10, shuffle=1)
    assert [batch.labels.tolist() for batch in batches] == [list(range(10))] * 3


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("exit 3", "exit code 3"),
        ("cat {one}; exit 4", "exit code 4"),
        ("head -c 2000 {one}", "truncated"),
        ("cat {one}.gone 2>/dev/null", "exit code 1"),
    ],
)
def test_a_command_that_fails_is_named(command: str, reason: str, one: Path) -> None:
    url = f"pipe:{command.format(one=one)}"
    with pytest.raises(DamagedData, match=reason) as raised:
        load([url], batch_size=10, steps=2)
    assert str(raised.value).startswith(url)


def test_an_unknown_kind_of_address_is_refused() -> None:
    with pytest.raises(UsageError, match=r"s3://bucket/x\.tar cannot be opened"):
        load("s3://bucket/x.tar")


def running(group: int) -> list[str]:
    """Processes of a group that are more than a record of their end."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = path.read_text().rpartition(")")
            state, _, of_group = fields.split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(name)
    return found


def test_closing_ends_a_command_that_gives_nothing(one: Path) -> None:
    pid = one.with_name("pid")
    url = f"pipe:cat {one}; (echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 1000; true)"
    before = threading.active_count()
    loader = StreamLoader([url], SMALL, batch_size=9, steps=2, threads=2, shuffle=1)
    batches = loader.epoch(0)
    next(batches)
    while not pid.exists():
        pass
    loader.close()
    loader.close()
    assert threading.active_count() == before
    while running(int(pid.read_text())):
        pass
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.epoch(1))


READ_STDIN = """
import sys
from shards.stream import StreamLoader
from shards.transform import TrainTransform
with StreamLoader("-", TrainTransform(image_size=8), batch_size=4, steps=int(sys.argv[1]),
                  threads=1, shuffle=1) as loader:
    try:
        for epoch in range(2):
            for batch in loader.epoch(epoch):
                print(*batch.labels.tolist(), flush=True)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def read_stdin(path: Path, steps: int) -> subprocess.CompletedProcess[str]:
    with path.open("rb") as file, subprocess.Popen(["cat"], stdin=file, stdout=-1) as cat:
        return subprocess.run(
            [sys.executable, "-c", READ_STDIN, str(steps)],
            stdin=cat.stdout,
            capture_output=True,
            text=True,
            check=False,
        )


def test_standard_input_is_read_on_from_epoch_to_epoch(one: Path) -> None:
    done = read_stdin(one, steps=1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "0 1 2 3\n4 5 6 7\n"


def test_the_end_of_standard_input_is_an_error_that_counts(one: Path) -> None:
    done = read_stdin(one, steps=2)
    assert done.returncode == 1
    assert done.stdout == "0 1 2 3\n4 5 6 7\n"
    assert done.stderr.startswith(
        "ToolError: standard input ended at step 0 of 2 in epoch 1, 2 samples into a batch of 4"
    )


def test_two_tars_on_standard_input_are_not_taken_for_one(one: Path) -> None:
    one.write_bytes(one.read_bytes() * 2)
    done = read_stdin(one, steps=2)
    assert done.stderr.startswith("DamagedData: -: ")


def test_ctrl_c_ends_a_program_that_waits_for_standard_input(one: Path) -> None:
    code = READ_STDIN.replace("except Exception", "except KeyboardInterrupt")
    # A process started in the background may ignore Ctrl-C, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "9"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    signal.signal(signal.SIGINT, before)
    with process:
        process.stdin.write(one.read_bytes()[:-1024])  # the end does not come
        process.stdin.flush()
        for expected in (b"0 1 2 3\n", b"4 5 6 7\n"):
            assert process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
        assert process.wait() == 1


def test_standard_input_has_one_reader(one: Path) -> None:
    with pytest.raises(UsageError, match="one reader, not 2"):
        load("-", world=2)
    with pytest.raises(UsageError, match="cannot be one of several"):
        load(["-", str(one)])


# --- what is refused --------------------------------------------------------------------------


def test_evaluation_is_refused_with_the_way_out(one: Path) -> None:
    with pytest.raises(UsageError, match=r"imagenet-prep index SHARDS --out DIR"):
        load(str(one), transform=EvalTransform(image_size=32, resize=36))


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"batch_size": 0}, {"threads": 0}, {"rank": 2, "world": 2}]
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, int], one: Path) -> None:
    with pytest.raises(UsageError, match="a stream needs"):
        load(str(one), **options)
