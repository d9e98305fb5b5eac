"""A start that stands still: neither its log nor what it says of itself has changed for long.

It proves nothing, so nobody is killed for it: a download without a progress bar is as silent as a
hang, and some hangs go on logging. But it is worth an event, and a line in `status`, long before
the start's deadline comes.
"""

import msgspec

from orchestrator.core.policy import Start

LOOKS = 10
"""How many looks fit into the time after which a start counts as stalled."""
LOOK_MAX_S = 30.0
LOOK_MIN_S = 0.2


class Sign(msgspec.Struct, frozen=True):
    """What would change if the start got on: its log's size, and what it says that it does."""

    log_bytes: int
    progress: str
    percent: float | None


class Stall(msgspec.Struct, frozen=True):
    """The last sign of life, and when it came. `told`: that it has been too long since."""

    sign: Sign
    since: float
    silent_s: float = 0.0
    told: bool = False


def look(stall: Stall | None, sign: Sign, now: float, limit_s: float) -> tuple[Stall, bool]:
    """Look again; true when from now on, and not before, the start counts as stalled."""
    if stall is None or stall.sign != sign:
        return Stall(sign, now), False
    silent_s = now - stall.since
    told = silent_s >= limit_s
    return Stall(sign, stall.since, silent_s, told), told and not stall.told


def look_every_s(start: Start) -> float:
    """How often to look."""
    return min(max(start.stall_event_s / LOOKS, LOOK_MIN_S), LOOK_MAX_S)
