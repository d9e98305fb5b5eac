"""A daemon reduced to what the core needs: save the state, perform the actions, perhaps die.

It dies at every point that matters: before the state is saved, between the save and the first
action, between any two actions, and after the last. The next one reads the saved JSON and asks the
world what is really there.
"""

from orchestrator.core import actions as a
from orchestrator.core import adopt, fleet, replica
from orchestrator.core import events as e
from orchestrator.core.state import AT_REST, LIVE, Phase, routable
from tests.sim.world import FOREVER, World

DEATH_CHANCE = 0.002


class DiedError(Exception):
    """The daemon was killed here; unwinds to the run loop."""


class Daemon:
    def __init__(self, world: World, policies, needs, disk, ledgers, report) -> None:
        self.world, self.policies, self.needs = world, policies, needs
        self.disk, self.ledgers, self.report = disk, ledgers, report
        self.boot = "boot-1"
        self.timers: dict = {}
        self.adopting = False
        self.began_at = world.now
        self.epoch = world.next_epoch()
        self.ids = {str(name): name for name in needs}
        self.states = {name: adopt.decode(disk[name]).state for name in policies}

    def has_readiness(self, name: str) -> bool:
        return self.policies[name].has_readiness

    # -- one event ------------------------------------------------------------------------------

    def handle(self, name: str, event) -> None:
        self.apply(name, event)
        self.tell_dependants()

    def tell_dependants(self) -> None:
        for other, told in fleet.dependency_events(self.needs, self.by_id()):
            self.apply(str(other), told)
            if self.world.faults and self.world.rng.random() < 0.2:
                self.world.at(5.0, self.repeat_late, str(other), told, self.epoch)

    def repeat_late(self, name: str, told, epoch: int) -> None:
        """What comes after the wait it was meant for; within that wait it is told at once."""
        state = self.states[name]
        if state.phase is not Phase.WAITING or state.incarnation != told.incarnation:
            self.world.hear(name, told, epoch)

    def by_id(self):
        return {self.ids[name]: state for name, state in self.states.items()}

    def apply(self, name: str, event) -> None:
        before, now = self.states[name], self.world.now
        after, actions = replica.step(before, event, now, self.policies[name])
        self.report.saw(now, name, before, event, after, actions)
        self.perhaps_die()
        self.disk[name] = adopt.encode(adopt.Saved(self.boot, after))
        self.states[name] = after
        self.ledgers[name].observe(event, before, after, actions, now)
        if any(isinstance(action, a.Spawn) for action in actions):
            self.check_needs(name)
        self.perhaps_die()
        for action in actions:
            self.perform(name, action)
            self.perhaps_die()
        if not self.adopting or isinstance(event, e.DaemonRestarted):
            self.check(name, before, after)
        if after.phase is not before.phase:
            for life in self.world.lives.get(name, ()):
                self.world.at(2.0, self.world.check_told, life, self.epoch)
            self.world.operator.aim(name)
            if self.world.rng.random() < 0.02:
                self.world.at(self.world.rng.choice((0.0, 0.3, 3.0)), self.die, self.epoch)

    def perhaps_die(self) -> None:
        if self.world.faults and self.world.rng.random() < DEATH_CHANCE:
            raise DiedError

    def die(self, epoch: int) -> None:
        """Die between two events, soon after something has changed."""
        if self.world.faults and self.world.daemon is self and epoch == self.epoch:
            raise DiedError

    # -- actions --------------------------------------------------------------------------------

    def perform(self, name: str, action) -> None:
        if isinstance(action, a.ArmDeadline):
            self.timers[name] = action.serial
            delay_s = action.at - self.world.now
            self.world.at(delay_s, self.fire, name, action.serial, self.epoch)
        elif isinstance(action, a.DisarmDeadline):
            self.timers.pop(name, None)
        elif isinstance(action, a.Spawn):
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

    def fire(self, name: str, serial: int, epoch: int) -> None:
        if self.world.daemon is not self or epoch != self.epoch:
            return
        if self.timers.get(name) == serial:
            del self.timers[name]
        elif self.world.rng.random() < 0.5:
            return
        self.handle(name, e.DeadlineReached(serial))

    # -- oracles --------------------------------------------------------------------------------

    def check(self, name: str, before, after) -> None:
        if after.phase in AT_REST:
            assert name not in self.timers, f"{name}: a deadline while {after.phase.value}"
        else:
            armed = self.timers.get(name)
            assert armed == after.deadline.serial, f"{name}: no deadline in {after.phase.value}"
        lives = self.world.lives.get(name, ())
        if after.phase not in LIVE and before.phase is not after.phase:
            left = [life for life in lives if life.alive or not (life.born or life.gone)]
            assert not left, f"{name}: {after.phase.value} with {len(left)} trees alive"
        if routable(after) and before.phase is not Phase.READY:
            self.check_really_ready(name, after)

    def check_needs(self, name: str) -> None:
        """At the moment of a start, everything it needs is there, not merely was."""
        for need in self.needs[self.ids[name]]:
            phase = self.states[str(need.on)].phase.value
            fine = {
                "ready": ["ready"],
                "started": ["starting", "ready", "completed"],
                "completed": ["completed"],
            }
            assert phase in fine[need.condition], f"{name}: started while {need.on} is {phase}"

    def check_really_ready(self, name: str, state) -> None:
        policy = self.policies[name]
        for member in range(policy.members):
            life = self.world.find(name, member, state.incarnation)
            was = life.born and (life.ready or life.died_at < FOREVER or not policy.has_readiness)
            assert was, f"{name}: routable, but member {member} never was ready"
            silent_since = max(life.frozen_at, self.began_at)
            assert self.world.now < silent_since + 7.0, f"{name}: routable, member {member} frozen"

    # -- taking over ----------------------------------------------------------------------------

    def take_over(self, boot: str) -> None:
        self.boot = boot
        for name, blob in list(self.disk.items()):
            saved = adopt.decode(blob)
            state = self.states[name] = saved.state
            found = [self.look(name, i, state) for i in range(len(state.members))]
            self.ledgers[name].daemon_died(rebooted=saved.boot != boot)
            state, events = adopt.adopt(saved, boot, found)
            self.states[name] = state
            self.disk[name] = adopt.encode(adopt.Saved(boot, state))
            self.adopting = True
            for event in events:
                self.apply(name, event)
            self.adopting = False
        self.tell_dependants()
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
        if life is None or (not life.alive and life.record is None):
            return adopt.Nothing()
        if life.record is not None:
            return adopt.Ended(life.record)
        if not life.shim:
            return adopt.Orphaned()
        return adopt.Alive(pid=5, exited=None if life.main else life.status)
