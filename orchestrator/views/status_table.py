"""The table that `dynorch status` prints.

One line for each replica, and under each that isn't at work: why, and what to do. A topology that
stands on the simulated engine says so in its first line. Without a daemon the table shows what
still runs and who will take it over: a supervisor that is dead must not make its children
invisible.

No rich and no textual here: the whole verb has 300 ms, the start of Python included.
"""

from collections.abc import Iterable, Iterator
from typing import TextIO

from orchestrator.views import words
from orchestrator.views.grid import Column, lay_out
from orchestrator.views.ink import Line, Pen, Span, Tone, cut, wrap
from orchestrator.views.rows import Row, topology_rows
from orchestrator.wire.snapshot import Snapshot, TopologyStatus


def print_status(snapshot: Snapshot, out: TextIO) -> None:
    """Write the table to a stream, as that stream can show it."""
    pen = Pen.of(out)
    out.write(pen.draw(status_lines(snapshot, pen)))


def status_text(snapshot: Snapshot, pen: Pen | None = None) -> str:
    """Return the table as text; plain, uncut and uncoloured without a pen."""
    pen = pen or Pen()
    return pen.draw(status_lines(snapshot, pen))


def status_lines(snapshot: Snapshot, pen: Pen) -> Iterator[Line]:
    """Yield the table line by line: the daemon, then each topology."""
    for text, tone in _daemon(snapshot):
        yield from wrap(text, tone, 0, pen.width)
    for topology in snapshot.topologies:
        yield []
        yield from _topology(topology, pen)
    if not snapshot.topologies and snapshot.daemon.pid is not None:
        yield from wrap("nothing is up: start with `dynorch up FILE`", "", 0, pen.width)


def gone(snapshot: Snapshot, pid: int | None = None) -> str:
    """Say that there is no daemon and what lives on without it. `pid`: the one it had, if known."""
    count = len(snapshot.running())
    if not count:
        return "no daemon runs, and nothing is left running"
    still = "1 worker still runs" if count == 1 else f"{count} workers still run"
    return f"daemon gone{f' (pid {pid})' if pid else ''}; {still}"


def _daemon(snapshot: Snapshot) -> Iterator[tuple[str, Tone]]:
    daemon = snapshot.daemon
    if daemon.pid is not None:
        lasted = words.age(daemon.uptime_s)
        yield f"dynorch {daemon.version}: daemon pid {daemon.pid}, up {lasted}", "dim"
        return
    left = bool(snapshot.running())
    yield f"{gone(snapshot)} (run directory {daemon.run_dir})", "bad" if left else ""
    if left:
        yield (
            "to do: `dynorch up FILE` takes them over with the same pids; `down` stops them",
            "bold",
        )


def _topology(topology: TopologyStatus, pen: Pen) -> Iterator[Line]:
    rows = list(topology_rows(topology))
    yield _headline(topology, pen)
    if topology.reason:
        yield from wrap(words.one_line(topology.reason), "warn", 2, pen.width)
    for note in (topology.rollout_note, *(f"scaled: {each}" for each in topology.scaled)):
        if note:
            tone: Tone = "bad" if topology.rollout == "halted" else "busy"
            yield from wrap(words.one_line(note), tone, 2, pen.width)
    wanted = [row for row in rows if row.level in {"replica", "worker"}]
    if not wanted:
        return
    one_model = len({row.model for row in wanted if row.model}) <= 1
    grid = lay_out(_columns(pen, with_model=not one_model), wanted, 2, pen.width)
    yield grid.heading
    for row, line in zip(wanted, grid.lines, strict=True):
        yield line
        yield from _why(row, pen)


def _headline(topology: TopologyStatus, pen: Pen) -> Line:
    symbol, tone = words.look(topology.health)
    line = [Span(f"{symbol} ", tone)] if pen.symbols else []
    line += [Span(topology.name, "bold"), Span(": "), Span(topology.health, tone)]
    if topology.endpoint:
        line.append(Span(f"  {topology.endpoint}"))
    if topology.engine:
        loud: Tone = "warn" if topology.engine == "sim" else "dim"
        line.append(Span(f"  {words.engine(topology.engine)}", loud))
    models = topology.models or list(
        dict.fromkeys(role.model for role in topology.roles if role.model)
    )
    if models:
        silent = "" if topology.models else " (no answer yet)"
        line.append(Span("  " + ", ".join(models) + silent, "dim"))
    return line if pen.width is None else cut(line, pen.width)


def _why(row: Row, pen: Pen) -> Iterator[Line]:
    """Explain a row that needs explaining, below it."""
    tone: Tone = "bad" if row.tone == "bad" else "warn" if row.tone == "warn" else "dim"
    said: Iterable[tuple[str, str, Tone]] = (
        ("", row.note, tone),
        ("seen: ", row.evidence, "dim"),
        ("to do: ", row.advice, "bold"),
    )
    for lead, text, ink in said:
        if text:
            yield from wrap(lead + text, ink, 6, pen.width)


def _columns(pen: Pen, *, with_model: bool) -> list[Column]:
    def name(row: Row) -> Span:
        return Span("  " + row.name if row.level == "worker" else row.id)

    def phase(row: Row) -> Span:
        text = f"{row.symbol} {row.phase}" if pen.symbols and row.phase else row.phase
        return Span(text, row.tone)

    columns = [
        Column("NAME", name),
        Column("PHASE", phase),
        Column("FOR", lambda row: Span(row.since, "dim"), drop=2, right=True),
        Column("LIFE", lambda row: Span(row.life, "dim"), drop=6),
        Column("RESTARTS", lambda row: Span(row.restarts, "warn"), drop=3, right=True),
        Column("PID", lambda row: Span(row.pid), drop=1, right=True),
        Column("GPUS", lambda row: Span(row.gpus), drop=4),
        Column("KIND", lambda row: Span(row.kind, "dim"), drop=7),
        Column("IN FLIGHT", lambda row: Span(str(row.inflight or "")), drop=5, right=True),
        Column("REQUESTS", lambda row: Span(str(row.requests or "")), drop=8, right=True),
    ]
    if with_model:
        columns.append(Column("MODEL", lambda row: Span(row.model, "dim"), drop=9))
    return columns
