"""What each cell of the replica's table does: one short function per answer.

All share one signature, `(state, event, now, policy) -> (state, actions)`, so that the table can
name any of them anywhere. Facts are noted before moves are made: the move then sees them.
"""

from msgspec.structs import replace

from orchestrator.core import moves
from orchestrator.core.actions import ArmDeadline, Drain, Kill
from orchestrator.core.diagnosis import ended, exec_failure, exit_code, seconds
from orchestrator.core.events import (
    BecameReady,
    Cleared,
    Drained,
    Event,
    ExitFacts,
    GaveUp,
    Held,
    LeaseExpired,
    LeaseMissed,
    LeaseRecovered,
    MainExited,
    PeerLost,
    SaidBye,
    ShimLost,
    Spawned,
    SpawnFailed,
    StopRequested,
    TreeEmptied,
    TreeStuck,
)
from orchestrator.core.facts import empty, exited, explain, fault, ready_s, sharpen, stuck, unborn
from orchestrator.core.moves import Step, with_member
from orchestrator.core.policy import Policy
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Await, Hold, Phase, Stage, State, Want

# ---- somebody asks -----------------------------------------------------------------------------


def start(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Leave rest."""
    state = moves.forgive(replace(state, want=Want.UP))
    return moves.begin(state, moves.ASKED_TO_START, 0.0, now, policy)


def hurry(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Skip the backoff; dependencies still hold."""
    state = moves.forgive(replace(state, want=Want.UP, not_before=now))
    return moves.wait(replace(state, reason=moves.ASKED_TO_START), now, policy)


def want_up(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Be up, by the road it is on: an end that has begun is finished first."""
    state = moves.forgive(replace(state, want=Want.UP))
    if state.phase in {Phase.STARTING, Phase.READY} or state.unkillable:
        return state, ()
    return replace(state, reason=moves.RESTARTING_AS_ASKED), ()


def rest(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Stop where no process exists."""
    state = replace(state, want=Want.DOWN, holds={})
    return moves.disarm(moves.enter(state, Phase.STOPPED, moves.ASKED_TO_STOP, now))


def stop(state: State, event: StopRequested, now: float, policy: Policy) -> Step:
    """Stop a start."""
    state = replace(state, want=Want.DOWN)
    move = moves.kill if event.at_once else moves.stop
    return move(state, moves.STOPPING_AS_ASKED, now, policy)


def stop_to_restart(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Give up this start for another one."""
    state = moves.forgive(replace(state, want=Want.UP))
    return moves.stop(state, moves.RESTARTING_AS_ASKED, now, policy)


def drain(state: State, event: StopRequested, now: float, policy: Policy) -> Step:
    """Stop what is ready."""
    if event.at_once or not policy.drains:
        return stop(state, event, now, policy)
    state = replace(state, want=Want.DOWN)
    return moves.drain(state, moves.STOPPING_AS_ASKED, now, policy, event.drain_s)


def drain_to_restart(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Restart what is ready, and charge it to nothing."""
    state = moves.forgive(replace(state, want=Want.UP))
    move = moves.drain if policy.drains else moves.stop
    return move(state, moves.RESTARTING_AS_ASKED, now, policy)


def stop_draining(state: State, event: StopRequested, now: float, policy: Policy) -> Step:
    """Turn a restart into a stop; at once, if so asked."""
    state = replace(state, want=Want.DOWN, reason=moves.STOPPING_AS_ASKED)
    return moves.kill(state, state.reason, now, policy) if event.at_once else (state, ())


def stop_stopping(state: State, event: StopRequested, now: float, policy: Policy) -> Step:
    """Stay down afterwards; kill, if so asked and not done already."""
    state = replace(state, want=Want.DOWN)
    if not state.unkillable:
        state = replace(state, reason=moves.STOPPING_AS_ASKED)
    if event.at_once and state.deadline is not None and state.deadline.what is Await.STOP:
        return moves.kill(state, state.reason, now, policy)
    return state, ()


# ---- while it waits ----------------------------------------------------------------------------


def cleared(state: State, event: Cleared, now: float, policy: Policy) -> Step:
    """Start, unless something else holds it back."""
    if event.hold not in state.holds:
        return state, ()
    holds = {hold: why for hold, why in state.holds.items() if hold is not event.hold}
    return moves.wait(replace(state, holds=holds), now, policy)


def held(state: State, event: Held, now: float, policy: Policy) -> Step:
    """Don't start, whatever else is cleared."""
    if state.holds.get(event.hold) == event.reason:
        return state, ()
    holds = {**state.holds, event.hold: event.reason}
    if event.hold is Hold.DEPENDENCY and Hold.GPU in policy.holds:
        # It may stay so for long, and memory that was free now proves nothing then.
        holds.setdefault(Hold.GPU, moves.UNKNOWN[Hold.GPU])
    return moves.wait(replace(state, holds=holds), now, policy)


def give_up(state: State, event: GaveUp, now: float, policy: Policy) -> Step:
    """Fail without having started; what is remembered of earlier lives stays."""
    state = replace(state, holds={}, last_failure=event.reason)
    return moves.disarm(moves.enter(state, Phase.FAILED, event.reason, now))


def look_again(state: State, event: Event, now: float, policy: Policy) -> Step:
    """The backoff is over, or nothing has been heard for long."""
    return moves.wait(state, now, policy)


# ---- while it starts ---------------------------------------------------------------------------


def note_birth(state: State, event: Spawned, now: float, policy: Policy) -> Step:
    """One more lives."""
    member = replace(state.members[event.member], stage=Stage.RUNNING, pid=event.pid)
    return moves.ready_if_all_are(with_member(state, event.member, member), now, policy)


def note_ready(state: State, event: BecameReady, now: float, policy: Policy) -> Step:
    """One more is ready."""
    member = replace(state.members[event.member], ready=True)
    return moves.ready_if_all_are(with_member(state, event.member, member), now, policy)


def fail_at_birth(state: State, event: SpawnFailed, now: float, policy: Policy) -> Step:
    """One could not be born, so none of the gang shall live."""
    if event.code == "interrupted":
        reason = Reason(Cause.INTERRUPTED, event.text)
    elif event.code:
        reason = exec_failure(event.code, event.text, state.name)
    else:
        reason = Reason(Cause.START_CRASH, f"could not be started: {event.text}")
    state = empty(state, event.member)
    return moves.fail(state, fault(state, event.member, reason, now), now, policy)


def end_start(state: State, event: Event, now: float, policy: Policy) -> Step:
    """The start took too long; or what can't say that it is ready has lived long enough."""
    assert state.deadline is not None, "the gate lets only the armed deadline through"
    if state.deadline.what is Await.SETTLE:
        return moves.be_ready(state, now)
    late = next((i for i, m in enumerate(state.members) if not m.ready), 0)
    limit = seconds(now - state.entered_at)
    who = f"member {late} was" if len(state.members) > 1 else "was"
    advice = f"see `dynorch logs {state.name}`; a slow start needs a longer start timeout"
    reason = Reason(Cause.START_TIMEOUT, f"{who} not ready after {limit}", advice)
    return moves.fail(state, fault(state, late, reason, now), now, policy)


# ---- something ends unasked --------------------------------------------------------------------


def fail_by_exit(state: State, event: MainExited, now: float, policy: Policy) -> Step:
    """Main is gone and nobody had asked."""
    return fail_with(
        exited(state, event.member), event, ExitFacts(status=event.status), now, policy
    )


def fail_by_empty(state: State, event: TreeEmptied, now: float, policy: Policy) -> Step:
    """The whole tree is gone and nobody had asked: a daemon wasn't there to see main go."""
    return fail_with(empty(state, event.member), event, event.facts, now, policy)


def fail_with(
    state: State, event: MainExited | TreeEmptied, facts: ExitFacts, now: float, policy: Policy
) -> Step:
    """Fail with what these facts tell."""
    reason = explain(state, event.member, facts, ready_s(state, now))
    first = fault(state, event.member, reason, now)
    success = exit_code(facts.status) == 0 and not facts.exec_error
    return moves.fail(state, replace(first, exited=True, success=success), now, policy)


def fail_by_loss(state: State, event: ShimLost, now: float, policy: Policy) -> Step:
    """The shim died under the worker: what is left of the tree has no owner."""
    reason = Reason(Cause.LOST, ended("its shim died", ready_s(state, now)))
    return moves.fail(state, fault(state, event.member, reason, now), now, policy)


def fail_by_peer(state: State, event: PeerLost, now: float, policy: Policy) -> Step:
    """Another replica's failure takes this one down with it."""
    return moves.fail(state, fault(state, 0, event.reason, now), now, policy)


def fail_by_silence_if_ready(state: State, event: LeaseExpired, now: float, policy: Policy) -> Step:
    """A member that is ready waits for its gang and must beat; one that loads may be too busy to.

    Loading can hold the interpreter for long; there the start's deadline rules.
    """
    if not state.members[event.member].ready:
        return state, ()
    return fail_by_silence(state, event, now, policy)


def fail_by_silence(state: State, event: LeaseExpired, now: float, policy: Policy) -> Step:
    """It doesn't beat, so it counts as dead, and is made so."""
    return moves.fail(state, fault(state, event.member, event.reason, now), now, policy)


# ---- while it is ready -------------------------------------------------------------------------


def note_missed(state: State, event: LeaseMissed, now: float, policy: Policy) -> Step:
    """One member is silent or unwell: the gang leaves routing, nobody is killed."""
    member = replace(state.members[event.member], overdue=True, unwell=event.reason)
    state = with_member(state, event.member, member)
    return moves.show_readiness(state), ()


def note_recovered(state: State, event: LeaseRecovered, now: float, policy: Policy) -> Step:
    """It is well again."""
    member = replace(state.members[event.member], overdue=False, unwell=None)
    state = with_member(state, event.member, member)
    return moves.show_readiness(state), ()


def forget_leases(state: State, event: Event, now: float, policy: Policy) -> Step:
    """A new daemon judges the beats anew."""
    members = tuple(replace(member, overdue=False, unwell=None) for member in state.members)
    return moves.show_readiness(replace(state, members=members)), ()


# ---- while it drains ---------------------------------------------------------------------------


def note_drained(state: State, event: Drained, now: float, policy: Policy) -> Step:
    """One more has nothing left to do."""
    state = with_member(state, event.member, replace(state.members[event.member], drained=True))
    if all(member.drained for member in state.members):
        return moves.stop(state, state.reason, now, policy)
    return state, ()


def end_drain(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Time is up."""
    return moves.stop(state, state.reason, now, policy)


def exit_in_drain(state: State, event: MainExited, now: float, policy: Policy) -> Step:
    """It went by itself, a little early: that is what was wanted."""
    return moves.stop(exited(state, event.member), state.reason, now, policy)


def empty_in_drain(state: State, event: TreeEmptied, now: float, policy: Policy) -> Step:
    """Likewise, and nothing is left of it."""
    return moves.stop(empty(state, event.member), state.reason, now, policy)


def kill(state: State, event: Event, now: float, policy: Policy) -> Step:
    """It can't finish any more what it was to finish."""
    return moves.kill(state, state.reason, now, policy)


# ---- while it stops ----------------------------------------------------------------------------


def kill_at_birth(state: State, event: Spawned, now: float, policy: Policy) -> Step:
    """Born after it was unwanted."""
    member = replace(state.members[event.member], stage=Stage.RUNNING, pid=event.pid)
    state = with_member(state, event.member, member)
    return state, (Kill(event.member, state.incarnation),)


def note_unborn(state: State, event: SpawnFailed, now: float, policy: Policy) -> Step:
    """Never born: the easiest to stop."""
    return moves.conclude_if_empty(empty(state, event.member), (), now, policy)


def note_exit(state: State, event: MainExited, now: float, policy: Policy) -> Step:
    """Main is gone; its tree may linger a little, the shim sees to it."""
    return exited(state, event.member), ()


def kill_member(state: State, event: ShimLost, now: float, policy: Policy) -> Step:
    """Nobody sees to this tree any more."""
    return state, (Kill(event.member, state.incarnation),)


def note_empty(state: State, event: TreeEmptied, now: float, policy: Policy) -> Step:
    """One tree is gone; with the last one the life is over."""
    state = sharpen(empty(state, event.member), event.member, event.facts)
    return moves.conclude_if_empty(state, (), now, policy)


def note_stuck(state: State, event: TreeStuck, now: float, policy: Policy) -> Step:
    """Name what won't go."""
    return stuck(state, event.text), ()


def escalate(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Grace is over: kill. Killed long enough ago: say so, and kill again."""
    assert state.deadline is not None, "the gate lets only the armed deadline through"
    if state.deadline.what is Await.KILL and not state.unkillable:
        state = stuck(state, unborn(state))
    state, armed = moves.arm(state, Await.KILL, now + policy.stop.kill_timeout_s)
    return state, armed + moves.kills(state)


# ---- a new daemon takes over -------------------------------------------------------------------


def resume_wait(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Ask everything again: what was cleared for the old daemon proves nothing."""
    turn = {hold: why for hold, why in state.holds.items() if hold is Hold.TURN}
    return resume(replace(state, holds=moves.unknown(policy) | turn), event, now, policy)


def resume(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Arm the deadline that the old daemon had; the clock ran on."""
    assert state.deadline is not None, "only phases at rest have none"
    return state, (ArmDeadline(state.deadline.serial, state.deadline.at),)


def resume_start(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Go on waiting for the start; a new daemon judges the beats anew."""
    state, _ = forget_leases(state, event, now, policy)
    return resume(state, event, now, policy)


def resume_drain(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Ask again: the answer may have been lost with the one who asked."""
    state, armed = resume(state, event, now, policy)
    assert state.deadline is not None, "resume checked it"
    left_s = max(0.0, state.deadline.at - now)
    told = moves.orders(state, lambda index: Drain(index, state.incarnation, left_s))
    return state, armed + told


def resume_stop(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Order again what may not have been performed; a shim signals only once anyway."""
    state, armed = resume(state, event, now, policy)
    assert state.deadline is not None, "resume checked it"
    if state.deadline.what is Await.KILL:
        return state, armed + moves.kills(state)
    linger_s = policy.stop.linger_s
    grace_s = max(0.0, state.deadline.at - now - linger_s)
    return state, armed + moves.stops(state, grace_s, linger_s)


# ---- last words --------------------------------------------------------------------------------


def note_bye(state: State, event: SaidBye, now: float, policy: Policy) -> Step:
    """Keep the last words until the end needs explaining."""
    member = replace(state.members[event.member], bye_code=event.code, bye_text=event.text)
    return with_member(state, event.member, member), ()
