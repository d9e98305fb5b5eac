"""The TUI's view of a daemon: snapshots, events and verbs, without ever blocking its loop.

Each question is a blocking call in a thread of its own, bounded by a timeout; events come from one
more thread that outlives daemons. So a daemon that dies, hangs or comes back changes what is shown
and nothing else.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from orchestrator.cli.dirs import Dirs
from orchestrator.cli.look import last_events
from orchestrator.daemon.absence import DaemonSilentError, NoDaemonError
from orchestrator.daemon.client import Client, decode_data
from orchestrator.views.tail import LogTail
from orchestrator.wire.events import Event
from orchestrator.wire.messages import Reply
from orchestrator.wire.snapshot import Snapshot

ANSWER_S = 2.0
EVENT_S = 0.5
EVENTS_BEFORE = 50
"""From the journal, so that `top` begins with what has happened."""


class LiveSource:
    """A `views.source.Source` over the daemon of these directories."""

    def __init__(self, here: Dirs) -> None:
        self._here = here

    async def snapshot(self) -> Snapshot:
        """Ask the daemon; without one, what its shims left. TimeoutError when it is silent."""
        return await asyncio.to_thread(self._snapshot)

    def _snapshot(self) -> Snapshot:
        with Client(self._here.run) as client:
            try:
                found: Snapshot = decode_data(client.call("status", ANSWER_S), Snapshot)
            except NoDaemonError:
                return self._here.remains()
            except DaemonSilentError as error:
                raise TimeoutError(str(error)) from error
            return found

    async def events(self) -> AsyncIterator[Event]:
        """The last events, and those from now on; the next daemon's too, without a word."""
        with Client(self._here.run) as client:
            subscription = client.subscribe()
            before = await asyncio.to_thread(last_events, self._here.journal, EVENTS_BEFORE)
            for earlier in before:
                yield earlier
            while True:
                event = await asyncio.to_thread(subscription.next, EVENT_S)
                if event is not None and event not in before:
                    yield event

    async def verb(self, name: str, args: dict[str, Any]) -> Reply:
        """Do something; the lack of a daemon is a refusal like any other."""
        return await asyncio.to_thread(self._verb, name, args)

    def _verb(self, name: str, args: dict[str, Any]) -> Reply:
        with Client(self._here.run) as client:
            try:
                return client.call(name, **args)
            except NoDaemonError:
                return Reply(code=3, text="no daemon runs")
            except DaemonSilentError as error:
                return Reply(code=1, text=str(error))

    def log_tail(self, path: str, n: int) -> LogTail:
        """Follow a log from its last `n` lines on."""
        return LogTail(path, n)
