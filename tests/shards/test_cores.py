"""Limits of cgroups, read from trees of files as Linux shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.cores import available_cores, quota


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "400000 100000"}, 1.0),
        ("0::/gone/from/here", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/../up", {"up/cpu.max": "300000 100000"}, 3.0),
        (
            "4:cpu,cpuacct:/docker/x\n0::/y",
            {
                "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            "1:cpu:/docker/x",  # whose own view of it begins at the group
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"},
            2.0,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/x\n2:memory:/", {"cpu.cfs_quota_us": "1", "cpu.cfs_period_us": "1"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("0::/", {"cpu.max": "100000 0"}, None),
        ("", {}, None),
    ],
)
def test_the_smallest_limit_on_the_way_to_the_root_counts(
    tmp_path: Path, groups: str, files: dict[str, str], limit: float | None
) -> None:
    (tmp_path / "groups").write_text(f"{groups}\n")
    assert quota(tmp_path / "groups", tree(tmp_path / "mount", files)) == limit


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert quota(tmp_path / "none", tmp_path) is None


def test_there_are_cores_and_not_more_than_the_affinity_has() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))
