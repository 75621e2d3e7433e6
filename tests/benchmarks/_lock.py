"""How long a process holds its interpreter lock (GIL), seen from outside without touching it.

The interpreter keeps whether the lock is held as an int of value 0 or 1 in its state,
`_PyRuntime`, whose address any Python tells. Which int it is differs from version to version, so
it is found: the watched process first computes without ever giving the lock away, then waits
without it, several times over, and only the lock's int is 1 each time it must be and 0 each time
it must not. Afterwards the watcher reads that one int of the other's memory without a pause, some
100,000 times a second, while the real work runs; ones tell for how long the lock was held. That
takes a core for the watcher, besides the one that does the work.

The work is the loader with one thread, and nobody beside it wants the lock, so the result is the
time of the work itself: nothing waits, and sys.setswitchinterval() does not come into it. The
other way, a second thread that counts as fast as it can and is slowed by what it is denied, gives
more than is held: each time the work asks for the lock back, the counter waits as well until the
kernel has woken the work's thread (some 10 us, several times an image), and with the usual switch
interval of 5 ms the work spends nearly all of its time waiting for its turn.

`py-spy record --gil`, which stops the process at each look, comes to the same within a sixth.
Reading another process's memory is allowed to its parent, except in some locked containers.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import subprocess
import sys
import tempfile
import threading
import time

_TURNS = 8
_SPAN = 1 << 20  # bytes of the interpreter's state that are searched
_PAUSE = 5e-5  # seconds between two looks
_SETTLED = 0.05  # seconds until a thread has come to where it waits
_BETWEEN = 1000  # looks between two questions whether the child has printed
_HOLDING, _SEEN = 0, 1  # turns so far, by the watched process and by the watcher


def show() -> None:
    """In the watched process: hold the lock until told otherwise, then wait without it; repeat.

    The first thread and a new one in turn: other ints tell of each of them.
    """
    state = ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime")
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(2)
        with mmap.mmap(file.fileno(), 2) as flags:
            print(f"{ctypes.addressof(state)} {file.name}", flush=True)
            for turn in range(_TURNS):
                if turn % 2:
                    thread = threading.Thread(target=_hold, args=(flags, turn))
                    thread.start()
                    thread.join()
                else:
                    _hold(flags, turn)
                print("free", flush=True)
                sys.stdin.readline()


def _hold(flags: mmap.mmap, turn: int) -> None:
    time.sleep(_SETTLED)  # until the one that started this waits for it, and wants no lock
    flags[_HOLDING] = turn + 1
    while flags[_SEEN] <= turn:  # gives no lock away
        pass


class Watcher:
    """Watches a child whose output and input are pipes, and which calls `show`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._memory = os.open(f"/proc/{process.pid}/mem", os.O_RDONLY)
        self._address = self._find(process)

    def _find(self, process: subprocess.Popen[str]) -> int:
        """The address of the int."""
        assert process.stdin is not None
        assert process.stdout is not None
        address, name = process.stdout.readline().split()
        start = int(address)
        places: set[int] | None = None
        with open(name, "r+b") as file, mmap.mmap(file.fileno(), 2) as flags:  # noqa: PTH123
            for turn in range(_TURNS):
                while flags[_HOLDING] <= turn:
                    time.sleep(_PAUSE)
                held = self._ints_of(start, 1)
                flags[_SEEN] = turn + 1
                process.stdout.readline()
                time.sleep(_SETTLED)
                found = held & self._ints_of(start, 0)
                places = found if places is None else places & found
                process.stdin.write("\n")
                process.stdin.flush()
        if places is None or len(places) != 1:
            raise LookupError(f"{len(places or ())} ints behave as the lock does")
        return start + places.pop()

    def _ints_of(self, start: int, value: int) -> set[int]:
        data = b""
        while len(data) < _SPAN:
            try:
                data += os.pread(self._memory, 4096, start + len(data))
            except OSError:  # the end of what is mapped
                break
        ints = memoryview(data[: len(data) // 4 * 4]).cast("i")
        return {4 * place for place, each in enumerate(ints) if each == value}

    def share(self, process: subprocess.Popen[str]) -> float:
        """The share of the time that the lock is held, until the child prints something.

        Each look counts for the time since the one before it: on a busy machine they come in
        bursts, and rather when the child does not run.
        """
        assert process.stdout is not None
        held, started = 0.0, time.perf_counter()
        before = started
        while not select.select([process.stdout], [], [], 0)[0]:
            for _ in range(_BETWEEN):
                is_held = os.pread(self._memory, 1, self._address) != b"\0"
                now = time.perf_counter()
                held += (now - before) * is_held
                before = now
        return held / (before - started)

    def close(self) -> None:
        os.close(self._memory)
