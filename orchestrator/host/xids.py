"""Hearing of GPU errors when they happen: a thread that waits in the driver, and costs nothing.

NVML hands out events from a call that blocks, and nothing can interrupt it; so it is made in a
thread that does nothing else, wakes by itself each WAIT_S and looks whether anybody still wants to
hear. The daemon may end meanwhile: the thread doesn't keep it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

WAIT_S = 600.0

Errors = list[tuple[str, int]]
"""UUIDs of devices and the number of the error that they had."""


class Ear(Protocol):
    """A subscription to the errors of some GPUs."""

    def wait(self, timeout_s: float) -> Errors | str:
        """Return what happened, nothing when time is up; or why there will be nothing any more."""

    def close(self) -> None:
        """End it."""


class XidListener:
    """At most one thread that is listened to. `deaf` is told why nothing can be heard any more."""

    def __init__(
        self,
        listen: Callable[[frozenset[str]], Ear | None],
        heard: Callable[[str, int], None],
        deaf: Callable[[str], None],
    ) -> None:
        self._listen = listen
        self._heard = heard
        self._deaf = deaf
        self._wanted: frozenset[str] = frozenset()
        self._threads: dict[frozenset[str], threading.Thread] = {}

    def want(self, uuids: frozenset[str]) -> None:
        """Listen to these from now on, and to no others. In the running loop."""
        if uuids == self._wanted:
            return
        self._wanted = uuids
        self._threads = {of: each for of, each in self._threads.items() if each.is_alive()}
        if uuids and uuids not in self._threads:
            # Else one that nobody wanted for a while hasn't noticed yet, and is wanted again.
            loop = asyncio.get_running_loop()
            thread = threading.Thread(
                target=self._run, args=(uuids, loop), name="hear GPU errors", daemon=True
            )
            self._threads[uuids] = thread
            thread.start()

    def close(self) -> None:
        """Hear nothing more."""
        self._wanted = frozenset()

    def _run(self, uuids: frozenset[str], loop: asyncio.AbstractEventLoop) -> None:
        ear = self._listen(uuids)
        if ear is None:
            return
        try:
            while self._wanted == uuids:
                found = ear.wait(WAIT_S)
                with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
                    loop.call_soon_threadsafe(self._take, uuids, found)
                if isinstance(found, str):
                    return
        finally:
            ear.close()

    def _take(self, uuids: frozenset[str], found: Errors | str) -> None:
        if self._wanted != uuids:
            return
        if isinstance(found, str):
            self._deaf(found)
            return
        for uuid, number in found:
            self._heard(uuid, number)
