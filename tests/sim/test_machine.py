"""Hypothesis beside the seeds: the machine of one replica against a model in OTP's manner.

The seeds choose by weights, Hypothesis by what it hasn't seen, and it shrinks a failure to the few
steps that matter. The model is smaller than the ledger: who lives, who is wanted, and what a
supervisor with `one_for_all` would have alive. `DYNORCH_HYPOTHESIS=N` runs N examples.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.core import actions as a
from orchestrator.core import adopt
from orchestrator.core import events as e
from orchestrator.core.policy import Policy
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.replica import step
from orchestrator.core.state import AT_REST, LIVE, Phase, State, routable

EXAMPLES = int(os.environ.get("DYNORCH_HYPOTHESIS", "150"))
STEPS = 40
SILENT = Reason(Cause.UNHEALTHY, "silent for 30 s")
STATUSES = st.sampled_from([0, 1 << 8, 2 << 8, 9, 11])
PICK = st.integers(0, 7)


class Replica(RuleBasedStateMachine):
    """`alive`: members that have processes, `unborn`: spawns without an answer, by member."""

    @initialize(members=st.integers(1, 4), readiness=st.booleans(), drains=st.booleans())
    def begin(self, members, readiness, drains) -> None:
        self.policy = Policy(members=members, has_readiness=readiness, drains=drains)
        self.state = State(name="t/r-0")
        self.now, self.intent, self.wanted = 100.0, 0, False
        self.alive: set[int] = set()
        self.unborn: set[int] = set()
        self.ready: set[int] = set()
        self.past: list = []

    # -- how it is fed ---------------------------------------------------------------------------

    def feed(self, event) -> None:
        self.state, ordered = step(self.state, event, self.now, self.policy)
        self.past.append(event)
        for action in ordered:
            if isinstance(action, a.Spawn):
                assert not self.alive, "two incarnations at once"
                assert self.wanted, "spawned and not wanted"
                self.unborn.add(action.member)
                self.ready.discard(action.member)
            elif isinstance(action, a.Kill | a.Stop):
                assert action.member not in self.unborn, "killed before its birth"

    def one(self, members, pick) -> int:
        return sorted(members)[pick % len(members)]

    def member(self, kind, index, *args) -> None:
        self.feed(kind(index, self.state.incarnation, *args))

    # -- what an operator does -------------------------------------------------------------------

    @rule()
    def start(self) -> None:
        self.intent, self.wanted = self.intent + 1, True
        self.feed(e.StartRequested(self.intent))

    @rule(at_once=st.booleans())
    def stop(self, at_once) -> None:
        self.intent, self.wanted = self.intent + 1, False
        self.feed(e.StopRequested(self.intent, at_once))

    @rule()
    def restart(self) -> None:
        self.intent, self.wanted = self.intent + 1, True
        self.feed(e.RestartRequested(self.intent))

    # -- what the world does ---------------------------------------------------------------------

    @precondition(lambda self: self.unborn)
    @rule(pick=PICK, works=st.booleans())
    def birth(self, pick, works) -> None:
        index = self.one(self.unborn, pick)
        self.unborn.discard(index)
        if works:
            self.alive.add(index)
            self.member(e.Spawned, index, 100 + index)
        else:
            self.member(e.SpawnFailed, index, "", "no memory")

    @precondition(lambda self: self.alive)
    @rule(pick=PICK)
    def become_ready(self, pick) -> None:
        index = self.one(self.alive, pick)
        self.ready.add(index)
        self.member(e.BecameReady, index)

    @precondition(lambda self: self.alive)
    @rule(pick=PICK, status=STATUSES)
    def end(self, pick, status) -> None:
        index = self.one(self.alive, pick)
        self.member(e.MainExited, index, status)
        self.gone(index, status)

    @precondition(lambda self: self.alive)
    @rule(pick=PICK)
    def lose_the_shim(self, pick) -> None:
        index = self.one(self.alive, pick)
        self.member(e.ShimLost, index)
        self.gone(index, None)

    def gone(self, index, status) -> None:
        self.alive.discard(index)
        self.member(e.TreeEmptied, index, e.ExitFacts(status=status))

    @precondition(lambda self: self.alive)
    @rule(pick=PICK, kind=st.sampled_from([e.LeaseMissed, e.LeaseRecovered, e.Drained]))
    def say(self, pick, kind) -> None:
        self.member(kind, self.one(self.alive, pick))

    @precondition(lambda self: self.alive)
    @rule(pick=PICK)
    def fall_silent(self, pick) -> None:
        self.member(e.LeaseExpired, self.one(self.alive, pick), SILENT)

    @rule()
    def lose_a_peer(self) -> None:
        reason = Reason(Cause.PEER, "another of its group has failed")
        self.feed(e.PeerLost(self.state.incarnation, reason))

    @precondition(lambda self: self.past)
    @rule(pick=st.integers(0, 10**6))
    def hear_again(self, pick) -> None:
        """Something that was said before comes again; nothing may come of it."""
        event = self.past[pick % len(self.past)]
        mine = getattr(event, "incarnation", None) == self.state.incarnation
        if isinstance(event, e.DaemonRestarted) or mine:
            return
        before = self.state
        self.feed(event)
        assert self.state == before, f"moved by outdated {event}"

    @precondition(lambda self: self.state.deadline is not None)
    @rule()
    def wait_for_the_deadline(self) -> None:
        self.now = max(self.now, self.state.deadline.at)
        self.feed(e.DeadlineReached(self.state.deadline.serial))

    @rule()
    def change_the_daemon(self) -> None:
        """What was unborn came about or didn't; the new one is told of what lives."""
        saved = adopt.decode(adopt.encode(adopt.Saved("boot", self.state)))
        self.unborn.clear()
        found = [
            adopt.Alive(pid=1) if index in self.alive else adopt.Nothing()
            for index in range(len(saved.state.members))
        ]
        self.state, events = adopt.adopt(saved, "boot", found)
        for event in events:
            if isinstance(event, e.StartRequested):
                self.intent = max(self.intent, event.intent)
            self.feed(event)

    # -- what must be so -------------------------------------------------------------------------

    @invariant()
    def the_living_are_those_that_should_be(self) -> None:
        if not hasattr(self, "state"):
            return
        phase, everybody = self.state.phase, set(range(self.policy.members))
        assert (self.state.deadline is None) == (phase in AT_REST)
        assert bool(self.state.members) == (phase in LIVE)
        if phase not in LIVE:
            assert not self.alive | self.unborn
        if routable(self.state):
            assert self.alive == everybody
            assert not self.policy.has_readiness or self.ready >= everybody
        if phase is Phase.STARTING:
            assert self.alive | self.unborn == everybody, "one is missing, and the gang goes on"
        if not self.wanted:
            stopping = {Phase.STOPPED, Phase.DRAINING, Phase.STOPPING}
            assert phase in stopping, f"{phase.value}, and not wanted"

    def teardown(self) -> None:
        """Whatever has happened, a stop and the end of all processes lead to rest."""
        if not hasattr(self, "state"):
            return
        self.stop(at_once=True)
        for index in sorted(self.unborn):
            self.unborn.discard(index)
            self.member(e.SpawnFailed, index, "interrupted", "the zygote is gone")
        for index in sorted(self.alive):
            self.gone(index, 9)
        assert self.state.phase is Phase.STOPPED


TestReplica = Replica.TestCase
TestReplica.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True,
    database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
