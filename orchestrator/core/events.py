"""What has happened: facts in the past tense, the only input of the replica machine.

Three sources. Requests come from an operator and carry an intent number that only grows: of two
requests the newer wins, whatever the order of arrival. Facts about a member carry its incarnation,
because they can come late: `step` drops those of an earlier life. Deadlines carry the serial of
their arming for the same reason. Whatever `step` drops or ignores may come twice, late or never.
"""

import re

import msgspec

from orchestrator.core.reasons import Reason
from orchestrator.core.state import Hold


def kebab(name: str) -> str:
    """`BecameReady` -> `became-ready`: the tag under which a struct goes to JSON."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class ExitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a life left behind when its last process was gone.

    `status` is the main process's raw wait status, None when nobody saw it (the shim was killed).
    `exec_error` is the errno's name when the command couldn't be executed at all ("ENOENT").
    `tail`: the last log lines of the life. `killed`: descendants that had to be killed.

    What the kernel noted: `oom_kills`, by how much its count of processes that it killed for want
    of memory rose in this life (None: it couldn't be read), `oom_in_cgroup` whether that is the
    count of the worker's own cgroup or the whole machine's; `memory_limit_bytes` of that cgroup,
    0 for none; `rss_peak_bytes`: the most that one process of the tree held, 0 if unknown;
    `shm_bytes`, `shm_free_bytes`: /dev/shm when main was gone.
    """

    status: int | None = None
    exec_error: str = ""
    command: str = ""
    asked: bool = False
    killed: int = 0
    tail: str = ""
    oom_kills: int | None = None
    oom_in_cgroup: bool = False
    memory_limit_bytes: int = 0
    rss_peak_bytes: int = 0
    shm_bytes: int = 0
    shm_free_bytes: int | None = None


class StartRequested(msgspec.Struct, frozen=True, tag=kebab):
    """Be up. Forgives what went wrong before: counters start anew."""

    intent: int


class StopRequested(msgspec.Struct, frozen=True, tag=kebab):
    """Be down; `at_once` skips drain and grace, `drain_s` stands in for the policy's."""

    intent: int
    at_once: bool = False
    drain_s: float | None = None


class RestartRequested(msgspec.Struct, frozen=True, tag=kebab):
    """Be up with a new life: the present one drains and stops first."""

    intent: int


class Cleared(msgspec.Struct, frozen=True, tag=kebab):
    """What this replica waited for is so now: its dependencies, its GPUs, its turn.

    `incarnation` is the one after which it waits: what was true for an earlier wait proves nothing.
    """

    hold: Hold
    incarnation: int


class Held(msgspec.Struct, frozen=True, tag=kebab):
    """Something this replica needs isn't so, or isn't so any more; the reason names it."""

    hold: Hold
    incarnation: int
    reason: Reason


class GaveUp(msgspec.Struct, frozen=True, tag=kebab):
    """What this replica waits for won't come, or not in the time it has: it has failed."""

    incarnation: int
    reason: Reason


class PeerLost(msgspec.Struct, frozen=True, tag=kebab):
    """A failure elsewhere ends this life too: another replica's, as the file says, or its GPU's."""

    incarnation: int
    reason: Reason


class DaemonRestarted(msgspec.Struct, frozen=True, tag=kebab):
    """A new daemon took over: what the old one may not have performed is ordered again."""


class DeadlineReached(msgspec.Struct, frozen=True, tag=kebab):
    """The deadline armed under this serial has come."""

    serial: int


class Spawned(msgspec.Struct, frozen=True, tag=kebab):
    """The member's shim lives; `pid` is the shim's."""

    member: int
    incarnation: int
    pid: int


class SpawnFailed(msgspec.Struct, frozen=True, tag=kebab):
    """The member wasn't born, and nothing of it exists.

    `code` is an errno's name ("ENOENT"), "interrupted" (the daemon died before it could spawn), or
    empty; `text` says it in words.
    """

    member: int
    incarnation: int
    code: str
    text: str


class MoreTimeAsked(msgspec.Struct, frozen=True, tag=kebab):
    """A member that starts or stops asks for more time: it will be done within this from now."""

    member: int
    incarnation: int
    by_s: float


class BecameReady(msgspec.Struct, frozen=True, tag=kebab):
    """The member answered a real request, or its probe did."""

    member: int
    incarnation: int


class LeaseMissed(msgspec.Struct, frozen=True, tag=kebab):
    """Too many beats in a row are missing, or they tell of trouble: not routable, not given up.

    Without a reason, beats are missing.
    """

    member: int
    incarnation: int
    reason: Reason | None = None


class LeaseRecovered(msgspec.Struct, frozen=True, tag=kebab):
    """It beats again, and all is well."""

    member: int
    incarnation: int


class LeaseExpired(msgspec.Struct, frozen=True, tag=kebab):
    """Silent for so long that it counts as dead; the reason says how long, or what hangs."""

    member: int
    incarnation: int
    reason: Reason


class Drained(msgspec.Struct, frozen=True, tag=kebab):
    """Nothing is in flight in this member any more."""

    member: int
    incarnation: int


class SaidBye(msgspec.Struct, frozen=True, tag=kebab):
    """The member's last words: `code` is a value of `Cause` (others count as unknown)."""

    member: int
    incarnation: int
    code: str
    text: str


class MainExited(msgspec.Struct, frozen=True, tag=kebab):
    """The member's main process is gone; the rest of its tree may not be. Raw wait status."""

    member: int
    incarnation: int
    status: int


class ShimLost(msgspec.Struct, frozen=True, tag=kebab):
    """The member's shim died under it. `TreeEmptied` still follows, when the tree is gone."""

    member: int
    incarnation: int


class TreeEmptied(msgspec.Struct, frozen=True, tag=kebab):
    """Not one process of this life is left. The last thing that is ever said about it."""

    member: int
    incarnation: int
    facts: ExitFacts


class TreeStuck(msgspec.Struct, frozen=True, tag=kebab):
    """Killed, and still there; `text` names pids and what they wait in."""

    member: int
    incarnation: int
    text: str


Request = StartRequested | StopRequested | RestartRequested
MemberEvent = (
    Spawned
    | SpawnFailed
    | MoreTimeAsked
    | BecameReady
    | LeaseMissed
    | LeaseRecovered
    | LeaseExpired
    | Drained
    | SaidBye
    | MainExited
    | ShimLost
    | TreeEmptied
    | TreeStuck
)
Event = (
    Request | Cleared | Held | GaveUp | PeerLost | DaemonRestarted | DeadlineReached | MemberEvent
)
EVENTS: tuple[type[Event], ...] = Event.__args__
"""Every kind of event, in the order of the table's columns."""
