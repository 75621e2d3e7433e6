"""What runs were told and where they ran, side by side, with what differs first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.report import markup
from training.report.history import Run

_LONGEST = 400  # characters of a value


def configuration(runs: Sequence[Run]) -> str:
    """The resolved configuration, the recipe's values in it."""
    return _compared(
        [dict(_flat(run.part("config"))) for run in runs],
        runs,
        "What differs between the runs is at the top, on a ground of its own."
        if len(runs) > 1
        else "As it was resolved from the recipe and the command line.",
    )


def derived(runs: Sequence[Run]) -> str:
    """What followed from the configuration and the data."""
    plans = [dict(_flat(run.part("plan"))) for run in runs]
    for plan in plans:
        plan.pop("out", None)  # always another one, and in the configuration
    return _compared(plans, runs, "")


def environment(runs: Sequence[Run]) -> str:
    """Device, precision, processes, versions and data of the latest start."""
    found = []
    for run in runs:
        values = {
            name: run.start[name]
            for name in ("device", "device_reason", "precision")
            if name in run.start
        }
        values["processes"] = run.part("plan", "world")
        values |= {f"version of {name}": text for name, text in _flat(run.part("versions"))}
        values |= {f"data: {name}": text for name, text in _flat(run.part("data"))}
        values["log"] = run.log
        found.append(values)
    return _compared(found, runs, "")


def _compared(values: Sequence[Mapping[str, Any]], runs: Sequence[Run], about: str) -> str:
    names = list(dict.fromkeys(name for each in values for name in each))
    texts = {name: [_text(each.get(name)) for each in values] for name in names}
    differing = [name for name in names if len(set(texts[name])) > 1]
    equal = [name for name in names if name not in differing]
    content = markup.note(about) if about else ""
    if differing:
        head = [("", "key"), *((run.name, "value") for run in runs)]
        rows = (_row(head, name, texts[name], "differs") for name in differing)
        content += markup.table(head, rows)
    if equal:
        head = [("", "key"), (runs[0].name if len(runs) == 1 else "all runs", "value")]
        shown = markup.table(head, (_row(head, name, texts[name][:1], "") for name in equal))
        content += shown if len(runs) == 1 else markup.folded(_equal(len(equal)), shown)
    return content


def _equal(count: int) -> str:
    return "one value is equal" if count == 1 else f"{count} values are equal"


def _row(head: Sequence[tuple[str, str]], name: str, texts: Sequence[str], kind: str) -> str:
    readable = name.replace("_", " ")
    return markup.row(head, [markup.escaped(readable), *map(markup.escaped, texts)], kind)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a dict of dicts."""
    if not isinstance(value, Mapping):
        return
    for name, item in value.items():
        if isinstance(item, Mapping) and not prefix:
            yield from _flat(item, f"{name}: ")
        else:
            yield f"{prefix}{name}", item


def _text(value: Any) -> str:
    if value is None:
        return "–"  # noqa: RUF001 - a dash, as tables have it
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.8g}"
    text = str(value) if isinstance(value, str | Path) else json.dumps(_rounded(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _rounded(value: Any) -> Any:
    """Lists with shorter numbers in them: corners of the learning rate."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
