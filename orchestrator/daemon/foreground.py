"""Watches the processes that asked for something in the foreground.

A foreground `up` holds its topology: when that process has ended, however it did, what it started
goes down. It is watched by a pidfd, so another process that gets its number later is never taken
for it.
"""

import asyncio
import os
from collections.abc import Callable


class Foreground:
    """The watched processes, one descriptor each. At most as many as verbs were answered."""

    def __init__(self) -> None:
        self._pidfds: set[int] = set()

    def watch(self, pid: int, on_end: Callable[[], None]) -> None:
        """Call `on_end` once when this process has ended; in this pass if it has already."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            on_end()
            return
        self._pidfds.add(pidfd)
        asyncio.get_running_loop().add_reader(pidfd, self._ended, pidfd, on_end)

    def _ended(self, pidfd: int, on_end: Callable[[], None]) -> None:
        self._forget(pidfd)
        on_end()

    def _forget(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self._pidfds.remove(pidfd)

    def close(self) -> None:
        """Watch nobody any more."""
        for pidfd in list(self._pidfds):
            self._forget(pidfd)
