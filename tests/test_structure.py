"""The walls of the house: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"prep", "shards", "training", "cli"}
ALLOWED = {
    "shards": set(),
    "prep": {"shards"},
    "training": {"shards"},
    "prep.commands": {"shards"},
    "training.commands": {"shards", "prep"},
    "cli": {"prep", "training"},
}
ACCELERATORS = ("sdaa", "cuda", "tccl", "nccl")
MODULES = sorted(
    path
    for place in ("prep", "shards", "training", "cli.py")
    for path in ((ROOT / place).rglob("*.py") if place != "cli.py" else [ROOT / place])
)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


MAKE_BATCHES = {
    f"shards.{name}" for name in ("loader", "crew", "filling", "render", "stream", "bench")
}


def imports_of(tree: ast.AST) -> set[str]:
    """Top-level names of the packages that the code imports anywhere."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add((node.module or "").split(".")[0])
    return names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_stage_imports_only_what_stands_below_it(path: Path) -> None:
    name = module_name(path)
    place = ".".join(name.split(".")[: 2 if is_command_line(path) else 1])
    assert (imports_of(tree_of(path)) & OURS) - {name.split(".")[0]} <= ALLOWED[place]


def is_command_line(path: Path) -> bool:
    return module_name(path).startswith(("cli", "prep.commands", "training.commands"))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_torch_is_imported_in_training_and_where_batches_are_made_alone(path: Path) -> None:
    name, found = module_name(path), imports_of(tree_of(path))
    if not name.startswith("training"):
        assert "torchvision" not in found
        assert ("torch" in found) <= (name in MAKE_BATCHES)
    assert ("webdataset" in found) <= (name == "shards.urls")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_click_and_rich_are_imported_in_the_command_line_alone(path: Path) -> None:
    if not is_command_line(path) and module_name(path) != "shards.console":
        assert not imports_of(tree_of(path)) & {"click", "rich"}


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if is_command_line(path) or path.name == "console.py"],
    ids=module_name,
)
def test_the_command_line_imports_its_work_inside_functions(path: Path) -> None:
    for node in tree_of(path).body:
        if is_type_checking(node) or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if ".commands." not in module and module != "shards.console":
            assert imports_of(node) <= {*sys.stdlib_module_names, "click"}, module


def is_type_checking(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if module_name(path).startswith("training.")],
    ids=module_name,
)
def test_only_the_device_package_names_accelerators(path: Path) -> None:
    if module_name(path).startswith("training.device.") or is_command_line(path):
        return
    for node in ast.walk(tree_of(path)):
        word = {
            ast.Attribute: lambda n: n.attr,
            ast.Name: lambda n: n.id,
            ast.Constant: lambda n: n.value if isinstance(n.value, str) else "",
        }.get(type(node), lambda _: "")(node)
        # Whole words and identifiers: prose in docstrings and messages may speak of cards.
        assert word not in ACCELERATORS, f"{path}:{node.lineno} names {word}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_only_defines_when_it_is_imported(path: Path) -> None:
    for node in tree_of(path).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno} runs at import"
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try), node.lineno


def test_importing_every_module_says_and_starts_nothing(tmp_path: Path) -> None:
    names = [module_name(path).removesuffix(".__init__") for path in MODULES]
    code = (
        "import importlib, threading\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_no_package_is_called_tests() -> None:
    """One package lies there, for processes that are given its folder: a stand-in's."""
    found = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("__init__.py")}
    assert {path.parts[:2] for path in found} == {("simulator", "torch_sdaa")}
