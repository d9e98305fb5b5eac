"""What is to be done: orders in the imperative, the only output of the replica machine.

The caller writes the new state to disk first and performs the actions then, in order. Each is
answered by an event (or by its deadline), and each may be ordered a second time after a daemon's
death, so performing one twice must change nothing: a shim sends one SIGTERM in its life however
often it is told to stop.
"""

import msgspec

from orchestrator.core.events import kebab


class Spawn(msgspec.Struct, frozen=True, tag=kebab):
    """Give birth to this member. Answered by `Spawned` or `SpawnFailed`, once, and always.

    A zygote that dies with births in hand is a `SpawnFailed` for each that didn't come about.
    """

    member: int
    incarnation: int


class Drain(msgspec.Struct, frozen=True, tag=kebab):
    """Tell the member to take no new request and to finish the old ones within this time."""

    member: int
    incarnation: int
    deadline_s: float


class Stop(msgspec.Struct, frozen=True, tag=kebab):
    """One SIGTERM to the main process; tree kill after `grace_s`, or `linger_s` after it went.

    Of several the newest says how much grace there is; the SIGTERM was the first one's.
    """

    member: int
    incarnation: int
    grace_s: float
    linger_s: float


class Kill(msgspec.Struct, frozen=True, tag=kebab):
    """Kill the member's whole tree now, with or without a shim.

    Answered by `TreeEmptied`, also when nothing was found; by `TreeStuck` if it won't go. Never
    ordered before the birth is confirmed.
    """

    member: int
    incarnation: int


class ArmDeadline(msgspec.Struct, frozen=True, tag=kebab):
    """Send `DeadlineReached(serial)` at this time (monotonic seconds). Replaces the one before."""

    serial: int
    at: float


class DisarmDeadline(msgspec.Struct, frozen=True, tag=kebab):
    """No deadline is wanted any more."""


MemberAction = Spawn | Drain | Stop | Kill
Action = MemberAction | ArmDeadline | DisarmDeadline
