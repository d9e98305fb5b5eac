"""A daemon on a made-up machine: the real supervisor, with the world where the host would be.

It dies at every point that matters: before the state is saved, between the save and the first
action, between any two actions, and after the last. The next one reads the saved JSON and asks the
world what is really there.
"""

from asyncio.events import _set_running_loop
from contextlib import contextmanager
from unittest import mock

from orchestrator.core import actions as a
from orchestrator.core import adopt, replica
from orchestrator.core import events as e
from orchestrator.core.fleet import GONE, TOGETHER
from orchestrator.core.state import AT_REST, LIVE, Phase, Stage, routable
from orchestrator.daemon import publisher, supervisor
from orchestrator.daemon.unit import Unit, UnitSpec
from orchestrator.wire import events
from tests.sim.gpus import Sampler
from tests.sim.lives import FOREVER
from tests.sim.world import World

DEATH_CHANCE = 0.002
BIRTHS_MAX = 2
"""Smaller than in production, so that small fleets get to wait for their turns."""

CONDITIONS = {
    "ready": {"ready"},
    "started": {"starting", "ready", "completed"},
    "completed": {"completed"},
}


class DiedError(Exception):
    """The daemon was killed here; unwinds to the run loop."""


class Journal:
    """Keeps what the supervisor publishes, and is one of the places where a daemon can die.

    Where the run keeps a journal, a file of it is full from time to time, and begins anew.
    """

    def __init__(self, daemon) -> None:
        self.daemon, self.generation = daemon, 0

    def event(self, subject, what, **more) -> None:
        self.daemon.perhaps_die()
        kept = self.daemon.report.journal
        if kept is not None:
            event = events.Event(seq=len(kept), wall=0.0, subject=str(subject), what=what)
            record = publisher.Record(e=event, core=more["core"])
            kept.append(publisher.encode_record(record))
            self.generation = len(kept) // 40


class Daemon:
    def __init__(self, world: World, fleet, disk, ledgers, report) -> None:
        self.world, self.fleet = world, fleet
        self.disk, self.ledgers, self.report = disk, ledgers, report
        self.boot = "boot-1"
        self.adopting = False
        self.began_at = world.now
        self.epoch = world.next_epoch()
        self.loop = world.loop
        self.ids = {str(name): name for name in fleet.needs}
        self.supervisor = supervisor.Supervisor(self, self.save, Journal(self), self)
        self.supervisor.add(Unit(self.spec(name), self.saved(name).state) for name in self.ids)
        self.sampler = Sampler(self, world.cards)
        self.decided = None
        self.fresh: dict = {}

    def spec(self, name: str) -> UnitSpec:
        return UnitSpec(
            id=self.ids[name], kind="process", model="", policy=self.fleet.policies[name],
            members=(), logs=(), log_max_bytes=1, log_backups=1, cwd="/",
            needs=tuple(self.fleet.needs[self.ids[name]]),
            bonds=tuple(self.fleet.bonds.get(name, ())),
        )  # fmt: skip

    def saved(self, name: str):
        return adopt.decode(self.disk[name])

    def units(self):
        return self.supervisor.units.values()

    def state(self, name: str):
        return self.supervisor.units[self.ids[name]].state

    def has_readiness(self, name: str) -> bool:
        return self.fleet.policies[name].has_readiness

    # -- what happens ---------------------------------------------------------------------------

    def handle(self, name: str, event, then=None) -> None:
        self.supervisor.post(self.ids[name], event, then)

    def step(self, state, event, now, policy):
        """The core, overheard: the ledger must know what was decided when it is on disk."""
        after, actions = replica.step(state, event, now, policy)
        self.report.saw(now, state.name, state, event, after, actions)
        self.decided = event, state, after, actions
        if after is state and not actions:
            self.ledgers[state.name].observe(event, state, after, actions, now)
        return after, actions

    def save(self, replica_id, state) -> None:
        self.perhaps_die()
        name = str(replica_id)
        event, before, after, actions = self.decided
        assert after is state, f"{name}: saved what was not decided"
        self.disk[name] = adopt.encode(adopt.Saved(self.boot, state))
        ledger = self.ledgers[name]
        failed = ledger.is_failing
        ledger.observe(event, before, after, actions, self.world.now)
        if ledger.is_failing and not failed:
            self.expect_falls(name)
        first, _ = self.fresh.get(name, (before, after))
        self.fresh[name] = first, after
        if any(isinstance(action, a.Spawn) for action in actions):
            self.check_start(name)
        self.perhaps_die()

    def changed(self, unit, before) -> None:
        self.perhaps_die()

    def respecified(self, unit) -> None:
        """Nobody here reads logs."""

    def settled(self, unit) -> None:
        """The step is over, and what follows for others is begun."""
        self.sampler.arm()
        fresh, self.fresh = self.fresh, {}
        for name, (before, after) in fresh.items():
            self.look_at(name, before, after)

    def look_at(self, name: str, before, after) -> None:
        self.check(name, before, after)
        if after.phase is before.phase:
            return
        for life in self.world.lives.get(name, ()):
            self.world.at(2.0, self.world.check_told, life, self.epoch)
        self.world.operator.aim(name)
        if self.world.rng.random() < 0.02:
            self.world.at(self.world.rng.choice((0.0, 0.3, 3.0)), self.die, self.epoch)

    def expect_falls(self, name: str) -> None:
        """It has failed: who is bound to it by a group will be down soon."""
        for other, bonds in self.fleet.bonds.items():
            if any(bond.group and str(bond.on) == name for bond in bonds):
                state = self.state(other)
                args = other, state.incarnation, self.epoch
                self.world.at(2.0, self.world.check_fell, *args)

    def perhaps_die(self) -> None:
        if self.world.faults and self.world.rng.random() < DEATH_CHANCE:
            raise DiedError

    def die(self, epoch: int) -> None:
        """Die between two events, soon after something has changed."""
        if self.world.faults and self.world.daemon is self and epoch == self.epoch:
            raise DiedError

    # -- actions --------------------------------------------------------------------------------

    def perform(self, unit, action) -> None:
        self.perhaps_die()
        name = str(unit.id)
        if self.world.faults and self.world.rng.random() < 0.01:
            self.world.operator.interrupt(name)
        if isinstance(action, a.Spawn):
            self.world.spawn(name, action.member, action.incarnation)
        else:
            life = self.world.find(name, action.member, action.incarnation)
            assert life is not None, f"{name}: {action} for a life that was never ordered"
            if isinstance(action, a.Drain):
                self.world.drain(life)
            elif isinstance(action, a.Stop):
                self.world.stop(life, action.grace_s, action.linger_s)
            else:
                assert life.born, f"{name}: killed before birth"
                self.world.kill(life)
        self.perhaps_die()

    # -- oracles --------------------------------------------------------------------------------

    def check(self, name: str, before, after) -> None:
        timer = self.supervisor._timers.get(self.ids[name])
        if after.phase in AT_REST:
            assert timer is None, f"{name}: a deadline while {after.phase.value}"
        else:
            armed = timer is not None and timer.args[1] == e.DeadlineReached(after.deadline.serial)
            assert armed, f"{name}: no deadline in {after.phase.value}"
        lives = self.world.lives.get(name, ())
        if after.phase not in LIVE and before.phase is not after.phase:
            left = [life for life in lives if life.alive or not (life.born or life.gone)]
            assert not left, f"{name}: {after.phase.value} with {len(left)} trees alive"
        if routable(after) and before.phase is not Phase.READY:
            self.check_really_ready(name, after)

    def check_start(self, name: str) -> None:
        """At the moment of a start all that it needs is there, not merely was, and no crowd."""
        for need in self.fleet.needs[self.ids[name]]:
            phase = self.state(str(need.on)).phase.value
            if need.condition in {TOGETHER, GONE}:
                over = phase not in {"draining", "stopping"}
                assert over, f"{name}: started, and an old life of {need.on} is there"
            if need.condition == GONE:
                continue
            if need.condition == TOGETHER:
                broken = self.ledgers[str(need.on)].is_broken
                assert not broken, f"{name}: started, and {need.on} of its group is broken"
                continue
            fine = CONDITIONS[need.condition]
            assert phase in fine, f"{name}: started while {need.on} is {phase}"
            book = self.ledgers[str(need.on)].book
            born = book is None or len(book.born) == book.size
            assert born, f"{name}: started while {need.on} isn't born yet"
        unborn = self.world.unborn() - {name}
        assert len(unborn) < BIRTHS_MAX, f"{name}: started while {sorted(unborn)} are being born"
        self.world.cards.check_free(name)

    def check_really_ready(self, name: str, state) -> None:
        policy = self.fleet.policies[name]
        for member in range(policy.members):
            life = self.world.find(name, member, state.incarnation)
            was = life.born and (life.ready or life.died_at < FOREVER or not policy.has_readiness)
            assert was, f"{name}: routable, but member {member} never was ready"
            silent_since = max(life.frozen_at, self.began_at)
            assert self.world.now < silent_since + 7.0, f"{name}: routable, member {member} frozen"

    # -- taking over ----------------------------------------------------------------------------

    def take_over(self, boot: str) -> None:
        """What `daemon.adoption` does, with the world to look at."""
        self.boot, self.adopting = boot, True
        for unit in self.units():
            name = str(unit.id)
            saved = self.saved(name)
            found = [self.look(name, i, saved.state) for i in range(len(saved.state.members))]
            self.ledgers[name].daemon_died(rebooted=saved.boot != boot)
            unit.state, events = adopt.adopt(saved, boot, found)
            self.disk[name] = adopt.encode(adopt.Saved(boot, unit.state))
            for event in events:
                self.handle(name, event)
        self.supervisor.catch_up()
        self.adopting, self.fresh = False, {}
        for unit in self.units():
            self.check(str(unit.id), unit.state, unit.state)
        self.sampler.arm()
        for lives in self.world.lives.values():
            for life in lives:
                self.greet(life)

    def greet(self, life) -> None:
        self.world.at(2.0, self.world.check_told, life, self.epoch)
        if life.frozen_at < FOREVER:
            self.world.judge(life)
        else:
            self.world.announce(life)

    def look(self, name: str, member: int, state):
        life = self.world.find(name, member, state.incarnation)
        if life is not None and state.members[member].stage is not Stage.EMPTY:
            assert not life.removed, f"{name}: an exit record went before anybody knew it for good"
        if life is None or (not life.alive and (life.record is None or life.removed)):
            return adopt.Nothing()
        if life.record is not None:
            return adopt.Ended(life.record)
        if not life.shim:
            return adopt.Orphaned()
        return adopt.Alive(pid=5, exited=None if life.main else life.status)

    def edit(self, name: str, policy, *, at_once: bool) -> None:
        """The file says something else now: for this life already, or from the next one on."""
        self.fleet.policies[name] = policy
        unit = self.supervisor.units[self.ids[name]]
        change = self.supervisor.respecify if at_once else self.supervisor.prepare
        change(unit, self.spec(name))


@contextmanager
def inside(world):
    """The present daemon's loop runs here, and its steps are overheard."""

    def step(*args):
        return world.daemon.step(*args)

    with (
        mock.patch.object(supervisor, "BIRTHS_MAX", BIRTHS_MAX),
        mock.patch.object(supervisor, "step", step),
        mock.patch.object(supervisor, "say_failed"),
    ):
        _set_running_loop(world.loop)
        try:
            yield
        finally:
            _set_running_loop(None)
