"""What shards/README.md tells people to write does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "shards" / "README.md"


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    """The trainer of the README as a file, with smaller pictures."""
    section = README.read_text().split("## In a trainer of your own", 1)[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    path = tmp_path / "train.py"
    small = code[1].replace("image_size=224", "image_size=64").replace("resize=256", "resize=72")
    path.write_text(small)
    return path


@pytest.mark.slow
def test_the_trainer_trains_and_goes_on_where_it_was(trainer: Path, shards: Path) -> None:
    said = []
    for epochs in (1, 2):
        done = subprocess.run(
            [sys.executable, "-W", "error", trainer, shards, str(epochs)],
            cwd=trainer.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        said.append(re.sub(r"\d+\.\d+", "N", done.stdout))
    assert said == ["epoch 0: loss N, top-1 N%\n", "epoch 1: loss N, top-1 N%\n"]
