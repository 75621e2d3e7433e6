"""Samples of tars without an index, read front to back from wherever a URL leads.

The webdataset library opens the URLs, draws the shards, groups members into samples and mixes
them in its buffer. The tars are read by `shards.tar`, which is stricter: to the library a shard
that was cut off between two members, or that is damaged in a header, is just a shorter one.

A `pipe:` URL is a command that a shell runs, as it is in webdataset: it is the user's own line,
and must never be taken from a file that someone else wrote.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlparse

from webdataset import utils
from webdataset.filters import shuffle as shuffled
from webdataset.gopen import Pipe, gopen
from webdataset.shardlists import ResampledShards, expand_urls
from webdataset.tariterators import group_by_keys

from shards.errors import DamagedData, ToolError, UsageError
from shards.foreign import (
    IMAGE_FIELDS,
    JSON_FIELD,
    LABEL_FIELD,
    LARGEST_JSON,
    read_label,
    split_name,
)
from shards.image import ImageInfo, read_info
from shards.parallel import Stopped
from shards.sample import LARGEST_IMAGE
from shards.tar import Member, scan

STDIN: Final = "-"
_PIPE: Final = "pipe:"
_TAR: Final = Path("the tar")  # what messages call it after its URL, which is no path
_BUFFER: Final = 1 << 20
_PATIENCE: Final = 10.0  # seconds for a command to end after the end of what it wrote

_Fields: TypeAlias = "dict[str, Any]"  # a sample as webdataset groups it: bytes by field


class StreamSample(NamedTuple):
    """An encoded image from a stream, and what is known of it."""

    place: str  # URL and key, for messages
    data: bytearray
    info: ImageInfo
    label: int


def expand(urls: str | Sequence[str]) -> list[str]:
    """The URLs that a pattern stands for, in webdataset's notation; a list is taken as it is.

    Raises UsageError where it stands for none, or where standard input is one of several;
    ToolError where a file does not exist.
    """
    try:
        found = expand_urls(urls) if isinstance(urls, str) else list(urls)
    except (ValueError, AssertionError) as error:
        raise UsageError(f"{urls!r} is no pattern of shards: {error}") from None
    if not found or "" in found:
        raise UsageError(f"{urls!r} names no shards; they are such as 'DIR/x-{{000..099}}.tar'")
    if STDIN in found and len(found) > 1:
        raise UsageError("standard input (-) is read once, so it cannot be one of several shards")
    files = [url for url in found if not urlparse(url).scheme and url != STDIN]
    missing = [url for url in files if not Path(url).exists()]
    if missing:
        raise ToolError(f"{missing[0]} does not exist ({len(missing)} of {len(found)} shards)")
    return found


class StopSign:
    """A flag that a thread can wait for together with data. Close it when no thread does."""

    def __init__(self) -> None:
        self._readable, self._writable = os.pipe()
        self._open = contextlib.ExitStack()
        self._open.callback(os.close, self._readable)
        self._open.callback(os.close, self._writable)

    def set(self) -> None:
        """Make threads that wait for data raise Stopped, now or when they come to it."""
        os.write(self._writable, b".")

    def fileno(self) -> int:
        """The descriptor that is readable once the flag is set."""
        return self._readable

    def close(self) -> None:
        """Give the descriptors back."""
        self._open.close()


class SampleStream:
    """Samples of shards that are drawn at random, with replacement; so there is no end of them.

    Only standard input ends, once. Iterate in one thread. Raises DamagedData and ToolError, with
    URL and key, for whatever cannot be read or used: nothing is ever left out.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        label_field: str | None,
        classes: int | None,
        shuffle: int,
        seed: str,
        stop: StopSign,
    ) -> None:
        """Begin. `shuffle` is how many samples wait in a buffer, from which the next is drawn."""
        self._label_field = label_field
        self._classes = classes
        self._stop = stop
        chance = random.Random(seed)
        self._samples = self._draw(urls, chance.getrandbits(31))
        if shuffle > 1:
            self._samples = shuffled(shuffle, rng=chance)(self._samples)

    def __iter__(self) -> Iterator[StreamSample]:
        return self

    def __next__(self) -> StreamSample:
        return self._parse(next(self._samples))

    def close(self) -> None:
        """End what was begun: files, commands. Not while another thread iterates."""
        self._samples = iter(())  # generators that are forgotten close their source

    # --- shards ---

    def _draw(self, urls: Sequence[str], seed: int) -> Iterator[_Fields]:
        if list(urls) == [STDIN]:
            yield from self._read(STDIN)
            return
        # The library would take rank and worker from torch.distributed; the seed has them.
        shards = ResampledShards(list(urls), seed=seed, worker_seed=int, deterministic=True)
        for shard in shards:
            yield from self._read(shard["url"])

    def _read(self, url: str) -> Iterator[_Fields]:
        """The samples of one shard, front to back."""
        empty = True
        try:
            for sample in group_by_keys(self._members(url)):
                empty = False
                yield sample
        except ValueError as error:  # a field that is there twice
            raise DamagedData(f"{url}: {error.args[0]}") from None
        if empty:
            raise DamagedData(f"{url} holds no samples: a KEY.jpg with its KEY.{LABEL_FIELD}")

    def _members(self, url: str) -> Iterator[_Fields]:
        """Members as webdataset hands them on; what is not needed comes without its bytes."""
        wanted = {*IMAGE_FIELDS, self._label_name}
        with contextlib.closing(_Source(url, self._stop)) as source:
            try:
                for member in scan(source, _TAR):
                    told = split_name(member.name)
                    if told is not None:
                        data = source.read(member) if told[1] in wanted else b""
                        yield {"fname": member.name, "data": data, "__url__": url}
            except DamagedData as error:
                raise DamagedData(f"{url}: {source.failure() or error}") from None
            except OSError as error:
                raise ToolError(f"{url} cannot be read: {error.strerror}") from None
            if failure := source.failure():
                raise DamagedData(f"{url}: {failure}")

    # --- samples ---

    @property
    def _label_name(self) -> str:
        return LABEL_FIELD if self._label_field is None else JSON_FIELD

    def _parse(self, fields: _Fields) -> StreamSample:
        place = f"{fields['__url__']}: sample {fields['__key__']}"
        try:
            image = self._only(fields, IMAGE_FIELDS, "image")
            label = self._only(fields, (self._label_name,), "label")
            return StreamSample(
                place=place,
                data=image,
                info=read_info(image),
                label=read_label(bytes(label), self._label_field, self._classes),
            )
        except DamagedData as error:
            raise DamagedData(f"{place}: {error}") from None

    @staticmethod
    def _only(fields: _Fields, names: Sequence[str], what: str) -> bytearray:
        """The one field of these names that a sample has."""
        found = [name for name in names if name in fields]
        if len(found) != 1:
            held = ", ".join(f".{name}" for name in fields if not name.startswith("__"))
            wanted = ", ".join(f".{name}" for name in names)
            count = len(found) or "no"
            raise DamagedData(f"it has {count} {what}{'s' * bool(found)} ({wanted}), only {held}")
        data: bytearray = fields[found[0]]
        return data


# --- sources ----------------------------------------------------------------------------------


class _Source:
    """What a URL leads to, read front to back (see shards.tar.Bytes). Close it."""

    end = sys.maxsize  # only reading on will tell

    def __init__(self, url: str, stop: StopSign) -> None:
        self._own_session = url.startswith(_PIPE)
        self._opened = _open(url)
        self._process: subprocess.Popen[bytes] | None = getattr(self._opened, "proc", None)
        readable = self._opened if self._process is None else self._process.stdout
        self._raw = _Raw(readable.fileno(), stop)
        self._file = io.BufferedReader(self._raw, _BUFFER)
        self._position = 0

    def read_at(self, position: int, count: int) -> bytes:
        """`count` bytes from `position` on, fewer at the end alone."""
        assert position >= self._position, "a stream is read front to back"
        while self._position < position:
            passed = len(self._file.read(min(_BUFFER, position - self._position)))
            if not passed:
                return b""
            self._position += passed
        data = self._file.read(count)
        self._position += len(data)
        return data

    def read(self, member: Member) -> bytearray:
        """The bytes of the member that is next."""
        known = split_name(member.name)
        largest = LARGEST_IMAGE if known is not None and known[1] in IMAGE_FIELDS else LARGEST_JSON
        if member.size > largest:
            raise DamagedData(
                f"member {member.name!r} has {member.size} bytes, it may have {largest}"
            )
        data = bytearray(member.size)
        count = self._file.readinto(data)
        self._position += count
        if count < member.size:
            raise DamagedData(
                f"{_TAR} ends at byte {self._position}, inside of member {member.name!r}: "
                "it is truncated"
            )
        return data

    def failure(self) -> str:
        """What is wrong with how the command behind the URL has ended, if it has."""
        if self._process is None or not self._raw.ended:
            return ""
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return "its command closed its output and did not end"
        return f"its command ended with exit code {code}" if code else ""

    def close(self) -> None:
        """Close the file, or kill the command if it still runs."""
        process = self._process
        if process is None:
            self._opened.close()
            return
        if process.poll() is None:
            if self._own_session:
                os.killpg(process.pid, signal.SIGKILL)  # what a shell began, too
            process.kill()
        self._opened.stream.close()
        process.wait()


class _Raw(io.RawIOBase):
    """The bytes of a descriptor, as they come. Reading raises Stopped once `stop` is set."""

    def __init__(self, descriptor: int, stop: StopSign) -> None:
        self.ended = False
        self._descriptor, self._sign = descriptor, stop.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._poll.register(self._sign, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill as much of `buffer` as there is; 0 at the end."""
        if any(descriptor == self._sign for descriptor, _ in self._poll.poll()):
            raise Stopped
        count = os.readv(self._descriptor, [buffer])
        self.ended = count == 0
        return count


def _open(url: str) -> Any:
    """An open file, or webdataset's Pipe with the process behind the URL."""
    if url == STDIN:
        return os.fdopen(0, "rb", buffering=0, closefd=False)
    try:
        if url.startswith(_PIPE) and not getattr(utils, "enforce_security", False):
            # As the library's gopen does it, but so that it can be ended with all it began.
            return Pipe(  # noqa: S604 - the user's own command line
                url.removeprefix(_PIPE),
                mode="rb",
                shell=True,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return gopen(url)
    except OSError as error:
        raise ToolError(f"{url} cannot be opened: {error.strerror or error}") from None
    except (ValueError, ImportError) as error:
        raise UsageError(f"{url} cannot be opened: {error}") from None
