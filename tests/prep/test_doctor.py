"""The doctor says what is there and what to do, and imports nothing heavy to find out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from prep.doctor import Status, examine, version_of


def test_every_part_of_the_machine_is_looked_at() -> None:
    found = {finding.what: finding for finding in examine(None)}
    assert {"Python", "torch", "torchvision", "PIL", "jpegtran", "cores"} <= set(found)
    assert found["torch"].found == version("torch")
    assert found["Python"].found.startswith(sys.version.split()[0])


def test_what_is_not_right_has_a_remedy() -> None:
    for finding in examine(None):
        assert finding.found
        assert (finding.status is Status.OK) or finding.remedy


def test_the_disk_of_a_path_that_is_not_there_yet_is_known(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "not" / "yet"):
        disk = examine(path)[-1]
        assert disk.what == f"disk of {path}"
        assert "GB" in disk.found


def test_a_distribution_that_is_not_installed_has_no_version() -> None:
    assert version_of("no-such-distribution-at-all") is None


def test_looking_needs_no_torch() -> None:
    code = (
        "import sys; from prep.doctor import examine; examine(None); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_ends_with_1_where_there_is_a_problem(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run("imagenet-prep", "doctor", tmp_path, "--json")
    findings = json.loads(done.stdout)["findings"]
    problem = any(finding["status"] == "problem" for finding in findings)
    assert done.returncode == (1 if problem else 0)
    assert findings[-1]["what"] == f"disk of {tmp_path}"
