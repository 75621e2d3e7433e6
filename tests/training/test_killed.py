"""A run that is killed or stopped at random moments ends where an undisturbed one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed_runs.py"
MOMENTS = 30


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_thirty_random_moments_leave_no_trace(world: int, shards: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, momentum, averages. With a checkpoint a step it is mostly saving."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(shards), str(tmp_path), str(world), str(MOMENTS)],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert not found["wrong"]
    seen = found["seen"]
    assert seen["SIGKILL"] + seen["SIGTERM"] == MOMENTS
    assert seen["finished"] == MOMENTS // 3
    assert seen["stopped"] > 0
