"""Makes the Makefile's environment, .venv, from the Python that runs this file.

- Nothing is installed twice: two notes in .venv say what it was made from, and only a
  difference to them starts pip. They compare contents, not times, so a checkout is no change.
- A torch that the Python already has is built on, never replaced: .venv sees it, pip is held to
  the versions of torch, torchvision and torch_sdaa, and after the installation each must still
  come from the file it came from before. Nothing outside .venv is ever written.
- pillow-simd takes Pillow's place where it can be built (x86-64 with AVX2, a C compiler, headers).

Standard library only, since it runs before anything is installed. The Makefile is its only caller.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
MADE_WITH = VENV / "made-with"  # line 1: the Python, for the Makefile; line 2: foundation()
INSTALLED = VENV / "installed"  # what pip was last asked for, written when all of it is done
CONSTRAINTS = VENV / "constraints.txt"

HELD = ("torch", "torchvision", "torch_sdaa")
OURS = ("prep", "shards", "training", "cli")
SDAA_SIGNS = ("opt/tecoai", "dev/tcaicard*")  # the vendor's toolkit, the cards' device files

# The first line to fail names what is missing; main() is 0 on a processor with AVX2.
SIMD_PROBE = """
#include <stdio.h>
#include <Python.h>
#include <zlib.h>
#include <jpeglib.h>
int main(void) { return __builtin_cpu_supports("avx2") ? 0 : 1; }
"""
SIMD_NEEDS = (
    "a C compiler and the headers of Python, zlib and libjpeg "
    "(Debian: apt-get install gcc libc6-dev python3-dev zlib1g-dev libjpeg-dev)"
)
# In a process of its own, because a wrong build may die of SIGILL rather than raise.
SIMD_PROOF = """
import io, PIL
from PIL import Image
assert ".post" in PIL.__version__, PIL.__version__
jpeg = io.BytesIO()
Image.linear_gradient("L").convert("RGB").save(jpeg, "JPEG", quality=95)
small = Image.open(jpeg).resize((64, 64), Image.Resampling.BICUBIC)
rows = [small.getpixel((32, y))[0] for y in range(64)]
assert all(abs(value - (4 * y + 1.5)) < 8 for y, value in enumerate(rows)), rows
print(PIL.__version__)
"""


class SetupError(Exception):
    """A foreseeable failure; its text is the one sentence to show."""


class NoSimd(SetupError):
    """pillow-simd cannot be had here, and Pillow is in place."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where one importable package comes from: its version (None: unknown to pip) and file."""

    version: str | None
    file: str


def survey(names: tuple[str, ...]) -> dict[str, Origin]:
    """What this Python would import under `names`, found without importing any of it."""
    found = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        found[name] = Origin(version=version, file=str(spec.origin))
    return found


def survey_venv() -> dict[str, Origin]:
    command = [str(VENV_PYTHON), __file__, "survey"]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {name: Origin(**origin) for name, origin in answer.items()}


def constraints(held: dict[str, Origin], numpy: Origin | None) -> str:
    """The pip constraints that keep every package of `held` at its version.

    NumPy may become newer but keeps its major version, which compiled packages depend on.
    """
    for name, origin in held.items():
        if origin.version is None:
            raise SetupError(
                f"{name} at {origin.file} has no package metadata, so pip would install another "
                f"one over it: install it as a package, or choose a different PYTHON"
            )
    lines = [f"{name}=={origin.version}\n" for name, origin in held.items()]
    if held and numpy is not None and numpy.version is not None:
        lines.append(f"numpy=={numpy.version.split('.')[0]}.*\n")
    return "".join(lines)


def refuse_changes(before: dict[str, Origin], after: dict[str, Origin]) -> None:
    """Raise where a held package would now be imported in another version or from elsewhere."""
    for name, origin in before.items():
        now = after.get(name)
        if now != origin:
            found = f"{now.version} at {now.file}" if now else "nothing"
            raise SetupError(
                f"{name} must stay {origin.version} at {origin.file}, but the new environment has "
                f"{found}: .venv was removed, and the installation it was built on is untouched"
            )


def refuse_hidden(after: dict[str, Origin]) -> None:
    """Raise where another distribution's package hides one of ours: the names are common ones."""
    for name in OURS:
        if name not in after:
            raise SetupError(f"{name} cannot be imported after its installation: {ROOT}")
        if not Path(after[name].file).resolve().is_relative_to(ROOT):
            raise SetupError(
                f"{after[name].file} of another distribution hides this project's {name!r}: "
                "uninstall that one, or choose a PYTHON without it"
            )


def refuse_cpu_on_sdaa(held: dict[str, Origin], filesystem: Path = Path("/")) -> None:
    """Raise on a machine with SDAA's toolkit or cards where this Python has no torch_sdaa."""
    signs = [str(path) for pattern in SDAA_SIGNS for path in sorted(filesystem.glob(pattern))]
    if signs and "torch_sdaa" not in held:
        raise SetupError(
            f"{signs[0]} says that this is an SDAA machine, but {sys.executable} has no torch_sdaa "
            "and would train on the CPU: activate the vendor's environment (conda activate "
            "torch27_env_py310) and say `make install PYTHON=python3`, or add ALLOW_CPU=1 to go on"
        )


def create(held: dict[str, Origin]) -> None:
    """A new .venv that sees the held packages of this Python, and the first of its two notes."""
    if VENV.exists() and not MADE_WITH.exists():
        raise SetupError(f"{VENV} was not made by this Makefile: move it out of the way")
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    MADE_WITH.write_text(f"{sys.executable}\n")  # ours from here on, but not whole
    # A venv made from a venv sees the system's packages at most, never its parent's.
    parent = Path(sys.prefix) if sys.prefix != sys.base_prefix else None
    inside = [parent is not None and parent in Path(o.file).parents for o in held.values()]
    try:
        venv.create(VENV, system_site_packages=not all(inside), symlinks=True, with_pip=True)
    except subprocess.CalledProcessError as error:
        raise SetupError(
            f"{sys.executable} cannot make environments, its venv or ensurepip is missing "
            "(Debian: apt-get install python3-venv)"
        ) from error
    if any(inside):
        folders = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        site = next(VENV.glob("lib/python*/site-packages"))
        (site / "parent-environment.pth").write_text("".join(f"{path}\n" for path in folders))
    CONSTRAINTS.write_text(constraints(held, survey(("numpy",)).get("numpy")))
    MADE_WITH.write_text(f"{sys.executable}\n{foundation(held)}\n")


def foundation(held: dict[str, Origin]) -> str:
    """What .venv depends on outside itself: where it lies, the Python, the held packages."""
    origins = {name: vars(origin) for name, origin in held.items()}
    return json.dumps([str(ROOT), sys.prefix, sys.version, origins])


def wanted(extras: str) -> str:
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return f"[{extras}] {digest}"


def ends_with(note: Path, line: str) -> bool:
    return note.exists() and note.read_text().splitlines()[-1:] == [line]


def install(extras: str, *, allow_cpu: bool) -> None:
    if Path(sys.prefix).resolve() == VENV:
        raise SetupError(f"PYTHON is {VENV} itself: name the Python to make it from")
    held = survey(HELD)
    if not allow_cpu:
        refuse_cpu_on_sdaa(held)
    fresh = not ends_with(MADE_WITH, foundation(held))
    if not fresh and ends_with(INSTALLED, wanted(extras)):
        say(f".venv is up to date (made with {sys.executable}; PYTHON= names another)")
        return
    if fresh:
        on = ", ".join(f"{name} {origin.version}" for name, origin in held.items())
        say(f"making .venv with {sys.executable}" + (f", on its {on}" if on else ""))
        create(held)
    INSTALLED.unlink(missing_ok=True)
    pip("install", "--constraint", str(CONSTRAINTS), "--editable", f".[{extras}]")
    check_installed(held)
    try:
        install_simd()
    except NoSimd as problem:
        say(f"ordinary Pillow stays, since {problem}; `make simd` tries again")
    INSTALLED.write_text(f"{wanted(extras)}\n")


def check_installed(held: dict[str, Origin]) -> None:
    after = survey_venv()
    try:
        refuse_changes(held, after)
    except SetupError:
        shutil.rmtree(VENV)
        raise
    refuse_hidden(after)
    # A torchvision from an index may be built for another kind of torch than the one held.
    if "torch" in held and "torchvision" not in held:
        command = [str(VENV_PYTHON), "-c", "import torchvision"]
        without_driver = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        if subprocess.run(command, check=False, cwd=VENV, env=without_driver).returncode != 0:
            raise SetupError(
                f"torchvision {after['torchvision'].version} does not work with torch "
                f"{held['torch'].version} of {sys.executable}: install the torchvision that "
                "belongs to that torch beside it"
            )


def simd() -> None:
    """`make simd`: as `install` tries it, but a failure is one."""
    note = INSTALLED.read_text()
    install_simd()
    INSTALLED.write_text(note)


def install_simd() -> None:
    """Put pillow-simd in Pillow's place, so that pip takes the requirement `pillow` as met.

    Both distributions own the folder PIL, so Pillow is taken out first: files that only its newer
    release has must not mix with pillow-simd's. A second distribution without a file, called
    pillow and of the same version, then keeps pip from bringing Pillow back over it.
    """
    version = simd_proof()
    if version is not None:
        say(f"pillow-simd {version} is in use")
        return
    compiler = simd_compiler()
    with tempfile.TemporaryDirectory(dir=VENV) as folder:
        wheel = build_simd(compiler, Path(folder))
        stand_in = write_stand_in(wheel.name.split("-")[1], Path(folder))
        INSTALLED.unlink(missing_ok=True)  # .venv is not whole while it has no Pillow
        pip("uninstall", "--quiet", "--yes", "pillow")
        pip("install", "--quiet", "--no-index", "--no-deps", str(wheel), str(stand_in))
    version = simd_proof()
    if version is None:
        pip("uninstall", "--quiet", "--yes", "pillow", "pillow-simd")
        pip("install", "--quiet", "pillow")
        raise NoSimd("the pillow-simd built here does not decode and resize rightly")
    say(f"pillow-simd {version} was built with AVX2 and stands in for Pillow")


def build_simd(compiler: str, folder: Path) -> Path:
    say("building pillow-simd")
    # Never pip's cache of wheels: it does not tell flags apart, nor this machine from others.
    source = ("--no-cache-dir", "--no-deps", "--no-binary", "pillow-simd", "pillow-simd")
    try:
        pip(
            *("wheel", "--quiet", "--wheel-dir", str(folder), *source),
            environment={"CC": f"{compiler} -mavx2"},
        )
    except SetupError as error:
        raise NoSimd("pillow-simd could not be fetched or built, see above") from error
    return next(folder.glob("*.whl"))


def simd_proof() -> str | None:
    """The version of the pillow-simd in .venv that just decoded and resized a JPEG, if any."""
    command = [str(VENV_PYTHON), "-c", SIMD_PROOF]
    proof = subprocess.run(command, check=False, cwd=VENV, capture_output=True, text=True)
    return proof.stdout.strip() if proof.returncode == 0 else None


def simd_compiler() -> str:
    """The C compiler to build pillow-simd with, or why it cannot be built here."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise NoSimd(f"pillow-simd needs an x86-64 processor, not {platform.machine()}")
    compiler = os.environ.get("CC", "cc")
    if shutil.which(shlex.split(compiler)[0]) is None:
        raise NoSimd(f"pillow-simd needs {SIMD_NEEDS}; there is no {compiler!r}")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.c"), Path(folder, "probe")
        source.write_text(SIMD_PROBE)
        command = [*shlex.split(compiler), "-mavx2", "-I", sysconfig.get_path("include")]
        command += [str(source), "-o", str(program), "-ljpeg", "-lz"]
        built = subprocess.run(command, check=False, capture_output=True, text=True)
        if built.returncode != 0:
            errors = [line for line in built.stderr.splitlines() if "error" in line] or ["?"]
            raise NoSimd(f"pillow-simd needs {SIMD_NEEDS}; {compiler}: {errors[0]}")
        if subprocess.run([str(program)], check=False).returncode != 0:
            raise NoSimd("this processor has no AVX2 for pillow-simd")
    return compiler


def write_stand_in(version: str, folder: Path) -> Path:
    """A wheel named pillow, of pillow-simd's version and without a file, that requires it."""
    info = f"pillow-{version}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: pillow\nVersion: {version}\n"
        "Summary: Tells pip that pillow-simd provides PIL; holds no code\n"
        f"Requires-Dist: pillow-simd=={version}\n"
    )
    tags = "Wheel-Version: 1.0\nGenerator: make simd\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
    path = folder / f"pillow-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in (("METADATA", metadata), ("WHEEL", tags), ("RECORD", record)):
            wheel.writestr(f"{info}/{name}", text)
    return path


def pip(*arguments: str, environment: dict[str, str] | None = None) -> None:
    command = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        raise SetupError(
            f"`pip {arguments[0]}` failed, its message is above (nothing outside .venv has "
            "changed; the same command tries again)"
        )


def say(message: str) -> None:
    print(f"environment: {message}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the Makefile's environment.")
    parser.add_argument("action", choices=("install", "simd", "survey"))
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, with commas")
    parser.add_argument("--allow-cpu", action="store_true", help="also on an SDAA machine")
    options = parser.parse_args()
    try:
        if options.action == "install":
            install(options.extras, allow_cpu=options.allow_cpu)
        elif options.action == "simd":
            simd()
        else:
            print(json.dumps({name: vars(o) for name, o in survey(HELD + OURS).items()}))
    except SetupError as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
