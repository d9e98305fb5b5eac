"""Columns that fit: a table laid out by what matters.

A column in which nothing is said is left out. When the rest is wider than the terminal, whole
columns go, the least important first, because a table of ellipses helps nobody; only when the
columns that have to stay are still too wide are lines cut.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.views.ink import Line, Span, cut
from orchestrator.views.rows import Row

_GAP = Span("  ")


class Column(NamedTuple):
    """A title and the cell of a row.

    `drop`: the higher, the sooner the column goes; with 0 it always stays. `enough`: columns of
    text that suffice of the last column, whose rest may be cut.
    """

    title: str
    cell: Callable[[Row], Span]
    drop: int = 0
    right: bool = False
    enough: int = 1_000


class Grid(NamedTuple):
    """The heading, and one line for each row in the rows' order."""

    heading: Line
    lines: list[Line]


def lay_out(columns: Sequence[Column], rows: Sequence[Row], indent: int, width: int | None) -> Grid:
    """Lay the rows out below each other. The column with the highest `drop` goes first."""
    cells = {column.title: [column.cell(row) for row in rows] for column in columns}
    used = [column for column in columns if any(cell.text for cell in cells[column.title])]
    sizes = {c.title: max(len(c.title), *(len(s.text) for s in cells[c.title])) for c in used}
    while width is not None:
        spare = [column for column in used if column.drop]
        total = indent + sum(min(sizes[column.title], column.enough) + 2 for column in used) - 2
        if total <= width or not spare:
            break
        used.remove(max(spare, key=lambda column: column.drop))

    def line(spans: Sequence[Span]) -> Line:
        laid: Line = [Span(" " * indent)]
        for column, span in zip(used, spans, strict=True):
            fill = Span(" " * (sizes[column.title] - len(span.text)))
            laid += [fill, span, _GAP] if column.right else [span, fill, _GAP]
        while laid and not laid[-1].text.strip():
            laid.pop()
        return laid if width is None else cut(laid, width)

    none = Span("-" if width is None else "")  # a pipe keeps its number of fields
    heading = line([Span(column.title, "dim") for column in used])
    body = [
        line([cell if cell.text else none for cell in row])
        for row in zip(*(cells[column.title] for column in used), strict=True)
    ]
    return Grid(heading, body)
