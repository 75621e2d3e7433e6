"""The index of a split: every sample's place and what is known of it, memory-mapped.

With it a sample is read by one pread, an epoch is a permutation, and a crop can be chosen
before a byte is decoded. Rows stand in the order of the shards. FORMAT.md lists the columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from shards.columns import Column, read_columns, write_columns
from shards.errors import DamagedData
from shards.plan import Plan, canonical_json, join_lines
from shards.sample import Class

INDEX_NAME = "index.safetensors"
INDEX_FORMAT = "imagenet-resnet.index"
INDEX_VERSION = 1
SHARDS_LAYOUT = "shards"  # the header's `layout` where the files are shards of our own
FOLDERS_LAYOUT = "folders"  # where they are class folders, and each sample a file in one

COLUMNS = {
    "key": "S",
    "name": "S",  # UTF-8
    "label": "<i4",
    "rank": "<u4",  # canonical number: position by ascending key
    "shard": "<u4",  # position in the header's list of files
    "offset": "<u8",
    "size": "<u4",
    "width": "<u4",
    "height": "<u4",
    "components": "<u1",
    "format": "<u1",
    "xxh3": "<u8",
}

# What an image and its place decide, as those note it who write or read the image.
PLACE_COLUMNS = {
    "number": np.uint32,  # of the sample among all of its plan, tar or folder
    "offset": np.uint64,
    "size": np.uint32,
    "xxh3": np.uint64,
    "width": np.uint32,
    "height": np.uint32,
    "components": np.uint8,
    "format": np.uint8,
}


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index in memory or mapped. Every column has the length of the split."""

    header: dict[str, Any]  # format, version, split, layout, files, classes, plan
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.columns["key"])

    def __getitem__(self, column: str) -> Column:
        return self.columns[column]

    def write(self, file: BinaryIO) -> None:
        """Write the index; equal content gives equal bytes."""
        columns = {
            name: _narrow(column) if COLUMNS[name] == "S" else column.astype(COLUMNS[name])
            for name, column in self.columns.items()
        }
        write_columns(file, columns, {INDEX_FORMAT: canonical_json(self.header).decode()})

    @classmethod
    def read(cls, path: Path) -> Index:
        """Map an index. Raises DamagedData where it is not one, or contradicts itself."""
        columns, metadata = read_columns(path)
        header = _read_header(metadata.get(INDEX_FORMAT, ""), path)
        for name, dtype in COLUMNS.items():
            found = columns[name].dtype if name in columns else None
            if found is None or (found.kind != "S" if dtype == "S" else found != np.dtype(dtype)):
                raise DamagedData(f"{path} is no index: column {name} is {found}, not {dtype}")
        index = cls(header=header, columns={name: columns[name] for name in COLUMNS})
        if {len(column) for column in index.columns.values()} != {len(index)}:
            raise DamagedData(f"{path} is damaged: its columns have different lengths")
        return index

    def content_digest(self) -> str:
        """SHA-256 (hex) over what the split holds, wherever it lies: the identity of the data.

        In canonical order: keys each with a newline, then labels `<i4`, sizes `<u8` and xxh3
        `<u8`. Shards of another size, archives and folders of the same images agree in it.
        """
        order = self.canonical_positions()
        digest = hashlib.sha256(join_lines(self["key"][order]))
        for name, dtype in (("label", "<i4"), ("size", "<u8"), ("xxh3", "<u8")):
            digest.update(self[name][order].astype(dtype).tobytes())
        return digest.hexdigest()

    def canonical_positions(self) -> npt.NDArray[np.int64]:
        """For each canonical number the row that holds it. int64, shape (len(self),).

        Raises DamagedData, with the reason alone, where the ranks are no permutation.
        """
        positions = np.full(len(self), -1, np.int64)
        ranks = self["rank"]
        if len(ranks) and int(ranks.max()) >= len(self):
            raise DamagedData("its ranks are out of range")
        positions[ranks] = np.arange(len(self))
        if len(ranks) and int(positions.min()) < 0:
            raise DamagedData("its ranks are no permutation")
        return positions


def build_index(
    plan: Plan,
    parts: Sequence[Mapping[str, Column]],
    *,
    skipped: Sequence[Mapping[str, str]],
    kept: int | None,
) -> Index:
    """The index of a plan whose shards' own columns are `parts`, shard by shard."""
    samples = plan.samples
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    numbers = columns.pop("number").astype(np.int64)
    counts = [len(part["number"]) for part in parts]
    columns |= {
        "key": samples.keys[numbers],
        "name": samples.names[numbers],
        "label": samples.labels[numbers],
        # Of a plan whose samples are all there, the canonical number is the number in the plan.
        "rank": np.searchsorted(np.sort(numbers), numbers).astype(np.uint32),
        "shard": np.repeat(np.arange(len(parts), dtype=np.uint32), counts),
    }
    header = make_header(
        split=plan.options.split,
        layout=SHARDS_LAYOUT,
        files=[plan.shard_name(number) for number in range(plan.shards)],
        classes=plan.classes,
        plan={**plan.describe(), "fingerprint": plan.fingerprint},
        skipped=skipped,
        kept=kept,
    )
    return Index(header=header, columns=columns)


def make_header(
    *,
    split: str,
    layout: str,
    files: Sequence[str],
    classes: Sequence[Class],
    plan: Mapping[str, object],
    skipped: Sequence[Mapping[str, str]],
    kept: int | None,
) -> dict[str, Any]:
    """The header of an index: what the manifest says besides digests, in the manifest's words."""
    return {
        "format": INDEX_FORMAT,
        "version": INDEX_VERSION,
        "split": split,
        "layout": layout,
        "files": list(files),
        "classes": [each._asdict() for each in classes],
        "plan": dict(plan),
        "skipped": [dict(each) for each in skipped],
        "kept": kept,
    }


def _narrow(texts: Column) -> Column:
    """Texts in a column no wider than the longest, whatever larger set they were taken from."""
    return texts.astype(f"S{max(1, int(np.char.str_len(texts).max(initial=1)))}")


def _read_header(text: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != INDEX_FORMAT:
        raise DamagedData(f"{path} is not an index of this tool")
    if header.get("version") != INDEX_VERSION:
        raise DamagedData(
            f"{path} is an index of version {header.get('version')}, this tool reads "
            f"version {INDEX_VERSION}: write the shards again with this tool or update it"
        )
    return header
