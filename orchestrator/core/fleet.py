"""What replicas owe each other: who may start, and in what order to stop.

The replica machine knows nothing of other replicas. This module looks at all of them and turns
what it sees into the events that each waits for. It is asked after every step, and answers only
with what changes something, so conditions are true at the moment of each start and not merely
once.
"""

from collections.abc import Mapping, Sequence

import msgspec

from orchestrator.core.events import Cleared, Held
from orchestrator.core.groups import is_broken
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Hold, Phase, Stage, State, routable
from orchestrator.wire.ids import ReplicaId

MET_BY: dict[str, frozenset[Phase]] = {
    "started": frozenset({Phase.STARTING, Phase.READY, Phase.COMPLETED}),
    "ready": frozenset({Phase.READY}),
    "completed": frozenset({Phase.COMPLETED}),
}
"""The phases that satisfy each condition of `depends-on`; what is started has been born, too."""
TOGETHER = "together"
"""The condition of a `one-for-all` group: no failure keeps the other one down, nor does it end."""
GONE = "gone"
"""The condition of `rest-for-one` on those that come later: no old life of it is left."""
OF_GROUPS = frozenset({TOGETHER, GONE})
ENDING = frozenset({Phase.DRAINING, Phase.STOPPING})


class Need(msgspec.Struct, frozen=True):
    """One dependency: `condition` is a key of `MET_BY`, or one `OF_GROUPS`."""

    on: ReplicaId
    condition: str = "ready"


Needs = Mapping[ReplicaId, Sequence[Need]]


def unmet(needs: Sequence[Need], states: Mapping[ReplicaId, State]) -> Reason | None:
    """Why a replica with these needs can't start now; None when it can."""
    for need in needs:
        other = states.get(need.on)
        if other is None:
            return Reason(Cause.WAITING_DEPENDENCY, f"waits for {need.on}, which isn't there")
        if need.condition in OF_GROUPS:
            if other.phase in ENDING or (need.condition == TOGETHER and is_broken(other)):
                text = f"waits for {need.on} of its group: {other.reason.sentence}"
                return Reason(Cause.WAITING_DEPENDENCY, text)
        elif other.phase not in MET_BY[need.condition] or is_being_born(other):
            word = "being born" if is_being_born(other) else other.phase.value
            why = f": {other.reason.sentence}" if other.phase is Phase.FAILED else ""
            return Reason(
                Cause.WAITING_DEPENDENCY,
                f"waits for {need.on} to be {need.condition}; it is {word}{why}",
            )
        if need.condition == "ready" and not routable(other):
            why = f"waits for {need.on} to be ready: {other.reason.sentence}"
            return Reason(Cause.WAITING_DEPENDENCY, why)
    return None


def dependency_events(
    needs: Needs, states: Mapping[ReplicaId, State]
) -> list[tuple[ReplicaId, Cleared | Held]]:
    """List the events that bring each waiting replica's view of its dependencies up to date.

    Empty when nothing changed. Call it after every step and after an adoption, and step with what
    it returns at once: an event that lies in a mailbox meanwhile may be overtaken by the truth.
    """
    events: list[tuple[ReplicaId, Cleared | Held]] = []
    for replica, state in states.items():
        if state.phase is not Phase.WAITING:
            continue
        reason = unmet(needs.get(replica, ()), states)
        if reason == state.holds.get(Hold.DEPENDENCY):
            continue
        told, hold = state.incarnation, Hold.DEPENDENCY
        events.append((replica, Held(hold, told, reason) if reason else Cleared(hold, told)))
    return events


def wants_turn(state: State) -> bool:
    """Whether this replica could start now if its turn had come."""
    return state.phase is Phase.WAITING and state.holds.keys() == {Hold.TURN}


def is_being_born(state: State) -> bool:
    """Whether a birth of this replica is ordered and not yet confirmed: it takes up a turn."""
    return any(member.stage is Stage.ORDERED for member in state.members)


def stop_levels(replicas: Sequence[ReplicaId], needs: Needs) -> list[list[ReplicaId]]:
    """Order a stop: dependants first. A level is stopped in parallel once the one before is gone.

    Needs that point outside `replicas` don't matter, nor does a group's togetherness. A cycle is a
    programmer error here: the topology was validated.
    """
    left = sorted(set(replicas))
    levels: list[list[ReplicaId]] = []
    while left:
        needed = {
            need.on
            for replica in left
            for need in needs.get(replica, ())
            if need.condition not in OF_GROUPS
        }
        level = [replica for replica in left if replica not in needed]
        assert level, f"dependency cycle among {[str(replica) for replica in left]}"
        levels.append(level)
        left = [replica for replica in left if replica in needed]
    return levels
