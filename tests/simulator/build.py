"""Building the stand-in for torch_sdaa: one g++ call, about 15 s, once for a torch and a source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SOURCE = HERE / "simulator.cpp"


class NoCompilerError(Exception):
    """This machine cannot build the stand-in."""


def environment(cache: Path) -> dict[str, str]:
    """Variables for a process in which `import torch_sdaa` is to find the stand-in.

    Builds it into `cache` where that has none of this torch and this source yet. Raises
    NoCompilerError where that needs a compiler and there is none.
    """
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return {
        "PYTHONPATH": path,
        "SDAA_SIMULATOR": str(_library(cache)),
        "SDAA_VISIBLE_DEVICES": "0,1,2,3",
        "TORCH_FR_BUFFER_SIZE": "0",  # torch's flight recorder takes no group that is all Python
        "CUDA_VISIBLE_DEVICES": "",  # a forgotten .cuda() fails on machines that have a GPU too
    }


def _library(cache: Path) -> Path:
    import torch  # here, as other tests' collection does without it

    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = cache / f"torch-{torch.__version__}-{digest}.so"
    if not library.exists():
        temporary = library.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            _command(temporary, torch), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        temporary.replace(library)
    return library


def _command(out: Path, torch: ModuleType) -> list[str]:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise NoCompilerError(
            "simulated SDAA needs a C++ compiler: install g++, or name one by CXX"
        )
    root = Path(torch.__file__).parent
    return [
        compiler,
        *("-std=c++20", "-O0", "-shared", "-fPIC"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{root}/include",
        f"-I{root}/include/torch/csrc/api/include",
        str(SOURCE),
        *("-o", str(out)),
        *(f"-L{root}/lib", "-ltorch_cpu", "-lc10"),
    ]
