"""One seed, one verdict: a fleet, its faults, an operator with bad timing, and then peace.

A run has three parts. Trouble: everything that can go wrong does, for a bounded number of steps.
Peace: the faults stop, and everything must arrive where it was last wished to be. Proof: all is
started by hand and must serve, then all is stopped and nothing may be left.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from orchestrator.core import adopt, replica
from orchestrator.core import events as e
from orchestrator.core.fleet import MET_BY, Need
from orchestrator.core.policy import Policy, Restart
from orchestrator.core.state import Hold, Phase, State, routable
from orchestrator.wire.ids import ReplicaId
from tests.sim.daemon import Daemon, DiedError
from tests.sim.ledger import Ledger
from tests.sim.world import FOREVER, Plan, World

TROUBLE_STEPS = 110
PEACE_S = 9000.0


@dataclass
class Report:
    """What was seen: cells of the table for coverage, lines for people."""

    cells: Counter = field(default_factory=Counter)
    lines: list = field(default_factory=list)
    verbose: bool = False
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

    def ask(self, name: str, kind: str) -> None:
        self.intent += 1
        events = {
            "start": e.StartRequested(self.intent),
            "stop": e.StopRequested(self.intent),
            "now": e.StopRequested(self.intent, at_once=True),
            "restart": e.RestartRequested(self.intent),
        }
        rng = self.world.rng
        self.world.at(rng.choice((0.0, 0.0, 0.01, 0.6)), self.deliver, name, events[kind])
        if self.world.faults and rng.random() < 0.1:
            self.world.at(rng.uniform(0.0, 30.0), self.deliver, name, events[kind])

    def deliver(self, name: str, event) -> None:
        if self.world.daemon is not None:
            self.world.daemon.handle(name, event)
        elif not self.world.faults:
            self.world.at(1.0, self.deliver, name, event)

    def random_kind(self) -> str:
        return self.world.rng.choice(("start", "start", "start", "stop", "now", "restart"))

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
        self.policies, self.needs = fleet_of(rng)
        names = list(self.policies)
        self.mood = rng.choice(("mixed", "mixed", "mixed", "crashy", "freezy"))
        self.world.operator = Operator(self.world, names)
        if self.mood == "crashy":
            self.world.operator.pause_s = 3000.0
        self.world.planner = self.plan
        fresh = {name: adopt.Saved("boot-1", State(name=name)) for name in names}
        self.disk = {name: adopt.encode(saved) for name, saved in fresh.items()}
        ids = {str(name): bool(needs) for name, needs in self.needs.items()}
        self.ledgers = {n: Ledger(n, self.policies[n], ids[n]) for n in names}
        self.boot = 1
        self.world.daemon = self.make_daemon()

    def make_daemon(self) -> Daemon:
        return Daemon(self.world, self.policies, self.needs, self.disk, self.ledgers, self.report)

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
        intents = [state.intent for state in daemon.states.values()]
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
            draining = world.daemon.states[life.replica].phase is Phase.DRAINING
            if not (draining and isinstance(event, e.Drained)):
                world.hear(life.replica, event, world.daemon.epoch)
        world.at(rng.expovariate(1 / 150), self.babble)

    def trouble(self) -> None:
        self.world.operator.wander()
        self.world.at(self.rng.expovariate(1 / 150), self.babble)
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
        states = self.world.daemon.states.values()
        return "; ".join(f"{s.name} {s.phase.value}: {s.reason.sentence}" for s in states)

    def settled(self) -> bool:
        return not self.world.requests_pending() and all(map(self.is_settled, self.policies))

    def is_settled(self, name: str) -> bool:
        state, ledger = self.world.daemon.states[name], self.ledgers[name]
        if ledger.wish != "up":
            return state.phase is Phase.STOPPED
        if state.phase is Phase.WAITING:
            return self.waits_in_vain(name)
        if state.phase is Phase.READY:
            return self.is_serving(name)
        return state.phase in {Phase.COMPLETED, Phase.FAILED}

    def waits_in_vain(self, name: str) -> bool:
        states = self.world.daemon.states
        for need in self.needs[self.world.daemon.ids[name]]:
            other = states[str(need.on)]
            if other.phase not in MET_BY[need.condition] and self.is_settled(str(need.on)):
                return True
        return False

    def serves(self) -> bool:
        return all(self.is_serving(name) for name in self.policies)

    def is_serving(self, name: str) -> bool:
        state, policy = self.world.daemon.states[name], self.policies[name]
        if policy.oneshot:
            return state.phase is Phase.COMPLETED
        lives = [self.world.find(name, i, state.incarnation) for i in range(policy.members)]
        return routable(state) and all(life.main and life.shim for life in lives)

    def is_down(self) -> bool:
        states = self.world.daemon.states.values()
        return all(state.phase is Phase.STOPPED for state in states)

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
        assert not self.world.daemon.timers, "stopped, and a deadline is armed"
        return self.report


def fleet_of(rng: Random):
    """Draw one to four replicas; later ones may need earlier ones."""
    policies, needs, ids = {}, {}, []
    for index in range(rng.choice((1, 1, 2, 3, 4))):
        replica_id = ReplicaId("t", f"r{index}", 0)
        oneshot = rng.random() < 0.12
        wants = []
        for other in ids:
            if rng.random() < 0.3:
                kinds = ("completed",) if policies[str(other)].oneshot else ("ready", "started")
                wants.append(Need(other, rng.choice(kinds)))
        policies[str(replica_id)] = Policy(
            members=1 if oneshot else rng.choice((1, 1, 1, 2, 3)),
            has_readiness=not oneshot and rng.random() < 0.75,
            drains=rng.random() < 0.7,
            oneshot=oneshot,
            holds=(Hold.DEPENDENCY,) if wants else (),
            restart=rng.choice((Restart.ALWAYS,) * 6 + (Restart.ON_FAILURE, Restart.NEVER)),
        )
        needs[replica_id] = wants
        ids.append(replica_id)
    return policies, needs


def troubled_plan(rng: Random, policy: Policy) -> Plan:
    """Draw what a life will do while faults are on; most lives have one fault, some have none."""
    plan = Plan(
        birth_s=rng.choice((0.0, 0.01, 0.3, 3.0)),
        ready_s=rng.choice((0.0, 2.0, 12.0, 40.0, 1200.0)) if policy.has_readiness else 0.0,
        obeys_s=rng.choice((0.0, 0.1, 4.0, FOREVER)),
        swallows_term_while_loading=rng.random() < 0.5,
        rest_s=rng.choice((0.0, 0.0, 1.0, FOREVER)),
        kill_s=rng.choice((0.0, 0.02, 0.5, 4.0)),
        reap_s=rng.choice((0.0, 0.0, 0.0, 3.0)),
        works_to_an_end=policy.oneshot,
        tail=rng.choice(("", "", "boom", "CUDA out of memory", "Address already in use")),
    )
    luck = rng.random()
    if luck < 0.05:
        plan.birth_error = rng.choice((("", "no memory"), ("", "busy"), ("ENOENT", "/bin/nope")))
    elif luck < 0.22 and policy.has_readiness:
        status = rng.choice((0, 1 << 8, 1 << 8, 2 << 8, 9, 11))
        plan.start_exit = (rng.choice((0.0, 1.0, 60.0)), status)
        plan.exec_error = "ENOENT" if rng.random() < 0.1 else ""
    elif luck < 0.27 and policy.has_readiness:
        plan.ready_s = FOREVER
    elif luck < 0.9 or policy.oneshot:
        kind = rng.choice(("exit",) * 5 + ("shim", "freeze"))
        status = rng.choice((0, 1 << 8, 9, 2 << 8)) if kind == "exit" else rng.choice((0, 1))
        plan.run_end = (rng.choice((0.0, 1.0, 30.0, 30.0, 590.0, 650.0, 4000.0)), kind, status)
    if rng.random() < 0.08:
        plan.bye = (rng.choice(("config", "oom-load", "engine-died")), "it says why")
    if rng.random() < 0.06:
        plan.kill_s = plan.rest_s = FOREVER
    return plan


def run_seed(seed: int, *, verbose: bool = False) -> Report:
    """Run one seed; AssertionError with the story if it fails."""
    run = Run(seed, verbose=verbose)
    try:
        return run.go()
    except AssertionError as error:
        story = "\n".join(run.report.lines[-60:])
        raise AssertionError(f"seed {seed}: {error}\n{story}") from error
