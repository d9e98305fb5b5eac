"""Who goes down with whom: groups of replicas, and dependants of one that restarts.

A gang is one replica, and the replica machine ends it as a whole. Here it is about replicas that
belong together by the operator's word. As in OTP there are three strategies: `one-for-one` binds
nothing, `one-for-all` restarts all when one fails, `rest-for-one` restarts those that come after
it in the list. The list names roles and processes; replicas of the same role are copies of each
other and not bound.

The one that failed is charged and has the backoff; the others are charged nothing and wait for it:
in `one-for-all` because a group that isn't whole is waited for, in `rest-for-one` because each
waits for those before it. It in turn waits until the old lives of the others are gone. So a group
has one backoff, and the budget of whoever fails.

A dependant with `on-dependency-restart = "restart"` ends when what it depends on fails, and at the
latest when a new life of that begins, whatever ended the old one.
"""

from collections.abc import Mapping, Sequence

import msgspec

from orchestrator.core.events import PeerLost
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Await, Phase, State, Want
from orchestrator.wire.ids import ReplicaId

FALLS = frozenset({Phase.STARTING, Phase.READY})
"""Phases in which a replica can be taken along; in the others its life is over, or nearly."""
NO_FAILURE = frozenset({Cause.COMPLETED, Cause.INTERRUPTED})


class Bond(msgspec.Struct, frozen=True):
    """This replica goes down with `on`. `group`: its name; empty for a dependant."""

    on: ReplicaId
    group: str = ""


Bonds = Mapping[ReplicaId, Sequence[Bond]]


def losses(
    bonds: Bonds,
    replica: ReplicaId,
    before: State,
    states: Mapping[ReplicaId, State],
) -> list[tuple[ReplicaId, PeerLost]]:
    """Whom one step of this replica takes along; `states` has its state after the step.

    Who was taken along takes no more of the same group along: its first failure took them all.
    """
    after = states[replica]
    failed, renewed = has_failed(before, after), is_new_life(before, after)
    if not (failed or renewed):
        return []
    by_group = failed and not (after.fault and after.fault.reason.cause is Cause.PEER)
    return [
        (other, PeerLost(states[other].incarnation, reason_of(bond, after)))
        for other, bond in bound_to(bonds, replica, states)
        if (by_group if bond.group else True)
    ]


def overdue_losses(
    bonds: Bonds, states: Mapping[ReplicaId, State]
) -> list[tuple[ReplicaId, PeerLost]]:
    """Whom a failure should have taken along, and the daemon died in between."""
    found: dict[ReplicaId, PeerLost] = {}
    for replica, state in states.items():
        if is_broken(state):
            for other, bond in bound_to(bonds, replica, states):
                lost = PeerLost(states[other].incarnation, reason_of(bond, state))
                found.setdefault(other, lost)
    return list(found.items())


def bound_to(
    bonds: Bonds, replica: ReplicaId, states: Mapping[ReplicaId, State]
) -> list[tuple[ReplicaId, Bond]]:
    """Those that go down with this one and have a life to lose."""
    return [
        (other, bond)
        for other, its in bonds.items()
        if states[other].phase in FALLS
        for bond in its
        if bond.on == replica
    ]


def has_failed(before: State, after: State) -> bool:
    """Say whether this step ended a life by a failure; some ends are over within one step."""
    if before.phase not in FALLS:
        return False
    if after.phase is Phase.STOPPING:
        return after.fault is not None and after.fault.reason.cause not in NO_FAILURE
    return after.phase is Phase.FAILED or after.restarts > before.restarts


def is_new_life(before: State, after: State) -> bool:
    """Say whether a life begins with this step."""
    return after.phase is Phase.STARTING and after.incarnation > before.incarnation


def is_broken(state: State) -> bool:
    """Say whether it is wanted up and a failure keeps it down: its old life, its backoff, or all.

    One that waits for something else doesn't count: it waits for the rest of its group, perhaps.
    """
    if state.want is Want.DOWN:
        return False
    if state.phase is Phase.STOPPING:
        return state.fault is not None and state.fault.reason.cause not in NO_FAILURE
    if state.phase is Phase.WAITING:
        return state.deadline is not None and state.deadline.what is Await.BACKOFF
    return state.phase is Phase.FAILED


def reason_of(bond: Bond, state: State) -> Reason:
    """Explain to a replica why it ends: `state` is that of the one it is bound to."""
    who = state.name
    advice = f"see why in `dynorch status`, at {who}"
    if bond.group:
        return Reason(Cause.PEER, f"goes down with {who}, of its group {bond.group}", advice)
    return Reason(Cause.DEPENDENCY, f"restarts because {who}, which it depends on, does", advice)
