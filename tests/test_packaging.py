"""What pip would ship, what make offers, and that a torch already there is never replaced."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("prep", "shards", "training")
WHEEL_INFO = "imagenet_resnet-0.1.0.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built in a copy of the tree that has more importable things than it may ship."""
    tree = tmp_path_factory.mktemp("tree")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name)
    for name in ("cli.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, tree)
    for decoy in ("tests", "tests/prep", "notes", "data/train"):
        (tree / decoy).mkdir(parents=True)
        (tree / decoy / "__init__.py").touch()
    (tree / "scratch.py").touch()
    out = tmp_path_factory.mktemp("wheel")
    # The build backend itself, so that no network is needed as with pip's build isolation.
    build = f"import setuptools.build_meta as backend; print(backend.build_wheel({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", build], check=False, cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(out / done.stdout.split()[-1])


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    """Every source of the three packages, at whatever depth, cli, the data files: exactly that."""
    expected = {"cli.py"}
    for name in PACKAGES:
        expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / name).rglob("*.py")}
    expected |= {"prep/data/classes.tsv", "prep/data/validation_labels.u16"}
    expected |= {"training/report/page.css", "training/report/page.js"}
    metadata = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")
    expected |= {f"{WHEEL_INFO}/{name}" for name in (*metadata, "licenses/LICENSE")}
    assert set(wheel.namelist()) == expected


def test_wheel_files_are_the_trees_own(wheel):
    for name in wheel.namelist():
        if not name.startswith(WHEEL_INFO):
            assert wheel.read(name) == (ROOT / name).read_bytes(), name


def test_wheel_metadata(wheel):
    metadata = HeaderParser().parsestr(wheel.read(f"{WHEEL_INFO}/METADATA").decode())
    assert metadata["Name"] == "imagenet-resnet"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    required = {
        re.split(r"[<>=!; ]", line, maxsplit=1)[0]
        for line in metadata.get_all("Requires-Dist")
        if "extra ==" not in line
    }
    assert {"torch", "torchvision", "webdataset", "click", "rich", "pillow"} <= required
    assert not any("sdaa" in name for name in required)  # no index has it


def test_wheel_commands(wheel):
    commands = configparser.ConfigParser()
    commands.read_string(wheel.read(f"{WHEEL_INFO}/entry_points.txt").decode())
    expected = {"imagenet-prep": "cli:imagenet_prep", "resnet": "cli:resnet"}
    assert {name: dict(commands[name]) for name in commands.sections()} == {
        "console_scripts": expected
    }


# --- make ---------------------------------------------------------------------------------------

TARGETS = (
    "help install simd demo test test-all test-sdaa proof check bench doctor extract organize "
    "shard verify train eval export report docker clean"
)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},  # not the variables and flags of the make that runs us
        capture_output=True,
        text=True,
    )


def test_make_lists_every_target_and_every_default():
    text = make().stdout
    assert re.findall(r"^make (\S+) +\S", text, re.MULTILINE) == TARGETS.split()
    defaults = dict(re.findall(r"^  ([A-Z]+) +(\S+)", text, re.MULTILINE))
    assert {"ARCHIVES", "DATA", "SHARDS", "MODEL", "CARDS", "RUN", "ARGS", "PYTHON"} <= set(
        defaults
    )
    assert defaults["SHARDS"] == "data/shards"
    assert defaults["RUN"] == "runs/resnet50"


def test_make_hands_paths_over_whole():
    plan = make("--dry-run", "eval", "RUN=/a run's", "SHARDS=/my shards", "ARGS=--json").stdout
    assert plan.splitlines()[-1] == (
        ".venv/bin/resnet eval '/a run'\\''s'/best.pt --shards '/my shards' --json"
    )


def test_make_refuses_a_python_that_is_not_there():
    done = make("install", "PYTHON=/no such/python")
    assert done.returncode != 0
    assert "there is no /no such/python, name a Python >= 3.10 with PYTHON=" in done.stderr


# --- .ci/environment.py, which make runs ----------------------------------------------------------


@pytest.fixture(scope="module")
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / ".ci" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def held(environment):
    """What the vendor's image has, in short."""
    return {
        "torch": environment.Origin(version="2.7.1+cpu-cxx11-abi", file="/env/torch/__init__.py"),
        "torch_sdaa": environment.Origin(version="3.1.0", file="/env/torch_sdaa/__init__.py"),
    }


def test_installed_torch_is_held_with_its_local_version(environment, held):
    numpy = environment.Origin(version="1.26.4", file="/env/numpy/__init__.py")
    assert environment.constraints(held, numpy) == (
        "torch==2.7.1+cpu-cxx11-abi\ntorch_sdaa==3.1.0\nnumpy==1.*\n"
    )
    assert environment.constraints({}, numpy) == ""


def test_torch_unknown_to_pip_is_refused(environment):
    held = {"torch": environment.Origin(version=None, file="/src/torch/__init__.py")}
    with pytest.raises(environment.SetupError, match=r"torch at /src/torch/.* no package metadata"):
        environment.constraints(held, None)


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ("2.8.0", "/env/torch/__init__.py"),
        ("2.7.1+cpu-cxx11-abi", "/repo/.venv/torch/__init__.py"),
    ],
)
def test_changed_torch_is_refused(environment, held, version, file):
    environment.refuse_changes(held, {**held, "torchvision": held["torch"]})
    after = {**held, "torch": environment.Origin(version=version, file=file)}
    with pytest.raises(environment.SetupError, match="torch must stay") as raised:
        environment.refuse_changes(held, after)
    assert f"{version} at {file}" in str(raised.value)


def test_sdaa_machine_without_torch_sdaa_is_refused(environment, held, tmp_path):
    environment.refuse_cpu_on_sdaa({}, tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "tcaicard0").touch()
    environment.refuse_cpu_on_sdaa(held, tmp_path)
    with pytest.raises(environment.SetupError, match=r"tcaicard0 .* has no torch_sdaa"):
        environment.refuse_cpu_on_sdaa({"torch": held["torch"]}, tmp_path)


def test_name_hidden_by_another_distribution_is_refused(environment):
    ours = {
        name: environment.Origin(version=None, file=str(ROOT / name)) for name in environment.OURS
    }
    environment.refuse_hidden(ours)
    ours["training"] = environment.Origin(version="1.0", file="/site-packages/training/__init__.py")
    with pytest.raises(environment.SetupError, match=r"/site-packages/training/.*hides"):
        environment.refuse_hidden(ours)


def test_stand_in_for_pillow_holds_only_metadata(environment, tmp_path):
    path = environment.write_stand_in("12.1.1.post0", tmp_path)
    assert path.name == "pillow-12.1.1.post0-py3-none-any.whl"
    with zipfile.ZipFile(path) as stand_in:
        assert {name.split("/")[0] for name in stand_in.namelist()} == {
            "pillow-12.1.1.post0.dist-info"
        }
        metadata = stand_in.read("pillow-12.1.1.post0.dist-info/METADATA").decode()
    assert "Name: pillow\nVersion: 12.1.1.post0\n" in metadata
    assert "Requires-Dist: pillow-simd==12.1.1.post0\n" in metadata
