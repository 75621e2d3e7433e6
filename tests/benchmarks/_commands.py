"""Commands as they are benchmarked: timed or watched, in fresh folders, from cold caches."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.durable import sync_file_system

OURS = str(Path(sys.executable).with_name("imagenet-prep"))
_POLL = 0.01  # seconds between looks at a running command
_IDLE = 0.1  # share of a core that others may take when a command is started
_PATIENCE = 20.0  # seconds to wait for that


@dataclass(frozen=True)
class Place:
    """A file system to work on; what lies there stays until the end where `keep`."""

    folder: Path
    keep: bool

    @property
    def name(self) -> str:
        """The type of the file system, as `ext4`."""
        command = ["findmnt", "-n", "-f", "-o", "FSTYPE", "-T", self.folder]
        return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()

    def fresh(self) -> Path:
        """A new folder, with nothing left to write back from before."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        sync_file_system(folder)
        return folder

    def done(self, folder: Path) -> None:
        """Take a folder back."""
        if not self.keep:
            shutil.rmtree(folder)


@contextlib.contextmanager
def places(options: argparse.Namespace) -> Iterator[tuple[Place, Place]]:
    """A tmpfs and a disk, as --memory and --disk say; nothing on the disk goes before the end."""
    with (
        tempfile.TemporaryDirectory(dir=options.memory) as memory,
        tempfile.TemporaryDirectory(dir=options.disk) as disk,
    ):
        yield Place(Path(memory), keep=False), Place(Path(disk), keep=True)


def wait_for_rest() -> None:
    """Wait until other processes rest: on a shared machine they slow two threads more than one."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        before, started = _cpu_seconds(), time.monotonic()
        time.sleep(0.3)
        if _cpu_seconds() - before < _IDLE * (time.monotonic() - started):
            return


def _cpu_seconds() -> float:
    """What all processes have used since the machine was started."""
    counts = Path("/proc/stat").read_text().split()[1:9]
    user, nice, system, _idle, _iowait, irq, soft_irq, steal = map(int, counts)
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def timed(*command: object, hurry: bool = False) -> float:
    """Seconds of a command, which has to succeed; it is started when the machine rests."""
    words = [str(word) for word in command]
    if not hurry:
        wait_for_rest()
    started = time.perf_counter()
    result = subprocess.run(
        words, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - started
    if result.returncode != 0:
        sys.exit(f"{' '.join(words)} failed: {result.stderr}")
    return seconds


def watch(
    *command: object, look: Callable[[float], bool] | None = None, **environment: str
) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command; it is killed when `look(seconds)` says so."""
    words = [str(word) for word in command]
    started = time.perf_counter()
    memory, killed = 0, False
    with subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    ) as process:
        while process.poll() is None:
            memory = max(memory, _peak_memory(process.pid))
            if look and look(time.perf_counter() - started):
                process.send_signal(signal.SIGKILL)
                killed = True
            time.sleep(_POLL)
    if process.returncode != 0 and not killed:
        sys.exit(f"{' '.join(words)} failed")
    return time.perf_counter() - started, memory


def _peak_memory(pid: int) -> int:
    """The largest resident set of a process so far; rusage would count its parent's as well."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def space(folder: Path) -> int:
    """Bytes allocated beneath a folder; files that vanish meanwhile are passed over."""
    result = subprocess.run(
        ["du", "-s", "-B1", folder],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return int(result.stdout.split()[0])


def drop_caches(tree: Path) -> None:
    """Take a tree out of the page cache: as root names and inodes too, else contents alone."""
    sync_file_system(tree)
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return
    drop_contents(tree)


def warm_contents(tree: Path) -> None:
    """Read what the files of a tree hold, so that all who are compared find it in memory.

    A virtual machine's host may have taken away even pages that the page cache still has.
    """
    for path in tree.rglob("*"):
        if path.is_file():
            path.read_bytes()


def drop_contents(tree: Path) -> None:
    """Take what the files of a tree hold out of the page cache, and nothing else."""
    sync_file_system(tree)
    for path in tree.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
