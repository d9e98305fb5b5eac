"""What /proc says about processes, and nothing that it doesn't.

Three rules keep these answers honest. A process is `(pid, starttime)`, because a pid alone may be
somebody else by the time it is used. A zombie isn't alive: it holds nothing, runs nothing and only
waits to be reaped. And every answer may be out of date when it arrives, so "no such process" is an
ordinary result, never an exception.
"""

import os

READ_MAX = 1 << 16
"""One read of a small /proc file; a command line longer than this is cut."""


class Stat:
    """One line of /proc/PID/stat. `starttime` is in clock ticks since boot."""

    __slots__ = ("name", "pgid", "pid", "ppid", "sid", "starttime", "state")

    def __init__(self, pid: int, line: bytes) -> None:
        head, _, tail = line.rpartition(b")")
        fields = tail.split()
        self.pid = pid
        self.name = head.partition(b"(")[2].decode("utf-8", "replace")
        self.state = fields[0].decode()
        self.ppid = int(fields[1])
        self.pgid = int(fields[2])
        self.sid = int(fields[3])
        self.starttime = int(fields[19])

    @property
    def alive(self) -> bool:
        """Neither a zombie nor already being dismantled."""
        return self.state not in "ZX"


def read(path: str, limit: int = READ_MAX) -> bytes | None:
    """Return at most `limit` bytes of a /proc file; None when the process or right is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    chunks = []
    try:
        while limit > 0:
            chunk = os.read(fd, limit)
            if not chunk:
                break
            chunks.append(chunk)
            limit -= len(chunk)
    except OSError:
        return None
    finally:
        os.close(fd)
    return b"".join(chunks)


def link(path: str) -> str:
    """Where a /proc link points; empty when it or our right to read it is gone."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def stat(pid: int) -> Stat | None:
    """Look at one process, zombies included; None when there is none."""
    line = read(f"/proc/{pid}/stat", 4096)
    return Stat(pid, line) if line else None


def starttime(pid: int) -> int:
    """Clock ticks since boot at which the process started; 0 when there is none."""
    found = stat(pid)
    return found.starttime if found else 0


def identity(pid: int) -> dict[str, object]:
    """Return a process as the records name it."""
    return {"pid": pid, "starttime": starttime(pid)}


def boot_id() -> str:
    """Name of this boot of the kernel: pids, start times and monotonic clocks belong to it."""
    return (read("/proc/sys/kernel/random/boot_id", 64) or b"").decode().strip()


def pids() -> list[int]:
    """Every process that we can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def every() -> dict[int, Stat]:
    """Every process that we can see, by pid, zombies included."""
    found = {}
    for pid in pids():
        one = stat(pid)
        if one is not None:
            found[pid] = one
    return found


def children(pid: int) -> list[int] | None:
    """Return the children of all threads; None where the kernel was built without that file.

    The kernel promises completeness only for a stopped process: who needs all of them asks again.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        path = f"/proc/{pid}/task/{thread}/children"
        listing = read(path)
        if listing is None:
            if os.path.isdir(f"/proc/{pid}") and not os.path.exists(path):
                return None
            continue
        found += map(int, listing.split())
    return found


def descendants(root: int) -> list[Stat]:
    """Everything below `root`, nearest first, zombies included.

    Each one was seen to be a child of `root` or of one that was found before it, so none of them
    can be a stranger that was given a recycled pid meanwhile.
    """
    if children(os.getpid()) is None:
        return below({root}, every())
    found: dict[int, Stat] = {}
    queue = [root]
    while queue:
        for pid in children(queue.pop(0)) or ():
            one = stat(pid)
            if one and pid not in found and (one.ppid == root or one.ppid in found):
                found[pid] = one
                queue.append(pid)
    return list(found.values())


def below(roots: set[int], everything: dict[int, Stat]) -> list[Stat]:
    """Return the descendants of `roots` in a snapshot, nearest first, without the roots."""
    families: dict[int, list[Stat]] = {}
    for one in everything.values():
        families.setdefault(one.ppid, []).append(one)
    found: list[Stat] = []
    seen = set(roots)
    queue = list(roots)
    while queue:
        for one in families.get(queue.pop(0), ()):
            if one.pid not in seen:
                seen.add(one.pid)
                found.append(one)
                queue.append(one.pid)
    return found


def cmdline(pid: int) -> bytes:
    """Return the command line, its words separated by NUL; empty for zombies and kernel threads."""
    return read(f"/proc/{pid}/cmdline") or b""


def environ_has(pid: int, entry: bytes) -> bool:
    """Whether the environment area holds exactly this `NAME=value`; False when unreadable."""
    return b"\0" + entry + b"\0" in b"\0" + (read(f"/proc/{pid}/environ", 1 << 20) or b"") + b"\0"


def open_fds(pid: int | str = "self") -> list[int]:
    """Return the open descriptors of a process; of our own, without the one used to look."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    return [int(name) for name in names if link(f"/proc/{pid}/fd/{name}")]


def wait_channel(pid: int) -> str:
    """Return the kernel function a process sleeps in; empty when unknown."""
    return (read(f"/proc/{pid}/wchan", 256) or b"").decode("ascii", "replace").strip("0")
