"""What this machine has and lacks for preparing and training, each finding with its remedy."""

from __future__ import annotations

import enum
import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from shards.parallel import available_cores

_DEVICE_FILES = "tcaicard*"  # what the SDAA driver puts under /dev, one a card


class Status(enum.Enum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"  # works, but slower or with less than there could be
    PROBLEM = "problem"  # something will not work


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    what: str
    status: Status
    found: str
    remedy: str = ""


def examine(path: Path | None) -> list[Finding]:
    """Look at Python, torch, decoders, processor and cards, and at the disk under `path`."""
    findings = [_python(), *_torch(), _pillow(), _jpegtran(), _processor(), *_cards()]
    return findings if path is None else [*findings, _disk(path)]


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    return Finding(
        what="Python",
        status=Status.OK,
        found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    )


def _torch() -> list[Finding]:
    return [
        Finding(what=name, status=Status.OK, found=version)
        if (version := version_of(name))
        else Finding(
            what=name,
            status=Status.PROBLEM,
            found="not installed",
            remedy="make install",
        )
        for name in ("torch", "torchvision")
    ]


def _pillow() -> Finding:
    """Tell pillow-simd by the post-release number that it carries in PIL itself."""
    import PIL
    from PIL import features

    codec = features.version_feature("libjpeg_turbo") or "no libjpeg-turbo"
    if ".post" in PIL.__version__:
        return Finding(
            what="PIL",
            status=Status.OK,
            found=f"pillow-simd {PIL.__version__}, libjpeg-turbo {codec}",
        )
    return Finding(
        what="PIL",
        status=Status.NOTE,
        found=f"Pillow {PIL.__version__}, libjpeg-turbo {codec}",
        remedy="make simd builds pillow-simd (needs a C compiler, libjpeg and zlib headers)",
    )


def _jpegtran() -> Finding:
    found = shutil.which("jpegtran")
    if found:
        return Finding(what="jpegtran", status=Status.OK, found=found)
    return Finding(
        what="jpegtran",
        status=Status.NOTE,
        found="not installed",
        remedy="apt-get install libjpeg-turbo-progs, for lossless restart markers",
    )


def _processor() -> Finding:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vector = "AVX2" if "avx2" in flags else "no AVX2"
    return Finding(what="cores", status=Status.OK, found=f"{available_cores()} usable, {vector}")


def _cards() -> list[Finding]:
    """An SDAA machine whose Python lacks torch_sdaa would train on the CPU: a problem."""
    cards = sorted(Path("/dev").glob(_DEVICE_FILES))
    if not cards:
        return []
    version = version_of("torch_sdaa")
    if version:
        return [
            Finding(
                what="SDAA", status=Status.OK, found=f"{len(cards)} cards, torch_sdaa {version}"
            )
        ]
    return [
        Finding(
            what="SDAA",
            status=Status.PROBLEM,
            found=f"{len(cards)} cards, but this Python has no torch_sdaa",
            remedy="activate the vendor's environment, then run: make clean install PYTHON=python",
        )
    ]


def _disk(path: Path) -> Finding:
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    return Finding(
        what=f"disk of {path}",
        status=Status.OK,
        found=f"{free / 1e9:.1f} GB and {status.f_favail} inodes free",
    )
