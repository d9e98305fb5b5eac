"""One daemon per run directory.

The lock is the kernel's (`flock`), so a daemon that was killed holds nothing, and a stale file
after a power loss never blocks a start. Its holder is written inside as pid and start time for
whoever wants to know without disturbing: looking takes no lock.
"""

import fcntl
import os
import select
import time
from pathlib import Path

import msgspec

from orchestrator.host.identity import Identity

DYING_S = 2.0
LOOK_S = 0.005


class HeldError(Exception):
    """Another daemon has it; the text names its pid."""


class DaemonLock:
    """The right to be the daemon of a run directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> None:
        """Take it, or raise HeldError.

        Held by nobody who lives, it is waited for a moment: a daemon that was killed is dead at
        once, but its last thread may take milliseconds to go, and the lock goes with that.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        patience = time.monotonic() + DYING_S
        while not _locked(fd):
            pid = holder(self._path)
            if pid or time.monotonic() > patience:
                os.close(fd)
                who = f"pid {pid}" if pid else "a process that is just starting"
                raise HeldError(f"another daemon runs in {self._path.parent}: {who}")
            select.select((), (), (), LOOK_S)
        self._fd = fd
        self._write(msgspec.json.encode(Identity.of(os.getpid())))

    def release(self) -> None:
        """Give it back. The file stays: removing it would let two daemons hold two locks."""
        if self._fd >= 0:
            self._write(b"{}")
            os.close(self._fd)
            self._fd = -1

    def _write(self, text: bytes) -> None:
        """Write over what is there, without letting go of its block: the disk may be full."""
        os.pwrite(self._fd, text.ljust(os.fstat(self._fd).st_size), 0)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(path: Path) -> int | None:
    """Return the pid of the daemon that runs; None when none does."""
    try:
        identity = msgspec.json.decode(path.read_bytes(), type=Identity)
    except (OSError, msgspec.MsgspecError):
        return None
    return identity.pid if identity.is_alive() else None
