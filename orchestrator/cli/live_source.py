"""The facts behind `top`: a daemon when there is one, else what the shims' files tell.

The client blocks, the TUI mustn't, so each question is asked in a thread. Events need none: their
socket is read from the loop, and it finds the next daemon by itself, because that one binds the
same path.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from orchestrator.cli.dirs import Dirs
from orchestrator.cli.main import NO_DAEMON
from orchestrator.daemon.client import Client, DaemonSilentError, NoDaemonError, decode_data
from orchestrator.views.source import Tail
from orchestrator.views.tail import LogTail
from orchestrator.wire.events import Event, decode
from orchestrator.wire.messages import Reply
from orchestrator.wire.snapshot import Snapshot
from orchestrator.wire.sockets import Reader

LOOK_S = 3.0
EVENTS_MAX = 1_000
"""Events not shown yet; further ones are dropped here, and stay in the journal."""


class LiveSource:
    """A `views.source.Source` over this user's directories."""

    def __init__(self, here: Dirs) -> None:
        self._here = here
        self._client = Client(here.run)

    async def snapshot(self) -> Snapshot:
        """Ask the daemon, or look at what it left. Raises TimeoutError when it is silent."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> Snapshot:
        try:
            reply = self._client.call("status", timeout_s=LOOK_S)
        except NoDaemonError:
            return self._here.remains()
        except DaemonSilentError as silent:
            raise TimeoutError(str(silent)) from silent
        found: Snapshot = decode_data(reply, Snapshot)
        return found

    async def events(self) -> AsyncIterator[Event]:
        """Yield what happens from now on, under this daemon and the next."""
        socket = self._client.subscribe().socket
        arrived: asyncio.Queue[Event] = asyncio.Queue(EVENTS_MAX)

        def received(frames: list[bytes]) -> None:
            # What another version says may be unreadable; the snapshot will still tell.
            with contextlib.suppress(asyncio.QueueFull, msgspec.MsgspecError):
                arrived.put_nowait(decode(frames[-1]))

        reader = Reader(socket, received)
        reader.start()
        try:
            while True:
                yield await arrived.get()
        finally:
            reader.stop()
            socket.close()

    async def verb(self, name: str, args: dict[str, Any]) -> Reply:
        """Ask for something to be done; whatever goes wrong is a reply too."""
        try:
            return await asyncio.to_thread(self._client.call, name, **args)
        except NoDaemonError:
            return Reply(code=NO_DAEMON, text="no daemon runs: `dynorch up FILE` starts one")
        except DaemonSilentError as silent:
            return Reply(code=1, text=str(silent))

    def log_tail(self, path: str, n: int) -> Tail:
        """Follow a log file, which needs no daemon."""
        return LogTail(path, n)
