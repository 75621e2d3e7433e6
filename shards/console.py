"""What all commands share on the terminal: how they end, progress, results as lines or JSON.

Only this module and the packages of commands know click and rich. Results go to stdout (`--json`:
one object), all else to stderr. Exit codes: 0 done, 1 a failure or a failed check, 2 wrong usage,
75 a training that was stopped and saved, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from shards.errors import ToolError
    from shards.finding import Finding
    from shards.progress import Progress

_REFRESH_SECONDS = 0.1
# What a terminal obeys instead of showing it (C0, C1, line ends of Unicode, changes of a text's
# direction), and what cannot be written as UTF-8: half of a pair, as in names that are none.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

INTERRUPTED = 130

Function = TypeVar("Function", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose foreseeable failures are one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        refuse_strangers()
        # Broken EXIF makes Pillow warn for images that it reads well.
        warnings.filterwarnings("ignore", module="PIL")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            self.interrupted()
            ctx.exit(INTERRUPTED)
        except Exception as error:
            failure = _foreseen(error)
            if failure is None or ctx.meta.get("traceback"):
                raise
            self.report(failure)
            ctx.exit(failure.exit_code)

    def interrupted(self) -> None:
        """Say that Ctrl-C ended it."""
        say("interrupted; the same command goes on from here")

    def report(self, failure: ToolError) -> None:
        """Say why it failed."""
        say(f"error: {failure}")


def refuse_strangers() -> None:
    """Our packages have common names: say so where another distribution's would be imported."""
    ours = Path(__file__).resolve().parents[1]
    for name in ("prep", "shards", "training"):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or [])
        if [Path(place).resolve() for place in places] != [ours / name]:
            say(
                f"error: the package {name!r} is found at {places[0] if places else 'no place'} "
                f"instead of {ours / name}; install imagenet-resnet into a virtual environment "
                "of its own, without PYTHONPATH"
            )
            sys.exit(1)


def _foreseen(error: Exception) -> ToolError | None:
    """A failure as a sentence and an exit code; None for a programming error."""
    from shards.errors import ToolError

    if isinstance(error, ToolError):
        return error
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        return ToolError(f"{error.filename}: {os.strerror(error.errno)}{_remedy(error.errno)}")
    return None


def _remedy(code: int) -> str:
    remedies = {
        errno.ENOSPC: "; make room and run the same command again, what is whole stays",
        errno.EDQUOT: "; make room in your quota and run the same command again",
        errno.EACCES: "; check its owner and permissions",
        errno.EPERM: "; check its owner and permissions",
        errno.EROFS: "; choose a folder that can be written",
        errno.EIO: "; the disk or its connection is failing, what is whole stays",
    }
    return remedies.get(code, "")


def say(message: str) -> None:
    """Print a line for people. Above the live display: click.echo would write into it."""
    print(printable(message), file=sys.stderr, flush=True)  # noqa: T201


def emit(as_json: bool, data: Mapping[str, object], lines: list[str]) -> None:
    """Print a result: one JSON object, or lines for people."""
    shown = json.dumps(data, default=_primitive) if as_json else "\n".join(map(printable, lines))
    click.echo(shown)


def printable(text: str) -> str:
    """Text of unknown origin as one line that only says something: control characters escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; numbers stand at the right of their column."""
    from rich.console import Console
    from rich.table import Table

    body = [list(row) for row in rows]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        numbers = all(isinstance(row[place], int | float) for row in body)
        table.add_column(name, justify="right" if numbers and body else "left")
    for row in body:
        cells = (f"{each:,}" if isinstance(each, int) else printable(str(each)) for each in row)
        table.add_row(*cells)
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _primitive(value: object) -> object:
    """What JSON has in the place of a value: an object for a result's parts, else its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def _set_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["traceback"] = value


def command(
    name: str, cls: type[Command] = Command
) -> Callable[[Callable[..., Any]], click.Command]:
    """A function as a command, with the options that every command has."""

    def made(function: Callable[..., Any]) -> click.Command:
        json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        traceback_option = click.option(
            "--traceback",
            is_flag=True,
            expose_value=False,
            callback=_set_traceback,
            help="Show the whole traceback of a failure.",
        )
        return click.command(name, cls=cls)(json_option(traceback_option(function)))

    return made


class LiveProgress:
    """Progress as one live line on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._unit = ""
        self._done = 0
        self.beside = ""  # what else the line shows
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, what: str, total: int, unit: str) -> None:
        """Begin a phase."""
        with self._lock:
            if self._task is not None:
                self._live.remove_task(self._task)
            self._task = self._live.add_task(what, total=total, rate="")
            self._unit, self._done = unit, 0
            self._started = self._shown = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count work as done; the display follows ten times a second."""
        from shards.progress import quantity

        with self._lock:
            self._done += amount
            now = time.monotonic()
            if self._task is not None and now - self._shown >= _REFRESH_SECONDS:
                self._shown = now
                rate = quantity(self._done / (now - self._started), self._unit)
                self._live.update(self._task, completed=self._done, rate=f"{rate}/s{self.beside}")

    def note(self, message: str) -> None:
        """Say a line; rich puts what is written to stderr above the display."""
        say(f"note: {message}")


@contextlib.contextmanager
def showing_progress() -> Iterator[Progress]:
    """Progress for people on a terminal, and for logs elsewhere."""
    from shards.progress import LineProgress

    if not sys.stderr.isatty():
        yield LineProgress(say)
        return
    with LiveProgress() as live:
        yield live


def speed(images: int, seconds: float) -> str:
    return f"{seconds:.1f} s, {images / seconds:,.0f} images/s"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


PATH = click.Path(path_type=Path, readable=False)  # reading says it with the remedy


def first_ten(what: str, found: Sequence[object]) -> list[str]:
    """The first findings of a kind as lines, and how many more there are."""
    more = len(found) - 10
    rest = [f"{what}: {more:,} more, all of them with --json"] if more > 0 else []
    return [f"{what}: {each}" for each in found[:10]] + rest


def in_megabytes(size: int) -> str:
    """Bytes as megabytes, without the unit."""
    return f"{size / 1e6:,.1f}"


def show_findings(
    as_json: bool, data: Mapping[str, object], findings: Sequence[Finding], following: str
) -> None:
    """A doctor's findings and the command to run next; exits with 1 where there is a problem.

    `data` is the JSON object, whose `findings` are written as they are read.
    """
    from shards.finding import Status

    width = max(len(each.what) for each in findings)
    written = [{**vars(each), "status": each.status.value} for each in findings]
    lines = [line for each in findings for line in _finding_lines(each, width)]
    emit(as_json, {**data, "findings": written}, [*lines, "", f"next: {following}"])
    if any(each.status is Status.PROBLEM for each in findings):
        sys.exit(1)


def _finding_lines(finding: Finding, width: int) -> Iterator[str]:
    """Status, what and found in columns; a remedy stands below, ready to be copied."""
    yield f"{finding.status.value:9}{finding.what:{width}}  {finding.found}"
    if finding.remedy:
        yield f"{'':{11 + width}}-> {finding.remedy}"
