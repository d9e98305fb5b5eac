"""An accountant that never looks at the core's books.

It hears what the daemon heard and sees what was ordered, and keeps its own simple account: what was
wished last, whether a life is open, why it ended, how often that has happened. From this it says
which phase must be shown, whether a spawn was allowed at that moment, and whether giving up was
due. Numbers are written out here, not read from the policy's defaults.
"""

from dataclasses import dataclass, field

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core.policy import Restart
from orchestrator.core.state import Phase

ALLOWED = {"config": 0, "oom-load": 1, "start-timeout": 1, "port-in-use": 3, "start-crash": 2}
BEFORE_READY = {"config", "oom-load", "port-in-use"}
LOG_SAYS = {"CUDA out of memory": "oom-load", "Address already in use": "port-in-use"}
CONFIG_EXITS = {2, 127}
FREE = {"interrupted", "peer", "dependency"}
SLOW_S = {"oom-load": 10}
EPSILON = 1e-6


@dataclass
class Book:
    """One incarnation."""

    incarnation: int
    size: int
    opened_at: float
    gives_up_at: float
    born: set = field(default_factory=set)
    ready: set = field(default_factory=set)
    empty: set = field(default_factory=set)
    byes: dict = field(default_factory=dict)
    ready_at: float | None = None
    asked: bool = False
    completing: bool = False
    cause: str | None = None
    culprit: int = -1
    by_exit: bool = False
    ends_at: float | None = None
    stop_at: float | None = None
    kill_at: float = 0.0
    killing: bool = False
    left: set = field(default_factory=set)


@dataclass
class Ledger:
    name: str
    policy: object
    is_prompt: bool
    wish: str | None = None
    intent: int = 0
    book: Book | None = None
    incarnation: int = 0
    row: int = 0
    tallies: dict = field(default_factory=dict)
    failures: list = field(default_factory=list)
    earliest: float = 0.0
    latest: float = 0.0
    exhausted: bool = False
    completed: bool = False
    undisturbed: bool = True

    # -- what is heard --------------------------------------------------------------------------

    def observe(self, event, before, after, actions, now) -> None:
        news = self.is_news(event)
        if not news:
            assert after == before, f"{self.name}: moved by outdated {event}"
        else:
            self.hear(event, now)
        if isinstance(event, e.DeadlineReached):
            self.hear_deadline(before, actions, now)
        spawns = [action for action in actions if isinstance(action, a.Spawn)]
        if spawns:
            self.open(spawns, now)
        self.check_grace(after, actions, now)
        self.check_phase(after)

    def is_news(self, event) -> bool:
        if isinstance(event, e.StartRequested | e.StopRequested | e.RestartRequested):
            return event.intent > self.intent
        book = self.book
        if isinstance(event, e.GaveUp):
            waits = self.wish == "up" and not (self.exhausted or self.completed)
            return book is None and waits and event.incarnation == self.incarnation
        if isinstance(event, e.PeerLost):
            return book is not None and event.incarnation == book.incarnation
        if not hasattr(event, "member"):
            return True
        if book is None or event.incarnation != book.incarnation or event.member in book.empty:
            return False
        return not (isinstance(event, e.Spawned | e.SpawnFailed) and event.member in book.born)

    def hear(self, event, now) -> None:
        if isinstance(event, e.StartRequested | e.StopRequested | e.RestartRequested):
            self.hear_request(event, now)
            return
        if isinstance(event, e.GaveUp):
            self.exhausted = True
        book = self.book
        if isinstance(event, e.PeerLost):
            self.blame(0, event.reason.cause.value, now)
        if book is None or not hasattr(event, "member"):
            return
        listen = LISTEN.get(type(event))
        if listen is not None:
            listen(self, book, event, now)
        self.see_ready(now)
        if isinstance(event, e.SpawnFailed | e.TreeEmptied):
            book.empty.add(event.member)
            if len(book.empty) == book.size:
                self.close(now)

    def hear_bye(self, book, event, _now) -> None:
        book.byes[event.member] = event.code

    def hear_birth(self, book, event, _now) -> None:
        book.born.add(event.member)

    def hear_ready(self, book, event, _now) -> None:
        book.ready.add(event.member)

    def hear_plea(self, book, event, now) -> None:
        if book.stop_at is not None:
            if not book.killing and event.member not in book.left:
                book.kill_at = min(book.stop_at + 600, max(book.kill_at, now + event.by_s))
        elif book.ready_at is None:
            at_most = book.opened_at + 7200
            book.gives_up_at = min(at_most, max(book.gives_up_at, now + event.by_s))

    def hear_silence(self, book, event, now) -> None:
        if event.member in book.ready or book.ready_at is not None:
            self.blame(event.member, "unhealthy", now)

    def hear_loss(self, _book, event, now) -> None:
        self.blame(event.member, "lost", now)

    def hear_stillbirth(self, _book, event, now) -> None:
        why = {"interrupted": "interrupted", "ENOENT": "config", "": "start-crash"}
        self.blame(event.member, why[event.code], now)

    def hear_main(self, book, event, now) -> None:
        book.left.add(event.member)
        self.hear_exit(event.member, e.ExitFacts(status=event.status), now)

    def hear_request(self, event, now) -> None:
        self.intent = event.intent
        stops = isinstance(event, e.StopRequested)
        self.wish = "down" if stops else "up"
        book = self.book
        if book is not None:
            dying = book.cause is not None or book.completing
            if stops or isinstance(event, e.RestartRequested) or dying:
                book.asked = True
            book.killing |= stops and event.at_once
        self.exhausted = self.completed = False
        if not stops:
            self.row, self.tallies, self.failures = 0, {}, []
            if book is not None:
                book.cause, book.completing = None, False
            self.earliest, self.latest = now, now

    def hear_exit(self, member, facts, now) -> None:
        book = self.book
        if book.asked or book.completing or book.cause is not None:
            return
        if facts.status == 0 and not facts.exec_error and self.ends_well():
            book.completing = True
            return
        self.blame(member, self.classify(member, facts), now)
        book.by_exit = True

    def hear_empty(self, book, event, now) -> None:
        self.hear_exit(event.member, event.facts, now)
        refinable = book.by_exit and book.culprit == event.member and book.cause is not None
        if refinable and event.facts.status is not None:
            book.cause = self.classify(event.member, event.facts)

    def hear_deadline(self, before, actions, now) -> None:
        """A start that is given up without any news must have taken its full time."""
        book = self.book
        kills = [action for action in actions if isinstance(action, a.Kill)]
        if before.phase is Phase.STOPPING and book is not None and actions:
            in_time = book.killing or book.stop_at is None or now >= book.kill_at - EPSILON
            assert in_time, f"{self.name}: killed {book.kill_at - now:.1f} s before its time"
            book.killing = True
        if before.phase is Phase.STARTING and book is not None and self.is_well(book):
            late = now >= book.gives_up_at - EPSILON
            if not late:
                assert not kills, f"{self.name}: start given up after {now - book.opened_at:.0f} s"
                return
            late_member = next(i for i in range(book.size) if i not in book.ready)
            self.blame(late_member, "start-timeout", now)

    def ends_well(self) -> bool:
        return self.policy.oneshot or self.policy.restart is not Restart.ALWAYS

    # -- the account ----------------------------------------------------------------------------

    def is_well(self, book) -> bool:
        return not (book.asked or book.completing or book.cause is not None)

    def blame(self, member, cause, now) -> None:
        book = self.book
        if self.is_well(book):
            book.cause, book.culprit = cause, member
            book.ended_at = now

    def classify(self, member, facts) -> str:
        started = self.book.ready_at is not None
        if facts.exec_error:
            return "config"
        said = self.book.byes.get(member)
        if said is not None:
            return "crash" if started and said in BEFORE_READY else said
        shot = (facts.status or 0) & 127 == 9  # a log can't explain what came from outside
        if not started and not shot:
            for line, cause in LOG_SAYS.items():
                if line in facts.tail:
                    return cause
        if facts.status is None:
            return "lost"
        if started:
            return "crash"
        return "config" if facts.status >> 8 in CONFIG_EXITS else "start-crash"

    def see_ready(self, now) -> None:
        book = self.book
        if book is None or book.ready_at is not None or not self.is_well(book):
            return
        needed = book.born & book.ready if self.policy.has_readiness else book.born
        if len(needed) == book.size:
            book.ready_at = now
            self.tallies = {}

    def close(self, now) -> None:
        book, self.book = self.book, None
        self.earliest = self.latest = now
        self.undisturbed = True
        if self.wish == "down":
            return
        if book.completing:
            self.completed = True
        elif not book.asked and book.cause not in FREE:
            self.charge(book, now)

    def charge(self, book, now) -> None:
        if self.policy.restart is Restart.NEVER:
            self.exhausted = True
            return
        ready_s = None if book.ready_at is None else book.ended_at - book.ready_at
        rested = ready_s is not None and ready_s >= 600
        self.row = 1 if rested else self.row + 1
        if ready_s is not None and book.cause != "config":
            self.failures.append(book.ended_at)
            worth = sum(0.5 ** ((book.ended_at - when) / 1800) for when in self.failures)
            self.exhausted = worth > 5
        else:
            count = self.tallies[book.cause] = self.tallies.get(book.cause, 0) + 1
            self.exhausted = count > ALLOWED.get(book.cause, 2)
        pause_s = 0 if rested else min(60, 2 ** (self.row - 1))
        at_least = SLOW_S.get(book.cause, 0)
        self.earliest = now + max(0.9 * pause_s, at_least)
        self.latest = now + max(1.1 * pause_s, at_least)

    def open(self, spawns, now) -> None:
        numbers = {spawn.incarnation for spawn in spawns}
        assert self.book is None, f"{self.name}: spawned while a life is open"
        assert self.wish == "up", f"{self.name}: spawned although it was to be down"
        assert not self.exhausted, f"{self.name}: spawned after it had failed for good"
        assert not self.completed, f"{self.name}: spawned after its work was done"
        assert len(numbers) == 1, f"{self.name}: members of different lives, {numbers}"
        assert min(numbers) > self.incarnation, f"{self.name}: {numbers} was there before"
        assert [spawn.member for spawn in spawns] == list(range(self.policy.members))
        assert now >= self.earliest - EPSILON, f"{self.name}: {self.earliest - now:.2f} s too soon"
        if self.undisturbed and self.is_prompt:
            assert now <= self.latest + EPSILON, f"{self.name}: {now - self.latest:.2f} s too late"
        self.incarnation = numbers.pop()
        self.book = Book(self.incarnation, len(spawns), now, now + 1800)

    def daemon_died(self, *, rebooted: bool) -> None:
        self.undisturbed = False
        if not rebooted:
            return
        self.book = None
        finished = self.completed
        self.row, self.tallies, self.failures = 0, {}, []
        self.exhausted = self.completed = False
        self.earliest = self.latest = 0.0
        if finished:
            self.wish = "down"

    @property
    def is_failing(self) -> bool:
        """It went wrong by itself, and its life isn't over yet."""
        book = self.book
        return book is not None and book.cause is not None and book.cause not in FREE

    @property
    def is_broken(self) -> bool:
        """It is wanted, and a failure keeps it down."""
        ends = self.book is not None and self.book.cause not in {None, "interrupted"}
        return self.wish == "up" and (ends or self.exhausted)

    def check_grace(self, state, actions, now) -> None:
        """The first order of a stop says how long; each later one says what is left of that."""
        book = self.book
        if book is not None and book.ends_at is None and state.phase is Phase.STOPPING:
            book.ends_at = now
        for action in actions:
            if book is None or not isinstance(action, a.Stop):
                continue
            if book.stop_at is None:
                book.stop_at, book.kill_at = book.ends_at, now + action.grace_s
            left_s = max(0.0, book.kill_at - now)
            assert abs(action.grace_s - left_s) < 1e-3, f"{self.name}: {left_s} s of grace left"

    # -- the verdict ----------------------------------------------------------------------------

    def check_phase(self, state) -> None:
        expected = self.expected()
        assert state.phase in expected, (
            f"{self.name} is {state.phase.value}, should be "
            f"{' or '.join(phase.value for phase in expected)}"
        )

    def expected(self) -> set:
        book = self.book
        if book is None:
            if self.wish != "up":
                return {Phase.STOPPED}
            if self.exhausted:
                return {Phase.FAILED}
            return {Phase.COMPLETED} if self.completed else {Phase.WAITING}
        if book.cause is not None or book.completing:
            return {Phase.STOPPING}
        if book.asked:
            return {Phase.DRAINING, Phase.STOPPING}
        return {Phase.STARTING} if book.ready_at is None else {Phase.READY}


LISTEN = {
    e.SaidBye: Ledger.hear_bye,
    e.MoreTimeAsked: Ledger.hear_plea,
    e.Spawned: Ledger.hear_birth,
    e.BecameReady: Ledger.hear_ready,
    e.LeaseExpired: Ledger.hear_silence,
    e.ShimLost: Ledger.hear_loss,
    e.SpawnFailed: Ledger.hear_stillbirth,
    e.MainExited: Ledger.hear_main,
    e.TreeEmptied: Ledger.hear_empty,
}
