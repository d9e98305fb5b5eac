"""The daemon's one reaper.

The daemon is a child subreaper: what outlives a shim that was killed becomes its child, and so do
the shims of a zygote that was killed. SIGCHLD wakes the loop, every exit status there is is taken
once, and each goes to whoever owns that pid. Nobody else in the daemon waits for a process, and
asyncio's own child watching isn't used.
"""

import asyncio
import os
import signal
from collections.abc import Callable

from orchestrator.host import prctl


class Reaper:
    """Owns every exit status of this process's children.

    `on_orphan(pid, status)` is called for an adopted child that nobody owns.
    """

    def __init__(self, on_orphan: Callable[[int, int], None] | None = None) -> None:
        self._on_orphan = on_orphan
        self._owners: dict[int, Callable[[int], None]] = {}

    def start(self) -> None:
        """Become a subreaper and begin, in the running loop (it must be the main thread's)."""
        prctl.become_subreaper()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def stop(self) -> None:
        """Stop reaping."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def own(self, pid: int, on_exit: Callable[[int], None]) -> None:
        """Call `on_exit(wait status)` when this child is gone.

        Call it in the same loop pass that made the child: nothing is reaped in between.
        """
        self._owners[pid] = on_exit

    def disown(self, pid: int) -> None:
        """Nobody wants to know about this child any more; it is reaped all the same."""
        self._owners.pop(pid, None)

    @property
    def owned(self) -> set[int]:
        """Children (or children to be) that somebody looks after."""
        return set(self._owners)

    def reap(self) -> None:
        """Take every exit status there is."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            owner = self._owners.pop(pid, None)
            if owner is not None:
                owner(status)
            elif self._on_orphan is not None:
                self._on_orphan(pid, status)
