"""Pieces of HTML. Whatever is not made here is escaped: names of runs and classes say anything."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence

from training.report.drawing import COLOURS, dashes

Cells = Sequence[str]  # HTML


def escaped(text: object) -> str:
    """Text that can stand in an element or in a quoted attribute."""
    return html.escape("".join(each for each in str(text) if each.isprintable() or each == " "))


def embedded(value: object) -> str:
    """JSON that can stand in a script element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def swatch(run: int) -> str:
    """A bit of a run's line, in its colour and dashes."""
    pattern = dashes(run)
    dashed = ""
    if pattern != "solid":
        dashed = f' stroke-dasharray="{" ".join(f"{2 * length:g}" for length in pattern[1])}"'
    return (
        '<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true"><line x1="1" x2="29" y1="5" '
        f'y2="5" stroke="var(--run-{run % COLOURS})" stroke-width="3"{dashed}/></svg>'
    )


def table(head: Sequence[tuple[str, str]], rows: Iterable[str]) -> str:
    """A table of rows that `row` made; `head` has (text, class of the cell) for each column."""
    cells = "".join(f'<th scope="col" class="{name}">{escaped(text)}</th>' for text, name in head)
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def row(head: Sequence[tuple[str, str]], cells: Cells, kind: str = "") -> str:
    """A row; its first cell names it."""
    named = f' class="{kind}"' if kind else ""
    body = "".join(
        f'<td class="{name}">{cell}</td>'
        for (_, name), cell in zip(head[1:], cells[1:], strict=True)
    )
    return f'<tr{named}><th scope="row" class="{head[0][1]}">{cells[0]}</th>{body}</tr>\n'


def section(title: str, *parts: str) -> str:
    """A part of the page under a title."""
    return f"<section>\n<h2>{escaped(title)}</h2>\n{''.join(parts)}</section>\n"


def note(text: str) -> str:
    """A paragraph in smaller ink."""
    return f'<p class="note">{escaped(text)}</p>\n'


def folded(title: str, content: str) -> str:
    """What is shown on demand."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>\n"


def share(percent: float) -> str:
    """A bar for a share of 100 %."""
    return f'<i style="width:{min(max(percent, 0.0), 100.0):.1f}%"></i>'
