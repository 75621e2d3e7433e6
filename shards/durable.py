"""Files that are whole or absent: written under a temporary name, synced, renamed.

A killed process leaves at most a file whose name starts with `TEMPORARY_PREFIX`, which no
reader takes for data and the next run of the same stage removes. What a stage has to
remember to go on after a kill lives in the hidden folder `RECORDS` beside its output.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from shards.errors import ToolError, UsageError

TEMPORARY_PREFIX = ".tmp-"
RECORDS = ".imagenet-prep"


@contextlib.contextmanager
def named(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Give an OSError raised by a descriptor (which knows no name) the path it was about.

    One that is about the name `instead_of`, which no user knows, gets it too.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(instead_of):
            error.filename = str(path)
        raise


def check_writable(path: Path, *, besides: Iterable[Path] = ()) -> None:
    """Refuse a place for a file before work is spent on it. Raises UsageError.

    `besides` is what the file must not replace: others that are read or written at the same time,
    and folders of which no file may be lost. A file is made in the folder and removed again: who
    may write where is known by trying.
    """
    for kept in besides:
        if _would_replace(path, kept):
            raise UsageError(
                f"{path} would replace what this command reads or writes as well ({kept}); give "
                "another file"
            )
    if path.exists() and not path.is_file():  # a rename would put a file where a device was
        raise UsageError(
            f"{path} cannot be written: it is a folder or a device; give a file in a folder that "
            "can be written to"
        )
    folder = next(each for each in path.absolute().parents if each.exists())
    trial = temporary_name(folder / path.name)
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): give a file in a folder that can be "
            "written to"
        ) from error


def _would_replace(path: Path, kept: Path) -> bool:
    """Whether `path` is `kept` by this name or another, or a file that is in that folder."""
    if not path.exists():
        return not kept.exists() and path.resolve() == kept.resolve()
    if not kept.exists():
        return False
    inside = kept.is_dir() and kept.resolve() in path.resolve().parents
    return inside or path.samefile(kept)


def temporary_name(path: Path) -> Path:
    """The name under which `path` is written before it is whole, unique to this process."""
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")


@contextlib.contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Write `path` as a whole or not at all; durable when the block ends without an error.

    The folder is made when missing. An existing file is replaced in one step. Without `sync` the
    caller makes it durable, many files at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with named(path, instead_of=temporary):
            with temporary.open("wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
            if sync:
                sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more
            temporary.unlink()
        raise


def atomic_write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """`atomic_file` for data already in memory."""
    with atomic_file(path, sync=sync) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (renames and new files)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """Flush the whole file system that holds `path`: one call for any number of files.

    syncfs(2) is far cheaper than an fsync for each of 1.28 million images. Where libc has
    no syncfs, sync(2) does the same for all file systems.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)


def identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written to or replaced: inode, bytes, time in nanoseconds."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed run left in `folder`. Call under its lock."""
    for entry in os.scandir(folder):
        if entry.name.startswith(TEMPORARY_PREFIX) and entry.is_file(follow_symlinks=False):
            Path(entry.path).unlink()


@contextlib.contextmanager
def folder_lock(folder: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Let one process at a time write into `folder`; the lock dies with its process.

    When another process holds it, raises ToolError; or calls `waiting` and waits.
    """
    records = folder / RECORDS
    records.mkdir(parents=True, exist_ok=True)
    with (records / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise ToolError(
                    f"{folder} is being written by another process; "
                    "wait for it to end or choose another folder"
                ) from None
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
