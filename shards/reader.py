"""The bytes of samples, from wherever they lie: one pread for each, from any thread."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

from shards.durable import identity, named
from shards.errors import DamagedData, ToolError
from shards.sample import Layout

_OTHER_DESCRIPTORS = 256  # what a process with torch and a few sockets has open besides


class Reader:
    """Reads parts of tars that stay open, or whole files of folders."""

    def __init__(self, layout: Layout, places: Sequence[Path]) -> None:
        self._layout = layout
        self._places = tuple(places)
        self._descriptors: dict[int, int] = {}
        self._identities: dict[int, tuple[int, int, int]] = {}
        if layout is Layout.TAR:
            _allow_open_files(len(self._places) + _OTHER_DESCRIPTORS)

    def read_into(self, view: memoryview, place: int, name: str, offset: int) -> None:
        """Fill `view` with the bytes of a sample; `name` matters in folders alone.

        Raises DamagedData where the file has become shorter than its index says.
        """
        if self._layout is Layout.TAR:
            fill(view, self._descriptor(place), self._places[place], offset)
            return
        path = self._places[place] / name
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != offset + len(view):
                raise DamagedData(f"{path} has changed its size since it was listed")
            fill(view, descriptor, path, offset)
        finally:
            os.close(descriptor)

    def _descriptor(self, place: int) -> int:
        descriptor = self._descriptors.get(place)
        if descriptor is not None:
            return descriptor
        # No lock: a process that was forked while another thread held it could read nothing.
        path = self._places[place]
        seen = identity(path)
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        descriptor = self._descriptors.setdefault(place, opened)
        if descriptor == opened:
            self._identities[place] = seen
        else:  # another thread was first
            os.close(opened)
        return descriptor

    def refuse_changed(self) -> None:
        """Raise DamagedData where a tar that was read from has been written to or replaced."""
        for place, before in list(self._identities.items()):
            if identity(self._places[place]) != before:
                raise DamagedData(
                    f"{self._places[place]} changed while it was read; wait until it is complete "
                    "and run the same command"
                )

    def close(self) -> None:
        """Close what is open. Reading again opens it again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fill(view: memoryview, descriptor: int, path: Path, offset: int) -> None:
    """Fill `view` with the bytes from `offset` on. Raises DamagedData where there are too few."""
    done = 0
    while done < len(view):
        with named(path):
            count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise DamagedData(
                f"{path} ends at byte {os.fstat(descriptor).st_size}, but an image should "
                f"reach to {offset + len(view)}: it was truncated or replaced"
            )
        done += count


def _allow_open_files(count: int) -> None:
    """Raise this process's soft limit of open files where ImageNet's 1,282 shards exceed it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ToolError(
            f"{count} open files are needed and the hard limit is {hard}: raise it "
            "(ulimit -Hn, or --ulimit nofile for a container) or use larger shards"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
