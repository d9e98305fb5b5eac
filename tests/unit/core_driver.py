"""Drives one replica through the core by hand: a few words per event, time as a number."""

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core.policy import Policy
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.replica import step
from orchestrator.core.state import Phase, State, decode, encode


class Driver:
    def __init__(
        self, policy: Policy | None = None, *, name: str = "agg/worker-0", now: float = 0.0
    ):
        self.policy = policy or Policy()
        self.state = State(name=name)
        self.now = now
        self.actions: tuple[a.Action, ...] = ()
        self.spawned_at: list[float] = []

    def feed(self, event: e.Event, *, after_s: float = 0.0) -> "Driver":
        self.now += after_s
        self.state, self.actions = step(self.state, event, self.now, self.policy)
        if any(isinstance(action, a.Spawn) for action in self.actions):
            self.spawned_at.append(self.now)
        return self

    # -- requests -------------------------------------------------------------------------------

    def start(self) -> "Driver":
        return self.feed(e.StartRequested(self.state.intent + 1))

    def stop(self, *, at_once: bool = False) -> "Driver":
        return self.feed(e.StopRequested(self.state.intent + 1, at_once))

    def restart(self) -> "Driver":
        return self.feed(e.RestartRequested(self.state.intent + 1))

    # -- facts ----------------------------------------------------------------------------------

    def member(self, kind, member=0, *args, after_s: float = 0.0) -> "Driver":
        return self.feed(kind(member, self.state.incarnation, *args), after_s=after_s)

    def born(self) -> "Driver":
        for member in range(self.policy.members):
            self.member(e.Spawned, member, 100 + member)
        return self

    def ready(self, *, after_s: float = 0.0) -> "Driver":
        self.born()
        self.now += after_s
        for member in range(self.policy.members):
            self.member(e.BecameReady, member)
        return self

    def end(
        self, code: int = 1, *, tail: str = "", after_s: float = 0.0, signal: int = 0
    ) -> "Driver":
        """The only member's main exits, and its tree with it."""
        status = signal or code << 8
        self.member(e.MainExited, 0, status, after_s=after_s)
        return self.member(e.TreeEmptied, 0, e.ExitFacts(status=status, tail=tail))

    def empty(self, member: int = 0, status: int | None = 0, **facts) -> "Driver":
        return self.member(e.TreeEmptied, member, e.ExitFacts(status=status, **facts))

    def deadline(self) -> "Driver":
        """Jump to the deadline and let it come."""
        deadline = self.state.deadline
        assert deadline is not None
        self.now = max(self.now, deadline.at)
        return self.feed(e.DeadlineReached(deadline.serial))

    def reload(self) -> "Driver":
        """Through the state file and back."""
        self.state = decode(encode(self.state))
        return self

    # -- looks ----------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self.state.phase

    @property
    def cause(self) -> Cause:
        return self.state.reason.cause

    def ordered(self, kind) -> list:
        return [action for action in self.actions if isinstance(action, kind)]


SILENT = Reason(Cause.UNHEALTHY, "sent no heartbeat for 30 s")
