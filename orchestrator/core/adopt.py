"""What a new daemon makes of a state that the old one left behind.

The state was written before its actions were performed, so each action may or may not have
happened. The host looks at what is really there, member by member, and this module turns that into
the events that the old daemon would have got, then `DaemonRestarted`, which orders again what is
pending. Deadlines are monotonic times of one boot: on the same boot they simply go on; on another
boot every process is gone, and only the operator's wish and the numbers that must grow survive.
"""

from collections.abc import Sequence

import msgspec

from orchestrator.core.events import (
    DaemonRestarted,
    Event,
    ExitFacts,
    MainExited,
    ShimLost,
    Spawned,
    SpawnFailed,
    StartRequested,
    TreeEmptied,
)
from orchestrator.core.state import Phase, Stage, State, Want


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """The shim answers. `exited` is main's raw wait status if only its tree is left."""

    pid: int
    exited: int | None = None


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """An exit record was found: the whole tree is gone."""

    facts: ExitFacts


class Nothing(msgspec.Struct, frozen=True, tag="nothing"):
    """The host made sure that no process of this life exists, and there is no exit record."""


class Orphaned(msgspec.Struct, frozen=True, tag="orphaned"):
    """The shim is dead, but some of its tree lives."""


Found = Alive | Ended | Orphaned | Nothing


SCHEMA = 2


class Saved(msgspec.Struct, frozen=True):
    """One state file: the state, and the boot whose monotonic clock its times are from.

    `schema`: 1 had one `unmet` reason and no number, 2 has holds. Fields are added with defaults
    and never change their meaning, so that each version reads those before it.
    """

    boot: str
    state: State
    schema: int = 1


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Saved).decode


def adopt(saved: Saved, boot: str, found: Sequence[Found]) -> tuple[State, list[Event]]:
    """Return the state to continue from, and the events to feed it in order.

    `found` holds one entry for each of the state's members; after a reboot it isn't looked at.
    Actions that result are performed as always.
    """
    state = saved.state if saved.boot == boot else after_reboot(saved.state)
    if state.phase is Phase.STOPPED:
        wanted = state.want is Want.UP
        return state, [StartRequested(state.intent + 1) if wanted else DaemonRestarted()]
    assert len(found) == len(state.members), f"{state.name}: {len(found)} facts for its members"
    events: list[Event] = []
    for index, fact in enumerate(found):
        events += member_events(state, index, fact)
    return state, [*events, DaemonRestarted()]


def member_events(state: State, index: int, fact: Found) -> list[Event]:
    """Say what must have happened to one member, given how far it was known to be."""
    stage, incarnation = state.members[index].stage, state.incarnation
    if stage is Stage.EMPTY:
        return []
    if isinstance(fact, Nothing):
        if stage is Stage.ORDERED:
            text = "the daemon died before it was started"
            return [SpawnFailed(index, incarnation, "interrupted", text)]
        return [TreeEmptied(index, incarnation, ExitFacts())]
    if isinstance(fact, Ended):
        return [TreeEmptied(index, incarnation, fact.facts)]
    events: list[Event] = []
    if stage is Stage.ORDERED:
        pid = fact.pid if isinstance(fact, Alive) else 0
        events.append(Spawned(index, incarnation, pid))
    if isinstance(fact, Orphaned):
        return [*events, ShimLost(index, incarnation)]
    if fact.exited is not None and stage is not Stage.EXITED:
        events.append(MainExited(index, incarnation, fact.exited))
    return events


def after_reboot(state: State) -> State:
    """Begin anew: want, intent and incarnation are kept, the rest belonged to another boot.

    Stopped but wanted up is a state of its own: should this daemon die too before it has started
    the replica, the next one still knows.
    """
    want = Want.DOWN if state.phase is Phase.COMPLETED else state.want
    return State(name=state.name, want=want, intent=state.intent, incarnation=state.incarnation)
