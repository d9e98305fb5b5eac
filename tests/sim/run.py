"""One seed, one verdict: a fleet, its faults, an operator with bad timing, and then peace.

A run has three parts. Trouble: everything that can go wrong does, for a bounded number of steps.
Peace: the faults stop, and everything must arrive where it was last wished to be. Proof: all is
started by hand and must serve, then all is stopped and nothing may be left.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from msgspec.structs import replace

from orchestrator.core import adopt, replica
from orchestrator.core import events as e
from orchestrator.core.fleet import GONE, MET_BY, TOGETHER
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Phase, State, routable
from tests.sim.daemon import BIRTHS_MAX, Daemon, DiedError, inside
from tests.sim.fleets import fleet_of, troubled_plan
from tests.sim.ledger import Ledger
from tests.sim.lives import FOREVER, Plan
from tests.sim.world import World

TROUBLE_STEPS = 90
PEACE_S = 9000.0


@dataclass
class Report:
    """What was seen: cells of the table for coverage, lines for people."""

    cells: Counter = field(default_factory=Counter)
    lines: list = field(default_factory=list)
    verbose: bool = False
    journal: list | None = None
    steps: int = 0

    def saw(self, now, name, before, event, after, actions) -> None:
        self.steps += 1
        if not replica.is_outdated(before, event):
            self.cells[before.phase, type(event)] += 1
        if self.verbose:
            did = ", ".join(map(str, actions))
            what = f"{before.phase.value} -> {after.phase.value}"
            self.lines.append(f"{now:10.2f} {name:10} {what:22} {event}  [{did}]")


@dataclass
class Operator:
    """Asks for things, and likes to ask right after something has changed."""

    world: World
    names: list
    pause_s: float = 200.0
    intent: int = 0
    pending: int = 0

    def ask(self, name: str, kind: str, after_s: float | None = None) -> None:
        self.intent += 1
        events = {
            "start": e.StartRequested(self.intent),
            "stop": e.StopRequested(self.intent),
            "now": e.StopRequested(self.intent, at_once=True),
            "restart": e.RestartRequested(self.intent),
        }
        rng = self.world.rng
        after_s = rng.choice((0.0, 0.0, 0.01, 0.6)) if after_s is None else after_s
        self.at(after_s, name, events[kind])
        if self.world.faults and rng.random() < 0.1:
            self.at(rng.uniform(0.0, 30.0), name, events[kind])

    def at(self, delay_s: float, name: str, event) -> None:
        self.pending += 1
        self.world.at(delay_s, self.arrive, name, event)

    def arrive(self, name: str, event) -> None:
        self.pending -= 1
        self.deliver(name, event)

    def deliver(self, name: str, event) -> None:
        if self.world.daemon is not None:
            self.world.daemon.handle(name, event)
        elif not self.world.faults:
            self.at(1.0, name, event)

    def random_kind(self) -> str:
        return self.world.rng.choice(("start", "start", "start", "stop", "now", "restart"))

    def interrupt(self, name: str) -> None:
        """Exactly between two actions of one step."""
        self.intent += 1
        kind = self.world.rng.choice((e.StartRequested, e.StopRequested, e.RestartRequested))
        self.deliver(name, kind(self.intent))

    def aim(self, name: str) -> None:
        if self.world.faults and self.world.rng.random() < 14.0 / self.pause_s:
            self.ask(name, self.random_kind())
            if self.world.rng.random() < 0.3:
                self.ask(name, self.random_kind())

    def wander(self) -> None:
        if self.world.faults:
            self.ask(self.world.rng.choice(self.names), self.random_kind())
            self.world.at(self.world.rng.expovariate(1 / self.pause_s), self.wander)


class Run:
    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.rng = rng = Random(seed)
        self.world = World(rng)
        self.report = Report(verbose=verbose)
        self.fleet = fleet_of(rng)
        self.policies, self.needs = self.fleet.policies, self.fleet.needs
        self.world.cards.of, self.world.cards.cards = self.fleet.cards_of, self.fleet.cards
        names = list(self.policies)
        self.mood = rng.choice(("mixed", "mixed", "mixed", "crashy", "freezy"))
        self.world.operator = Operator(self.world, names)
        if self.mood == "crashy":
            self.world.operator.pause_s = 3000.0
        self.world.planner = self.plan
        fresh = {name: adopt.Saved("boot-1", State(name=name)) for name in names}
        self.disk = {name: adopt.encode(saved) for name, saved in fresh.items()}
        prompt = {n: len(names) <= BIRTHS_MAX and not self.policies[n].holds for n in names}
        self.ledgers = {n: Ledger(n, self.policies[n], prompt[n]) for n in names}
        self.boot = 1
        self.world.daemon = self.make_daemon()

    def make_daemon(self) -> Daemon:
        return Daemon(self.world, self.fleet, self.disk, self.ledgers, self.report)

    # -- what lives will do ---------------------------------------------------------------------

    def plan(self, name: str) -> Plan:
        policy, rng = self.policies[name], self.rng
        if not self.world.faults:
            end = (5.0, "exit", 0) if policy.oneshot else None
            ready_s = 2.0 if policy.has_readiness else 0.0
            return Plan(run_end=end, ready_s=ready_s, works_to_an_end=policy.oneshot)
        plan = troubled_plan(rng, policy)
        if self.mood == "crashy" and plan.ready_s < FOREVER and rng.random() < 0.8:
            plan.start_exit, plan.birth_error, plan.bye = None, None, None
            plan.run_end = (rng.choice((0.0, 5.0, 30.0)), "exit", rng.choice((1 << 8, 9)))
        elif self.mood == "freezy" and rng.random() < 0.6:
            plan.run_end = (rng.choice((0.0, 1.0)), "freeze", rng.choice((0, 1)))
        return plan

    # -- time -----------------------------------------------------------------------------------

    def tick(self) -> bool:
        try:
            return self.world.tick()
        except DiedError:
            self.world.daemon = None
            self.world.settle_births()
            self.world.at(self.rng.choice((0.0, 0.5, 20.0, 100.0)), self.revive)
            return True

    def revive(self) -> None:
        if self.world.faults and self.rng.random() < 0.08:
            self.boot += 1
            self.world.reboot()
        daemon = self.make_daemon()
        self.world.daemon = daemon
        daemon.take_over(f"boot-{self.boot}")
        intents = [unit.state.intent for unit in daemon.units()]
        self.world.operator.intent = max(self.world.operator.intent, *intents)

    def babble(self) -> None:
        """A worker or shim that says what it was never asked for."""
        world, rng = self.world, self.rng
        if not world.faults:
            return
        alive = [life for lives in world.lives.values() for life in lives if life.main]
        if alive and world.daemon is not None:
            life = rng.choice(alive)
            args = life.member, life.incarnation
            event = rng.choice(
                (e.Drained(*args), e.LeaseMissed(*args), e.TreeStuck(*args, "babble"))
            )
            will_freeze = life.plan.run_end is not None and life.plan.run_end[1] == "freeze"
            if isinstance(event, e.LeaseMissed) and will_freeze:
                event = e.Drained(*args)
            if isinstance(event, e.LeaseMissed):
                world.at(3.0, world.recover, life)
            draining = world.daemon.state(life.replica).phase is Phase.DRAINING
            if draining:
                late = Reason(Cause.PEER, "another of its group has failed")
                event = rng.choice(
                    (
                        e.PeerLost(life.incarnation, late),
                        e.SaidBye(*args, "port-in-use", "late words"),
                        e.MoreTimeAsked(*args, 60.0),
                        e.TreeStuck(*args, "babble"),
                    )
                )
            world.hear(life.replica, event, world.daemon.epoch)
        world.at(rng.expovariate(1 / 150), self.babble)

    def edit(self) -> None:
        """The operator's file changes under a replica; none of this is worth a restart."""
        world, rng = self.world, self.rng
        if world.faults and world.daemon is not None:
            name = rng.choice(list(self.policies))
            policy = self.policies[name]
            stop = replace(
                policy.stop,
                drain_s=rng.choice((0.0, 1.0, 30.0)),
                grace_s=rng.choice((1.0, 20.0, 60.0)),
            )
            drains = rng.random() < 0.7
            changed = replace(policy, stop=stop, drains=drains)
            world.daemon.edit(name, changed, at_once=rng.random() < 0.5)
        if world.faults:
            world.at(rng.expovariate(1 / 300), self.edit)

    def trouble(self) -> None:
        self.world.operator.wander()
        self.world.cards.intrude()
        self.world.at(self.rng.expovariate(1 / 150), self.babble)
        self.world.at(self.rng.expovariate(1 / 300), self.edit)
        for name in self.policies:
            self.world.operator.ask(name, "start")
        while self.report.steps < TROUBLE_STEPS and self.tick():
            pass
        self.world.release()

    def peace(self, arrived) -> None:
        end = self.world.now + PEACE_S
        while not (self.world.daemon is not None and arrived()):
            assert self.world.now < end, f"no progress: {self.describe()}"
            assert self.tick(), f"nothing will ever happen again: {self.describe()}"

    def describe(self) -> str:
        if self.world.daemon is None:
            return "no daemon"
        states = [unit.state for unit in self.world.daemon.units()]
        return "; ".join(f"{s.name} {s.phase.value}: {s.reason.sentence}" for s in states)

    def settled(self) -> bool:
        return not self.world.operator.pending and all(map(self.is_settled, self.policies))

    def is_settled(self, name: str) -> bool:
        state, ledger = self.world.daemon.state(name), self.ledgers[name]
        if ledger.wish != "up":
            return state.phase is Phase.STOPPED
        if state.phase is Phase.WAITING:
            return self.waits_in_vain(name)
        if state.phase is Phase.READY:
            return self.is_serving(name)
        return state.phase in {Phase.COMPLETED, Phase.FAILED}

    def waits_in_vain(self, name: str) -> bool:
        for need in self.needs[self.world.daemon.ids[name]]:
            other = self.world.daemon.state(str(need.on))
            if need.condition == TOGETHER:
                if other.phase is Phase.FAILED:
                    return True
                continue
            if need.condition == GONE:
                continue
            if other.phase not in MET_BY[need.condition] and self.is_settled(str(need.on)):
                return True
        return False

    def serves(self) -> bool:
        return all(self.is_serving(name) for name in self.policies)

    def is_serving(self, name: str) -> bool:
        state, policy = self.world.daemon.state(name), self.policies[name]
        if policy.oneshot:
            return state.phase is Phase.COMPLETED
        lives = [self.world.find(name, i, state.incarnation) for i in range(policy.members)]
        return routable(state) and all(life.main and life.shim for life in lives)

    def is_down(self) -> bool:
        return all(unit.state.phase is Phase.STOPPED for unit in self.world.daemon.units())

    def go(self) -> Report:
        self.trouble()
        self.peace(self.settled)
        for name in self.policies:
            self.world.operator.ask(name, "start")
        self.peace(self.serves)
        for name in self.policies:
            self.world.operator.ask(name, "stop")
        self.peace(self.is_down)
        alive = [x for lives in self.world.lives.values() for x in lives if x.alive]
        assert not alive, "stopped, and something is left"
        timers = self.world.daemon.supervisor._timers
        assert not timers, "stopped, and a deadline is armed"
        return self.report


def run_seed(seed: int, *, verbose: bool = False) -> Report:
    """Run one seed; AssertionError with the story if it fails."""
    run = Run(seed, verbose=verbose)
    try:
        with inside(run.world):
            return run.go()
    except AssertionError as error:
        story = "\n".join(run.report.lines[-60:])
        raise AssertionError(f"seed {seed}: {error}\n{story}") from error
