"""The process that will be main, forked before anybody has asked for a worker.

A fork is the dearest part of a start: page tables are copied, and afterwards both sides pay for
every page that they touch first. So a spare shim makes its own fork while nobody waits. The seed
arranges itself (see `child.settle`) and sleeps in a read of a pipe. What comes there is the spawn:
then it is the worker. If the pipe ends instead, its shim is gone, or had no use for it, and it
leaves without a word.

A seed can be born in a control group, but must then execute a program (see `prctl.fork_into`), so
it fits commands alone. A worker that goes on in this image needs a plain one, which is put into its
group when it is sown. No seed fits a PID namespace. Where none fits, main is forked on the spot.
"""

import contextlib
import marshal
import os
import signal
from collections.abc import Callable

from orchestrator.host import cgroup, child, log_file, title
from orchestrator.host.enclosure import Walk
from orchestrator.host.spawn import Spawn


class Main:
    """A fork of ours. Only `pid` tells the two processes apart: it is 0 in the new one.

    `output`, `report`: where we read what it writes, and how its beginning went. `report_end`:
    where it tells that.
    """

    def __init__(self) -> None:
        self.output, self._output_end = os.pipe()
        self.report, self.report_end = os.pipe()
        self.pid = -1
        log_file.widen(self._output_end)
        for fd in (self.output, self.report):
            os.set_blocking(fd, False)

    def _part(self, parent: int, *more: int) -> None:
        """Arrange the new process, which keeps `more`; close in the old what was meant for it."""
        if self.pid == 0:
            child.settle(parent, self._output_end, (self.report_end, *more))
            return
        for fd in (self._output_end, self.report_end, *more):
            os.close(fd)


class Instant(Main):
    """It is forked when it is known what it will be."""

    def __init__(self, enclosure: Walk) -> None:
        super().__init__()
        self.pid = enclosure.fork()
        self._part(enclosure.parent)


class Seed(Main):
    """It is forked before. `group`: the control group that it was born in, made for it."""

    def __init__(self, home: str, fork: Callable[[], int] = os.fork) -> None:
        """`home`: where groups may be made; empty where none is to be."""
        super().__init__()
        self._wait_end, self._go = os.pipe()
        self.group = ""
        shim = os.getpid()
        group = f"{home}/{cgroup.PREFIX}{shim}-{os.urandom(4).hex()}" if home else ""
        pid = self._fork_into(group)
        self.pid = fork() if pid is None else pid
        self._part(shim, self._wait_end)

    def _fork_into(self, group: str) -> int | None:
        if not group:
            return None
        try:
            cgroup.make(group)
            pid = cgroup.fork_into(group)
        except OSError:
            cgroup.remove(group)
            return None
        self.group = group
        return pid

    def wait(self) -> Spawn:
        """Wait, in the seed, until it is a worker; never returns if that doesn't come."""
        title.set_title("dynorch: spare worker")
        text = b""
        while piece := os.read(self._wait_end, 1 << 16):
            text += piece
        os.close(self._wait_end)
        if not text:
            os._exit(child.NOT_FOUND)
        return Spawn.from_fields(marshal.loads(text))  # noqa: S302 - our parent wrote it

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a shim must keep for it."""
        return (self.output, self.report, self._go)

    def fits(self, spawn: Spawn) -> bool:
        """Whether it may become this worker."""
        if spawn.tree == "cgroup" and spawn.argv:
            return bool(self.group)
        return spawn.tree != "pidns" and not self.group

    def sow(self, spawn: Spawn) -> None:
        """Let it be the worker. One that is dead will be reaped as any other main."""
        text = marshal.dumps(spawn.to_fields(), 2)
        with contextlib.suppress(BrokenPipeError):
            while text:
                text = text[os.write(self._go, text) :]
        os.close(self._go)

    def discard(self) -> None:
        """End it: it doesn't fit, or nobody will come any more."""
        os.kill(self.pid, signal.SIGKILL)  # our own child, not reaped yet
        os.waitpid(self.pid, 0)
        for fd in self.fds:
            os.close(fd)
        if self.group:
            cgroup.remove(self.group)


def rehearse(spawn: Spawn) -> None:
    """Do what a shim does with its seed, but for the fork."""
    seed = Seed("", lambda: -1)
    seed.fits(spawn)
    seed.sow(spawn)
    os.close(seed.output)
    os.close(seed.report)
