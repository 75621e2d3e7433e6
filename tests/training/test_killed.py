"""A run that is killed or stopped at random moments ends where an undisturbed one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed_runs.py"
KILLS = 30  # half of them SIGKILL to all processes, half SIGTERM to one


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_thirty_random_moments_leave_no_trace(world: int, shards: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, momentum, averages. Each signal that counts ended a living run."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(shards), str(tmp_path), str(world), str(KILLS)],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert not found["wrong"]
    seen = found["seen"]
    assert seen["SIGKILL"] == seen["SIGTERM"] == KILLS // 2
    assert seen["SIGKILL while saving"] > 0
    assert seen["SIGTERM while saving"] > 0
