"""Where a live view gets its facts, and when it looks again.

The TUI is written against `Source`, so a test can feed it a made-up deployment, and a daemon that
dies is the source's business: it then answers with a snapshot whose daemon has no pid, and with
the daemon's own again once one is back.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from orchestrator.wire.events import Event
from orchestrator.wire.messages import Reply
from orchestrator.wire.snapshot import Snapshot

GAP_S = 0.25
"""However many events come, no more than four looks a second."""

TICK_S = 1.0
"""Counters have no events: look at least this often."""


class Tail(Protocol):
    """A log that is followed; see `tail.LogTail`."""

    def read(self) -> list[str]:
        """Return the lines since the last call, at first the end of the file. Must not block."""


class Source(Protocol):
    """A daemon, or what is left of one."""

    async def snapshot(self) -> Snapshot:
        """Say what is. Without a daemon: `daemon.pid` is None. TimeoutError if it is silent."""

    def events(self) -> AsyncIterator[Event]:
        """Say what happened last, and what happens. Outlives daemons: it waits for the next one."""

    async def verb(self, name: str, args: dict[str, Any]) -> Reply:
        """Do something. A refusal, or the lack of a daemon, is a reply whose `code` isn't 0."""

    def log_tail(self, path: str, n: int) -> Tail:
        """Follow a log from its last `n` lines on."""


class Pace:
    """Decides when to look again: soon after a nudge, but never sooner than GAP_S, else TICK_S."""

    def __init__(self, gap_s: float = GAP_S, tick_s: float = TICK_S) -> None:
        assert gap_s <= tick_s, (gap_s, tick_s)
        self._gap_s = gap_s
        self._rest_s = tick_s - gap_s
        self._nudged = asyncio.Event()

    def nudge(self) -> None:
        """Something happened."""
        self._nudged.set()

    async def wait(self) -> None:
        """Return when it is time for the next look."""
        await asyncio.sleep(self._gap_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rest_s):
                await self._nudged.wait()
        self._nudged.clear()
