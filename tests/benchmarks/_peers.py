"""What other libraries make of class folders: `python _peers.py WRITER TREE OUT`.

MDSWriter takes a folder of our shards as well, for sets too large to be extracted. Run by
whichever Python has the library. Images are stored as they are. OUT/imported gets the seconds
that importing the library took.
"""

from __future__ import annotations

import itertools
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PER_SHARD = 1000  # images, as ours


def listed(tree: Path) -> list[tuple[str, int]]:
    """Paths and labels of the images in class folders."""
    classes = sorted(path for path in tree.iterdir() if path.is_dir())
    return [
        (str(path), label)
        for label, folder in enumerate(classes)
        for path in sorted(folder.iterdir())
    ]


def write_webdataset(tree: Path, out: Path) -> None:
    started = time.perf_counter()
    import webdataset

    imported(out, started)
    with webdataset.ShardWriter(f"{out}/s-%06d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for path, label in listed(tree):
            data = Path(path).read_bytes()
            writer.write({"__key__": Path(path).stem, "jpg": data, "cls": label})


def write_mds(tree: Path, out: Path) -> None:
    """With a SHA-256 of each shard, which ours has too."""
    started = time.perf_counter()
    from streaming import MDSWriter

    imported(out, started)
    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=str(out / "mds"), columns=columns, hashes=["sha256"]) as writer:
        for image, label in from_shards(tree) or from_folders(tree):
            writer.write({"image": image, "label": label})


def from_folders(tree: Path) -> Iterator[tuple[bytes, int]]:
    return ((Path(path).read_bytes(), label) for path, label in listed(tree))


def from_shards(folder: Path) -> Iterator[tuple[bytes, int]] | None:
    """Images and labels, which follow each other in a shard; None where there is no shard."""
    shards = sorted(folder.glob("*.tar"))
    return itertools.chain.from_iterable(map(from_shard, shards)) if shards else None


def from_shard(path: Path) -> Iterator[tuple[bytes, int]]:
    with tarfile.open(path) as archive:
        contents = (archive.extractfile(member) for member in archive)
        parts = (content.read() for content in contents if content is not None)
        # Fields of a sample stand in the order of their names: cls, then jpg or png.
        for one, other in zip(parts, parts, strict=True):
            image, label = (other, one) if one.isdigit() else (one, other)
            yield image, int(label)


def read(image: tuple[str, int]) -> dict[str, Any]:
    path, label = image
    return {"image": Path(path).read_bytes(), "label": label}


def write_litdata(tree: Path, out: Path) -> None:
    """With a worker a core, forked: those that are spawned import the library once more."""
    started = time.perf_counter()
    import litdata

    imported(out, started)
    litdata.optimize(
        read,
        listed(tree),
        output_dir=str(out / "litdata"),
        chunk_size=PER_SHARD,
        num_workers=len(os.sched_getaffinity(0)),
        start_method="fork",
        verbose=False,
    )


def imported(out: Path, started: float) -> None:
    (out / "imported").write_text(str(time.perf_counter() - started))


if __name__ == "__main__":
    writer = {"webdataset": write_webdataset, "streaming": write_mds, "litdata": write_litdata}
    writer[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
