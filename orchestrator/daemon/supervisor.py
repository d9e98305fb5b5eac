"""The loop: one mailbox, one writer.

An event is taken from the mailbox, `core.step` decides, the new state goes to disk, then the
actions are performed; slow work comes back as a later event. There is no `if` about lifecycle in
this file. The order inside `_step` is the contract of a crash-safe supervisor: what must not be
lost is written before it is done, a routing table without a dead worker leaves before anything is
done about it, and what follows for others is asked when all of that is over.

The mailbox needs no bound of its own: sockets are read in the same loop, as many messages in a
pass as are taken from it here, so a peer that floods us waits in its own socket.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import structs

from orchestrator.core import actions, events, fleet, groups
from orchestrator.core.reasons import Cause
from orchestrator.core.replay import Decision, Recorder
from orchestrator.core.replica import step
from orchestrator.core.state import Hold, State
from orchestrator.daemon.publisher import Publisher
from orchestrator.daemon.unit import Unit, UnitSpec
from orchestrator.host.fault_points import reached
from orchestrator.wire.ids import ReplicaId

BIRTHS_MAX = 8
"""Replicas that may be under birth at once; the others wait for their turn."""
TURN_MAX = 16
"""Events taken in one loop pass, about a millisecond each; sockets get their turn in between."""


Letter = tuple[ReplicaId, events.Event, Callable[[], None] | None]


QUIET = frozenset({Cause.OK, Cause.REQUESTED, Cause.COMPLETED})
"""Causes that need no explanation."""


class Effects(Protocol):
    """What performs orders about members. Each answers by posting events."""

    def perform(self, unit: Unit, action: actions.MemberAction) -> None:
        """Begin to do it; never blocks."""


class Owner(Protocol):
    """Who has to know that a unit is different now."""

    def changed(self, unit: Unit, before: State) -> None:
        """Its state is new and on disk; nothing has been done about it yet."""

    def respecified(self, unit: Unit) -> None:
        """Its spec is another one now; its processes are the same."""

    def settled(self, unit: Unit) -> None:
        """All that the step ordered has been begun; the unit may be removed now."""


class Supervisor:
    """Units, their mailbox and their deadlines."""

    def __init__(
        self,
        effects: Effects,
        save: Callable[[ReplicaId, State], None],
        publisher: Publisher,
        owner: Owner,
    ) -> None:
        self.units: dict[ReplicaId, Unit] = {}
        self._effects = effects
        self._save = save
        self._publisher = publisher
        self._owner = owner
        self._families: dict[str, dict[ReplicaId, Unit]] = {}
        self._needs: dict[str, dict[ReplicaId, tuple[fleet.Need, ...]]] = {}
        self._bonds: dict[str, dict[ReplicaId, tuple[groups.Bond, ...]]] = {}
        self._mailbox: deque[Letter] = deque()
        # How many of an operator's requests are in it, by replica.
        self._requests: dict[ReplicaId, int] = {}
        self._timers: dict[ReplicaId, asyncio.TimerHandle] = {}
        self._scheduled = False
        self._frozen = False
        # Who waits for its turn, in order of coming, and who has it.
        self._queue: dict[ReplicaId, None] = {}
        self._births: set[ReplicaId] = set()
        self._recorder = Recorder()

    def add(self, units: Iterable[Unit]) -> None:
        """Take care of these from now on."""
        for unit in units:
            assert unit.id not in self.units, unit.id
            self.units[unit.id] = unit
            self._families.setdefault(unit.id.topology, {})[unit.id] = unit
            self._note_ties(unit)

    def remove(self, replica: ReplicaId) -> None:
        """Forget a unit that is at rest and wanted no more."""
        unit = self.units.pop(replica)
        assert not unit.state.members, f"{replica} still has processes"
        self._disarm(replica)
        self._queue.pop(replica, None)
        self._recorder.forget(unit.state.name)
        del self._families[replica.topology][replica]
        self._needs.get(replica.topology, {}).pop(replica, None)
        self._bonds.get(replica.topology, {}).pop(replica, None)
        if not self._families[replica.topology]:
            del self._families[replica.topology]
            self._needs.pop(replica.topology, None)
            self._bonds.pop(replica.topology, None)

    def respecify(self, unit: Unit, spec: UnitSpec) -> None:
        """Change what the daemon does about a replica; its processes don't notice."""
        unit.spec, unit.next = spec, None
        self._note_ties(unit)
        self._owner.respecified(unit)

    def prepare(self, unit: Unit, spec: UnitSpec) -> None:
        """Let a replica be something else from its next life on."""
        if unit.state.members:
            unit.next = spec
            self._note_ties(unit)
        else:
            self.respecify(unit, spec)

    def _note_ties(self, unit: Unit) -> None:
        """Know whom its next start waits for, and with whom its present life ends."""
        needs = self._needs.setdefault(unit.id.topology, {})
        needs.pop(unit.id, None)
        if unit.coming.needs:
            needs[unit.id] = unit.coming.needs
        ties = self._bonds.setdefault(unit.id.topology, {})
        ties.pop(unit.id, None)
        if unit.spec.bonds:
            ties[unit.id] = unit.spec.bonds

    def post(
        self, replica: ReplicaId, event: events.Event, then: Callable[[], None] | None = None
    ) -> None:
        """Put an event into the mailbox; it is taken in a later loop pass, in order.

        `then` is called once what it says can't be lost any more: the state that knows it is on
        disk. Whoever owns the only other record of a fact removes that record there.
        """
        if isinstance(event, events.Request):
            self._requests[replica] = self._requests.get(replica, 0) + 1
        self._mailbox.append((replica, event, then))
        self._schedule()

    def tell(self, replica: ReplicaId, event: events.Event) -> None:
        """Take what is true now at once: in the mailbox the truth could overtake it.

        Not from within a step.
        """
        unit = self.units.get(replica)
        if unit is not None:
            self._take(unit, event)

    def request(self, unit: Unit, make: Callable[[int], events.Event]) -> None:
        """Post an operator's request with the next intent number."""
        self.post(unit.id, make(self.newest_intent(unit) + 1))

    def newest_intent(self, unit: Unit) -> int:
        """The intent of the newest request that was posted, taken already or not."""
        return unit.state.intent + self._requests.get(unit.id, 0)

    def freeze(self) -> None:
        """Decide nothing more: what comes from now on is for the next daemon to find."""
        self._frozen = True

    def _schedule(self) -> None:
        if not self._scheduled and not self._frozen:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._frozen:
            return
        for _ in range(min(TURN_MAX, len(self._mailbox))):
            replica, event, then = self._mailbox.popleft()
            if isinstance(event, events.Request):
                left = self._requests.pop(replica) - 1
                self._requests |= {replica: left} if left else {}
            unit = self.units.get(replica)
            if unit is not None:
                self._take(unit, event)
            if then is not None:
                then()
        if self._mailbox:
            self._schedule()

    def catch_up(self) -> None:
        """Take all that is in the mailbox now, and only then say what follows for others.

        For adoption: these events are old news, and nobody may start on what only used to be true.
        """
        self._mailbox, news = deque(), self._mailbox
        self._requests.clear()
        for replica, event, then in news:
            self._step(self.units[replica], event)
            if then is not None:
                then()
            reached("adoption.news-taken")
        for topology in list(self._families):
            self._take_along(groups.overdue_losses(
                self._bonds.get(topology, {}), self._states(topology)
            ))  # fmt: skip
            self.tell_dependants(topology)

    def _take(self, unit: Unit, event: events.Event) -> None:
        if self._step(unit, event):
            self.tell_dependants(unit.id.topology)
            self._owner.settled(unit)
            reached("supervisor.settled")

    def _step(self, unit: Unit, event: events.Event) -> bool:
        """Decide and do; False when the event changes nothing."""
        now = asyncio.get_running_loop().time()
        before = unit.state
        crowded = len(self._births) >= BIRTHS_MAX
        policy = structs.replace(unit.policy, crowded=True) if crowded else unit.policy
        unit.state, ordered = step(before, event, now, policy)
        if unit.state is before and not ordered:
            return False
        begun = unit.state.incarnation > before.incarnation
        if unit.next is not None and (begun or not unit.state.members):
            self.respecify(unit, unit.next)
        reached("supervisor.decided")
        self._save(unit.id, unit.state)
        reached("supervisor.saved")
        self._owner.changed(unit, before)
        reached("supervisor.published")
        self._record(unit, before, self._recorder.decision(
            before, unit.state, event=event, actions=ordered, now=now, policy=policy,
            generation=self._publisher.generation,
        ))  # fmt: skip
        reached("supervisor.recorded")
        for action in ordered:
            self._perform(unit, action)
            reached("supervisor.performed-one")
        self._note_turns(unit)
        reached("supervisor.performed-all")
        if family := self._bonds.get(unit.id.topology):
            states = self._states(unit.id.topology)
            self._take_along(groups.losses(family, unit.id, before, states))
        return True

    def _take_along(self, losses: Iterable[tuple[ReplicaId, events.PeerLost]]) -> None:
        """End those that go down with another; one that has gone by now ignores it."""
        for replica, lost in losses:
            self._step(self.units[replica], lost)

    def _states(self, topology: str) -> dict[ReplicaId, State]:
        return {replica: unit.state for replica, unit in self._families[topology].items()}

    def _note_turns(self, unit: Unit) -> None:
        if fleet.wants_turn(unit.state):
            self._queue.setdefault(unit.id)
        else:
            self._queue.pop(unit.id, None)
        if fleet.is_being_born(unit.state):
            self._births.add(unit.id)
        else:
            self._births.discard(unit.id)
        free = BIRTHS_MAX - len(self._births)
        for replica in list(self._queue)[: max(0, free)]:
            del self._queue[replica]
            self.post(replica, events.Cleared(Hold.TURN, self.units[replica].state.incarnation))

    def _perform(self, unit: Unit, action: actions.Action) -> None:
        match action:
            case actions.ArmDeadline(serial, at):
                self._arm(unit.id, serial, at)
            case actions.DisarmDeadline():
                self._disarm(unit.id)
            case _:
                self._effects.perform(unit, action)

    def _arm(self, replica: ReplicaId, serial: int, at: float) -> None:
        self._disarm(replica)
        loop = asyncio.get_running_loop()
        self._timers[replica] = loop.call_at(at, self.post, replica, events.DeadlineReached(serial))

    def _disarm(self, replica: ReplicaId) -> None:
        timer = self._timers.pop(replica, None)
        if timer is not None:
            timer.cancel()

    def tell_dependants(self, topology: str) -> None:
        """Bring every waiting replica's view of its dependencies up to date, at once.

        Not through the mailbox: truth could overtake the news there, and a replica start after
        what it needs has died. News only ever ends a wait or rewords it, so this comes to an end.
        """
        needs = self._needs.get(topology)
        while needs:
            states = self._states(topology)
            news = fleet.dependency_events(needs, states)
            if any(isinstance(event, events.Cleared) for _, event in news):
                # Stopped in one go with what held it back: it shall not be born in between.
                leaving = self._asked_to_stop()
                news = [each for each in news if each[0] not in leaving]
            if not news:
                return
            for replica, event in news:
                self._step(self.units[replica], event)

    def _asked_to_stop(self) -> set[ReplicaId]:
        return {to for to, event, _ in self._mailbox if isinstance(event, events.StopRequested)}

    def _record(self, unit: Unit, before: State, decision: Decision) -> None:
        """One journal line per step that changed something, in words and for replay."""
        state = unit.state
        changed = state.phase is not before.phase
        detail = {"incarnation": str(state.incarnation)}
        if changed:
            detail["from"] = before.phase.value
            if state.reason.cause not in QUIET:
                detail["cause"] = state.reason.cause.value
        if before.fault is not None and not state.members and state.failures != before.failures:
            say_failed(unit)
        self._publisher.event(
            unit.id,
            "phase-changed" if changed else events.kebab(type(decision.event).__name__),
            phase=state.phase.value,
            reason=str(state.reason),
            detail=detail,
            core=decision,
        )


def say_failed(unit: Unit) -> None:
    """Write a failed life's reason into the daemon's log, in the words of all the others.

    Backoff and budgets bound how often that happens.
    """
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    phase, reason = unit.state.phase.value, unit.state.reason
    sys.stderr.write(f"{when} {unit.id} {phase} ({reason.cause.value}): {reason}\n")
