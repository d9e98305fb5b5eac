"""A PID namespace around a worker's tree, with a first process that does nothing but reap.

When the first process of a namespace dies, the kernel kills everybody else in it, and nobody can
fork or flee from that. So our first process dies with its shim, and with it the tree, at once and
whole, whatever else is dead: the strictest way to hold a tree, and a privileged one (root, or a
container with CAP_SYS_ADMIN), so it must be asked for.

    shim --fork--> first process (pid 1 in there) --fork--> main --...

Main isn't the first process itself: signals that it doesn't handle would do nothing to it, SIGTERM
included, and its own death would kill the resource trackers that are to be spared. It has a /proc
of its own, where it and its children find themselves by the pids that they know; outside they have
other pids, which are the ones that we speak of. Main tells its outer one before it loses sight of
it; the first process tells how main ended.
"""

import os
import signal
import struct

from orchestrator.host import child, prctl, procfs, title, tree
from orchestrator.host.enclosure import Walk

PID = struct.Struct("=q")
STATUS = struct.Struct("=i")


CAP_SYS_ADMIN = 21


def allowed() -> bool:
    """Whether this process may make PID namespaces and mount a /proc in them."""
    for line in (procfs.read("/proc/self/status", 1 << 14) or b"").splitlines():
        if line.startswith(b"CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


class Nest(Walk):
    """See the module's text. `parent` is 1: what main sees as its parent."""

    def __init__(self, life: str) -> None:
        super().__init__()
        self._life = life
        self._first = 0

    def prepare(self) -> None:
        """Let our next child begin a namespace. PermissionError where that isn't allowed."""
        try:
            prctl.unshare(prctl.CLONE_NEWPID)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "for a PID namespace") from error
        self.parent = 1

    def fork(self) -> int:
        """Fork the first process, which forks main; return main's pid as seen from out here.

        Where there was no main (it couldn't get its /proc, say) it is the first process's pid, and
        its end is main's.
        """
        self.news, news_end = os.pipe()
        first = os.fork()
        if first == 0:
            os.close(self.news)
            return _begin(news_end, self._life)
        os.close(news_end)
        self._first = first
        told = os.read(self.news, PID.size)
        os.set_blocking(self.news, False)
        return int(PID.unpack(told)[0]) if len(told) == PID.size else first

    def members(self) -> list[procfs.Stat]:
        """Everybody but the first process: it goes by itself when it is alone."""
        return [one for one in tree.of_shim(os.getpid()) if one.pid != self._first]

    def storm(self, members: list[procfs.Stat]) -> None:  # noqa: ARG002 - all, whoever was seen
        """Kill the first process, and so all."""
        first = procfs.stat(self._first)
        if first is not None and first.ppid == os.getpid():
            tree.kill_exactly(first)

    def read_news(self) -> int | None:
        """Return how main ended."""
        try:
            told = os.read(self.news, STATUS.size)
        except BlockingIOError:
            return None
        return int(STATUS.unpack(told)[0]) if len(told) == STATUS.size else None


def _begin(news: int, life: str) -> int:
    """Be the first process. Returns 0 in main; in the first process never.

    A shim that died before we had asked to die with it has left a pipe that nobody reads: main
    can't tell its pid, and ends. The first process's own status counts only where main told none.
    """
    prctl.die_with_parent()
    try:
        prctl.unshare(prctl.CLONE_NEWNS)
        prctl.keep_mounts_private()
        main = os.fork()
        if main == 0:
            os.write(news, PID.pack(int(os.readlink("/proc/self"))))
            os.close(news)
            prctl.mount_proc()
            return 0
    except OSError as error:
        os.write(2, f"no PID namespace: {error}\n".encode())
        os._exit(child.CANNOT_EXECUTE)
    _reap(main, news, life)
    os._exit(child.CANNOT_EXECUTE)


def _reap(main: int, news: int, life: str) -> None:
    """Take every exit status until nobody is left; tell main's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.closerange(0, news)
    os.closerange(news + 1, child.DESCRIPTORS_MAX)
    title.set_title(f"dynorch: first process of {life}")
    prctl.set_name("dynorch-first")
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if pid == main:
            os.write(news, STATUS.pack(status))
