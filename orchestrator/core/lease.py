"""The heartbeat judge: fresh, missed or expired, from nothing but arrival times.

A lease is a promise of liveness that each beat renews. Silence is judged in two steps, because the
two answers cost differently: after a few missing beats a worker leaves the routing table, which
costs nothing and heals by itself; only much longer silence counts as death.

A judge that slept can't judge. If the daemon itself was stopped, suspended or starved, all beats
look late together, and killing every worker for it would be the worst possible answer. So silence
counts only while somebody listened: the judge looks at least each `LISTEN_S`, and of a longer gap
between two looks only that much is counted.
"""

import enum

import msgspec

from orchestrator.core.policy import Lease as LeasePolicy

LISTEN_S = 1.0
"""The longest stretch of silence that one look may count."""


class Verdict(enum.Enum):
    """What the silence so far means."""

    FRESH = "fresh"
    MISSED = "missed"
    EXPIRED = "expired"


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's lease. `silent_s` is the silence that somebody listened to."""

    looked_at: float
    silent_s: float = 0.0
    verdict: Verdict = Verdict.FRESH


def grant(now: float) -> Lease:
    """Begin a lease: with the worker's first words, or when a new daemon adopts it."""
    return Lease(looked_at=now)


def renew(lease: Lease, now: float) -> tuple[Lease, Verdict | None]:
    """Note a beat. FRESH as second value when the worker had missed some: it is back."""
    back = None if lease.verdict is Verdict.FRESH else Verdict.FRESH
    return Lease(looked_at=now), back


def judge(lease: Lease, now: float, policy: LeasePolicy) -> tuple[Lease, Verdict | None]:
    """Look at the silence. The second value is the verdict if it is worse than before."""
    heard = min(now - lease.looked_at, max(LISTEN_S, policy.period_s))
    silent_s = lease.silent_s + max(0.0, heard)
    verdict = lease.verdict
    if silent_s >= policy.expire_s:
        verdict = Verdict.EXPIRED
    elif silent_s >= policy.misses_max * policy.period_s and verdict is Verdict.FRESH:
        verdict = Verdict.MISSED
    worse = None if verdict is lease.verdict else verdict
    return Lease(looked_at=now, silent_s=silent_s, verdict=verdict), worse


def next_look_at(lease: Lease, policy: LeasePolicy) -> float | None:
    """Say when to judge again; None once it has expired: only a beat can change that."""
    if lease.verdict is Verdict.EXPIRED:
        return None
    return lease.looked_at + max(LISTEN_S, policy.period_s)
