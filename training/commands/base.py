"""Commands that may run as one of several processes, whose launcher speaks for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shards.console import Command, say

if TYPE_CHECKING:
    from shards.errors import ToolError


class RankCommand(Command):
    """A command that says a failure once, however many processes have it."""

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


def speaks_first() -> bool:
    """Whether this process tells of the command line: a launcher's processes leave it to ours."""
    from training.place import OURS, place_of

    place = place_of(os.environ)
    return place is None or (place.launcher != OURS and place.rank == 0)
