"""What every command promises: help that teaches, at once, and a place in the README."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import cli

ROOT = Path(__file__).parent.parent
COMMANDS = [
    (tool, name, command)
    for tool, group in (("imagenet-prep", cli.imagenet_prep), ("resnet", cli.resnet))
    for name, command in group.commands.items()
]
IDS = [f"{tool} {name}" for tool, name, _ in COMMANDS]
HEAVY = ("torch", "webdataset", "numpy", "rich", "PIL")


@pytest.mark.parametrize(("tool", "name", "command"), COMMANDS, ids=IDS)
def test_every_command_and_every_option_has_help(
    tool: str, name: str, command: click.Command
) -> None:
    assert command.help, f"{tool} {name}"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{tool} {name} {parameter.opts}"


@pytest.mark.parametrize(("tool", "name", "command"), COMMANDS, ids=IDS)
def test_every_command_stands_in_the_readme(tool: str, name: str, command: click.Command) -> None:
    assert f"{tool} {name}" in (ROOT / "README.md").read_text(), command


def test_another_distribution_s_package_of_our_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "__init__.py").touch()
    command = [Path(sys.executable).with_name("imagenet-prep"), "verify", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the package 'shards' is found at {tmp_path}/shards")
    assert "virtual environment" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["shard", "--help"]])
@pytest.mark.parametrize("group", ["imagenet_prep", "resnet"])
def test_help_imports_nothing_heavy(group: str, arguments: list[str], tmp_path: Path) -> None:
    """Without torch and NumPy help answers in about 0.1 s; torch alone takes 1.5 s."""
    code = (
        "import sys, cli\n"
        f"sys.argv = ['tool', *{arguments!r}]\n"
        f"try: cli.{group}()\n"
        "except SystemExit as end: code = end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    known = arguments[0] == "--help" or (group == "resnet") == (arguments[0] == "train")
    assert done.returncode == (0 if known else 2), done.stderr
    assert "Usage:" in done.stdout + done.stderr
