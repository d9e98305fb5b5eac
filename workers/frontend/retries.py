"""How an attempt on one worker fails before the client has seen a byte, and what that means.

One table, keyed by what happened. Two questions decide: has the worker begun (then it may have
died of this very request, and sending it on endangers the next one: that is what the `retries`
budget is for), and would another worker do any better. What follows, `course` says.
"""

import enum

import msgspec


class Failure(enum.Enum):
    """How an attempt ends other than with an answer."""

    LOST = "the connection to the worker was lost"
    UNSENT = "the worker could not be reached"
    DRAINING = "the worker is draining"
    LATE = "the worker was too slow to take the request before its ticket's deadline"
    ENGINE_DEAD = "the worker's engine died"
    APP_ERROR = "the worker's application failed"
    CANCELLED = "the worker cancelled the request"
    TIMEOUT = "the request took too long"
    STOPPING = "this frontend is stopping"
    SLOW_READER = "the client does not read its stream"


class Rule(msgspec.Struct, frozen=True):
    """`elsewhere`: another worker may do better. `costs`: the worker had begun."""

    elsewhere: bool
    costs: bool


RULES: dict[Failure, Rule] = {
    Failure.LOST: Rule(elsewhere=True, costs=True),
    Failure.UNSENT: Rule(elsewhere=True, costs=False),
    Failure.DRAINING: Rule(elsewhere=True, costs=False),
    Failure.LATE: Rule(elsewhere=True, costs=False),
    Failure.ENGINE_DEAD: Rule(elsewhere=True, costs=True),
    Failure.APP_ERROR: Rule(elsewhere=False, costs=True),
    Failure.CANCELLED: Rule(elsewhere=True, costs=True),
    Failure.TIMEOUT: Rule(elsewhere=False, costs=True),
    Failure.STOPPING: Rule(elsewhere=False, costs=True),
    Failure.SLOW_READER: Rule(elsewhere=False, costs=True),
}
assert set(RULES) == set(Failure)
LEAVING = frozenset({Failure.DRAINING, Failure.UNSENT})
"""The worker is about to go; the table that says so may still be on its way."""
CRASHED = frozenset({Failure.LOST, Failure.ENGINE_DEAD})
"""The worker ended with the request; the table that says so is on its way."""

FROM_WIRE = {
    "draining": Failure.DRAINING,
    "late": Failure.LATE,
    "cancelled": Failure.CANCELLED,
    "app-error": Failure.APP_ERROR,
}
"""`wire.plane.Fail.code` as a failure; a code we don't know counts as `app-error`."""


_DEAD = (b"EngineCore encountered an issue", b"EngineDeadError")
"""What vLLM answers when its engine has died: the process lives on for seconds and fails all."""
_ERROR_EVENT = b'data: {"error"'


def engine_died(status: int, opening: bytes) -> bool:
    """Whether an answer's first bytes say that the engine is dead: a 5xx, or a stream's error."""
    return broken(status, opening) and any(sign in opening for sign in _DEAD)


def broken(status: int, opening: bytes) -> bool:
    """Whether an answer is the worker's own failure: a 5xx, or a stream that begins with one."""
    return status >= 500 or opening.startswith(_ERROR_EVENT)
