"""Our shards in the hands of others: the webdataset library and GNU tar."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shards.dataset import Dataset
from shards.decode import decode_rgb


@pytest.mark.filterwarnings("ignore:unclosed file")  # the library leaves its shards open
@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_every_sample_with_its_label(split: str, shards: Path) -> None:
    import webdataset  # it imports torch, which not every test needs

    files = sorted(map(str, (shards / split).glob("*.tar")))
    stream = (
        webdataset.WebDataset(files, shardshuffle=False)
        .decode("pil")
        .to_tuple("__key__", "jpg", "cls")
    )
    found = {key: (np.array(image), label) for key, image, label in stream}
    with Dataset.open(shards / split) as dataset:
        assert sorted(key.encode() for key in found) == dataset.keys.tolist()
        for number, key in enumerate(sorted(found)):
            image, label = found[key]
            assert label == dataset.labels[number]
            encoded = dataset.read(number)
            ours = decode_rgb(encoded.data, encoded.info).astype(int)
            assert np.abs(image - ours).max() <= 1


def test_gnu_tar_lists_and_extracts_them(shards: Path, tmp_path: Path) -> None:
    if not shutil.which("tar"):
        pytest.skip("there is no tar command here")
    shard = shards / "val" / "imagenet-val-000000.tar"
    command = ["tar", "-C", tmp_path, "-xvf", shard]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert done.stderr == ""
    assert len(names) == 2 * 15
    with Dataset.open(shards / "val") as dataset:
        for number, key in enumerate(dataset.keys.tolist()):
            image = (tmp_path / f"{key.decode()}.jpg").read_bytes()
            assert image == dataset.read(number).data
            label = (tmp_path / f"{key.decode()}.cls").read_text()
            assert label == str(dataset.labels[number])
