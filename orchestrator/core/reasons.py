"""Why: an enumerated cause, one sentence, and what to do about it.

For everything that isn't running there is exactly one `Reason`, and the same object reaches the
log, `status`, the metric label and the body of a 503. The cause is for machines (a label with few
values), the sentence for people, the advice for whoever has to act, and the evidence is the line
that convinced us.
"""

import enum

import msgspec


class Cause(enum.Enum):
    """Every cause there is; failure classes included, because a class is why a run ended."""

    OK = "ok"
    REQUESTED = "requested"
    COMPLETED = "completed"

    # Waiting, and for what.
    BACKOFF = "backoff"
    WAITING_DEPENDENCY = "waiting-dependency"
    WAITING_GPU = "waiting-gpu"
    WAITING_TURN = "waiting-turn"
    UNREADY = "unready"

    # Ends that the replica isn't to blame for: never charged to a budget.
    PEER = "peer"
    DEPENDENCY = "dependency"
    INTERRUPTED = "interrupted"

    # Failure classes (see `policy.Retries` and `restart`).
    CONFIG = "config"
    GPU_LOST = "gpu-lost"
    OOM_LOAD = "oom-load"
    GPU_BUSY = "gpu-busy"
    HOST_OOM = "host-oom"
    PORT_IN_USE = "port-in-use"
    NETWORK = "network"
    START_TIMEOUT = "start-timeout"
    START_CRASH = "start-crash"
    UNHEALTHY = "unhealthy"
    ENGINE_DIED = "engine-died"
    LOST = "lost"
    CRASH = "crash"

    # What a budget makes of too many of them, and a tree that won't go.
    CRASH_LOOP = "crash-loop"
    UNKILLABLE = "unkillable"


NOT_CHARGED = frozenset(
    {Cause.REQUESTED, Cause.COMPLETED, Cause.PEER, Cause.DEPENDENCY, Cause.INTERRUPTED}
)
"""Ends that count against no budget and cause no delay."""


class Reason(msgspec.Struct, frozen=True):
    """One line that explains, and where there is something to do, what.

    `hearsay`: it only tells that somebody else died.
    """

    cause: Cause
    sentence: str
    advice: str = ""
    evidence: str = ""
    hearsay: bool = False

    def __str__(self) -> str:
        return f"{self.sentence}; {self.advice}" if self.advice else self.sentence
