"""The moves of the replica machine: how it enters each phase, and what it orders on the way.

The table in `replica` says when a move is made; here is what it consists of. Two of them may pass
through: a wait that has nothing to wait for becomes a start at once, and a stop that finds every
tree empty is over at once. There is no other way into a start than through `wait`, and no other
way out of a life than through `conclude`.
"""

from collections.abc import Callable

from msgspec.structs import replace

from orchestrator.core import restart
from orchestrator.core.actions import (
    Action,
    ArmDeadline,
    DisarmDeadline,
    Drain,
    Kill,
    Spawn,
    Stop,
)
from orchestrator.core.diagnosis import seconds
from orchestrator.core.policy import Policy, Restart
from orchestrator.core.reasons import NOT_CHARGED, Cause, Reason
from orchestrator.core.state import (
    Await,
    Counters,
    Deadline,
    Fault,
    Hold,
    Member,
    Phase,
    Stage,
    State,
    Want,
)

Step = tuple[State, tuple[Action, ...]]

UNKNOWN = {
    Hold.DEPENDENCY: Reason(Cause.WAITING_DEPENDENCY, "asks whether what it depends on is there"),
    Hold.GPU: Reason(Cause.WAITING_GPU, "asks whether its GPUs are free"),
}
WAITING_CAUSES = {Cause.WAITING_DEPENDENCY, Cause.WAITING_GPU, Cause.WAITING_TURN}
NEXT_TURN = Reason(Cause.WAITING_TURN, "waits for its turn: others are being started")
ASKED_TO_START = Reason(Cause.REQUESTED, "asked to start")
ASKED_TO_STOP = Reason(Cause.REQUESTED, "stopped as asked")
STOPPING_AS_ASKED = Reason(Cause.REQUESTED, "asked to stop")
RESTARTING_AS_ASKED = Reason(Cause.REQUESTED, "asked to restart")
CLEARED = Reason(Cause.OK, "starts, for nothing holds it back any more")
READY = Reason(Cause.OK, "ready")
DONE = Reason(Cause.COMPLETED, "finished its work with exit code 0")


def enter(state: State, phase: Phase, reason: Reason, now: float) -> State:
    """Change the phase, and note since when and why."""
    return replace(state, phase=phase, reason=reason, entered_at=now)


def arm(state: State, what: Await, at: float) -> Step:
    """Set the one deadline; the one before is forgotten by its serial."""
    serial = state.serial + 1
    armed = replace(state, serial=serial, deadline=Deadline(what, serial, at))
    return armed, (ArmDeadline(serial, at),)


def disarm(state: State) -> Step:
    """Have no deadline: for phases at rest."""
    if state.deadline is None:
        return state, ()
    return replace(state, deadline=None), (DisarmDeadline(),)


def with_member(state: State, index: int, member: Member) -> State:
    """Replace one member's facts."""
    members = (*state.members[:index], member, *state.members[index + 1 :])
    return replace(state, members=members)


def forgive(state: State) -> State:
    """Start counting anew: somebody asked by hand."""
    return replace(state, counters=Counters(), fault=None)


# ---- towards a start ---------------------------------------------------------------------------


def begin(state: State, reason: Reason, delay_s: float, now: float, policy: Policy) -> Step:
    """Enter `waiting`: what can hold it back must be cleared afresh at each start."""
    assert not state.members, "a start while the last life may not be over"
    state = replace(state, holds=unknown(policy), not_before=now + delay_s)
    return wait(enter(state, Phase.WAITING, reason, now), now, policy)


def unknown(policy: Policy) -> dict[Hold, Reason]:
    """Hold it back by everything that nobody has cleared yet."""
    return {hold: UNKNOWN[hold] for hold in policy.holds}


def wait(state: State, now: float, policy: Policy) -> Step:
    """Start if nothing holds it back, else wait for what does."""
    if now < state.not_before:
        return arm(state, Await.BACKOFF, state.not_before)
    if not state.holds and policy.crowded:
        state = replace(state, holds={Hold.TURN: NEXT_TURN})
    for hold in Hold:
        if hold in state.holds:
            waiting = replace(state, reason=state.holds[hold])
            return arm(waiting, Await.PATIENCE, now + policy.patience_s)
    return launch(state, now, policy)


def launch(state: State, now: float, policy: Policy) -> Step:
    """Spawn all members of a new incarnation at once."""
    members = tuple(Member() for _ in range(policy.members))
    incarnation = state.incarnation + 1
    state = replace(state, incarnation=incarnation, members=members, fault=None, ready_at=None)
    waited = state.reason.cause in WAITING_CAUSES
    state = enter(state, Phase.STARTING, CLEARED if waited else state.reason, now)
    state, armed = arm(state, Await.START, now + policy.start.timeout_s)
    spawns = tuple(Spawn(index, incarnation) for index in range(policy.members))
    return state, armed + spawns


def ready_if_all_are(state: State, now: float, policy: Policy) -> Step:
    """Become ready with the last member; without a sign of readiness, some time after its birth."""
    for member in state.members:
        if member.stage is not Stage.RUNNING or (policy.has_readiness and not member.ready):
            return state, ()
    assert state.deadline is not None, "a start has a deadline"
    if policy.has_readiness or policy.start.settle_s <= 0.0:
        return be_ready(state, now)
    if state.deadline.what is Await.SETTLE:
        return state, ()
    return arm(state, Await.SETTLE, now + policy.start.settle_s)


def be_ready(state: State, now: float) -> Step:
    """Enter `ready`, where nothing is awaited; one start has worked."""
    counters = restart.after_ready(state.counters)
    state = replace(state, ready_at=now, counters=counters)
    return disarm(show_readiness(enter(state, Phase.READY, READY, now)))


def show_readiness(state: State) -> State:
    """Say of a ready replica whether it is routable, and if not, because of whom."""
    if state.phase is not Phase.READY:
        return state
    overdue = [index for index, member in enumerate(state.members) if member.overdue]
    if not overdue:
        return replace(state, reason=READY)
    alone = len(state.members) == 1
    if (unwell := state.members[overdue[0]].unwell) is not None:
        said = unwell.sentence if alone else f"member {overdue[0]}: {unwell.sentence}"
        return replace(state, reason=replace(unwell, sentence=said))
    who = "it has" if alone else f"member {overdue[0]} has"
    sentence = f"{who} stopped beating; not routable until it does again"
    return replace(state, reason=Reason(Cause.UNREADY, sentence))


# ---- towards an end ----------------------------------------------------------------------------


def drain(
    state: State, reason: Reason, now: float, policy: Policy, limit_s: float | None = None
) -> Step:
    """Ask all members to finish what they have, within `limit_s` or the policy's time."""
    limit_s = policy.stop.drain_s if limit_s is None else limit_s
    state, armed = arm(enter(state, Phase.DRAINING, reason, now), Await.DRAIN, now + limit_s)
    return state, armed + orders(state, lambda index: Drain(index, state.incarnation, limit_s))


def stop(state: State, reason: Reason, now: float, policy: Policy) -> Step:
    """Stop all members with grace: a short one while they start, for they may not listen."""
    starting = state.phase is Phase.STARTING
    grace_s = policy.start.stop_grace_s if starting else policy.stop.grace_s
    linger_s = policy.stop.linger_s
    state = enter(state, Phase.STOPPING, reason, now)
    state, armed = arm(state, Await.STOP, now + grace_s + linger_s)
    return conclude_if_empty(state, armed + stops(state, grace_s, linger_s), now, policy)


def kill(state: State, reason: Reason, now: float, policy: Policy) -> Step:
    """Kill all trees: of a gang in which one failed the others would only hang."""
    if state.phase is not Phase.STOPPING:
        state = enter(state, Phase.STOPPING, reason, now)
    state, armed = arm(state, Await.KILL, now + policy.stop.kill_timeout_s)
    return conclude_if_empty(state, armed + kills(state), now, policy)


def orders(state: State, order: Callable[[int], Action]) -> tuple[Action, ...]:
    """One order for each running member. One that isn't born yet is killed at birth."""
    return tuple(
        order(index) for index, member in enumerate(state.members) if member.stage is Stage.RUNNING
    )


def stops(state: State, grace_s: float, linger_s: float) -> tuple[Action, ...]:
    """Stop whatever of each member runs; said again, it only moves the end of the grace."""
    return orders(state, lambda index: Stop(index, state.incarnation, grace_s, linger_s))


def kills(state: State) -> tuple[Action, ...]:
    """Kill whatever of each member is left."""
    return tuple(
        Kill(index, state.incarnation)
        for index, member in enumerate(state.members)
        if member.stage in {Stage.RUNNING, Stage.EXITED}
    )


def fail(state: State, fault: Fault, now: float, policy: Policy) -> Step:
    """End this life because of its first failure. Nothing of a crash is worth waiting for."""
    assert state.fault is None, "only the first failure counts"
    if finishes(fault, policy):
        done = replace(fault, reason=DONE, exited=False)
        return stop(replace(state, fault=done), DONE, now, policy)
    state = replace(state, fault=fault)
    if fault.reason.cause is not Cause.INTERRUPTED:
        state = replace(state, last_failure=fault.reason)
    return kill(state, fault.reason, now, policy)


def finishes(fault: Fault, policy: Policy) -> bool:
    """Say whether this end is the purpose of the replica and not a failure."""
    return fault.success and (policy.oneshot or policy.restart is not Restart.ALWAYS)


def conclude_if_empty(
    state: State, actions: tuple[Action, ...], now: float, policy: Policy
) -> Step:
    """Go on once the last tree is empty, and not a moment earlier."""
    if any(member.stage is not Stage.EMPTY for member in state.members):
        return state, actions
    state, more = conclude(state, now, policy)
    return state, actions + more


def conclude(state: State, now: float, policy: Policy) -> Step:
    """Close a life whose trees are empty: rest, or go round again."""
    fault, ended = state.fault, state.incarnation
    state = replace(state, members=(), fault=None, ready_at=None, unkillable=False)
    if state.want is Want.DOWN:
        return disarm(enter(state, Phase.STOPPED, ASKED_TO_STOP, now))
    if fault is None:
        return begin(state, RESTARTING_AS_ASKED, 0.0, now, policy)
    if finishes(fault, policy):
        return disarm(enter(state, Phase.COMPLETED, DONE, now))
    verdict = restart.judge(state.name, ended, state.counters, fault, policy)
    state = counted(replace(state, counters=verdict.counters), fault.reason.cause)
    if verdict.delay_s is None:
        state = replace(state, last_failure=verdict.reason)
        return disarm(enter(state, Phase.FAILED, verdict.reason, now))
    if fault.reason.cause is not Cause.INTERRUPTED:
        state = replace(state, last_failure=fault.reason, restarts=state.restarts + 1)
    return begin(state, again(fault.reason, verdict.delay_s, state), verdict.delay_s, now, policy)


def counted(state: State, cause: Cause) -> State:
    """Count a failed life under its cause."""
    if cause in NOT_CHARGED:
        return state
    return replace(state, failures={**state.failures, cause: state.failures.get(cause, 0) + 1})


def again(reason: Reason, delay_s: float, state: State) -> Reason:
    """Explain a restart: what went wrong, and how long the pause is."""
    if delay_s <= 0.0:
        return replace(reason, sentence=f"restarts: {reason.sentence}")
    pause = f"restarts after {seconds(delay_s)} (failure {state.counters.row} in a row)"
    return replace(reason, cause=Cause.BACKOFF, sentence=f"{pause}: {reason.sentence}")
