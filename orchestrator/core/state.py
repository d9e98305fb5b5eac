"""All that is known about one replica: what was asked, where the machine is, what the world showed.

Three columns that are never mixed. `want` is the operator's, `phase` is ours, and `members` holds
facts. "Asked to be up" and "is up" being different columns removes half of all special cases: a
stop during a start sets `want` and needs no phase of its own.

A state is a plain value: it goes to disk as JSON before its actions are performed, and the next
daemon continues from it, counters and remaining delays included.
"""

import enum

import msgspec

from orchestrator.core.reasons import Cause, Reason


class Want(enum.Enum):
    """What the operator asked for last."""

    UP = "up"
    DOWN = "down"


class Phase(enum.Enum):
    """Where the machine is. `stopping` ends only when every tree is empty."""

    STOPPED = "stopped"
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    COMPLETED = "completed"
    FAILED = "failed"


RESTING = frozenset({Phase.STOPPED, Phase.COMPLETED, Phase.FAILED})
"""Phases that only an operator ends."""

AT_REST = RESTING | {Phase.READY}
"""Phases without a deadline: nothing is awaited. A ready replica is watched by its lease."""

LIVE = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.STOPPING})
"""Phases in which processes may exist."""


class Hold(enum.Enum):
    """What can keep a waiting replica from its start, beside a backoff; in the order of telling."""

    DEPENDENCY = "dependency"
    GPU = "gpu"
    TURN = "turn"


class Stage(enum.Enum):
    """How far one member's process tree is along its life."""

    ORDERED = "ordered"  # spawn ordered, not confirmed
    RUNNING = "running"
    EXITED = "exited"  # main is gone, its tree may not be
    EMPTY = "empty"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about one member of the present incarnation. `pid` is the shim's, 0 until known.

    `overdue`: its beats are missing or tell of trouble; `unwell`: of which.
    """

    stage: Stage = Stage.ORDERED
    pid: int = 0
    ready: bool = False
    overdue: bool = False
    unwell: Reason | None = None
    drained: bool = False
    bye_code: str = ""
    bye_text: str = ""


class Await(enum.Enum):
    """What a deadline is the end of."""

    BACKOFF = "backoff"
    PATIENCE = "patience"
    START = "start"
    SETTLE = "settle"
    DRAIN = "drain"
    STOP = "stop"
    KILL = "kill"


class Deadline(msgspec.Struct, frozen=True):
    """The one thing that will happen by itself; `at` is monotonic seconds of this boot."""

    what: Await
    serial: int
    at: float


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """The first failure of this incarnation: it owns the class, later ones aren't counted.

    `ready_s`: how long the replica had been ready; None when it never was. `exited`: main ended by
    itself, so what the tree leaves behind may still sharpen the reason. `success`: it ended with 0,
    which `restart` may take for the end of its work.
    """

    member: int
    at: float
    ready_s: float | None
    reason: Reason
    exited: bool = False
    success: bool = False


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered from life to life, so that retrying has an end.

    `row`: charged failures in a row. `weight` at `weighed_at`: the decaying sum of failures after
    ready. `tallies`: failures of each class since it was last ready.
    """

    row: int = 0
    weight: float = 0.0
    weighed_at: float = 0.0
    tallies: dict[Cause, int] = {}


STOPPED_AT_FIRST = Reason(Cause.REQUESTED, "never started")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. `members` is empty whenever no process of it can exist.

    `name` is the replica id's text. `serial` numbers deadlines. `holds`: what keeps it from its
    start, and why; empty unless it waits. `not_before`: end of the backoff. `entered_at`:
    since when it is in this phase. `ready_at`: since when this incarnation is ready, None if it
    isn't. `unkillable`: a killed tree won't go. `restarts`: new lives that failures made necessary.
    `failures` counts failed lives by cause, for the metrics; nothing is decided by it.
    `last_failure` outlives the recovery, so that `status` can say why there was a restart.
    """

    name: str
    phase: Phase = Phase.STOPPED
    want: Want = Want.DOWN
    intent: int = 0
    incarnation: int = 0
    members: tuple[Member, ...] = ()
    deadline: Deadline | None = None
    serial: int = 0
    reason: Reason = STOPPED_AT_FIRST
    last_failure: Reason | None = None
    fault: Fault | None = None
    holds: dict[Hold, Reason] = {}
    not_before: float = 0.0
    entered_at: float = 0.0
    ready_at: float | None = None
    unkillable: bool = False
    restarts: int = 0
    counters: Counters = Counters()
    failures: dict[Cause, int] = {}


def routable(state: State) -> bool:
    """Ready, and no member is silent or unwell."""
    return state.phase is Phase.READY and not any(member.overdue for member in state.members)


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(State).decode
