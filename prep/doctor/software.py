"""Python and the packages that preparation and training stand on, without importing torch.

Versions come from the packages' metadata, and torch's build from the version.py that every torch
has: reading it takes a millisecond, importing torch a second and a half, and an import that
fails would hide what is there. What is needed is this package's own metadata, said nowhere twice.
"""

from __future__ import annotations

import importlib.metadata
import operator
import platform
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from shards.finding import Finding, note, ok, problem

_OURS: Final = "imagenet-resnet"
_OWN_LINES: Final = ("torch", "torchvision", "pillow", "simplejpeg")
_INSTALL: Final = "make install"

# NAME[EXTRA] (SPECIFIER); what stands behind a semicolon holds on some machines alone.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;()]*)\)?\s*")
_CLAUSE = re.compile(r"\s*(==|!=|>=|<=|>|<)\s*(\d+(?:\.\d+)*)(?:\+\S*)?\s*")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_COMPARE: Final[dict[str, Callable[[list[int], list[int]], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_BUILD = re.compile(r"^(cuda|hip)\b[^=\n]*= *'([^']+)'", re.MULTILINE)


def software() -> list[Finding]:
    """Python, torch and torchvision, the image decoders, everything else that is required."""
    needed = requirements(_OURS)
    return [
        _python(),
        _torch(needed.get("torch", "")),
        _torchvision(needed.get("torchvision", "")),
        _pillow(needed.get("pillow", "")),
        _simplejpeg(needed.get("simplejpeg", "")),
        _jpegtran(),
        _others({name: needed[name] for name in needed if name not in _OWN_LINES}),
    ]


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(distribution: str) -> dict[str, str]:
    """What an installed distribution requires everywhere: {name: specifier}, as `>=2.6`."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    matches = (_REQUIREMENT.fullmatch(line) for line in lines)
    return {match[1]: match[2].strip() for match in matches if match}


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version meets a specifier such as `>=2.6,<3`, by its release numbers alone.

    Local and pre-release parts are left out (2.7.1+cpu counts as 2.7.1); clauses of other
    forms than `OPERATOR NUMBERS` are taken as met.
    """
    clauses = (_CLAUSE.fullmatch(clause) for clause in specifier.split(","))
    return all(
        _COMPARE[clause[1]](*_same_length(_release(version), _release(clause[2])))
        for clause in clauses
        if clause
    )


def _release(version: str) -> list[int]:
    match = _RELEASE.match(version)
    return [int(part) for part in match[0].split(".")] if match else []


def _same_length(left: list[int], right: list[int]) -> tuple[list[int], list[int]]:
    length = max(len(left), len(right))
    return left + [0] * (length - len(left)), right + [0] * (length - len(right))


def torch_build() -> str | None:
    """What the installed torch was built for: CUDA 12.6, ROCm 6.2, the CPU; None if unknown."""
    try:
        path = importlib.metadata.distribution("torch").locate_file("torch/version.py")
        text = Path(str(path)).read_text()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return None
    build = _BUILD.search(text)
    if build is None:
        return "the CPU"
    return f"{'CUDA' if build[1] == 'cuda' else 'ROCm'} {build[2]}"


def _python() -> Finding:
    version = platform.python_version()
    found = f"{version} on {platform.system()} {platform.machine()}"
    try:
        needed = importlib.metadata.metadata(_OURS)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        return problem("Python", f"{found}, does not have {_OURS} installed", _INSTALL)
    if satisfies(version, needed):
        return ok("Python", found)
    return problem(
        "Python", f"{found}; needed is {needed}", "make clean install PYTHON=python3.11, or newer"
    )


def _torch(needed: str) -> Finding:
    version = version_of("torch")
    if version is None:
        return problem("torch", "not installed", _INSTALL)
    if satisfies(version, needed):
        return ok("torch", f"{version}, built for {torch_build() or 'what it does not say'}")
    return problem(
        "torch",
        f"{version}; needed is {needed}",
        "make clean install PYTHON=PATH of a Python that has no torch, or one that is new enough",
    )


def _torchvision(needed: str) -> Finding:
    version, torch = version_of("torchvision"), version_of("torch")
    if version is None:
        return problem("torchvision", "not installed", _INSTALL)
    remedy = f'pip install torchvision "torch=={torch or "2.6.0"}" picks the one that belongs to it'
    partner = requirements("torchvision").get("torch", "")
    if torch is not None and not satisfies(torch, partner):
        return problem("torchvision", f"{version}, made for torch {partner}, not {torch}", remedy)
    if not satisfies(version, needed):
        return problem("torchvision", f"{version}; needed is {needed}", remedy)
    return ok("torchvision", f"{version}, fits torch")


def _pillow(needed: str) -> Finding:
    """Tell pillow-simd by the post-release number that it carries in PIL itself."""
    try:
        import PIL
        from PIL import features

        codec = features.version_feature("libjpeg_turbo")
    except ImportError as error:
        return problem("PIL", f"cannot be imported ({error})", _INSTALL)
    simd = ".post" in PIL.__version__
    found = f"{'pillow-simd' if simd else 'Pillow'} {PIL.__version__}, " + (
        f"libjpeg-turbo {codec}" if codec else "another libjpeg than libjpeg-turbo"
    )
    if not satisfies(PIL.__version__, needed):
        return problem("PIL", f"{found}; needed is {needed}", _INSTALL)
    if simd and codec:
        return ok("PIL", found)
    return note(
        "PIL", found, "make simd builds pillow-simd (needs a C compiler, libjpeg and zlib headers)"
    )


def _simplejpeg(needed: str) -> Finding:
    """The decoder of all ordinary JPEGs; its wheel brings its own libjpeg-turbo."""
    version = version_of("simplejpeg")
    if version is None:
        return problem("simplejpeg", "not installed", _INSTALL)
    if not satisfies(version, needed):
        return problem("simplejpeg", f"{version}; needed is {needed}", _INSTALL)
    return ok("simplejpeg", f"{version}, decodes JPEGs with its own libjpeg-turbo")


def _jpegtran() -> Finding:
    found = shutil.which("jpegtran")
    if found:
        return ok("jpegtran", found)
    return note(
        "jpegtran",
        "not installed",
        "apt-get install libjpeg-turbo-progs, for lossless restart markers",
    )


def _others(needed: dict[str, str]) -> Finding:
    """Every other requirement in one line: what is there, or what is not."""
    if not needed:
        return problem("packages", f"{_OURS} is not installed, so nobody knows", _INSTALL)
    versions = {name: version_of(name) for name in needed}
    wrong = [
        f"{name} {version or 'is missing'} ({needed[name] or 'any'} is needed)"
        for name, version in versions.items()
        if version is None or not satisfies(version, needed[name])
    ]
    if wrong:
        return problem("packages", _listed(wrong), _INSTALL)
    return ok("packages", _listed(f"{name} {version}" for name, version in versions.items()))


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
