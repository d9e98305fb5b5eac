"""Verbs that only look: `status`, `top`, `logs`, `events`. None of them starts a daemon."""

import sys
from collections.abc import Iterator

import msgspec

from orchestrator.cli import logs as files
from orchestrator.cli.dirs import Dirs, dirs
from orchestrator.cli.main import NO_DAEMON, fail
from orchestrator.daemon.absence import NoDaemonError
from orchestrator.daemon.client import Client, decode_data
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
        names = [source.name for source in files.find(here.state, None)]
        known = ", ".join(names[:KNOWN_MAX]) or "none yet"
        more = f" and {len(names) - KNOWN_MAX} more" if len(names) > KNOWN_MAX else ""
        fail(f"no log of {target or 'anything'} in {here.state}/logs; there are: {known}{more}")
    prefix = len(sources) > 1
    width = max(len(source.name) for source in sources)
    for source in sources:
        for line in files.tail(source.path, lines).splitlines():
            _put(source.name.ljust(width) if prefix else "", line)
    sys.stdout.flush()
    if follow:
        followers = [files.Follower(source, from_end=True) for source in sources]
        while True:
            for follower in followers:
                name = follower.source.name.ljust(width) if prefix else ""
                for line in follower.lines():
                    _put(name, line)
            sys.stdout.flush()
            files.pause()
    return 0


def _put(name: str, line: bytes) -> None:
    text = line.decode(errors="replace")
    sys.stdout.write(f"{name} | {text}\n" if name else f"{text}\n")


def events(*, follow: bool, lines: int, as_json: bool) -> int:
    """Print the journal's end, and go on with what comes."""
    from orchestrator.views.event_line import event_text

    here = dirs()
    for event in _journal(here, lines):
        print(wire_events.encode_line(event).decode() if as_json else event_text(event, date=True))
    sys.stdout.flush()
    if not follow:
        return 0
    with Client(here.run) as client:
        subscription = client.subscribe()
        while True:
            event_now = subscription.next(1.0)
            if event_now is not None:
                line = (
                    wire_events.encode_line(event_now).decode()
                    if as_json
                    else event_text(event_now, date=True)
                )
                print(line, flush=True)


def _journal(here: Dirs, lines: int) -> Iterator[wire_events.Event]:
    from orchestrator.daemon.publisher import decode_record

    for line in here.journal_lines(lines):
        try:
            yield decode_record(line).e
        except msgspec.DecodeError:
            continue  # torn by a power loss, or of another version
