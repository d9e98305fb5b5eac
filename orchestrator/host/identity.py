"""Which process is meant, for as long as anybody wants to mean it.

A pid names a process only while its parent hasn't reaped it. For what is ours we hold a pidfd; what
is written down is `(boot_id, pid, starttime)`, and it becomes a pidfd again before it is signalled.
"""

import os
import select
import signal
from typing import Self

import msgspec

from orchestrator.host import prctl, procfs


class Identity(msgspec.Struct, frozen=True):
    """One process of one boot. `starttime` is in clock ticks since that boot."""

    boot_id: str
    pid: int
    starttime: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the identity of a process that is known to be the one meant now."""
        return cls(procfs.boot_id(), pid, procfs.starttime(pid))

    def is_alive(self) -> bool:
        """Whether this very process runs; a zombie doesn't."""
        now = procfs.stat(self.pid)
        return (
            now is not None
            and now.alive
            and now.starttime == self.starttime
            and self.boot_id == procfs.boot_id()
        )

    def open(self) -> int | None:
        """Return a pidfd, which the caller closes; None when the process is gone."""
        if not self.is_alive():
            return None
        try:
            pidfd = prctl.pidfd_open(self.pid)
        except OSError:
            return None
        # Between the look and the opening it may have died and its pid been given away.
        if self.is_alive():
            return pidfd
        os.close(pidfd)
        return None

    def kill(self, within_s: float) -> bool:
        """SIGKILL it and wait until it is dead; False when it still isn't after this time."""
        pidfd = self.open()
        if pidfd is None:
            return True
        try:
            prctl.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(int(within_s * 1000)))
        except ProcessLookupError:
            return True
        finally:
            os.close(pidfd)
