"""The routing table that the daemon publishes and the frontends obey.

It is a versioned snapshot, never a difference: a frontend that missed one is right again with
the next. What can't serve is in it too, with its reason, so that a 503 can say why.
"""

import msgspec

TOPIC = b"routes/"
"""Prefix of the PUB topic; the topology's name follows."""


class Route(msgspec.Struct, frozen=True):
    """One worker that may be sent requests."""

    life: str
    role: str
    kind: str
    endpoint: str
    models: list[str]


class Blocked(msgspec.Struct, frozen=True):
    """A replica that can't be sent requests now, and why (one sentence).

    `cause` is a value of `core.reasons.Cause`. `returns`: it was asked to restart.
    `recovers`: it is on its way to another life, whatever ended the last.
    """

    replica: str
    kind: str
    models: list[str]
    phase: str
    reason: str
    retry_after_s: float
    cause: str = ""
    returns: bool = False
    recovers: bool = False


class Failures(msgspec.Struct, frozen=True):
    """How many lives of a replica ended for a cause, since it was first started."""

    replica: str
    cause: str
    count: int


class Routes(msgspec.Struct, frozen=True):
    """All of one topology. `version` only grows, also across daemons.

    `failures`: of engine roles, like all the rest.
    """

    version: int
    topology: str
    engine: str
    routes: list[Route]
    blocked: list[Blocked]
    failures: list[Failures] = []


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Routes).decode
