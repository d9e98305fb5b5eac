"""The truth: fake processes on a fake clock, and nothing of what the core believes.

A `Life` is one member's process tree with its shim. What it will do is drawn once, at birth, as a
`Plan`: crash while loading, hang, ignore TERM, leave a slow tree behind, be unkillable. What it
says reaches the daemon late, in order per link, and sometimes again much later. Nothing is said to
a dead daemon.
"""

import heapq
from dataclasses import dataclass, field
from functools import partial
from random import Random

from orchestrator.core import events as e
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Phase, routable
from tests.sim.gpus import Cards
from tests.sim.lives import FOREVER, Life
from tests.sim.loop import Loop

LATENCY_MAX_S = 0.5
SILENT = Reason(Cause.UNHEALTHY, "silent for 30 s")


@dataclass
class World:
    rng: Random
    now: float = 1000.0
    faults: bool = True
    queue: list = field(default_factory=list)
    lives: dict = field(default_factory=dict)
    links: dict = field(default_factory=dict)
    daemon: object = None
    operator: object = None
    sequence: int = 0
    epochs: int = 0
    planner: object = None
    pleas: set = field(default_factory=set)

    def __post_init__(self) -> None:
        self.loop = Loop(self)
        self.cards = Cards(self)

    # -- the clock ------------------------------------------------------------------------------

    def at(self, delay_s, call, *args):
        if delay_s >= FOREVER / 2:
            return
        self.sequence += 1
        heapq.heappush(self.queue, (self.now + max(0.0, delay_s), self.sequence, call, args))

    def next_epoch(self) -> int:
        self.epochs += 1
        return self.epochs

    def tick(self) -> bool:
        """Run the next thing; False when nothing is left to happen."""
        if not self.queue:
            return False
        when, _, call, args = heapq.heappop(self.queue)
        self.now = max(self.now, when)
        call(*args)
        return True

    # -- what reaches the daemon ----------------------------------------------------------------

    def say(self, life: Life, link: str, event) -> None:
        if self.daemon is None:
            return
        key = (life.replica, life.member, life.incarnation, link)
        due = max(self.now + self.rng.uniform(0.0, LATENCY_MAX_S), self.links.get(key, 0.0))
        self.links[key] = due
        epoch = self.daemon.epoch
        self.at(due - self.now, self.hear, life.replica, event, epoch)
        if self.faults and self.rng.random() < 0.08:
            late_s = self.rng.choice((0.0, 1.0, 15.0, 70.0))
            self.at(due - self.now + late_s, self.hear, life.replica, event, epoch)

    def hear(self, replica, event, epoch) -> None:
        if self.daemon is None or self.daemon.epoch != epoch:
            return
        then = None
        if isinstance(event, e.MoreTimeAsked):
            self.pleas.add((replica, event.incarnation))
        if isinstance(event, e.TreeEmptied):
            life = self.find(replica, event.member, event.incarnation)
            then = partial(setattr, life, "removed", True)
        self.daemon.handle(replica, event, then)

    # -- what the daemon's actions do -----------------------------------------------------------

    def spawn(self, replica: str, member: int, incarnation: int) -> None:
        plan = self.planner(replica)
        life = Life(replica, member, incarnation, plan)
        self.lives.setdefault(replica, []).append(life)
        self.at(plan.birth_s, self.bear, life)

    def bear(self, life: Life) -> None:
        if life.gone or life.born:
            return
        plan = life.plan
        if plan.birth_error is not None:
            life.gone = True
            code, text = plan.birth_error
            self.say(life, "zygote", e.SpawnFailed(life.member, life.incarnation, code, text))
            return
        others = [other for other in self.lives[life.replica] if other.alive]
        twice = [other for other in others if other.incarnation != life.incarnation]
        assert not twice, f"{life.replica}: two incarnations alive at once"
        life.born = life.shim = life.main = life.rest = True
        life.born_at = self.now
        self.cards.born(life)
        self.at(2.0, self.check_told, life, self.epoch)
        self.say(life, "zygote", e.Spawned(life.member, life.incarnation, 100 + self.sequence))
        if plan.start_exit is not None:
            after_s, status = plan.start_exit
            self.at(after_s, self.exit, life, status)
        elif plan.ready_s < FOREVER:
            self.at(plan.ready_s, self.become_ready, life)
        if plan.asks_more_s and plan.ready_s > 0.0:
            self.at(min(plan.ready_s, 1700.0) / 2, self.ask_more, life)

    def ask_more(self, life: Life) -> None:
        """A start that takes long says so; sometimes again and again."""
        if life.main and not life.ready:
            asked = e.MoreTimeAsked(life.member, life.incarnation, life.plan.asks_more_s)
            self.say(life, "zmq", asked)
            self.at(max(60.0, life.plan.asks_more_s * 0.9), self.ask_more, life)

    def unborn(self) -> set:
        """Replicas of which a birth is ordered and neither confirmed nor refused."""
        return {
            name
            for name, lives in self.lives.items()
            if any(not (life.born or life.gone) for life in lives)
        }

    def become_ready(self, life: Life) -> None:
        if not life.main:
            return
        life.ready = True
        self.announce(life)
        if life.plan.run_end is not None:
            after_s, kind, status = life.plan.run_end
            call = {"exit": self.exit, "shim": self.lose_shim, "freeze": self.freeze}[kind]
            self.at(after_s, self.when_faulty, call, life, status)

    def announce(self, life: Life) -> None:
        says_so = self.daemon is not None and self.daemon.has_readiness(life.replica)
        if says_so and life.ready and life.main:
            self.say(life, "zmq", e.BecameReady(life.member, life.incarnation))

    def when_faulty(self, call, life, status) -> None:
        if self.faults:
            call(life, status)
        elif life.plan.works_to_an_end:
            self.exit(life, 0)

    def exit(self, life: Life, status: int) -> None:
        """Main ends by itself, or because of its one TERM."""
        if not life.main:
            return
        if life.plan.bye is not None:
            code, text = life.plan.bye
            self.say(life, "zmq", e.SaidBye(life.member, life.incarnation, code, text))
        life.main, life.ready, life.status, life.died_at = False, False, status, self.now
        if life.shim:
            self.say(life, "shim", e.MainExited(life.member, life.incarnation, status))
            if life.plan.rest_s <= 2.0:
                self.at(life.plan.rest_s, self.empty, life)
            else:
                self.at(2.0, self.kill, life)
        else:
            self.at(life.plan.rest_s, self.empty, life)
        self.on_death(life)

    def lose_shim(self, life: Life, _status=None) -> None:
        if life.shim and life.alive:
            life.shim = False
            life.died_at = min(life.died_at, self.now)
            self.on_death(life)
            self.say(life, "shim", e.ShimLost(life.member, life.incarnation))

    def freeze(self, life: Life, status: int) -> None:
        """Beats stop; a status of 1 means that they come back after 12 s."""
        if not life.main:
            return
        life.frozen_at = self.now
        self.at(7.0, self.check_unroutable, life, self.epoch)
        self.judge(life)
        if status:
            self.at(12.0, self.thaw, life)

    def judge(self, life: Life) -> None:
        """The daemon's own lease judge: it starts counting when it first listens."""
        if self.daemon is not None:
            self.at(5.0, self.overdue, life, e.LeaseMissed, self.daemon.epoch)
            self.at(30.0, self.overdue, life, e.LeaseExpired, self.daemon.epoch)

    def overdue(self, life, kind, epoch) -> None:
        if life.frozen_at == FOREVER or self.daemon is None or self.daemon.epoch != epoch:
            return
        args = (SILENT,) if kind is e.LeaseExpired else ()
        self.daemon.handle(life.replica, kind(life.member, life.incarnation, *args))

    def thaw(self, life: Life) -> None:
        if life.frozen_at < FOREVER and life.main:
            life.frozen_at = FOREVER
            self.recover(life)

    def recover(self, life: Life) -> None:
        if life.main and life.frozen_at == FOREVER:
            self.say(life, "zmq", e.LeaseRecovered(life.member, life.incarnation))

    def drain(self, life: Life) -> None:
        if life.main and life.frozen_at == FOREVER:
            drained = e.Drained(life.member, life.incarnation)
            if self.rng.random() < 0.8 or not self.faults:
                self.at(self.rng.choice((0.0, 1.0, 40.0)), self.say, life, "zmq", drained)

    def stop(self, life: Life, grace_s: float, linger_s: float) -> None:
        if not life.shim:
            return
        if life.main:
            again = self.epoch in life.told and not self.daemon.adopting
            again = again and (life.replica, life.incarnation) not in self.pleas
            assert not again, f"{life.replica}: told to stop a second time"
            life.told.add(self.epoch)
            life.terms += 1
            loading = not life.ready and life.plan.swallows_term_while_loading
            deaf = loading or life.plan.obeys_s >= FOREVER or life.frozen_at < FOREVER
            if life.terms == 1 and not deaf:
                self.at(life.plan.obeys_s, self.exit, life, 0)
            if life.terms == 1:
                self.at(0.4, self.ask_more_at_end, life)
            life.grace_ends = self.now + grace_s
            self.at(grace_s, self.end_grace, life)
        elif life.rest:
            self.at(linger_s, self.kill, life)

    def ask_more_at_end(self, life: Life) -> None:
        """One that was told to leave, and says again and again that it needs a little longer."""
        by_s = life.plan.asks_at_end_s
        if life.main and by_s:
            self.say(life, "zmq", e.MoreTimeAsked(life.member, life.incarnation, by_s))
            self.at(by_s * 0.9, self.ask_more_at_end, life)

    def end_grace(self, life: Life) -> None:
        if life.main and self.now >= life.grace_ends - 1e-6:
            self.kill(life)

    def kill(self, life: Life) -> None:
        if life.gone:
            self.report_empty(life)
            return
        if life.killed:
            return
        life.killed = True
        stubborn = life.plan.kill_s >= FOREVER / 2 and not self.faults
        self.at(0.1 if stubborn else life.plan.kill_s, self.die_killed, life)
        stuck = e.TreeStuck(life.member, life.incarnation, "pid 77 (D, uvm)")
        self.at(9.0, self.if_alive, life, stuck)
        self.at(26.0, self.check_flagged, life, self.epoch)

    def if_alive(self, life, stuck) -> None:
        if life.alive:
            self.say(life, "shim", stuck)

    def die_killed(self, life: Life) -> None:
        if life.gone:
            return
        if life.plan.kill_s >= FOREVER / 2 and self.faults:
            return
        if life.main:
            life.main, life.ready, life.died_at = False, False, min(life.died_at, self.now)
            self.on_death(life)
            if life.shim:
                life.status = 9
                self.say(life, "shim", e.MainExited(life.member, life.incarnation, 9))
        self.empty(life)

    def empty(self, life: Life) -> None:
        if life.gone or life.main:
            return
        if life.plan.kill_s >= FOREVER / 2 and life.rest and self.faults and life.killed:
            return
        life.rest, life.gone = False, True
        self.cards.gone(life)
        tail, error = life.plan.tail, life.plan.exec_error
        facts = e.ExitFacts(status=life.status, tail=tail, exec_error=error)
        if life.shim:
            life.record, life.shim = facts, False
        self.at(life.plan.reap_s, self.report_empty, life)

    def report_empty(self, life: Life) -> None:
        facts = life.record if life.record is not None else e.ExitFacts()
        self.say(life, "shim", e.TreeEmptied(life.member, life.incarnation, facts))

    # -- oracles: what must be true of the daemon's view, soon after the truth changed -----------

    @property
    def epoch(self) -> int:
        return -1 if self.daemon is None else self.daemon.epoch

    def on_death(self, life: Life) -> None:
        self.at(1.5, self.check_unroutable, life, self.epoch)

    def check_unroutable(self, life: Life, epoch: int) -> None:
        frozen = self.now - life.frozen_at >= 7.0 - 1e-6
        dead = self.now - life.died_at >= 1.5 - 1e-6
        if not (frozen or dead) or epoch != self.epoch or self.daemon is None:
            return
        state = self.daemon.state(life.replica)
        if state.incarnation == life.incarnation:
            assert not routable(state), f"{life.replica}: routable while not serving"

    def check_fell(self, name: str, incarnation: int, epoch: int) -> None:
        """Whoever is bound to one that failed has gone down with it."""
        if self.daemon is None or epoch != self.epoch:
            return
        state = self.daemon.state(name)
        stands = state.incarnation == incarnation and state.phase in {Phase.STARTING, Phase.READY}
        assert not stands, f"{name}: lives on, and what it is bound to has failed"

    def check_told(self, life: Life, epoch: int) -> None:
        """Whoever is to end has heard of it."""
        if not life.main or epoch != self.epoch or self.daemon is None:
            return
        state = self.daemon.state(life.replica)
        to_end = state.incarnation == life.incarnation and state.phase is Phase.STOPPING
        if to_end and self.now - max(state.entered_at, life.born_at) >= 2.0 - 1e-6:
            assert life.terms or life.killed, f"{life.replica}: to end, and nobody says so"

    def check_flagged(self, life: Life, epoch: int) -> None:
        if not life.alive or epoch != self.epoch or self.daemon is None:
            return
        state = self.daemon.state(life.replica)
        assert state.incarnation == life.incarnation, f"{life.replica}: went on without the tree"
        assert state.unkillable, f"{life.replica}: unkillable, and nobody says so"

    # -- faults of the whole machine ------------------------------------------------------------

    def release(self) -> None:
        """Faults stop: what is stuck comes loose, what is frozen thaws."""
        self.faults = False
        self.cards.release()
        for lives in self.lives.values():
            for life in lives:
                self.thaw(life)
                if life.main and life.plan.works_to_an_end:
                    self.at(5.0, self.exit, life, 0)
                if life.killed and not life.gone:
                    self.at(1.0, self.die_killed, life)

    def settle_births(self) -> None:
        """The zygote died with its daemon: each birth in hand came about, or never will."""
        for lives in self.lives.values():
            for life in lives:
                if not life.born and not life.gone:
                    if self.rng.random() < 0.5 and life.plan.birth_error is None:
                        self.bear(life)
                    else:
                        life.gone = True

    def reboot(self) -> None:
        for lives in self.lives.values():
            for life in lives:
                self.cards.gone(life)
                life.main = life.rest = life.shim = life.ready = False
                life.gone, life.record = True, None

    def find(self, replica, member, incarnation) -> Life | None:
        for life in reversed(self.lives.get(replica, ())):
            if life.member == member and life.incarnation == incarnation:
                return life
        return None
