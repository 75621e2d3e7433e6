"""Commands that may run as one of several processes, whose launcher speaks for them."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from shards.console import Command, say

if TYPE_CHECKING:
    from shards.errors import ToolError


class RankCommand(Command):
    """A command that says a failure once, however many processes have it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it. One of several processes that fails ends without Python's own farewell.

        Its process group is still up then, and threads of gloo or of the store that are alive when
        Python takes itself down may abort the process, with another exit code and a line of C++.
        """
        from training.place import inside_launch

        try:
            return super().invoke(ctx)
        except click.exceptions.Exit as end:
            if inside_launch():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.exit_code)
            raise

    def interrupted(self) -> None:
        """Say that Ctrl-C ended it, unless a launcher does."""
        from training.place import inside_launch

        if not inside_launch():
            super().interrupted()

    def report(self, failure: ToolError) -> None:
        """Say why it failed, or hand it to the launcher."""
        from training.children import report_failure
        from training.stopping import Stopped

        if not report_failure(failure):
            say(str(failure) if isinstance(failure, Stopped) else f"error: {failure}")


class StoppableCommand(RankCommand):
    """A command that a signal stops with nothing lost, from its first moment on.

    Its context's `obj` are the Signals that listen before anything slow is loaded.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Listen, and only then look at the command line."""
        from training.stopping import Signals, ignore_signals

        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(Signals())
            ctx = super().make_context(info_name, args, parent, obj=signals, **extra)
            ctx.call_on_close(stack.pop_all().close)
            # Registered at the end, it comes before what torch registered.
            ctx.call_on_close(lambda: atexit.register(ignore_signals))
            return ctx


def speaks_first() -> bool:
    """Whether this process tells of the command line: a launcher's processes leave it to ours."""
    from training.place import OURS, place_of

    place = place_of(os.environ)
    return place is None or (place.launcher != OURS and place.rank == 0)
