"""Names for links to what lies elsewhere: plain ones, as a manifest takes them, all different."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from shards.errors import UsageError

TAR_ENDING: Final = ".tar"
FOLDER_ENDING: Final = ".images"  # so that no class folder is called as a file of ours
ENDINGS: Final = (TAR_ENDING, FOLDER_ENDING)
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.-]")


class Link(NamedTuple):
    """The plain name of a tar or class folder in its split, and where it lies."""

    name: str
    target: Path


def name_links(paths: Sequence[Path], ending: str = TAR_ENDING) -> list[Link]:
    """A link for each tar, sorted by name: its own name, and as many folders as it takes.

    A tar that is given twice has one link. All names have the `ending`. Raises UsageError where no
    name tells two apart.
    """
    targets = {path.resolve(): _located(path) for path in reversed(paths)}.values()
    depths = dict.fromkeys(targets, 1)
    while True:
        named: dict[str, list[Path]] = {}
        for target, depth in depths.items():
            named.setdefault(_plain_name(target, depth, ending), []).append(target)
        same = [target for group in named.values() if len(group) > 1 for target in group]
        if not same:
            return [Link(name, named[name][0]) for name in sorted(named)]
        for target in same:
            depths[target] += 1
            if depths[target] > max(len(each.parts) for each in same):
                one, other = sorted(same)[:2]
                raise UsageError(f"{one} and {other} have names too alike: rename one of them")


def _located(path: Path) -> Path:
    """Where a tar lies, under its own name: that of a link to it, where one was given."""
    return path.parent.resolve() / path.name


def _plain_name(target: Path, depth: int, ending: str) -> str:
    """The last parts of a path in the letters that a manifest takes."""
    name = _NOT_PLAIN.sub("_", "-".join(target.parts[1:][-depth:]))
    name = re.sub(r"^[.-]", "_", name)
    return name if name.endswith(ending) else f"{name}{ending}"
