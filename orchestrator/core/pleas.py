"""A member that knows better asks for more time: EXTEND_TIMEOUT_USEC, as systemd hears it.

What it asks for moves the end of a start or of a stop away, never nearer, and both have a furthest
end that no plea moves. It may ask again and again; each time counts from then.
"""

from orchestrator.core import moves
from orchestrator.core.events import MoreTimeAsked
from orchestrator.core.moves import Step
from orchestrator.core.policy import Policy
from orchestrator.core.state import Await, Stage, State


def extend_start(state: State, event: MoreTimeAsked, now: float, policy: Policy) -> Step:
    """Give a start more time; one that merely settles has its time."""
    assert state.deadline is not None, "a start has a deadline"
    if state.deadline.what is Await.SETTLE:
        return state, ()
    last = state.entered_at + policy.start.timeout_max_s
    at = min(last, max(state.deadline.at, now + event.by_s))
    if at <= state.deadline.at:
        return state, ()
    return moves.arm(state, Await.START, at)


def extend_stop(state: State, event: MoreTimeAsked, now: float, policy: Policy) -> Step:
    """Give a stop more time, while main may still end by itself: a kill waits for nobody."""
    assert state.deadline is not None, "a stop has a deadline"
    running = state.members[event.member].stage is Stage.RUNNING
    if state.deadline.what is not Await.STOP or not running:
        return state, ()
    linger_s = policy.stop.linger_s
    last = state.entered_at + policy.stop.grace_max_s + linger_s
    at = min(last, max(state.deadline.at, now + event.by_s + linger_s))
    if at <= state.deadline.at:
        return state, ()
    state, armed = moves.arm(state, Await.STOP, at)
    return state, armed + moves.stops(state, at - now - linger_s, linger_s)
