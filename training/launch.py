"""Starting the processes of a run: `resnet train --cards 4` becomes 16 of them, joined.

torch.distributed.run does the work, with lists of arguments and no shell. What it adds to the
terminal is kept away: a process that fails hands its one sentence to the launcher, which
raises it as its own, so a failure on 16 processes is told once.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shards.errors import ToolError, UsageError
from shards.parallel import cores_each
from training.device import prepare_environment

FAILURES_VARIABLE = "IMAGENET_RESNET_FAILURES"
LAUNCHER_VARIABLE = "IMAGENET_RESNET_LAUNCHER"
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal this process gets when its parent dies
INTERRUPTED = 130  # exit code after Ctrl-C, by the shells' convention


def inside_launch() -> bool:
    """Whether a launcher (ours, torchrun, or a like one) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(
    argv: Sequence[str], *, nproc: int, nodes: int = 1, node_rank: int = 0, master: str | None
) -> int:
    """Run this program with `argv` in `nproc` processes here; the exit code once all are gone.

    With `nodes` above 1 the same is started on each machine, `node_rank` being its number and
    `master` HOST:PORT of machine 0; on one machine a free port is found. Raises the ToolError
    or UsageError that the first failing process reported, or one that names the signal that
    killed it; other failures give its exit code, Ctrl-C gives 130.
    """
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="imagenet-resnet-") as failures:
        variables = {
            FAILURES_VARIABLE: failures,
            LAUNCHER_VARIABLE: str(os.getpid()),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        if "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = str(cores_each(nproc))
        with _environment(variables), _undisturbed():
            return _run(_rendezvous(nproc, nodes, node_rank, master), argv, Path(failures))


def follow_launcher() -> None:
    """End with the launcher that started this process, even if it is killed without warning.

    A process left behind would go on writing into a run that is started again.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the call above
        raise ToolError("the launcher of this process is gone; start the command again")


def report_failure(error: ToolError) -> bool:
    """Hand a failure of this process to the launcher that will show it; False if none will."""
    folder = os.environ.get(FAILURES_VARIABLE)
    if folder is None or not Path(folder).is_dir():
        return False
    name = f"rank-{os.environ.get('RANK', '0')}"
    temporary = Path(folder) / f".{name}"
    temporary.write_text(f"{error.exit_code}\n{error}")
    temporary.replace(Path(folder) / name)
    return True


def _first_failure(folder: Path) -> ToolError | None:
    reports = sorted(folder.glob("rank-*"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not reports:
        return None
    code, _, sentence = reports[0].read_text().partition("\n")
    return UsageError(sentence) if int(code) == UsageError.exit_code else ToolError(sentence)


def _rendezvous(nproc: int, nodes: int, node_rank: int, master: str | None) -> list[str]:
    """torchrun's options."""
    options = [f"--nproc-per-node={nproc}", "--max-restarts=0"]
    if nodes == 1:
        return [*options, "--standalone"]
    host, _, port = (master or "").rpartition(":")
    if not host or not port.isdigit():
        raise UsageError("--nodes above 1 needs --master HOST:PORT, an address of machine 0")
    if not 0 <= node_rank < nodes:
        raise UsageError(f"--node-rank {node_rank}: it must be from 0 to {nodes - 1}")
    return [
        *options,
        f"--nnodes={nodes}",
        f"--node-rank={node_rank}",
        f"--master-addr={host}",
        f"--master-port={port}",
    ]


def _run(options: list[str], argv: Sequence[str], failures: Path) -> int:
    """Run this console script with `argv`, by this same Python, under torchrun's options."""
    # Imported here because torch takes seconds, and `inside_launch` is asked on every failure.
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    arguments = torchrun.parse_args([*options, str(Path(sys.argv[0]).resolve())])
    # Not given to the parser: it takes abbreviations of its own options even behind the program.
    arguments.training_script_args = list(argv)
    try:
        torchrun.run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            why = " (by the system, if memory ran out)" if name == "SIGKILL" else ""
            raise ToolError(
                f"process {rank} was ended by {name}{why}, and the others with it; start the same "
                "command again: it goes on from the last checkpoint"
            ) from None
        reported = _first_failure(failures)
        if reported is not None:
            raise reported from None
        return failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RendezvousError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ToolError(
            f"the processes could not be started ({reason}); with --nodes, check that --master "
            "is an address of machine 0 that the others reach and that its port is free"
        ) from error
    return 0


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep torch's launcher from logging, and put back the signal handlers that it replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        for number, handler in handlers.items():
            signal.signal(number, handler)
