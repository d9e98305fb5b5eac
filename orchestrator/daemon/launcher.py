"""Performs what the core orders about members: spawn, drain, stop, kill.

Each order is begun here and answered by an event; nothing is decided. Two things make repeating an
order harmless: a shim signals only once however often it is told, and a life's directory is named
by its id, so a second `Spawn` of the same life finds the first.

An order may come before there is anybody to give it to: the spawn is still on its way through the
zygote. It is kept, one of each kind, and given as soon as the shim answers.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from orchestrator.core import actions, events
from orchestrator.core.adopt import Alive, Ended, Found, Nothing
from orchestrator.core.excerpt import excerpt
from orchestrator.core.plan import PlannedWorker
from orchestrator.core.worker_env import PrivateDirs, port_env, worker_env
from orchestrator.daemon.births import lineage, notify_env, path_of, worker_config
from orchestrator.daemon.port_desk import PortDesk
from orchestrator.daemon.unit import Heard, Unit, foreign
from orchestrator.host import cgroup, records
from orchestrator.host.fault_points import reached
from orchestrator.host.orphans import end_orphans
from orchestrator.host.port_table import NoPortError
from orchestrator.host.ports import with_holders
from orchestrator.host.reaper import Reaper
from orchestrator.host.rundir import RunDir
from orchestrator.host.shim_link import ShimLink
from orchestrator.host.spawn import Spawn
from orchestrator.host.tagged import make_nonce
from orchestrator.host.zygote_link import ZygoteError, ZygoteLink
from orchestrator.wire import messages
from orchestrator.wire.ids import LifeId, ReplicaId

NOFILE = 65_536
"""Open files a worker may have: one per connection, and vLLM warns below this."""


class Post(Protocol):
    """Where answers go."""

    def __call__(
        self, replica: ReplicaId, event: events.Event, then: Callable[[], None] | None = None
    ) -> None:
        """Put an event into the mailbox; `then` is called when it can't be lost any more."""


class Orders(Protocol):
    """What speaks to workers: the control socket."""

    def order(self, life: LifeId, message: messages.ToWorker) -> None:
        """Tell a worker now, or as soon as it is heard."""

    def forget(self, life: LifeId) -> None:
        """This life is over: nothing is to be told to it any more."""


@dataclass(slots=True)
class Life:
    """One life that this daemon looks after.

    `link` is None until its shim answers. `log_limits`: what was asked for at its birth; None where
    another daemon asked.
    """

    unit: Unit
    id: LifeId
    directory: Path
    link: ShimLink | None = None
    record: records.LifeRecord | None = None
    log_limits: tuple[int, int] | None = None
    orders: dict[str, actions.MemberAction] = field(default_factory=dict)
    ending: bool = False


class Launcher:
    """Lives by id, the zygotes they come from, and the ports they are given."""

    def __init__(
        self,
        run_dir: RunDir,
        zygotes: Callable[[str, str], ZygoteLink],
        reaper: Reaper,
        orders: Orders,
        post: Post,
        *,
        ports: PortDesk,
        on_said: Callable[[Unit, LifeId, records.Said], None],
    ) -> None:
        self._run_dir = run_dir
        self._zygotes = zygotes
        self._reaper = reaper
        self._orders = orders
        self._post = post
        self._ports = ports
        self._on_said = on_said
        self._group_home = cgroup.home()
        self._environ = dict(os.environ)
        self.lives: dict[LifeId, Life] = {}

    def perform(self, unit: Unit, action: actions.MemberAction) -> None:
        """Begin to do it."""
        life = unit.id.life(action.member, action.incarnation)
        match action:
            case actions.Spawn():
                self._spawn(unit, life)
            case actions.Drain(deadline_s=deadline_s):
                self._orders.order(life, messages.Drain(deadline_s))
            case actions.Stop() | actions.Kill():
                self._order(unit, life, action)

    # ---- spawn -------------------------------------------------------------------------------

    def _spawn(self, unit: Unit, life: LifeId) -> None:
        if life in self.lives:
            return
        planned = unit.spec.members[life.member]
        log = Path(unit.spec.logs[life.member])
        try:
            log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory = self._run_dir.make_life(life)
        except OSError as error:  # a full disk; or the rubble of a life that couldn't be removed
            self._unborn(life, str(error))
            return
        reached("launcher.life-made")
        here = self.lives[life] = Life(unit, life, directory)
        try:
            request = self._request(unit, life, planned, directory, log)
            zygote = self._zygotes(*lineage(planned))
        except (NoPortError, ZygoteError) as error:
            self._forget(here)
            self._run_dir.remove_life(directory)
            self._unborn(life, str(error))
            return
        here.log_limits = request.log_max_bytes, request.log_backups
        future = zygote.spawn(request)
        reached("launcher.birth-asked")
        future.add_done_callback(lambda done: self._spawned(here, done))

    def _unborn(self, life: LifeId, text: str) -> None:
        self._post(life.of, events.SpawnFailed(life.member, life.incarnation, "", text))

    def _request(
        self, unit: Unit, life: LifeId, planned: PlannedWorker, directory: Path, log: Path
    ) -> Spawn:
        nonce = make_nonce(self._run_dir.root, str(life))
        private = directory / "t"
        dirs = PrivateDirs(tmp=str(private), rpc=str(private))
        ports = self._ports.assign(unit, life, planned)
        env = worker_env(
            self._environ, engine=planned.engine, life=life, nonce=nonce, dirs=dirs,
            added=planned.env | port_env(planned.engine, ports, planned.member),
            advice=planned.cpu_env, python=planned.python or "",
        )  # fmt: skip
        policy = unit.spec.policy
        blob = worker_config(self._run_dir, unit, life, directory, ports)
        spawn = {"argv": list(planned.argv)} if not planned.entry else {
            "entry": planned.entry, "blob": blob, "path": path_of(planned),
        }  # fmt: skip
        group = self._group(unit.spec.tree, directory, nonce)
        return Spawn(
            life=str(life), nonce=nonce, directory=str(directory), log_path=str(log),
            env=env | notify_env(unit, directory), notify=unit.spec.notify,
            log_max_bytes=unit.spec.log_max_bytes, log_backups=unit.spec.log_backups,
            cwd=planned.cwd or unit.spec.cwd, grace_s=policy.stop.grace_s,
            linger_s=policy.stop.linger_s, kill_timeout_s=policy.stop.kill_timeout_s,
            nofile=NOFILE, group=group, cpus=list(planned.cpus), numa=planned.numa,
            tree="cgroup" if group else "pidns" if unit.spec.tree == "pidns" else "walk", **spawn,
        )  # fmt: skip

    def _group(self, tree: str, directory: Path, nonce: str) -> str:
        """The control group that is to hold this tree; empty where it gets none."""
        if tree in {"walk", "pidns"} or not self._group_home:
            return ""
        return f"{self._group_home}/{cgroup.PREFIX}{directory.name}-{nonce}"

    def _spawned(self, here: Life, done: "asyncio.Future[int]") -> None:
        life = here.id
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, ZygoteError):
            self._forget(here)
            self._run_dir.remove_life(here.directory)
            self._unborn(life, str(error))
            return
        if error is not None:
            raise error
        reached("launcher.birth-heard")
        self._post(life.of, events.Spawned(life.member, life.incarnation, done.result()))
        self._connect(here)
        reached("launcher.shim-connected")

    def _connect(self, here: Life) -> None:
        here.link = ShimLink.connect(here.directory, lambda event: self._heard(here, event))
        here.record = here.link.record
        note(here.unit.of(here.id), here.record)
        limits = here.unit.spec.log_max_bytes, here.unit.spec.log_backups
        if here.log_limits != limits:  # a file that was applied meanwhile may have changed them
            here.link.limit_log(*limits)
        for action in here.orders.values():
            self._give(here.link, action)

    # ---- stop and kill -----------------------------------------------------------------------

    def _order(self, unit: Unit, life: LifeId, action: actions.Stop | actions.Kill) -> None:
        here = self.lives.get(life)
        if here is None:
            self._end_unknown(unit, life, action)
            return
        if here.link is not None:
            self._give(here.link, action)
        elif here.record is not None:
            self._end_tree(here)
        else:
            here.orders[type(action).__name__] = action

    @staticmethod
    def _give(link: ShimLink, action: actions.MemberAction) -> None:
        if isinstance(action, actions.Stop):
            link.stop(action.grace_s, action.linger_s)
            reached("launcher.stop-given")
        elif isinstance(action, actions.Kill):
            link.kill()
            reached("launcher.kill-given")

    def _end_unknown(self, unit: Unit, life: LifeId, action: actions.MemberAction) -> None:
        """An order about a life that was never born, or is gone: its tree is empty."""
        if isinstance(action, actions.Kill):
            self._post(unit.id, events.TreeEmptied(
                life.member, life.incarnation, events.ExitFacts(asked=True)
            ))  # fmt: skip

    def limit_logs(self, unit: Unit) -> None:
        """Let the shims of a unit's present life know what its log files may take now."""
        for member in range(len(unit.state.members)):
            here = self.lives.get(unit.life(member))
            if here is not None and here.link is not None:
                here.link.limit_log(unit.spec.log_max_bytes, unit.spec.log_backups)

    def note_shared_memory(self, unit: Unit) -> None:
        """Let an engine's shims write down what is mapped, now that all of it is."""
        for planned in unit.spec.members:
            here = self.lives.get(unit.life(planned.member))
            if planned.engine and here is not None and here.link is not None:
                here.link.note_shared_memory()

    # ---- what shims say ----------------------------------------------------------------------

    def _heard(self, here: Life, event: records.ShimEvent) -> None:
        life = here.id
        match event:
            case records.StateSeen():
                here.record = event
                heard = here.unit.of(life)
                note(heard, event)
                if event.status is not None:
                    exited = events.MainExited(life.member, life.incarnation, event.status)
                    self._post(life.of, exited)
                if event.said is not None:
                    self._on_said(here.unit, life, event.said)
                if heard is not None:
                    heard.log_dropped_bytes = event.dropped_bytes
                if event.stuck:
                    stuck = events.TreeStuck(life.member, life.incarnation, event.stuck)
                    self._post(life.of, stuck)
            case records.MainExited():
                reached("launcher.exit-heard")
                exited = events.MainExited(life.member, life.incarnation, event.status)
                self._post(life.of, exited)
            case records.TreeEmpty():
                self._emptied(here, facts_of(event, here.unit, life))
            case records.ShimLost():
                here.link = None
                self._post(life.of, events.ShimLost(life.member, life.incarnation))
                self._end_tree(here)
            case records.Refused():
                pass  # an older shim doesn't know the order; the deadline behind it will tell

    def _end_tree(self, here: Life) -> None:
        """The shim is gone: end what it left, which is ours now."""
        if here.ending or here.record is None:
            return
        here.ending = True
        life = here.id
        end_orphans(
            here.record,
            self._reaper,
            lambda record: self._emptied(here, facts_of(record, here.unit, life)),
            lambda stuck: self._post(
                life.of, events.TreeStuck(life.member, life.incarnation, stuck)
            ),
        )

    def _emptied(self, here: Life, facts: events.ExitFacts) -> None:
        """Say so. The exit record goes only when the core's state knows what it says."""
        reached("launcher.end-heard")
        life = here.id
        heard = here.unit.of(life)
        if heard is not None:
            heard.status = facts.status
        self._forget(here)
        emptied = events.TreeEmptied(life.member, life.incarnation, facts)
        self._post(life.of, emptied, lambda: self._remove(here.directory))
        reached("launcher.end-posted")

    def _remove(self, directory: Path) -> None:
        self._run_dir.remove_life(directory)
        reached("launcher.life-removed")

    def _forget(self, here: Life) -> None:
        if here.link is not None:
            here.link.close()
        del self.lives[here.id]
        self._orders.forget(here.id)
        self._ports.end(here.id, self.lives)

    # ---- adoption ----------------------------------------------------------------------------

    def adopt(self, unit: Unit, life: LifeId, directory: Path) -> Found:
        """Take over what a daemon before left of this life, and say what was found.

        What is left of one that has ended is removed when the news of it is on disk.
        """
        ended = records.read_exit(directory)
        if ended is not None:
            return Ended(facts_of(ended, unit, life))
        here = self.lives[life] = Life(unit, life, directory)
        try:
            self._connect(here)
        except FileNotFoundError:
            self._forget(here)
            return Nothing()
        assert here.record is not None, "a link has a record"
        self._ports.show(unit, life)
        return Alive(pid=here.record.shim.pid)

    def release_ports(self, units: Iterable[Unit]) -> None:
        """Call it when all that lives was adopted: what ended meanwhile needs no port."""
        self._ports.keep(self.lives, units)


def note(heard: Heard | None, record: records.LifeRecord) -> None:
    """Keep what a shim says of the life that it looks after."""
    if heard is not None:
        heard.log_from = record.log_from
        if record.main is not None:
            heard.main_pid = record.main.pid
        if record.protocol not in records.PROTOCOLS:
            heard.foreign = foreign("shim", record.protocol, records.PROTOCOLS)


def facts_of(record: records.TreeEmpty, unit: Unit, life: LifeId) -> events.ExitFacts:
    """An exit record as the core wants it."""
    argv = unit.spec.members[life.member].argv
    error = record.exec_error
    return events.ExitFacts(
        status=record.status,
        exec_error=(error.code or error.text) if error is not None else "",
        command=argv[0] if argv else "",
        asked=record.asked,
        killed=record.killed,
        tail=with_holders(excerpt(record.tail)),
        oom_kills=record.oom_kills,
        oom_in_cgroup=record.oom_in_cgroup,
        memory_limit_bytes=record.memory_limit_bytes,
        rss_peak_bytes=record.rss_peak_bytes,
        shm_bytes=record.shm_bytes,
        shm_free_bytes=record.shm_free_bytes,
    )
