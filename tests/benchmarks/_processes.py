"""Loaders as processes of their own that take turns, and which of them there are."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _bench import Bench
from _commands import wait_for_rest, warm_contents
from _measured import Spec
from _pictures import Setup

HERE = Path(__file__).parent
PEERS = {  # by the name of its function: what a table calls it, and the module it needs
    "torchvision": ("torchvision, PIL", "torchvision"),
    "torchvision_tensors": ("torchvision, decode_image and v2", "torchvision"),
    "timm": ("timm", "timm"),
    "webdataset": ("webdataset", "webdataset"),
    "streaming": ("MosaicML streaming", "streaming"),
    "litdata": ("litdata", "litdata"),
    "dali": ("DALI", "nvidia.dali"),
    "spdl": ("SPDL", "spdl.io"),
    "grain": ("grain", "grain"),
    "tensorflow": ("tf.data", "tensorflow"),
}
_SECONDS = 900  # until a loader that hangs is given up
WITHOUT = {"ffcv": "pip cannot build it without OpenCV's and libjpeg-turbo's headers"}

Answer = dict[str, float]


def begin(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def expect(process: subprocess.Popen[str], word: str) -> None:
    """Wait until a process prints a word."""
    assert process.stdout is not None
    if process.stdout.readline().strip() != word:
        raise LookupError(process.communicate()[1].strip().splitlines()[-1])


def ours(setup: Setup, spec: Spec) -> Answer:
    return answer(setup, sys.executable, HERE / "_ours.py", "loader", spec=spec)


def peer(setup: Setup, name: str, spec: Spec) -> Answer:
    return answer(setup, setup.options.peers, HERE / "_loaders.py", name, spec=spec)


def answer(setup: Setup, *command: object, spec: Spec) -> Answer:
    """What a process of its own measured; LookupError says why there is nothing."""
    if not setup.options.quick:
        if not spec.cold:
            warm_contents(Path(spec.data))
        wait_for_rest()
    asked = dataclasses.replace(spec, asked=time.time())
    process = begin(*command, json.dumps(vars(asked)))
    try:
        out, err = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise LookupError(f"it was not done after {_SECONDS} s") from None
    lines = out.splitlines()
    if process.returncode != 0 or not lines:
        said = [line for line in err.splitlines() if line.strip()]
        raise LookupError(said[-1] if said else f"it ended with {process.returncode}")
    found: Answer = json.loads(lines[-1])
    return found


Way = Callable[[], Answer]


def take_turns(ways: dict[str, Way], rounds: int, benches: dict[str, Bench]) -> None:
    """Run every way once a round; `benches` get the figures of each answer by their names.

    A way that fails is absent from then on, with the reason.
    """
    for _ in range(rounds):
        for name, way in ways.items():
            if any(name in bench.absent for bench in benches.values()):
                continue
            try:
                found = way()
            except LookupError as error:
                for bench in benches.values():
                    bench.absent[name] = str(error)
                    bench.runs.pop(name, None)
                continue
            for figure, bench in benches.items():
                bench.add(name, found[figure] / (1e6 if figure == "memory" else 1))


def peers_here(setup: Setup, bench: Bench) -> list[str]:
    """The peers whose modules the Python of --peers has; the others are noted as absent."""
    failed = failures(setup.options.peers)
    bench.absent.update(WITHOUT)
    for label, module in PEERS.values():
        if module in failed:
            bench.absent[label] = failed[module]
    return [name for name, (_, module) in PEERS.items() if module not in failed]


@functools.cache
def failures(python: str) -> dict[str, str]:
    """Modules of peers that a Python cannot import, and why."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: print('failed', name, error, sep='|')\n"
    )
    modules = {module for _, module in PEERS.values()}
    asked = [python, "-c", code, *sorted(modules)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    lines = (line.split("|", 2) for line in done.stdout.splitlines())
    return {words[1]: words[2] for words in lines if words[0] == "failed"}
