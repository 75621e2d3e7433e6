"""Versions are judged from metadata alone, in whatever state a Python is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from prep.doctor.software import requirements, satisfies, software, torch_build, version_of

ROOT = Path(__file__).parents[2]
LOOK = (
    "import json, sys; from prep.doctor.software import software; "
    "print(json.dumps({each.what: [each.status.value, each.found, each.remedy] "
    "for each in software()})); sys.exit('torch' in sys.modules)"
)


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., dict[str, list[str]]]:
    """What another process says of distributions that are put before the installed ones."""

    def find(files: Mapping[str, str]) -> dict[str, list[str]]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {LOOK}"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        found: dict[str, list[str]] = json.loads(done.stdout)
        return found

    return find


def distribution(name: str, version: str, *requires: str) -> dict[str, str]:
    """The file that makes a distribution known, by its path."""
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    return {f"{name}-{version}.dist-info/METADATA": "\n".join(lines) + "\n"}


def test_what_is_installed_here_is_found() -> None:
    found = {each.what: each for each in software()}
    assert list(found) == [
        "Python", "torch", "torchvision", "PIL", "simplejpeg", "jpegtran", "packages"
    ]  # fmt: skip
    assert found["Python"].found.startswith(sys.version.split()[0])
    assert found["torch"].found.startswith(version("torch"))
    assert "libjpeg-turbo" in found["PIL"].found
    assert f"numpy {version('numpy')}" in found["packages"].found


def test_the_build_of_torch_is_the_one_that_torch_itself_says() -> None:
    import torch

    expected = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    assert torch_build() == expected


@pytest.mark.parametrize(
    ("line", "build"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", "the CPU"),
        ("cuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n", "CUDA 12.6"),
        ("cuda = None\nhip: Optional[str] = '6.2.41133'\n", "ROCm 6.2.41133"),
        ("", "the CPU"),
    ],
)
def test_builds_of_torch(look: Callable[..., dict[str, list[str]]], line: str, build: str) -> None:
    text = f"__version__ = '2.7.1'\ndebug = False\n{line}"
    found = look({**distribution("torch", "2.7.1"), "torch/version.py": text})
    assert found["torch"] == ["ok", f"2.7.1, built for {build}", ""]


def test_a_torch_without_its_file_is_of_an_unknown_build(
    look: Callable[..., dict[str, list[str]]],
) -> None:
    found = look(distribution("torch", "2.7.1"))
    assert found["torch"] == ["ok", "2.7.1, built for what it does not say", ""]


def test_a_torch_that_is_too_old_is_a_problem(look: Callable[..., dict[str, list[str]]]) -> None:
    status, found, remedy = look(distribution("torch", "2.5.1+cu121"))["torch"]
    assert (status, found) == ("problem", "2.5.1+cu121; needed is >=2.6")
    assert "make clean install PYTHON=" in remedy


@pytest.mark.parametrize("requirement", ["torch (==2.7.0)", "torch==2.7.0", "torch ==2.7.0"])
def test_a_torchvision_of_another_torch_is_a_problem(
    look: Callable[..., dict[str, list[str]]], requirement: str
) -> None:
    installed = distribution("torch", "2.7.1+cpu-cxx11-abi")
    vision = distribution("torchvision", "0.22.0", "numpy", requirement, "scipy; extra == 'scipy'")
    status, found, remedy = look(installed | vision)["torchvision"]
    assert (status, found) == ("problem", "0.22.0, made for torch ==2.7.0, not 2.7.1+cpu-cxx11-abi")
    assert 'torchvision "torch==2.7.1+cpu-cxx11-abi"' in remedy


def test_the_vendor_s_torchvision_belongs_to_its_torch(
    look: Callable[..., dict[str, list[str]]],
) -> None:
    installed = distribution("torch", "2.7.1+cpu-cxx11-abi")
    vision = distribution("torchvision", "0.22.1", "torch==2.7.1")
    assert look(installed | vision)["torchvision"] == ["ok", "0.22.1, fits torch", ""]


def test_packages_that_are_too_old_are_named(look: Callable[..., dict[str, list[str]]]) -> None:
    found = look(distribution("xxhash", "2.0.2") | distribution("simplejpeg", "1.6.0"))
    assert found["packages"] == ["problem", "xxhash 2.0.2 (>=3 is needed)", "make install"]
    assert found["simplejpeg"] == ["problem", "1.6.0; needed is >=1.7", "make install"]


def test_a_python_that_has_nothing_is_told_what_to_do() -> None:
    """`-S` leaves out site-packages: only this package's own modules can be imported.

    An egg-info folder, which an editable install leaves beside them, makes Python's own line ok.
    """
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {LOOK}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    for name in ("torch", "torchvision", "PIL", "simplejpeg"):
        status, text, remedy = found[name]
        assert status == "problem", name
        assert "not" in text
        assert "install" in remedy


@pytest.mark.parametrize(
    ("installed", "specifier", "met"),
    [
        ("2.6.0", ">=2.6", True),
        ("2.10.0", ">=2.6", True),
        ("2.5.9", ">=2.6", False),
        ("2.7.1+cu126", "==2.7.1", True),
        ("2.7.1", "==2.7.1+cpu", True),
        ("2.7", "==2.7.0", True),
        ("2.7.1", "==2.7.0", False),
        ("3.0", ">=2.6,<3", False),
        ("2.9", " >=2.6 , <3, !=2.8.0", True),
        ("2.8", ">=2.6,!=2.8.0", False),
        ("2.6.0", ">2.6", False),
        ("2.6.0", "<=2.6", True),
        ("2.6.0rc1", ">=2.6", True),
        ("1.0", "", True),
        ("1.0", "~=2.0", True),  # a form that is not judged
    ],
)
def test_versions_meet_specifiers(installed: str, specifier: str, met: bool) -> None:
    assert satisfies(installed, specifier) is met


def test_requirements_of_extras_and_of_some_machines_are_left_out() -> None:
    ours = requirements("imagenet-resnet")
    assert {"torch", "torchvision", "numpy", "simplejpeg"} <= set(ours)
    assert "pytest" not in ours
    assert requirements("no-such-distribution-at-all") == {}


def test_a_distribution_that_is_not_installed_has_no_version() -> None:
    assert version_of("no-such-distribution-at-all") is None
