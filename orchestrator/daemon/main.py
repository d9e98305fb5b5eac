"""The daemon: one process, one loop, one mailbox.

This file is wiring, top to bottom: who is given whom. The order of the start matters and is the
only thing decided here. The lock comes first, so that there is never a second daemon; old zygotes
are ended before the run directory is read, so that no spawn slips in behind the scan; what lives
is adopted before the control socket opens, so that a worker's first beat finds its unit.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import Any

import msgspec
import zmq

from orchestrator import __version__
from orchestrator.core import events
from orchestrator.core.adopt import Saved
from orchestrator.core.adopt import encode as encode_saved
from orchestrator.core.state import State
from orchestrator.daemon import snapshot
from orchestrator.daemon.adoption import Adoption
from orchestrator.daemon.control import Control
from orchestrator.daemon.deployments import Deployments, write_atomically
from orchestrator.daemon.hearing import Hearing
from orchestrator.daemon.launcher import Launcher
from orchestrator.daemon.nursery import Nursery
from orchestrator.daemon.publisher import Publisher
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Unit
from orchestrator.daemon.verbs import Verbs
from orchestrator.host import procfs
from orchestrator.host.journal import Journal
from orchestrator.host.lock import DaemonLock, HeldError
from orchestrator.host.reaper import Reaper
from orchestrator.host.rundir import (
    DirectoryError,
    RunDir,
    StateDir,
    default_run_dir,
    default_state_dir,
)
from orchestrator.wire.ids import LifeId, ReplicaId
from orchestrator.wire.messages import FromWorker, Reply, Verb
from orchestrator.wire.snapshot import DaemonStatus, Snapshot, TopologyStatus
from orchestrator.wire.sockets import Context

REFUSED_S = 1.0
"""After a refused `up`, an on-demand daemon with nothing to do ends this much later."""


def run(*, on_demand: bool, ready_fd: int) -> int:
    """Run until told to end; `on_demand`: until the last topology is down. Returns the status.

    `ready_fd`: where to say "ready", or why not, to whoever started us.
    """
    if ready_fd >= 0:
        os.set_inheritable(ready_fd, False)  # a zygote that holds it would keep our starter waiting
    run_dir = RunDir(default_run_dir(os.environ))
    state_dir = StateDir(default_state_dir(os.environ))
    lock = DaemonLock(run_dir.lock)
    try:
        run_dir.create()
        state_dir.create()
        lock.acquire()
    except (DirectoryError, HeldError) as refused:
        _say(ready_fd, str(refused))
        sys.stderr.write(f"{refused}\n")
        return 1
    try:
        return asyncio.run(Daemon(run_dir, state_dir, on_demand=on_demand).serve(ready_fd))
    finally:
        lock.release()


def _say(ready_fd: int, text: str) -> None:
    """Tell whoever waits for us, if anybody does."""
    if ready_fd >= 0:
        with contextlib.suppress(OSError):
            os.write(ready_fd, text.encode())
        os.close(ready_fd)


class Daemon:
    """Everything that one daemon holds."""

    def __init__(self, run_dir: RunDir, state_dir: StateDir, *, on_demand: bool) -> None:
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._on_demand = on_demand
        self._boot = procfs.boot_id()
        self._started_at = time.monotonic()
        self._over = asyncio.Event()
        self._context: Context = zmq.Context()
        self._reaper = Reaper()
        self._nursery = Nursery(run_dir, state_dir, self._reaper)
        self._publisher = Publisher(
            self._context, f"ipc://{run_dir.events}", Journal(state_dir.journal)
        )
        self._control = Control(
            self._context,
            f"ipc://{run_dir.control}",
            self._hear,
            self._answer,
        )
        self._launcher = Launcher(
            run_dir, self._nursery.zygote, self._reaper, self._control.order, self._post
        )
        self._supervisor = Supervisor(self._launcher, self._save, self._publisher, self._changed)
        self._deployments = Deployments(
            run_dir, state_dir, self._supervisor, self._publisher, self._gone
        )
        self._hearing = Hearing(
            self._supervisor, self._deployments.greeted, self._deployments.applied
        )
        self._verbs = Verbs(self._supervisor, self._deployments, self.status, self._watch)

    # The knots: these four need somebody who is made later.

    def _post(self, replica: ReplicaId, event: events.Event) -> None:
        self._supervisor.post(replica, event)

    def _changed(self, unit: Unit, before: State) -> None:
        self._deployments.changed(unit, before)

    def _hear(self, life: LifeId, message: FromWorker) -> None:
        self._hearing.take(self._control, life, message)

    async def _answer(self, verb: Verb) -> Reply:
        reply = await self._verbs.answer(verb)
        if verb.name == "up" and reply.code:
            # Started for an `up` that was refused: don't stay for nothing.
            asyncio.get_running_loop().call_later(REFUSED_S, self._gone, "")
        return reply

    def _gone(self, _name: str) -> None:
        if self._on_demand and not self._deployments.by_name:
            self._over.set()

    def _save(self, replica: ReplicaId, state: State) -> None:
        write_atomically(self._run_dir.replica(replica), encode_saved(Saved(self._boot, state)))

    async def serve(self, ready_fd: int) -> int:
        """Adopt what lives, answer verbs, until it is over."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked_to_end)
        self._reaper.start()
        self._publisher.start()
        await self._nursery.end_old()
        self._nursery.zygote("bare")
        adoption = Adoption(
            self._run_dir, self._deployments, self._supervisor, self._launcher, self._reaper
        )
        for trouble in await adoption.run():
            self._publisher.event("daemon", "not-adopted", reason=trouble)
        self._control.start()
        self._hearing.watch_adopted()
        self._publisher.event("daemon", "started", detail={"pid": str(os.getpid())})
        _say(ready_fd, "ready")
        await self._over.wait()
        self._publisher.event("daemon", "ended", detail={"pid": str(os.getpid())})
        await self._control.stop()
        await self._nursery.close()
        self._publisher.stop()
        self._reaper.stop()
        self._context.destroy(linger=200)
        for socket in (self._run_dir.control, self._run_dir.events):
            socket.unlink(missing_ok=True)
        return 0

    def _asked_to_end(self) -> None:
        """SIGTERM and Ctrl-C end the topologies in order, then the daemon; a second one hastens."""
        again = all(found.going_down for found in self._deployments.by_name.values())
        self._on_demand = True
        for found in list(self._deployments.by_name.values()):
            self._deployments.begin_down(found, at_once=again)
        self._gone("")

    def _watch(self, topology: str, pid: int) -> None:
        """Take a topology down when the foreground `up` that asked for it has ended."""
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._abandoned(topology)
            return

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._abandoned(topology)

        loop.add_reader(pidfd, ended)

    def _abandoned(self, topology: str) -> None:
        found = self._deployments.by_name.get(topology)
        if found is not None and not found.going_down:
            self._publisher.event(topology, "abandoned", reason="its foreground `up` has ended")
            self._deployments.begin_down(found, at_once=False)

    def status(self) -> dict[str, Any]:
        """The snapshot, as plain data."""
        now = time.monotonic()
        topologies = []
        for name, found in sorted(self._deployments.by_name.items()):
            units = self._deployments.units(name)
            roles = snapshot.roles(units, now)
            topologies.append(
                TopologyStatus(
                    name=name,
                    health=snapshot.topology_health(
                        units, going_down=found.going_down, routes_version=found.routes_version
                    ),
                    reason=snapshot.worst(units),
                    file=found.kept.file,
                    engine=found.engine,
                    endpoint=found.endpoint,
                    models=snapshot.models(units, found.routes_version),
                    roles=[role for role in roles if role.kind != "process"],
                    processes=[role for role in roles if role.kind == "process"],
                )
            )
        daemon = DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            run_dir=str(self._run_dir.root),
            state_dir=str(self._state_dir.root),
            uptime_s=now - self._started_at,
            on_demand=self._on_demand,
        )
        plain: dict[str, Any] = msgspec.to_builtins(Snapshot(daemon=daemon, topologies=topologies))
        return plain
