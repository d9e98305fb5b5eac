"""The tree of `top`: topologies, roles, replicas and members, with aligned columns.

A snapshot arrives up to four times a second, so the tree isn't rebuilt for it: as long as the same
things exist, only labels that changed are set, and cursor, scrolling and folds stay where the
operator left them. When something comes or goes the tree is built anew, and the same three are
restored by the rows' keys.

A role that has one replica gets no line of its own: it would say the same thing twice.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widgets import Tree

from orchestrator.views.grid import Column, lay_out
from orchestrator.views.ink import RICH, Line, Span, Tone
from orchestrator.views.rates import Rates
from orchestrator.views.rows import Key, Row

if TYPE_CHECKING:
    from textual.widgets.tree import TreeNode

_GUIDE = 2
_ICON = 2


def worth_a_line(rows: Iterable[Row]) -> list[tuple[int, Row]]:
    """Choose the rows to show, each with its depth."""
    shown: list[tuple[int, Row]] = []
    depth = 0
    for row in rows:
        if row.level == "topology":
            depth = 1
            shown.append((0, row))
        elif row.level == "role":
            lone = row.replicas == 1
            depth = 1 if lone else 2
            if not lone:
                shown.append((1, row))
        else:
            shown.append((depth + (row.level == "worker"), row))
    return shown


def matching(rows: Sequence[tuple[int, Row]], wanted: str) -> list[tuple[int, Row]]:
    """Keep the rows that hold the text, and those above them; all of them for an empty text."""
    kept: list[tuple[int, Row]] = []
    floor = 0
    for depth, row in reversed(rows):
        said = f"{row.id} {row.kind} {row.phase} {row.model} {row.note}".lower()
        if wanted.lower() in said or depth < floor:
            kept.append((depth, row))
            floor = depth
    return kept[::-1]


class DeploymentTree(Tree[Row]):
    """Shows rows; posts `Chosen` when the cursor is on another one, or on other news of it."""

    class Chosen(Message):
        """The row under the cursor, None when there is none."""

        def __init__(self, row: Row | None) -> None:
            super().__init__()
            self.row = row

    class Titles(Message):
        """The heading that belongs to the columns as they are laid out now."""

        def __init__(self, heading: Text) -> None:
            super().__init__()
            self.heading = heading

    def __init__(self, *, tree_id: str) -> None:
        super().__init__("", id=tree_id)
        self.show_root = False
        self.guide_depth = _GUIDE
        self._rows: list[tuple[int, Row]] = []
        self._by_key: dict[Key, TreeNode[Row]] = {}
        self._rates = Rates()
        self._chosen: Row | None = None

    def show(self, rows: Sequence[tuple[int, Row]], rates: Rates) -> None:
        """Show these rows; their order is kept."""
        same = [(d, r.key) for d, r in rows] == [(d, r.key) for d, r in self._rows]
        self._rows, self._rates = list(rows), rates
        if not same:
            self._rebuild()
        self._label()
        self._choose()

    def _rebuild(self) -> None:
        at = self.cursor_node.data.key if self.cursor_node and self.cursor_node.data else None
        folded = {key for key, node in self._by_key.items() if not node.is_expanded}
        self.clear()
        self._by_key = {}
        above: list[TreeNode[Row]] = [self.root]
        following = [depth for depth, _ in self._rows[1:]] + [0]
        for (depth, row), after in zip(self._rows, following, strict=False):
            del above[depth + 1 :]
            node = above[-1].add(
                row.name, row, expand=row.key not in folded, allow_expand=after > depth
            )
            self._by_key[row.key] = node
            above.append(node)
        if not self._by_key:
            self.move_cursor(None)
        elif self.last_line >= 0:  # asking for it numbers the lines
            first = self._rows[0][1].key
            self.move_cursor(self._by_key.get(at or first, self._by_key[first]))

    def _label(self) -> None:
        indents = {row.key: depth * _GUIDE for depth, row in self._rows}
        for row_key, node in self._by_key.items():
            indents[row_key] += _ICON if node.allow_expand else 0
        rows = [row for _, row in self._rows]
        width = self.scrollable_content_region.width or 80
        grid = lay_out(self._columns(indents), rows, 0, width)
        for row, line in zip(rows, grid.lines, strict=True):
            node = self._by_key[row.key]
            node.data = row
            label = to_text(line)[indents[row.key] :]
            if node.label != label:
                node.set_label(label)
        self.post_message(self.Titles(to_text(grid.heading)))

    def _columns(self, indents: dict[Key, int]) -> list[Column]:
        def name(row: Row) -> Span:
            # The indent is drawn by the tree; here it only makes the column wide enough.
            tone: Tone = "bold" if row.level == "topology" else ""
            return Span(" " * indents[row.key] + row.name, tone)

        return [
            Column("NAME", name),
            Column("PHASE", lambda row: Span(f"{row.symbol} {row.phase}".strip(), row.tone)),
            Column("FOR", lambda row: Span(row.since, "dim"), drop=3, right=True),
            Column("LIFE", lambda row: Span(row.life, "dim"), drop=6),
            Column("RESTARTS", lambda row: Span(row.restarts, "warn"), drop=4, right=True),
            Column("PID", lambda row: Span(row.pid), drop=2, right=True),
            Column("GPUS", lambda row: Span(row.gpus), drop=5),
            Column("IN FLIGHT", lambda row: Span(str(row.inflight or "")), drop=7, right=True),
            Column("TOK/S", self._rate, drop=1, right=True),
            Column("NOW", _now, enough=24),
        ]

    def _rate(self, row: Row) -> Span:
        rate = self._rates.of(row.workers)
        return Span(f"{rate:,.0f}" if rate else "")

    @property
    def row(self) -> Row | None:
        """The row under the cursor now."""
        node = self.cursor_node
        return node.data if node else None

    def _choose(self) -> None:
        row = self.row
        if row != self._chosen:
            self._chosen = row
            self.post_message(self.Chosen(row))

    def on_tree_node_highlighted(self, message: Tree.NodeHighlighted[Row]) -> None:
        """Tell the panes which row the cursor went to."""
        message.stop()
        self._choose()

    def on_resize(self, _: events.Resize) -> None:
        """Lay the columns out again: others may fit now. The cursor stays in view."""
        self._label()
        self.scroll_to_line(max(self.cursor_line, 0), animate=False)


def to_text(line: Line) -> Text:
    """Turn a line into rich text."""
    return Text.assemble(*((span.text, RICH[span.tone]) for span in line))


def _now(row: Row) -> Span:
    loud = row.tone in {"bad", "warn"} and row.level != "role"
    return Span(row.note, row.tone if loud else "dim")
