"""Files beside the shards for other readers: NVIDIA DALI's .idx, timm's _info.json, wids' JSON.

All follow from the index and the manifest; the shards are not read again, but for the MD5 sums
that wids wants.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from shards.durable import atomic_write_bytes
from shards.errors import ToolError
from shards.hashing import hash_file
from shards.image import Format
from shards.index import Index
from shards.manifest import MANIFEST_NAME, File, Manifest
from shards.sample import UNLABELLED
from shards.tar import BLOCK, padding

ForReader: TypeAlias = Literal["timm", "dali", "wids"]

TIMM_NAME: Final = "_info.json"
WIDS_NAME: Final = "shardindex.json"
# The version that DALI's wds2idx 2.4.0 writes.
_DALI_VERSION: Final = "v1.2"


def extra_files(
    index: Index, shards: Sequence[File], for_readers: Collection[ForReader], folder: Path
) -> Iterator[tuple[str, bytes, int]]:
    """Name, content and number of samples of each file beside the shards of a split."""
    if "dali" in for_readers:
        first = 0
        for shard in shards:
            rows = slice(first, first + shard.samples)
            yield f"{shard.name.partition('.')[0]}.idx", dali_index(index, rows), shard.samples
            first += shard.samples
    if "wids" in for_readers:
        samples = sum(shard.samples for shard in shards)
        yield WIDS_NAME, wids_index(folder, shards), samples


def dali_index(index: Index, rows: slice) -> bytes:
    """A shard's index for DALI's webdataset reader, named as its wds2idx names it.

    A line `v1.2 SAMPLES`, then one a sample with `EXTENSION OFFSET SIZE NAME` of each member.
    """
    columns = [index[name][rows].tolist() for name in ("key", "label", "offset", "size", "format")]
    lines = [f"{_DALI_VERSION} {len(columns[0])}"]
    for key, label, offset, size, kind in zip(*columns, strict=True):
        name, extension = key.decode(), Format(kind).extension
        line = f"{extension} {offset} {size} {name}.{extension}"
        if label != UNLABELLED:
            behind = offset + size + padding(size) + BLOCK
            line += f" cls {behind} {len(str(label))} {name}.cls"
        lines.append(line)
    return ("\n".join(lines) + "\n").encode("ascii")


def wids_index(folder: Path, shards: Sequence[File]) -> bytes:
    """The list of shards that wids reads (its format wids-shard-index-v1)."""
    listed = [
        {
            "url": shard.name,
            "md5sum": hash_file(folder / shard.name, "md5")[1],
            "nsamples": shard.samples,
            "filesize": shard.bytes,
        }
        for shard in shards
    ]
    body = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": listed}
    return (json.dumps(body, indent=1) + "\n").encode("ascii")


def timm_info(out: Path) -> bytes:
    """_info.json over all finished splits in `out`, for timm's `--dataset wds/`."""
    splits = {}
    for manifest in _finished(out):
        splits[manifest.split] = {
            "name": manifest.split,
            "filenames": [f"{manifest.split}/{shard.name}" for shard in manifest.shards],
            "shard_lengths": [shard.samples for shard in manifest.shards],
            "num_samples": manifest.samples,
            "alt_label": "",
        }
    return (json.dumps({"splits": splits}, indent=1) + "\n").encode("ascii")


def write_timm_info(out: Path) -> None:
    """Write OUT/_info.json, if it is not as it must be already."""
    data = timm_info(out)
    path = out / TIMM_NAME
    if not path.is_file() or path.read_bytes() != data:
        atomic_write_bytes(path, data)


def _finished(out: Path) -> Iterator[Manifest]:
    for path in sorted(out.glob(f"*/{MANIFEST_NAME}")):
        try:
            manifest = Manifest.read(path.parent)
        except ToolError:  # another split's damage is no reason not to list this one
            continue
        if path.parent.name == manifest.split:
            yield manifest
