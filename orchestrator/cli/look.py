"""Verbs that only look: `status`, `top`, `logs`, `events`. None of them starts a daemon."""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from orchestrator.cli import logs as files
from orchestrator.cli.dirs import Dirs, dirs
from orchestrator.cli.main import NO_DAEMON, fail
from orchestrator.daemon.absence import NoDaemonError
from orchestrator.daemon.client import Client, decode_data
from orchestrator.host.journal import Journal
from orchestrator.views.tail import LogTail
from orchestrator.wire import events as wire_events
from orchestrator.wire.snapshot import Snapshot, encode

STATUS_S = 5.0
KNOWN_MAX = 8


def snapshot(here: Dirs) -> Snapshot:
    """The daemon's snapshot, or, without a daemon, what the shims' files tell."""
    with Client(here.run) as client:
        try:
            found: Snapshot = decode_data(client.call("status", timeout_s=STATUS_S), Snapshot)
        except NoDaemonError:
            return here.remains()
        return found


def status(*, as_json: bool) -> int:
    """Print what runs; 3 when no daemon does."""
    from orchestrator.views.status_table import print_status

    found = snapshot(dirs())
    if as_json:
        sys.stdout.write(msgspec.json.format(encode(found), indent=2).decode() + "\n")
    else:
        print_status(found, sys.stdout)
    return 0 if found.daemon.pid is not None else NO_DAEMON


def top() -> int:
    """The TUI."""
    from orchestrator.cli.live_source import LiveSource
    from orchestrator.views.top import TopApp

    if not sys.stdout.isatty():
        fail("top needs a terminal; `dynorch status` prints once")
    TopApp(LiveSource(dirs())).run()
    return 0


def logs(target: str | None, *, follow: bool, lines: int) -> int:
    """Print the ends of logs, and go on with what comes."""
    here = dirs()
    sources = files.find(here.state, target)
    if not sources:
        sources = _silent(here, target)
        if not follow:
            names = ", ".join(source.name for source in sources)
            print(f"nothing written yet by {names}", file=sys.stderr)
            return 0
    prefix = len(sources) > 1
    width = max(len(source.name) for source in sources)
    begins = [f"{source.name.ljust(width)} | " if prefix else "" for source in sources]
    if not follow:
        for begin, source in zip(begins, sources, strict=True):
            _put(begin, files.last_lines(source.path, lines))
        return 0
    tails = [LogTail(source.path, lines, skips=False) for source in sources]
    while True:
        for begin, tail in zip(begins, tails, strict=True):
            _put(begin, files.every(tail))
        sys.stdout.flush()
        files.pause()


def _silent(here: Dirs, target: str | None) -> list[files.Source]:
    """Logs of workers that have written nothing yet; who isn't known at all is the end."""
    awaited = [
        files.source_of(Path(worker.log))
        for topology in snapshot(here).topologies
        for role in topology.supervised
        for replica in role.replicas
        for worker in replica.workers
        if worker.log
    ]
    found = [each for each in awaited if target is None or files.matches(each.name, target)]
    if not found:
        names = [source.name for source in [*files.find(here.state, None), *awaited]]
        if not names:
            fail(f"no logs yet in {here.state}/logs")
        more = f" and {len(names) - KNOWN_MAX} more" if len(names) > KNOWN_MAX else ""
        known = ", ".join(names[:KNOWN_MAX])
        fail(f"no log of {target} in {here.state}/logs; there are: {known}{more}")
    return found


def _put(begin: str, lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{begin}{line}\n")


def events(*, follow: bool, lines: int, as_json: bool) -> int:
    """Print the journal's end, and go on with what comes."""
    from orchestrator.views.event_line import event_text

    def put(found: list[wire_events.Event]) -> None:
        for event in found:
            plain = wire_events.encode_line(event).decode()
            print(plain if as_json else event_text(event, date=True))
        sys.stdout.flush()

    here = dirs()
    journal = here.journal
    position = journal.end()
    shown = last_events(journal, lines)
    put(shown)
    if not shown and lines and sys.stderr.isatty():
        print(f"no events yet in {here.state}", file=sys.stderr)
    while follow:
        # The journal has all of them, whichever daemon wrote it; the stream may drop some.
        put([event for event in _events(journal.follow(position)) if event not in shown])
        files.pause()
    return 0


def verify() -> int:
    """Decide again what the journal holds; 1 where something comes out otherwise."""
    from orchestrator.daemon.publisher import replay

    done = replay(dirs().journal.every())
    for line in done.wrong:
        print(line)
    if done.differences:
        fail(f"{done.differences} of {done.checked} decisions come out otherwise than recorded")
    gaps = f"; {done.skipped} can't be checked: what led to them is missing" if done.skipped else ""
    print(f"{done.checked} decisions replayed, all as recorded{gaps}")
    return 0


def last_events(journal: Journal, count: int) -> list[wire_events.Event]:
    """The journal's last events."""
    return _events(journal.last(count))


def _events(lines: Iterable[bytes]) -> list[wire_events.Event]:
    from orchestrator.daemon.publisher import decode_record

    found = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):  # torn by a power loss, or another version's
            found.append(decode_record(line).e)
    return found
