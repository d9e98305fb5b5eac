"""Whom a request is sent to, and why. Pure: the loads are arguments, the turn is all that's kept.

Both policies rotate: with equal loads, consecutive requests go to different workers, so that a
burst which arrives before any load is visible is spread too.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec


class Loaded(Protocol):
    """What a policy may know about a worker."""

    @property
    def inflight(self) -> int:
        """Requests that this frontend has open there."""


L = TypeVar("L", bound=Loaded)


class Turns(msgspec.Struct):
    """The rotation of one model."""

    next: int = 0


def round_robin(candidates: Sequence[L], turns: Turns) -> tuple[L, str]:
    """Pick the next in turn; return it with the reason."""
    assert candidates
    turns.next += 1
    if len(candidates) == 1:
        return candidates[0], "the only one"
    return candidates[turns.next % len(candidates)], "its turn"


def least_loaded(candidates: Sequence[L], turns: Turns) -> tuple[L, str]:
    """Pick the one with the fewest requests open, the next in turn among equals."""
    assert candidates
    turns.next += 1
    count = len(candidates)
    if count == 1:
        return candidates[0], "the only one"
    order = [candidates[(turns.next + step) % count] for step in range(count)]
    best = min(order, key=lambda one: one.inflight)
    equal = sum(one.inflight == best.inflight for one in order)
    return best, "fewest in flight" if equal == 1 else "its turn among the least loaded"


POLICIES = {
    "round-robin": round_robin,
    "least-loaded": least_loaded,
    # Where the prompt has been read already, for what reads prompts; see `prefix`.
    "prefix": least_loaded,
}
