"""The daemon: one process, one loop, one mailbox.

This file is wiring, top to bottom: who is given whom. The order of the start matters and is the
only thing decided here. The lock comes first, so that there is never a second daemon; old zygotes
are ended before the run directory is read, so that no spawn slips in behind the scan; what lives
is adopted before the control socket opens, so that a worker's first beat finds its unit.

A programmer's error in the loop ends the daemon, loudly: one that goes on with half a decision
would wait for ever for what it never ordered. Workers live on, and the next daemon adopts them.
"""

import asyncio
import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from orchestrator import __version__
from orchestrator.core import events
from orchestrator.core.adopt import SCHEMA, Saved
from orchestrator.core.adopt import encode as encode_saved
from orchestrator.core.inventory import Inventory
from orchestrator.core.state import Phase, State
from orchestrator.daemon import takeover
from orchestrator.daemon.adoption import Adoption
from orchestrator.daemon.checks import Checks
from orchestrator.daemon.control import Control
from orchestrator.daemon.deployment import Deployment
from orchestrator.daemon.deployments import Deployments, write_atomically, write_over
from orchestrator.daemon.failures import Failures
from orchestrator.daemon.foreground import Foreground
from orchestrator.daemon.gate import GpuGate
from orchestrator.daemon.hearing import Hearing
from orchestrator.daemon.launcher import Launcher
from orchestrator.daemon.machine import machine
from orchestrator.daemon.notices import Notices
from orchestrator.daemon.nursery import Nursery
from orchestrator.daemon.port_desk import PortDesk
from orchestrator.daemon.preflight import Preflight
from orchestrator.daemon.prober import Prober
from orchestrator.daemon.publisher import Publisher
from orchestrator.daemon.reading import FAILED, RefusedError
from orchestrator.daemon.snapshot import headline
from orchestrator.daemon.stalls import Stalls
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.systemd import Systemd
from orchestrator.daemon.unit import Unit
from orchestrator.daemon.verbs import Verbs
from orchestrator.host import procfs
from orchestrator.host.fault_points import reached
from orchestrator.host.gpu_provider import provider
from orchestrator.host.journal import Journal
from orchestrator.host.lane import Lane, LateError
from orchestrator.host.port_table import PortTable
from orchestrator.host.reaper import Reaper
from orchestrator.host.records import Said
from orchestrator.host.rundir import RunDir, StateDir
from orchestrator.wire.ids import LifeId, ReplicaId
from orchestrator.wire.messages import FromWorker, Reply, Verb
from orchestrator.wire.snapshot import DaemonStatus, Snapshot
from orchestrator.wire.sockets import Context

FIRST_S = 20.0
"""An on-demand daemon that nobody has asked for anything ends this much after its start."""

LIST_S = 60.0
"""How long the driver may take to say which GPUs there are, where it must be loaded first."""

IDLE_S = 1.0
"""Where nothing is up, it ends this much after the last verb."""


def say(ready_fd: int, text: str) -> None:
    """Tell whoever waits for us, if anybody does."""
    if ready_fd >= 0:
        with contextlib.suppress(OSError):  # nobody waits any more
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
        self._serving = False
        self._asked = self._arriving = 0
        self._unasked: asyncio.TimerHandle | None = None
        self._end_asked = 0
        self._bug: BaseException | None = None
        self._foreground = Foreground()
        self._watched: dict[str, list[int]] = {}
        self._systemd = Systemd(os.environ, lambda: headline(self._deployments.statuses()))
        self._context: Context = zmq.Context()
        self._reaper = Reaper()
        self._nursery = Nursery(run_dir, state_dir, self._reaper, self._preloaded, self._lineages)
        self._publisher = Publisher(
            self._context, f"ipc://{run_dir.events}", Journal(state_dir.journal)
        )
        self._control = Control(
            self._context, f"ipc://{run_dir.control}", self._hear, self._answer, self._unreadable
        )
        self._ports = PortTable(run_dir.ports, write_atomically, self._wanted_ports)
        self._desk = PortDesk(self._ports, self._moved)
        self._launcher = Launcher(
            run_dir, self._nursery.zygote, self._reaper, self._control, self._post,
            ports=self._desk, on_said=self._said,
        )  # fmt: skip
        self._supervisor = Supervisor(self._launcher, self._save, self._publisher, self)
        self._deployments = Deployments(
            run_dir, state_dir, self._supervisor, self._publisher, self._end_if_idle,
            on_forgotten=self._forgotten,
        )  # fmt: skip
        self._stalls = Stalls(self._supervisor, self._publisher)
        self._hearing = Hearing(
            self._supervisor, self._deployments.greeted, self._deployments.applied
        )
        self._checks = Checks(run_dir, self._nursery.zygote, self._reaper)
        self._prober = Prober(self._supervisor, self._checks)
        self._notices = Notices(self._supervisor)
        self._driver = Lane("the GPU driver (NVML)")
        self._gate = GpuGate(
            provider(os.environ), self._driver, run_dir=run_dir, units=self._supervisor.units,
            lives=self._launcher.lives, tell=self._supervisor.tell, publisher=self._publisher,
        )  # fmt: skip
        self._failures = Failures(
            state_dir.failures, run_dir.owed, self._gate.memory, self._not_saved
        )
        self._verbs = Verbs(
            self._supervisor, self._deployments, self.status, self._watch, self._machine,
            preflight=Preflight(self._nursery.zygote, self._checks).complaints,
        )  # fmt: skip

    # The knots: these need somebody who is made later.

    def _post(
        self, replica: ReplicaId, event: events.Event, then: Callable[[], None] | None = None
    ) -> None:
        self._supervisor.post(replica, event, then)

    async def _machine(self) -> Inventory:
        try:
            return await self._driver.call(machine, LIST_S)
        except LateError as late:
            raise RefusedError(FAILED, f"the GPUs can't be listed: {late}") from late

    def _wanted_ports(self) -> set[int]:
        return {port for found in self._deployments.by_name.values() for port in found.ports}

    def _lineages(self) -> set[tuple[str, str]] | None:
        return None if self._asked else self._deployments.lineages()

    def _forgotten(self, replica: ReplicaId) -> None:
        self._desk.forget(replica)
        self._nursery.review()

    def _preloaded(self, detail: dict[str, str]) -> None:
        self._publisher.event("daemon", "preloaded", detail=detail)

    def _moved(self, life: LifeId, reason: str, detail: dict[str, str]) -> None:
        self._publisher.event(life, "port-moved", reason=reason, detail=detail)

    def _said(self, unit: Unit, life: LifeId, said: Said) -> None:
        self._notices.take(unit, life, said)

    def changed(self, unit: Unit, before: State) -> None:
        """See `Deployments.changed`, and `Launcher.note_shared_memory` of an engine just ready."""
        self._deployments.changed(unit, before)
        self._stalls.changed(unit)
        if Phase.READY is unit.state.phase is not before.phase:
            self._launcher.note_shared_memory(unit)
        self._gate.changed(unit, before)
        self._systemd.changed()
        self._prober.changed(unit)
        self._notices.changed(unit)
        self._failures.changed(unit, before)

    def respecified(self, unit: Unit) -> None:
        """See `Launcher.limit_logs` and `Nursery.review`."""
        self._launcher.limit_logs(unit)
        self._nursery.review()

    def settled(self, unit: Unit) -> None:
        """See `Deployments.settled`."""
        self._deployments.settled(unit)

    def _hear(self, life: LifeId, message: FromWorker) -> None:
        self._hearing.take(self._control, life, message)

    def _unreadable(self, life: LifeId, error: str) -> None:
        self._publisher.event(life, "not-understood", reason=f"another version's worker? {error}")

    async def _answer(self, verb: Verb) -> Reply | None:
        if self._over.is_set():
            return None  # read in the same pass that ended us: it is asked again, of the next one
        if verb.name == takeover.ASK:
            return self._hand_over()
        if self._unasked is not None:
            self._unasked.cancel()  # an idle daemon has no timer at all
            self._unasked = None
        arrives = verb.name == "up"  # it takes a while, and the daemon may not end meanwhile
        self._arriving += arrives
        self._asked += 1
        reloads = arrives and bool(self._deployments.by_name)
        if reloads:
            self._systemd.reloading()
        try:
            return await self._verbs.answer(verb)
        finally:
            self._arriving -= arrives
            self._asked -= 1
            self._nursery.review()
            if reloads:
                self._systemd.ready()
            if not self._deployments.by_name:
                asyncio.get_running_loop().call_later(IDLE_S, self._end_if_idle)

    def _hand_over(self) -> Reply:
        """End for another daemon's sake; workers aren't touched."""
        if self._end_asked or self._arriving:
            busy = "it is ending" if self._end_asked else "it is answering an `up`"
            return Reply(code=1, text=f"{busy}; try again")
        takeover.announce(self._run_dir.handover)
        self._supervisor.freeze()
        self._control.pause()
        self._over.set()
        inherited = takeover.Inherited(
            pid=os.getpid(),
            version=__version__,
            on_demand=self._on_demand,
            watched={name: self._watched.get(name, []) for name in self._deployments.by_name},
        )
        return Reply(code=0, data=msgspec.to_builtins(inherited))

    def _end_if_idle(self) -> None:
        """End where nothing is up and nothing is coming: only a daemon that was told to stay stays.

        Verbs that come now aren't read any more; they find out that we are gone and ask the next.
        """
        busy = self._deployments.by_name or self._arriving
        if self._on_demand and self._serving and not busy:
            self._control.pause()
            self._over.set()

    def _save(self, replica: ReplicaId, state: State) -> None:
        """Write a state down. A full disk stops nothing: the next daemon finds an older state."""
        try:
            write_over(
                self._run_dir.replica(replica), encode_saved(Saved(self._boot, state, SCHEMA))
            )
        except OSError as error:
            self._not_saved(replica, str(error))

    def _not_saved(self, replica: ReplicaId, error: str) -> None:
        self._publisher.event(replica, "not-saved", reason=error)

    async def serve(self, ready_fd: int, inherited: takeover.Inherited | None = None) -> int:
        """Adopt what lives, answer verbs, until it is over.

        `inherited`: what the daemon before told us, if we took over from one.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._failed)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked_to_end)
        self._reaper.start()
        self._publisher.start()
        await self._nursery.end_old()
        reached("adoption.old-zygotes-ended")
        self._nursery.zygote("bare")
        adoption = Adoption(
            self._run_dir, self._deployments, self._supervisor, self._launcher, self._reaper
        )
        for trouble in await adoption.run():
            self._publisher.event("daemon", "not-adopted", reason=trouble)
        reached("adoption.over")
        self._control.start()
        self._hearing.watch_adopted()
        self._prober.watch_adopted()
        self._notices.watch_adopted()
        self._gate.begin()
        self._failures.begin()
        self._publisher.event("daemon", "started", detail={"pid": str(os.getpid())})
        self._serving = True
        self._run_dir.handover.unlink(missing_ok=True)
        if inherited is not None:
            self._take_up(inherited)
        if self._end_asked:
            self._end_all()
        self._unasked = loop.call_later(FIRST_S, self._end_if_idle)
        reached("daemon.serving")
        say(ready_fd, "ready")
        self._systemd.ready()
        await self._over.wait()
        try:
            return await self._end()
        except OSError as error:  # told in the log only: the descriptor may be another's by now
            traceback.print_exception(error)
            return 1

    async def _end(self) -> int:
        self._publisher.event(
            "daemon", "ended", reason=_bug(self._bug), detail={"pid": str(os.getpid())}
        )
        await self._failures.close()
        self._gate.close()
        self._foreground.close()
        self._systemd.close()
        self._prober.close()
        self._notices.close()
        await self._checks.close()
        await self._control.stop()
        await self._nursery.close()
        self._ports.close()
        self._publisher.stop()
        self._reaper.stop()
        self._context.destroy(linger=200)
        for socket in (self._run_dir.control, self._run_dir.events):
            socket.unlink(missing_ok=True)
        return 1 if self._bug else 0

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something in the loop raised. A callback of ours: it is over (see the module's text)."""
        error = context.get("exception")
        if error is None or "handle" not in context:
            loop.default_exception_handler(context)
            return
        traceback.print_exception(error)
        self._bug = self._bug or error
        self._over.set()

    def _asked_to_end(self) -> None:
        """SIGTERM and Ctrl-C end the topologies in order, then the daemon; a second one hastens."""
        self._on_demand = True
        self._end_asked += 1
        self._systemd.stopping()
        if self._serving:
            self._end_all()

    def _end_all(self) -> None:
        for found in list(self._deployments.by_name.values()):
            self._deployments.begin_down(found, at_once=self._end_asked > 1)
        self._end_if_idle()

    def _watch(self, found: Deployment, pid: int) -> None:
        """Take a topology down when the foreground `up` that asked for it has ended."""
        self._watched.setdefault(found.name, []).append(pid)
        self._foreground.watch(pid, lambda: self._abandoned(found))

    def _take_up(self, inherited: takeover.Inherited) -> None:
        """Go on with what only the old daemon's memory held."""
        detail = {"pid": str(inherited.pid), "version": inherited.version}
        self._publisher.event("daemon", "replaced", detail=detail)
        for name, pids in inherited.watched.items():
            found = self._deployments.by_name.get(name)
            if found is not None:
                for pid in pids:
                    self._watch(found, pid)

    def _abandoned(self, found: Deployment) -> None:
        # It may be down meanwhile, and another of its name be up.
        if self._deployments.by_name.get(found.name) is found and not found.going_down:
            self._publisher.event(found.name, "abandoned", reason="its foreground `up` has ended")
            self._deployments.begin_down(found, at_once=False)

    def status(self) -> dict[str, Any]:
        """The snapshot, as plain data."""
        topologies = self._deployments.statuses()
        daemon = DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            run_dir=str(self._run_dir.root),
            state_dir=str(self._state_dir.root),
            uptime_s=time.monotonic() - self._started_at,
            on_demand=self._on_demand,
        )
        plain: dict[str, Any] = msgspec.to_builtins(Snapshot(daemon=daemon, topologies=topologies))
        return plain


def _bug(error: BaseException | None) -> str:
    """One line about what nobody foresaw."""
    if error is None:
        return ""
    return f"{type(error).__name__}: {error} (a bug in dynorch); what runs goes on without a daemon"
