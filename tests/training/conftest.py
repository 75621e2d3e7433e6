"""Processes that work as the ranks of a run, started once for all tests that need them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICE
from launched import PROGRAM

WORKER = Path(__file__).parent / "rank_worker.py"
LARGEST_WORLD = 3
TECO = Path(__file__).parent.parent / "simulator" / "teco"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread, as the ranks do: equal sums, and cores for all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def a_hangup_counts() -> Iterator[None]:
    """Let SIGHUP end a process, as it does where the tests were not started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session", autouse=True)
def cards_for_all(request: pytest.FixtureRequest) -> None:
    """Let this process and those it starts find the simulated cards, where tests train on them."""
    if DEVICE == "sdaa":
        found = request.getfixturevalue("simulated_sdaa")
        os.environ.update(found)
        sys.path[:0] = found["PYTHONPATH"].split(os.pathsep)


class Ranks:
    """A pool of processes; each job joins as many of them as it wants into a process group."""

    def __init__(self, size: int, extra: Mapping[str, str] | None = None) -> None:
        extra = extra or {}
        path = [extra.get("PYTHONPATH", ""), *sys.path]
        environment = {
            **os.environ,
            **extra,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "OMP_NUM_THREADS": "1",
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # as the commands set it before they load torch
        }
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for _ in range(size)
        ]

    def run(self, job: Callable[..., Any], *arguments: Any, world: int) -> list[Any]:
        """`job(*arguments)` in `world` processes: their results by rank.

        An exception there comes back as (its type's name, its message). Jobs are functions at
        the top of a test file.
        """
        order = (job.__code__.co_filename, job.__name__, arguments, world, _free_port())
        chosen = self._processes[:world]
        for rank, process in enumerate(chosen):
            assert process.stdin is not None
            pickle.dump((rank, *order), process.stdin)
            process.stdin.flush()
        return [pickle.load(process.stdout) for process in chosen if process.stdout]  # noqa: S301

    def close(self) -> None:
        pipes = [pipe for each in self._processes for pipe in (each.stdin, each.stdout) if pipe]
        for pipe in pipes:
            pipe.close()
        for process in self._processes:
            process.kill()  # torch takes seconds to leave by itself
            process.wait(timeout=120)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Three processes, of which a job takes the first one, two or three."""
    pool = Ranks(LARGEST_WORLD)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def spas(simulated_sdaa: dict[str, str]) -> Iterator[Ranks]:
    """Two processes in which torch_sdaa is the simulated one."""
    pool = Ranks(2, simulated_sdaa)
    yield pool
    pool.close()


@pytest.fixture
def with_cards(simulated_sdaa: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands that a test starts find the simulated torch_sdaa."""
    for name, value in simulated_sdaa.items():
        monkeypatch.setenv(name, value)


# --- launches -------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PROGRAM as a file; its processes note themselves in tmp_path/out as RANK.RESTART."""
    program = tmp_path / "a program"
    program.write_text(PROGRAM)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return program


@pytest.fixture
def command(stand_in: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start PROGRAM's command as a process of its own, with options of `launch`."""
    with contextlib.ExitStack() as stack:

        def call(action: str, **options: Any) -> subprocess.Popen[str]:
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            process = subprocess.Popen(
                [sys.executable, str(stand_in), str(tmp_path / "out"), action],
                env={**os.environ, "OPTIONS": json.dumps({"nproc": 2, **options})},
                stderr=subprocess.PIPE,
                text=True,
            )
            signal.signal(signal.SIGINT, before)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield call


@pytest.fixture
def teco(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for the vendor's engine, as its examples import it."""
    monkeypatch.syspath_prepend(str(TECO))
    names = ("tvm", "engine", "engine.base", "engine.tecoinfer_pytorch")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import engine.tecoinfer_pytorch as found  # type: ignore[import-not-found]

    yield found.TecoInferEngine
    for name in names:
        sys.modules.pop(name, None)
