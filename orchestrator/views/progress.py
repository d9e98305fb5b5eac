"""Live progress of `up` and `down`.

On a terminal: one line for each replica, redrawn in place when a word of it changes. Elsewhere
(CI, a pipe, a journal): one line for each change of phase or reason, and while something stops one
line a second, so that a build log shows what was waited for and how long it was still allowed to
take.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

from orchestrator.views import words
from orchestrator.views.banner import find
from orchestrator.views.grid import Column, lay_out
from orchestrator.views.ink import Line, Pen, Span, cut
from orchestrator.views.redraw import Redraw
from orchestrator.views.rows import Row, topology_rows
from orchestrator.views.status_table import gone
from orchestrator.wire.snapshot import Snapshot

ROWS_MAX = 30
"""More replicas than this, or than the terminal is high: only those that aren't ready are shown."""

_GOING = frozenset({"draining", "stopping"})


class Progress:
    """Shows one topology on its way up or down: call `show` with each snapshot.

    `clock` gives monotonic seconds. `plain`: lines without colours, on a terminal too.
    """

    def __init__(
        self,
        name: str,
        out: TextIO,
        clock: Callable[[], float] = time.monotonic,
        *,
        plain: bool = False,
    ) -> None:
        self._name = name
        self._out = out
        self._clock = clock
        self._pen = Pen() if plain else Pen.of(out)
        self._redraw = Redraw(out, self._pen) if self._pen.moves else None
        self._said: dict[str, str] = {}
        self._second = -1

    def take(self, snapshot: Snapshot) -> None:
        """Take this as known: where lines are printed, only what changes from here on gets one."""
        self._said = {told.id: told.gist for told in _statements(snapshot, self._name)}

    def show(self, snapshot: Snapshot) -> None:
        """Show where things stand; writes nothing if nothing that is visible has changed."""
        if self._redraw is None:
            self._tell(snapshot)
            return
        columns, lines = self._redraw.room()
        pen = self._pen._replace(width=columns)
        self._redraw.draw(progress_lines(snapshot, self._name, pen, min(ROWS_MAX, lines)))

    def note(self, line: Line) -> None:
        """Print a line that stays, above the live part: an event, a warning."""
        if self._redraw is None:
            self.say([line])
        else:
            self._redraw.note(line)

    def say(self, lines: list[Line]) -> None:
        """Print lines below the live part, which then stands as it is: a banner, last words."""
        if self._redraw is not None:
            self._redraw.leave()
        self._out.write(self._pen.draw(lines))
        self._out.flush()

    def _tell(self, snapshot: Snapshot) -> None:
        second = int(self._clock())
        tick = second != self._second
        self._second = second
        for told in _statements(snapshot, self._name):
            changed = self._said.get(told.id) != told.gist
            if changed or (tick and told.going):
                self._said[told.id] = told.gist
                self._out.write(f"{told.text}\n")
        self._out.flush()


class _Statement(NamedTuple):
    """What plain progress says of one replica. `gist` is the part whose change is worth a line."""

    id: str
    gist: str
    text: str
    going: bool


def _statements(snapshot: Snapshot, name: str) -> Iterator[_Statement]:
    if snapshot.daemon.pid is None:
        yield _Statement("daemon", "gone", gone(snapshot), going=False)
    topology = find(snapshot, name)
    rows = {row.id: row for row in topology_rows(topology) if row.level == "replica"}
    for role in topology.supervised:
        for replica in role.replicas:
            row = rows[f"{name}/{role.name}-{replica.index}"]
            going = replica.phase in _GOING
            why = words.one_line(replica.reason)
            doing = replica.workers[0].progress if replica.workers else ""
            pids = f" (pid {_pids(row)})" if going and _pids(row) else ""
            note = f": {row.note}" if row.note else ""
            text = f"{row.id} {row.phase}{pids}{note}"
            if row.advice and not going:
                text += f"; to do: {row.advice}"
            yield _Statement(row.id, f"{row.phase} {why} {doing}", text, going)


def progress_lines(snapshot: Snapshot, name: str, pen: Pen, rows_max: int) -> list[Line]:
    """Build the live display: each replica with phase, time in it, processes, and what it does."""
    topology = find(snapshot, name)
    rows = [row for row in topology_rows(topology) if row.level == "replica"]
    lines: list[Line] = []
    if snapshot.daemon.pid is None:
        lines.append([Span(gone(snapshot), "bad")])
    shown = rows
    if len(rows) > rows_max:
        shown = [row for row in rows if row.tone != "good"][: max(rows_max - 1, 1)]
    if shown:
        lines += lay_out(_columns(pen), shown, 0, pen.width).lines
    if len(shown) < len(rows):
        ready = sum(1 for row in rows if row.tone == "good")
        lines.append([Span(f"{ready} of {len(rows)} replicas are ready", "dim")])
    return lines if pen.width is None else [cut(line, pen.width) for line in lines]


def _columns(pen: Pen) -> list[Column]:
    def phase(row: Row) -> Span:
        return Span(f"{row.symbol} {row.phase}" if pen.symbols else row.phase, row.tone)

    return [
        Column("NAME", lambda row: Span(row.id)),
        Column("PHASE", phase),
        Column("FOR", lambda row: Span(row.since, "dim"), right=True),
        Column("PID", lambda row: Span(_pids(row), "dim"), drop=1),
        Column(
            "NOW", lambda row: Span(row.note, "dim" if row.tone == "busy" else row.tone), enough=30
        ),
    ]


def _pids(row: Row) -> str:
    pids = [str(worker.pid) for worker in row.workers if worker.pid is not None]
    return ",".join(pids[:2]) + (",…" if len(pids) > 2 else "")
