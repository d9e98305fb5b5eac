"""The panes under the tree: what is wrong with the chosen row, its log, and what happens.

All three are bounded: the log pane keeps the last lines of one file and reads only the file's end,
the event pane keeps the last events. Whoever scrolls up to read isn't thrown back to the end by
the next line.
"""

from rich.text import Text
from textual import events
from textual.widgets import RichLog, Static

from orchestrator.views import words
from orchestrator.views.event_line import event_brief
from orchestrator.views.rows import Row
from orchestrator.views.source import Source, Tail
from orchestrator.views.top_tree import to_text
from orchestrator.wire.events import Event

LOG_LINES_MAX = 1_000
"""Kept in the pane; the oldest go."""

NOTHING = "nothing to show: `dynorch up FILE` starts a deployment"
LOG_LINES_AT_FIRST = 200
EVENTS_MAX = 500


class Detail(Static):
    """The chosen row in full: the reason isn't cut here, and the advice has room."""

    def show(self, row: Row | None) -> None:
        """Describe a row; None: there is none."""
        self.update(Text(NOTHING, "dim") if row is None else _describe(row))


def _describe(row: Row) -> Text:
    head = " ".join(filter(None, (row.kind, row.model)))
    counts = f"{row.requests:,} requests, {row.tokens:,} tokens" if row.requests else ""
    text = Text.assemble((row.id, "bold"), f"{row.life}  ", (head, "dim"))
    if counts:
        text.append(f"  {counts}", "dim")
    for label, said, style in (
        ("", row.note, "bold red" if row.tone == "bad" else ""),
        ("to do: ", row.advice, "bold"),
        ("seen: ", row.evidence, "dim"),
    ):
        if said:
            text.append(f"\n{label}{said}", style)
    return text


class Scroll(RichLog):
    """Lines that scroll by. It follows its end until somebody scrolls up, and again from there."""

    def __init__(self, *, pane_id: str, lines_max: int) -> None:
        super().__init__(
            id=pane_id,
            max_lines=lines_max,
            min_width=0,
            wrap=True,
            highlight=False,
            markup=False,
        )
        self._at_end = True

    def add(self, line: Text) -> None:
        """Add a line below."""
        self.write(line, scroll_end=self._at_end)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """See whether the end is in view. Lines that are added don't change that: we follow."""
        super().watch_scroll_y(old_value, new_value)
        self._at_end = new_value >= self.max_scroll_y


class LogPane(Scroll):
    """Follows the log of one worker."""

    def __init__(self, source: Source, *, pane_id: str) -> None:
        super().__init__(pane_id=pane_id, lines_max=LOG_LINES_MAX)
        self._source = source
        self._path = ""
        self._tail: Tail | None = None
        self._wrapped_for = 0

    def follow(self, path: str) -> None:
        """Show this file from now on; an empty path shows nothing."""
        if path != self._path:
            self._path = path
            self._fill()

    def catch_up(self) -> None:
        """Show what the file has got since the last call."""
        for line in self._tail.read() if self._tail else []:
            self.add(Text(words.harmless(line)))

    def on_resize(self, event: events.Resize) -> None:
        """Wrap the lines again: they are wrapped for the width that they were written at."""
        if event.size.width != self._wrapped_for:
            self._wrapped_for = event.size.width
            self._fill()

    def _fill(self) -> None:
        self.clear()
        self._at_end = True
        self.border_title = f"log {self._short_path()}" if self._path else "log: none here"
        self._tail = self._source.log_tail(self._path, LOG_LINES_AT_FIRST) if self._path else None
        self.catch_up()

    def _short_path(self) -> str:
        """Cut the path from the left: its end tells the worker."""
        room = max(self.size.width - 8, 20)
        return self._path if len(self._path) <= room else f"…{self._path[1 - room :]}"


class EventPane(Scroll):
    """The last events, the newest below."""

    def __init__(self, *, pane_id: str) -> None:
        super().__init__(pane_id=pane_id, lines_max=EVENTS_MAX)
        self.border_title = "events"

    def tell(self, event: Event) -> None:
        """Add an event."""
        self.add(to_text(event_brief(event)))
