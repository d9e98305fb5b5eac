"""The life of a replica as a table: for each phase and each event, what is done about it.

How to think about it. Only three things ever happen to a replica. Somebody *asks* (start, stop,
restart): that sets `want` and perhaps begins a move. Something *happens* to a member: that is a
fact, and a fact may begin a move. A *deadline* comes: every phase that isn't at rest has exactly
one, so nothing can be waited for in vain.

A life begins with the spawn of all members and ends when the last tree is empty; between two lives
lies `stopping`, always, also when the worker left by itself with 0. So there are never two
incarnations at once, and a stop that comes at any moment before the next spawn finds no process to
chase: it only turns `want`.

What can come late carries a number: a member's event its incarnation, a deadline its serial, a
request its intent. One gate at the top of `step` drops the outdated, and the table below never
hears of them. What remains is handled, ignored on purpose, or impossible; the three parts are
checked to be a partition when this module is imported, and a picture of the table is generated into
`docs/replica-states.md`.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from orchestrator.core import cells, pleas
from orchestrator.core.events import (
    EVENTS,
    BecameReady,
    Cleared,
    DaemonRestarted,
    DeadlineReached,
    Drained,
    Event,
    GaveUp,
    Held,
    LeaseExpired,
    LeaseMissed,
    LeaseRecovered,
    MainExited,
    MoreTimeAsked,
    PeerLost,
    RestartRequested,
    SaidBye,
    ShimLost,
    Spawned,
    SpawnFailed,
    StartRequested,
    StopRequested,
    TreeEmptied,
    TreeStuck,
)
from orchestrator.core.moves import Step
from orchestrator.core.policy import Policy
from orchestrator.core.state import AT_REST, LIVE, Phase, Stage, State

Handler = Callable[[State, Any, float, Policy], Step]
Key = tuple[Phase, type[Event]]


class Cell(msgspec.Struct, frozen=True):
    """What is done, and the phases it may lead to (`step` checks it)."""

    handle: Handler
    to: frozenset[Phase]


STOPPED, WAITING, STARTING, READY = Phase.STOPPED, Phase.WAITING, Phase.STARTING, Phase.READY
DRAINING, STOPPING = Phase.DRAINING, Phase.STOPPING
COMPLETED, FAILED = Phase.COMPLETED, Phase.FAILED


def cell(handle: Handler, *to: Phase) -> Cell:
    """Write one cell of the table."""
    return Cell(handle, frozenset(to))


PASSES_TO = {
    WAITING: frozenset({WAITING, STARTING}),
    STOPPING: frozenset({STOPPING, STOPPED, WAITING, STARTING, COMPLETED, FAILED}),
}
"""Phases that may be passed through in one step: nothing to wait for, nothing left to stop."""

TABLE: dict[Phase, dict[type[Event], Cell]] = {
    STOPPED: {
        StartRequested: cell(cells.start, WAITING),
        RestartRequested: cell(cells.start, WAITING),
    },
    WAITING: {
        StartRequested: cell(cells.hurry, WAITING),
        RestartRequested: cell(cells.hurry, WAITING),
        StopRequested: cell(cells.rest, STOPPED),
        Cleared: cell(cells.cleared, WAITING),
        Held: cell(cells.held, WAITING),
        GaveUp: cell(cells.give_up, FAILED),
        DeadlineReached: cell(cells.look_again, WAITING),
        DaemonRestarted: cell(cells.resume_wait, WAITING),
    },
    STARTING: {
        StartRequested: cell(cells.want_up, STARTING),
        RestartRequested: cell(cells.stop_to_restart, STOPPING),
        StopRequested: cell(cells.stop, STOPPING),
        Spawned: cell(cells.note_birth, STARTING, READY),
        SpawnFailed: cell(cells.fail_at_birth, STOPPING),
        MoreTimeAsked: cell(pleas.extend_start, STARTING),
        BecameReady: cell(cells.note_ready, STARTING, READY),
        LeaseMissed: cell(cells.note_missed, STARTING),
        LeaseRecovered: cell(cells.note_recovered, STARTING),
        LeaseExpired: cell(cells.fail_by_silence_if_ready, STARTING, STOPPING),
        SaidBye: cell(cells.note_bye, STARTING),
        MainExited: cell(cells.fail_by_exit, STOPPING),
        TreeEmptied: cell(cells.fail_by_empty, STOPPING),
        ShimLost: cell(cells.fail_by_loss, STOPPING),
        PeerLost: cell(cells.fail_by_peer, STOPPING),
        DeadlineReached: cell(cells.end_start, STOPPING, READY),
        DaemonRestarted: cell(cells.resume_start, STARTING),
    },
    READY: {
        StartRequested: cell(cells.want_up, READY),
        RestartRequested: cell(cells.drain_to_restart, DRAINING, STOPPING),
        StopRequested: cell(cells.drain, DRAINING, STOPPING),
        LeaseMissed: cell(cells.note_missed, READY),
        LeaseRecovered: cell(cells.note_recovered, READY),
        LeaseExpired: cell(cells.fail_by_silence, STOPPING),
        SaidBye: cell(cells.note_bye, READY),
        MainExited: cell(cells.fail_by_exit, STOPPING),
        TreeEmptied: cell(cells.fail_by_empty, STOPPING),
        ShimLost: cell(cells.fail_by_loss, STOPPING),
        PeerLost: cell(cells.fail_by_peer, STOPPING),
        DaemonRestarted: cell(cells.forget_leases, READY),
    },
    DRAINING: {
        StartRequested: cell(cells.want_up, DRAINING),
        RestartRequested: cell(cells.want_up, DRAINING),
        StopRequested: cell(cells.stop_draining, DRAINING, STOPPING),
        Drained: cell(cells.note_drained, DRAINING, STOPPING),
        DeadlineReached: cell(cells.end_drain, STOPPING),
        LeaseExpired: cell(cells.kill, STOPPING),
        SaidBye: cell(cells.note_bye, DRAINING),
        MainExited: cell(cells.exit_in_drain, STOPPING),
        TreeEmptied: cell(cells.empty_in_drain, STOPPING),
        ShimLost: cell(cells.kill, STOPPING),
        PeerLost: cell(cells.kill, STOPPING),
        DaemonRestarted: cell(cells.resume_drain, DRAINING),
    },
    STOPPING: {
        StartRequested: cell(cells.want_up, STOPPING),
        RestartRequested: cell(cells.want_up, STOPPING),
        StopRequested: cell(cells.stop_stopping, STOPPING),
        Spawned: cell(cells.kill_at_birth, STOPPING),
        SpawnFailed: cell(cells.note_unborn, STOPPING),
        MoreTimeAsked: cell(pleas.extend_stop, STOPPING),
        SaidBye: cell(cells.note_bye, STOPPING),
        MainExited: cell(cells.note_exit, STOPPING),
        ShimLost: cell(cells.kill_member, STOPPING),
        TreeEmptied: cell(cells.note_empty, STOPPING),
        TreeStuck: cell(cells.note_stuck, STOPPING),
        DeadlineReached: cell(cells.escalate, STOPPING),
        DaemonRestarted: cell(cells.resume_stop, STOPPING),
    },
    COMPLETED: {
        StartRequested: cell(cells.start, WAITING),
        RestartRequested: cell(cells.start, WAITING),
        StopRequested: cell(cells.rest, STOPPED),
    },
    FAILED: {
        StartRequested: cell(cells.start, WAITING),
        RestartRequested: cell(cells.start, WAITING),
        StopRequested: cell(cells.rest, STOPPED),
    },
}

HANDLED: dict[Key, Cell] = {
    (phase, event): done for phase, row in TABLE.items() for event, done in row.items()
}

IGNORED: frozenset[Key] = frozenset(
    {
        # There is nothing to stop, and nothing that a new daemon would have to take up.
        (STOPPED, StopRequested),
        (STOPPED, DaemonRestarted),
        (COMPLETED, DaemonRestarted),
        (FAILED, DaemonRestarted),
        # It isn't routable any more, or not for long; whether beats are missing changes nothing.
        (DRAINING, LeaseMissed),
        (DRAINING, LeaseRecovered),
        (STOPPING, LeaseMissed),
        (STOPPING, LeaseRecovered),
        (STOPPING, LeaseExpired),
        # Said twice, said unasked, or too late: a ready worker that is to stop stays that.
        (STARTING, Drained),
        (READY, BecameReady),
        (READY, Drained),
        (DRAINING, BecameReady),
        (STOPPING, BecameReady),
        (STOPPING, Drained),
        # Nothing that it could be late with is under way.
        (READY, MoreTimeAsked),
        (DRAINING, MoreTimeAsked),
        # This life is ending anyway, by its own failure or as asked.
        (STOPPING, PeerLost),
        # Only a tree that we ordered killed can be stuck.
        (STARTING, TreeStuck),
        (READY, TreeStuck),
        (DRAINING, TreeStuck),
    }
)
"""Doing nothing is right here."""

WAITERS = (Cleared, Held, GaveUp)
MEMBER_EVENTS = frozenset(event for event in EVENTS if "member" in event.__struct_fields__)

IMPOSSIBLE: frozenset[Key] = frozenset(
    # No process exists, and the gate drops what the dead still say.
    {(phase, event) for phase in Phase if phase not in LIVE for event in MEMBER_EVENTS}
    # No deadline is armed.
    | {(phase, DeadlineReached) for phase in AT_REST}
    # Told only to those who wait; the gate drops it for who waits no longer.
    | {(phase, event) for phase in Phase if phase is not WAITING for event in WAITERS}
    # A life that isn't there can't be ended; the gate drops it.
    | {(phase, PeerLost) for phase in Phase if phase not in LIVE}
    # All members were born before; the gate drops a second birth.
    | {(phase, event) for phase in (READY, DRAINING) for event in (Spawned, SpawnFailed)}
)
"""A programmer's error, in here or in the caller: `step` raises."""


def _check_partition() -> None:
    product = {(phase, event) for phase in Phase for event in EVENTS}
    parts = [set(HANDLED), set(IGNORED), set(IMPOSSIBLE)]
    missing = product - set().union(*parts)
    assert not missing, f"cells that nobody thought about: {sorted(map(str, missing))}"
    assert sum(map(len, parts)) == len(product), "a cell is in two parts of the table"


_check_partition()


def step(state: State, event: Event, now: float, policy: Policy) -> Step:
    """Decide what follows from one event: the next state, and what is to be done, in order."""
    if is_outdated(state, event):
        return state, ()
    if isinstance(event, StartRequested | StopRequested | RestartRequested):
        state = replace(state, intent=event.intent)
    key = (state.phase, type(event))
    if key in IGNORED:
        return state, ()
    assert key not in IMPOSSIBLE, f"{state.name}: {type(event).__name__} while {state.phase.value}"
    done = HANDLED[key]
    after, actions = done.handle(state, event, now, policy)
    assert_sound(after, done)
    return after, actions


def assert_sound(after: State, done: Cell) -> None:
    """Check what holds after every step, whatever happened."""
    reachable = done.to.union(*(PASSES_TO.get(phase, frozenset()) for phase in done.to))
    assert after.phase in reachable, f"{after.name}: unexpected {after.phase.value}"
    at_rest = after.phase in AT_REST
    assert (after.deadline is None) == at_rest, f"{after.name}: deadline in {after.phase.value}"
    assert bool(after.members) == (after.phase in LIVE), f"{after.name}: members without a life"


def is_outdated(state: State, event: Event) -> bool:
    """Gate: say whether this event speaks of something that is over, or was said before."""
    if isinstance(event, StartRequested | StopRequested | RestartRequested):
        return event.intent <= state.intent
    if isinstance(event, DeadlineReached):
        return state.deadline is None or state.deadline.serial != event.serial
    if isinstance(event, Cleared | Held | GaveUp):
        return state.phase is not WAITING or event.incarnation != state.incarnation
    if isinstance(event, DaemonRestarted):
        return False
    if not state.members or event.incarnation != state.incarnation:
        return True
    if isinstance(event, PeerLost):
        return False
    assert 0 <= event.member < len(state.members), f"{state.name} has no member {event.member}"
    stage = state.members[event.member].stage
    if isinstance(event, Spawned | SpawnFailed):
        return stage is not Stage.ORDERED
    if isinstance(event, MainExited):
        return stage in {Stage.EXITED, Stage.EMPTY}
    return stage is Stage.EMPTY
