"""Forking EngineCore instead of spawning it, and what its fork must not keep of this process.

Spawned children import torch and vLLM anew: that is most of a cold start. Forked from a process
that came from the zygote they have it all. The CPU platform insists on spawn when it makes the
configuration, so the method is set again after that.

A fork also inherits what a spawn doesn't: every open descriptor, and the signal wake-up descriptor
of our event loop. The sockets are closed in the child, or the peers of a dead host would go on
believing in it for as long as its engine lives; the wake-up descriptor is unset, or a SIGTERM sent
to EngineCore would be read by our loop too. Pipes and devices stay: they may be vLLM's own.
"""

import contextlib
import os
import signal
from pathlib import Path

METHOD_ENV = "VLLM_WORKER_MULTIPROC_METHOD"


def choose(*, preloaded: bool) -> str:
    """Return the start method for engine processes: fork where the zygote makes it worth it.

    A topology may ask for spawn; for fork only a zygote can: without its image, a fork of a
    half-initialised server is what vLLM warns of.
    """
    return "fork" if preloaded and os.environ.get(METHOD_ENV) != "spawn" else "spawn"


def insist(method: str) -> None:
    """Make vLLM use `method`, whatever it has decided since."""
    os.environ[METHOD_ENV] = method


class Hygiene:
    """Closes this process's sockets in the processes forked after `begin`."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._sockets: list[tuple[int, str]] = []

    def begin(self) -> None:
        """Remember the sockets that are open now; from here on children let go of them."""
        self._sockets = list(_sockets())
        # Hooks can't be taken back; this one does nothing once the list is empty.
        os.register_at_fork(after_in_child=self._clean)

    def end(self) -> None:
        """Leave the children that are forked from now on alone."""
        self._sockets = []

    def _clean(self) -> None:
        # Inherited further down too, where the numbers mean other files: only our own children.
        if os.getppid() != self._pid or not self._sockets:
            return
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        now = dict(_sockets())
        for fd, target in self._sockets:
            if now.get(fd) == target:
                os.close(fd)
        self._sockets = []


def _sockets() -> list[tuple[int, str]]:
    """Descriptors of sockets and event queues, with what /proc calls them."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        # The descriptor that lists them is gone by now.
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            if target.startswith(("socket:", "anon_inode:")):
                found.append((int(entry.name), target))
    return found
