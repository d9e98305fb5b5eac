"""A stand-in for the daemon: a reaper, a zygote, and lives with their events.

It owns an event loop that only turns while a test looks, so tests stay plain functions that wait
with `eventually`.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from orchestrator.host import cgroup, nest, procfs
from orchestrator.host.orphans import end_orphans
from orchestrator.host.reaper import Reaper
from orchestrator.host.records import MainExited, ShimLost, StateSeen, TreeEmpty
from orchestrator.host.rundir import RunDir
from orchestrator.host.shim_link import ShimLink
from orchestrator.host.spawn import Spawn
from orchestrator.host.zygote_link import ZygoteLink
from orchestrator.wire.ids import LifeId
from tests.eventually import eventually

SESSION = "TEST_SESSION_OF_DYNORCH"
"""The mark by which what tests leave is found, see `tests/conftest.py`."""
ZOO = str(Path(__file__).resolve().parents[1] / "zoo.py")


def zoo(kind: str, folder: Path, *more: object) -> list[str]:
    return [sys.executable, "-I", "-S", ZOO, kind, str(folder), *map(str, more)]


class Life:
    """One worker: what it was asked to be, and everything that was heard of it."""

    def __init__(self, machine: "Machine", spawn: Spawn) -> None:
        self.machine = machine
        self.spawn = spawn
        self.folder = Path(spawn.directory) / "t"
        self.log = Path(spawn.log_path)
        self.events: list[object] = []
        self.link: ShimLink | None = None
        self.shim = 0

    def follow(self) -> "Life":
        self.link = ShimLink.connect(Path(self.spawn.directory), self.heard)
        self.shim = self.link.record.shim.pid
        return self

    def heard(self, event: object) -> None:
        self.events.append(event)
        if isinstance(event, ShimLost):
            end_orphans(event.record, self.machine.reaper, self.events.append)

    def last(self, kind):
        return next((one for one in reversed(self.events) if isinstance(one, kind)), None)

    def wait_for(self, kind, within_s: float = 20.0):
        return self.machine.eventually(lambda: self.last(kind), within_s)

    def ended(self, within_s: float = 20.0) -> TreeEmpty:
        return self.wait_for(TreeEmpty, within_s)

    def running(self, count: int = 1) -> dict[str, int]:
        """Wait until so many processes of the zoo have settled; their pids by kind."""
        path = self.folder / "pids"

        def settled():
            found = path.read_text().splitlines() if path.exists() else []
            return dict(line.split() for line in found) if len(found) >= count else None

        found = {kind: int(pid) for kind, pid in self.machine.eventually(settled).items()}
        if self.machine.tree != "pidns":
            return found
        outer = {innermost(one.pid): one.pid for one in procfs.descendants(self.shim)}
        return {kind: outer[pid] for kind, pid in found.items()}

    @property
    def main(self) -> int:
        return self.wait_for(StateSeen).main.pid

    @property
    def exited(self) -> MainExited:
        return self.wait_for(MainExited)


def innermost(pid: int) -> int:
    """The pid by which a process knows itself."""
    status = (procfs.read(f"/proc/{pid}/status") or b"").decode()
    return next(
        (int(line.split()[-1]) for line in status.splitlines() if line.startswith("NSpid")), 0
    )


def skip_unless_possible(tree: str) -> None:
    """Skip, and say so, where this machine lacks what is to hold trees together."""
    if tree == "cgroup" and not cgroup.home():
        pytest.skip("NOT TESTED HERE: no writable cgroup v2; run as root or under Delegate=yes")
    if tree == "pidns" and not nest.allowed():
        pytest.skip("NOT TESTED HERE: no PID namespaces for this user; run as root")


class Machine:
    """`tree`: what holds the trees together here, see `orchestrator.host.enclosure`."""

    def __init__(self, run: RunDir | None = None, tree: str = "walk") -> None:
        self.tree = tree
        self.loop = asyncio.new_event_loop()
        self.root = run.root if run else Path(tempfile.mkdtemp(prefix="dyno"))
        self.run = run or RunDir(self.root / "r")
        self.run.create()
        self.orphans: list[tuple[int, int]] = []
        self.reaper = Reaper(lambda *gone: self.orphans.append(gone))
        self.zygote = ZygoteLink(self.reaper, self.run.record_zygote, self.root / "zygote.log")
        self.lives: list[Life] = []
        self.stand_ins: list[subprocess.Popen[bytes]] = []
        self.call(self.reaper.start)

    def call(self, function, *args):
        """Call something that needs the running loop."""

        async def inside():
            return function(*args)

        return self.loop.run_until_complete(inside())

    def turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def eventually(self, condition, within_s: float = 20.0):
        def turned():
            self.turn()
            return condition()

        return eventually(turned, within_s, every_s=0.005)

    def start_zygote(self) -> None:
        home = cgroup.home() if self.tree == "cgroup" else ""
        start = partial(self.zygote.start, home=home)
        env = {SESSION: os.environ[SESSION]} if SESSION in os.environ else {}
        self.call(start, "bare", sys.executable, env, [str(self.run.make_code())])

    def make(self, name: str = "agg/worker-0.0#1", **wanted) -> Spawn:
        life = LifeId.parse(name)
        directory = self.run.make_life(life)
        wanted.setdefault("log_path", str(self.root / f"{directory.name}.log"))
        wanted.setdefault("env", {"PATH": "/usr/bin:/bin"})
        if self.tree == "cgroup":
            group = f"dynorch-test-{directory.name}-{os.getpid()}"
            wanted.setdefault("group", f"{cgroup.home()}/{group}")
        wanted.setdefault("tree", self.tree)
        if callable(wanted.get("argv")):
            wanted["argv"] = wanted["argv"](directory / "t")
        return Spawn(life=name, nonce="test", directory=str(directory), **wanted)

    def ask(self, spawn: Spawn) -> asyncio.Future[int]:
        if not self.zygote.started and self.zygote.pid == 0 and not self.lives:
            self.start_zygote()
        return self.call(self.zygote.spawn, spawn)

    def born(self, name: str = "agg/worker-0.0#1", **wanted) -> Life:
        return self.follow(self.make(name, **wanted))

    def follow(self, spawn: Spawn) -> Life:
        """Let it be born, and listen to its shim."""
        life = Life(self, spawn)
        answer = self.ask(life.spawn)
        self.lives.append(life)
        self.eventually(answer.done)
        assert answer.result() > 0
        self.call(life.follow)
        return life

    def zoo(self, kind: str, *more: object, name: str = "agg/worker-0.0#1", **wanted) -> Life:
        return self.born(name, argv=lambda folder: zoo(kind, folder, *more), **wanted)

    def close(self) -> None:
        """Leave nothing, however the test ended."""
        for daemon in self.stand_ins:
            daemon.kill()
        for life in self.lives:
            if life.link is not None:
                self.call(life.link.kill)
        for life in self.lives:
            if life.link is not None:
                life.ended()
        self.call(self.zygote.close)
        self.eventually(lambda: not procfs.stat(self.zygote.pid) or self.zygote.pid == 0)
        self.call(self.reaper.stop)
        self.loop.close()
        shutil.rmtree(self.root, ignore_errors=True)


def alive(pids) -> list[int]:
    """Who of these still runs."""
    found = [procfs.stat(pid) for pid in pids]
    return [one.pid for one in found if one is not None and one.alive]
