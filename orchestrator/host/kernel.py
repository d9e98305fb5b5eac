"""What the kernel knows about an end and nobody writes into a log.

A process that the kernel kills for want of memory gets a SIGKILL like any other and can't say a
word. But the kernel counts: per cgroup (v2, `memory.events`) and for the whole machine
(`/proc/vmstat`). A shim looks at the start of a life and after its end; a count that rose in
between, and a SIGKILL that nobody of ours sent, are one and the same story. Likewise a SIGBUS and
a full /dev/shm: memory that was promised there couldn't be given.

Standard library only: shims hold this. Whatever can't be read is None or 0, never an error.
"""

import os
import resource  # noqa: F401 - `os.wait4` imports it; in the zygote once, not in every shim's end

from orchestrator.host import procfs
from orchestrator.host.shm import ROOT as SHM

CGROUPS = "/sys/fs/cgroup"
COUNT_MAX = 64 << 10
"""Bytes read of a file of counters; /proc/vmstat has 5 KB."""


class Counts:
    """OOM kills so far: in our cgroup, and on this machine; None what can't be read."""

    __slots__ = ("cgroup", "machine")

    def __init__(self, proc: str = "/proc", cgroups: str = CGROUPS) -> None:
        folder = _own_cgroup(proc, cgroups)
        self.cgroup = _counter(f"{folder}/memory.events", b"oom_kill ") if folder else None
        self.machine = _counter(f"{proc}/vmstat", b"oom_kill ")


class Notes:
    """What is noted of one life, from its first process to after its last."""

    __slots__ = ("_before", "_rss_bytes", "_shm")

    def __init__(self) -> None:
        self._before: Counts | None = None
        self._rss_bytes = 0
        self._shm: tuple[int, int] | None = None

    def begin(self) -> None:
        """Look at the counts as they are now: when the worker runs, for nobody waits then."""
        self._before = Counts()

    def wait(self) -> tuple[int, int]:
        """`os.waitpid(-1, os.WNOHANG)`, taking note of what the dead one (and its own) had held."""
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid:
            self._rss_bytes = max(self._rss_bytes, usage.ru_maxrss << 10)
        return pid, status

    def main_gone(self) -> None:
        """Look at /dev/shm now: what the tree leaves there is about to be removed."""
        self._shm = shm()

    def record(self) -> dict[str, object]:
        """Return all of it for the exit record."""
        after = Counts()
        kills, in_cgroup = risen(self._before or after, after)
        size, free = self._shm or (0, None)
        return {
            "oom_kills": kills,
            "oom_in_cgroup": in_cgroup,
            "memory_limit_bytes": memory_limit() if in_cgroup else 0,
            "rss_peak_bytes": self._rss_bytes,
            "shm_bytes": size,
            "shm_free_bytes": free,
        }


def shm() -> tuple[int, int] | None:
    """Return size and free bytes of /dev/shm; None where there is none."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def risen(before: Counts, after: Counts) -> tuple[int | None, bool]:
    """By how much the kernel's count rose, and whether our own cgroup's did."""
    rises = [
        None if old is None or new is None else max(0, new - old)
        for old, new in ((before.cgroup, after.cgroup), (before.machine, after.machine))
    ]
    own, all_of_them = rises
    if own:
        return own, True
    return (own if all_of_them is None else all_of_them), False


def memory_limit(proc: str = "/proc", cgroups: str = CGROUPS) -> int:
    """Return the smallest limit of our cgroup and those above it; 0 for none."""
    folder, limits = _own_cgroup(proc, cgroups), []
    while folder and len(folder) >= len(cgroups):
        text = procfs.read(f"{folder}/memory.max", 64) or b""
        if text.strip().isdigit():
            limits.append(int(text))
        folder = os.path.dirname(folder)
    return min(limits, default=0)


def _own_cgroup(proc: str, cgroups: str) -> str:
    """Return the directory of our cgroup in the unified hierarchy; empty where there is none."""
    for line in (procfs.read(f"{proc}/self/cgroup", COUNT_MAX) or b"").splitlines():
        if line.startswith(b"0::"):
            folder = cgroups + line[3:].decode("utf-8", "replace").rstrip("/")
            return folder if os.path.exists(f"{folder}/memory.events") else ""
    return ""


def _counter(path: str, name: bytes) -> int | None:
    for line in (procfs.read(path, COUNT_MAX) or b"").splitlines():
        if line.startswith(name):
            return int(line[len(name) :])
    return None
