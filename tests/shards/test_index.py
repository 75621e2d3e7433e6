"""The index: written, read, and not believed when it contradicts itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.columns import write_columns
from shards.errors import DamagedData
from shards.index import INDEX_FORMAT, INDEX_NAME, Index


def rewritten(path: Path, index: Index) -> Path:
    """Put `index` where the mapped one lies without touching the map."""
    other = path.with_name("other.safetensors")
    with other.open("wb") as file:
        index.write(file)
    return other.replace(path)


@pytest.fixture
def index(shards: Path) -> Index:
    return Index.read(shards / "train" / INDEX_NAME)


def test_an_index_written_again_has_the_same_bytes(index: Index, shards: Path,
                                                   tmp_path: Path) -> None:  # fmt: skip
    path = rewritten(tmp_path / INDEX_NAME, index)
    assert path.read_bytes() == (shards / "train" / INDEX_NAME).read_bytes()


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / INDEX_NAME
    for metadata in ({}, {INDEX_FORMAT: "no JSON"}, {INDEX_FORMAT: "[]"}, {INDEX_FORMAT: "{}"}):
        with path.open("wb") as file:
            write_columns(file, {"key": np.array([b"a"])}, metadata)
        with pytest.raises(DamagedData, match="is not an index of this tool"):
            Index.read(path)


def test_a_header_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / INDEX_NAME
    with path.open("wb") as file:
        write_columns(file, {"key": np.array([b"a"])}, {INDEX_FORMAT: "[" * 100_000})
    with pytest.raises(DamagedData, match=str(path)):
        Index.read(path)


def test_another_version_says_what_to_do(index: Index, tmp_path: Path) -> None:
    path = rewritten(tmp_path / INDEX_NAME, replace(index, header=index.header | {"version": 7}))
    with pytest.raises(DamagedData, match="version 7, this tool reads version 1"):
        Index.read(path)


@pytest.mark.parametrize("column", ["key", "offset", "xxh3"])
def test_a_missing_column_is_named(column: str, index: Index, tmp_path: Path) -> None:
    columns = {name: each for name, each in index.columns.items() if name != column}
    path = rewritten(tmp_path / INDEX_NAME, replace(index, columns=columns))
    with pytest.raises(DamagedData, match=f"column {column} is None"):
        Index.read(path)


def test_a_column_of_another_type_is_named(index: Index, tmp_path: Path) -> None:
    path = tmp_path / INDEX_NAME
    columns = index.columns | {"size": index["size"].astype(np.uint64)}
    with path.open("wb") as file:
        write_columns(
            file, columns, {INDEX_FORMAT: json.dumps({"format": INDEX_FORMAT, "version": 1})}
        )
    with pytest.raises(DamagedData, match="column size is uint64"):
        Index.read(path)


def test_columns_of_different_length_are_refused(index: Index, tmp_path: Path) -> None:
    shorter = index.columns | {"label": index["label"][1:]}
    path = rewritten(tmp_path / INDEX_NAME, replace(index, columns=shorter))
    with pytest.raises(DamagedData, match="different lengths"):
        Index.read(path)


@pytest.mark.parametrize("change", [lambda ranks: ranks * 0, lambda ranks: ranks + 1])
def test_ranks_that_are_no_permutation_are_refused(
    change: Callable[[np.ndarray], np.ndarray], index: Index
) -> None:
    wrong = replace(index, columns=index.columns | {"rank": change(index["rank"])})
    with pytest.raises(DamagedData, match="rank"):
        wrong.canonical_positions()


@pytest.mark.parametrize("column", ["key", "label", "size", "xxh3"])
def test_every_column_of_the_content_is_in_its_digest(column: str, index: Index) -> None:
    values = index[column].copy()
    values[3] = values[4] if column == "key" else values[3] + 1
    changed = replace(index, columns=index.columns | {column: values})
    assert changed.content_digest() != index.content_digest()


@pytest.mark.parametrize("column", ["offset", "shard", "name", "width"])
def test_the_layout_is_no_part_of_the_content(column: str, index: Index) -> None:
    values = index[column].copy()
    values[3] = values[4] if column == "name" else values[3] + 1
    changed = replace(index, columns=index.columns | {column: values})
    assert changed.content_digest() == index.content_digest()
