"""Files in the folders of an extracted tree: written whole or not at all, found again, compared."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import Final

import xxhash

from prep.extraction.journal import Filled
from prep.extraction.parts import Placed
from shards.durable import TEMPORARY_PREFIX
from shards.errors import ToolError

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Folders that a thread holds open: validation images come in no order of class, and 64 threads
# must stay below the usual limit of 1,024 open files.
_MOST_OPEN: Final = 4


class Folders:
    """Folders beneath a root, open while their files are written; a context manager.

    `owner` tells the temporary files of one archive from those of another.
    """

    def __init__(self, root: Path, owner: str) -> None:
        self._root = root
        self._owner = owner
        self._open: dict[str, int] = {}
        self._above: dict[str, int] = {}  # the same for folders of folders, which are few
        self._tally: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptors in (self._open, self._above):
            while descriptors:
                os.close(descriptors.popitem()[1])

    def _descriptor(self, folder: str) -> int:
        descriptor = self._open.get(folder)
        if descriptor is None:
            if len(self._open) == _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._open[folder] = self._enter(folder)
        return descriptor

    def _enter(self, folder: str) -> int:
        """Open a folder, which is made when missing.

        The split's may be a link, for those who keep it on another disk. Below it no link is
        followed: what seems to lie in this tree could be anything of the user's.
        """
        above, _, name = folder.rpartition("/")
        if not above:
            path = self._root / folder
            path.mkdir(parents=True, exist_ok=True)
            return os.open(path, _OPEN_FOLDER)
        if above not in self._above:
            self._above[above] = self._enter(above)
        try:
            return _open_below(self._above[above], name)
        except OSError as error:
            path = self._root / folder
            if path.is_symlink():
                raise ToolError(
                    f"{path} is a symbolic link, and images are not written through it; put the "
                    "folder itself there, or remove the link, and run the same command"
                ) from None
            error.filename = str(path)
            raise

    def _name(self, error: OSError, placed: Placed) -> None:
        """Give an error, which knows a name within its folder at most, the whole path."""
        error.filename = str(self._root / placed.folder / placed.name)

    def count(self, placed: Placed) -> None:
        """Count a file as whole."""
        tally = self._tally[placed.folder]
        tally[0] += 1
        tally[1] += placed.size
        tally[2] += xxhash.xxh3_64_intdigest(placed.name.encode())

    def filled(self) -> dict[str, Filled]:
        """What was counted, by folder."""
        return {
            folder: Filled(files=files, bytes=size, names=names % (1 << 64))
            for folder, (files, size, names) in self._tally.items()
        }

    def holds(self, placed: Placed) -> bool:
        """Whether a file is there with its size."""
        folder = self._descriptor(placed.folder)
        try:
            return _is_whole(placed, placed.name, folder)
        except OSError as error:
            self._name(error, placed)
            raise

    def write(self, placed: Placed, data: memoryview) -> None:
        """Write a file whole or not at all, replacing what is there."""
        folder = self._descriptor(placed.folder)
        try:
            _write(folder, placed.name, self._owner, data)
        except OSError as error:
            self._name(error, placed)
            raise

    def equals(self, placed: Placed, data: memoryview) -> bool:
        """Whether the disk holds exactly these bytes under a file's name."""
        found = self._read(placed)
        return found is not None and found == data

    def _read(self, placed: Placed) -> bytes | None:
        """What is on the disk under a file's name, past the cache where the kernel allows it.

        None where there is no regular file of its size.
        """
        if not self.holds(placed):
            return None
        try:
            return _read(self._descriptor(placed.folder), placed.name, placed.size + 1)
        except OSError as error:
            self._name(error, placed)
            raise


def _open_below(above: int, name: str) -> int:
    try:
        return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=above)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another thread's
            os.mkdir(name, dir_fd=above)
        return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=above)


def _read(folder: int, name: str, size: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def _write(folder: int, name: str, owner: str, data: memoryview) -> None:
    """Write under a temporary name that belongs to this one, so that a leftover is replaced."""
    temporary = f"{TEMPORARY_PREFIX}{xxhash.xxh3_64_hexdigest(f'{owner}/{name}'.encode())}"
    descriptor = os.open(temporary, _CREATE, 0o644, dir_fd=folder)
    try:
        try:
            done = os.write(descriptor, data)
            while done < len(data):
                done += os.write(descriptor, data[done:])
            # The kernel begins to write it to the disk, which the bulk sync then need not wait for.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise


def is_there(root: Path, placed: Placed) -> bool:
    """Whether a file is there with its size; no folder is made."""
    return _is_whole(placed, root / placed.folder / placed.name, None)


def _is_whole(placed: Placed, path: str | Path, folder: int | None) -> bool:
    try:
        status = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == placed.size


def found_in(folder: Path) -> Filled:
    """The files in a folder by number and names, hidden ones left out; none where it is absent."""
    names = 0
    count = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                names += xxhash.xxh3_64_intdigest(entry.name.encode())
                count += 1
    return Filled(files=count, names=names % (1 << 64))
