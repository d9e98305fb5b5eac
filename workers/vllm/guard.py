"""A process of the engine ends itself when its host is gone.

vLLM's processes outlive the process that started them, GPU memory and all, for ever. The shim sees
to it that they don't; this is for the day on which the shim is gone as well. A thread waits for the
host's end on a pidfd: no polling, no signal that depends on which thread did the fork (as
PR_SET_PDEATHSIG does). Resource trackers aren't forked by Python and have no guard: they end after
their family, and remove its shared memory.
"""

import contextlib
import os
import select
import signal
import threading
from pathlib import Path

HEAD_START_S = 2.0
"""For the shim, which does the same faster and cleans up behind it."""
GRACE_S = 5.0
"""From SIGTERM, which lets vLLM tidy up, to SIGKILL."""


def start(host: int, started: int) -> None:
    """Watch the host from a thread; `started` is its start time, so that a pid can't mislead."""
    watch = threading.Thread(target=_watch, args=(host, started), name="orphan-guard", daemon=True)
    watch.start()


def starttime(pid: int) -> int:
    """Clock ticks since boot at which a process began; 0 if there is none."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])
    return 0


def _watch(host: int, started: int) -> None:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(host)
        # Opened first and asked then: what was there before can't have become another's.
        if starttime(host) == started:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
    over = threading.Event()
    over.wait(HEAD_START_S)
    os.kill(os.getpid(), signal.SIGTERM)
    over.wait(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
