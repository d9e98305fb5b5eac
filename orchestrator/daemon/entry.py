"""How a daemon begins: its directories, its lock, and what stands in the way of them.

The lock comes before everything else, so that there is never a second daemon; one that takes over
from another gets it from there.
"""

import asyncio
import gc
import os
import sys

import zmq

from orchestrator.daemon import takeover
from orchestrator.daemon.absence import NoDaemonError
from orchestrator.daemon.main import Daemon, say
from orchestrator.host.fault_points import reached
from orchestrator.host.gpu_provider import ProviderError
from orchestrator.host.lock import DaemonLock, HeldError
from orchestrator.host.rundir import (
    DirectoryError,
    RunDir,
    StateDir,
    default_run_dir,
    default_state_dir,
)
from orchestrator.host.zygote_link import ZygoteError

GARBAGE = (700, 10, 10)
"""Python's own thresholds; the command line has others."""


def told_to_go(go_fd: int) -> bool:
    """Wait for the word of whoever started us ahead of time: where our log is. False: for nothing.

    Until then we have touched nothing.
    """
    log = b""
    while piece := os.read(go_fd, 4096):
        log += piece
    os.close(go_fd)
    if log:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    return bool(log)


def run(*, on_demand: bool, ready_fd: int, replace: bool = False) -> int:
    """Run until told to end; `on_demand`: until the last topology is down. Returns the status.

    `ready_fd`: where to say "ready", or why not, to whoever started us. `replace`: take over from
    the daemon that runs.
    """
    inherited = None
    gc.freeze()  # what was imported stays, and is no garbage: it needn't be looked at again
    gc.set_threshold(*GARBAGE)
    if ready_fd >= 0:
        os.set_inheritable(ready_fd, False)  # a zygote that holds it would keep our starter waiting
    try:
        run_dir = RunDir(default_run_dir(os.environ))
        state_dir = StateDir(default_state_dir(os.environ))
        lock = DaemonLock(run_dir.lock)
        if replace:
            run_dir.check()
            inherited = takeover.take_over(run_dir, lock)
            on_demand = inherited.on_demand
        run_dir.create()
        state_dir.create()
        if not replace:
            lock.acquire()
        reached("daemon.locked")
    except (DirectoryError, HeldError, OSError, takeover.TakeoverError) as refused:
        return _refuse(ready_fd, refused)
    except NoDaemonError:
        return _refuse(ready_fd, takeover.TakeoverError("no daemon runs that could be replaced"))
    try:
        daemon = Daemon(run_dir, state_dir, on_demand=on_demand)
        return asyncio.run(daemon.serve(ready_fd, inherited))
    except (ZygoteError, ProviderError, zmq.ZMQError, OSError) as unfit:
        return _refuse(ready_fd, unfit)
    finally:
        lock.release()


def _refuse(ready_fd: int, why: Exception) -> int:
    """One line for whoever waits, and for the log."""
    say(ready_fd, str(why))
    sys.stderr.write(f"{why}\n")
    return 1
