"""The manifest: pinned bytes, noticed changes, and no way out of its folder."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.durable import RECORDS
from shards.errors import DamagedData, ToolError
from shards.manifest import MANIFEST_NAME, File, Manifest, Skipped, check_sizes
from shards.plan import canonical_json
from shards.sample import Class

MANIFEST = Manifest(
    split="val",
    samples=3,
    classes=(Class("n01440764", "tench"), Class("n01443537", "gr\u00fcn")),
    plan={"seed": 0, "fingerprint": "f" * 64},
    content="c" * 64,
    index=File(name="index.safetensors", bytes=5, sha256="1" * 64, samples=3),
    extras=(File(name="imagenet-val-000000.idx", bytes=9, sha256="c" * 64, samples=2),),
    skipped=(Skipped("k", "k.JPEG", "it is empty"),),
    kept=1,
    shards=(File(name="imagenet-val-000000.tar", bytes=10_240, sha256="2" * 64, samples=3),),
)


def test_the_bytes_are_pinned() -> None:
    assert (
        hashlib.sha256(MANIFEST.to_bytes()).hexdigest()
        == "cc5d01cdcdca383f99ff5ecd24109f5f11aaede29b7cfccc15184aa9dce47a55"
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(MANIFEST.to_bytes())
    assert Manifest.read(tmp_path) == MANIFEST


def test_the_sums_cover_every_other_file() -> None:
    lines = MANIFEST.sums().decode().splitlines()
    assert [line[66:] for line in lines] == [
        "imagenet-val-000000.idx",
        "imagenet-val-000000.tar",
        "index.safetensors",
        "manifest.json",
    ]
    assert lines[3][:64] == hashlib.sha256(MANIFEST.to_bytes()).hexdigest()


def forged(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest changed by hand whose own digest was made to fit again."""
    body = json.loads(MANIFEST.to_bytes())
    del body["sha256"]
    change(body)
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.tar",
        "/etc/passwd",
        "a/../../b",
        "..",
        ".",
        ".hidden",
        "",
        "a\\b",
        "a\nb",
        "a/b",
        "\u00e9",
        "a.tar\n",
    ],
)
@pytest.mark.parametrize("where", ["shards", "index"])
def test_no_name_leads_out_of_the_folder(name: str, where: str, tmp_path: Path) -> None:
    def rename(body: dict[str, Any]) -> None:
        (body["shards"][0] if where == "shards" else body["index"])["name"] = name

    (tmp_path / MANIFEST_NAME).write_bytes(forged(rename))
    with pytest.raises(DamagedData, match="could lead out of the folder"):
        Manifest.read(tmp_path)


NONSENSE = {
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "nested deeply": b"[" * 100_000,
    "a list": b"[]",
    "another format": forged(lambda body: body.update(format="x")),
    "another version": forged(lambda body: body.update(version=2)),
    "no digest": json.dumps({"format": "imagenet-resnet.manifest", "version": 1}).encode(),
    "no shards": forged(lambda body: body.pop("shards")),
    "shards a number": forged(lambda body: body.update(shards=5)),
    "a class of text": forged(lambda body: body.update(classes=["n01440764"])),
    "samples of text": forged(lambda body: body.update(samples="many")),
    "endless samples": forged(lambda body: body.update(samples=float("inf"))),
    "a plan that is a list": forged(lambda body: body.update(plan=[1])),
    "a short digest": forged(lambda body: body["index"].update(sha256="1" * 63)),
    "another index": forged(lambda body: body["index"].update(name="other.safetensors")),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_by_name(case: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(NONSENSE[case])
    with pytest.raises(DamagedData, match=str(tmp_path / MANIFEST_NAME)):
        Manifest.read(tmp_path)


def test_a_newer_version_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(NONSENSE["another version"])
    with pytest.raises(DamagedData, match="version 2, this tool reads version 1"):
        Manifest.read(tmp_path)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    data = MANIFEST.to_bytes()
    generator = random.Random(0)
    for _ in range(500):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        (tmp_path / MANIFEST_NAME).write_bytes(flipped)
        try:
            assert Manifest.read(tmp_path) == MANIFEST  # a flip in the white space between
        except DamagedData as error:
            assert str(tmp_path) in str(error)  # noqa: PT017


def test_a_folder_without_one_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="does not exist"):
        Manifest.read(tmp_path / "absent")
    with pytest.raises(ToolError, match="holds no shards"):
        Manifest.read(tmp_path)
    (tmp_path / "imagenet-val-000000.tar").touch()
    (tmp_path / RECORDS / "shards").mkdir(parents=True)
    with pytest.raises(ToolError, match=r"unfinished.*imagenet-prep shard"):
        Manifest.read(tmp_path)


def test_missing_and_short_files_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "index.safetensors").write_bytes(b"1234")
    assert check_sizes(tmp_path, MANIFEST.files()) == {
        "imagenet-val-000000.idx": f"{tmp_path}/imagenet-val-000000.idx is missing",
        "imagenet-val-000000.tar": f"{tmp_path}/imagenet-val-000000.tar is missing",
        "index.safetensors": f"{tmp_path}/index.safetensors has 4 bytes instead of 5",
    }
