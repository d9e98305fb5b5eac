"""Again, later, or never: what a failed run costs, and when it has cost enough.

Three counters, each for its own question. The *row* of failed runs decides how long to wait
(1 2 4 8 16 32 60 60 s). The *tally* of a failure class decides whether a start that never worked
is worth another try. The *weight*, a sum in which each failure after ready loses half its worth in
half an hour, decides whether something that does start is worth keeping alive: six quick crashes
end it, one every ten minutes never does. A sum that decays needs no list of times, so there is
nothing to bound and nothing to forget.

Jitter is a checksum of name and incarnation: a hundred replicas that crash together don't come
back together, and yet each run can be replayed exactly.
"""

import zlib

import msgspec

from orchestrator.core.policy import Backoff, Intensity, Policy, Restart
from orchestrator.core.reasons import NOT_CHARGED, Cause, Reason
from orchestrator.core.state import Counters, Fault, Hold

ALWAYS_BY_CLASS = frozenset({Cause.CONFIG, Cause.GPU_LOST})
"""Classes whose retries count also after ready: time doesn't cure them."""


SLOWLY_CURED = frozenset({Cause.OOM_LOAD, Cause.NETWORK})
"""Classes that only something elsewhere can cure, and not within a second."""


class Verdict(msgspec.Struct, frozen=True):
    """What follows a failed run. `delay_s` is None when it was the last."""

    counters: Counters
    delay_s: float | None
    reason: Reason


def judge(name: str, incarnation: int, counters: Counters, fault: Fault, policy: Policy) -> Verdict:
    """Charge a failed run and decide what follows."""
    cause = fault.reason.cause
    if cause in NOT_CHARGED:
        return Verdict(counters, 0.0, fault.reason)
    if policy.restart is Restart.NEVER:
        return Verdict(counters, None, fault.reason)
    if cause is Cause.GPU_BUSY and fault.ready_s is None and Hold.GPU in policy.holds:
        # Somebody took the GPU after it had been found free: the gate waits, no backoff does.
        counters, last = charge_class(counters, fault, policy)
        return Verdict(counters, None if last else 0.0, last or fault.reason)
    recovered = fault.ready_s is not None and fault.ready_s >= policy.backoff.reset_after_s
    row = 1 if recovered else counters.row + 1
    counters = msgspec.structs.replace(counters, row=row)
    if fault.ready_s is not None and cause not in ALWAYS_BY_CLASS:
        counters, last = charge_run(counters, fault, policy)
    else:
        counters, last = charge_class(counters, fault, policy)
    if last is not None:
        return Verdict(counters, None, last)
    delay_s = 0.0 if recovered else backoff_s(row, policy.backoff, f"{name}#{incarnation}")
    if cause in SLOWLY_CURED:
        delay_s = max(delay_s, min(policy.backoff.slow_s, policy.backoff.max_s))
    return Verdict(counters, delay_s, fault.reason)


def charge_run(counters: Counters, fault: Fault, policy: Policy) -> tuple[Counters, Reason | None]:
    """Charge a failure after ready to the run budget; with a reason if that was the last."""
    weight = decayed(counters, fault.at, policy.intensity) + 1.0
    counters = msgspec.structs.replace(counters, weight=weight, weighed_at=fault.at)
    if weight <= policy.intensity.failures_max:
        return counters, None
    sentence = f"gave up, it fails too often ({counters.row} in a row): {fault.reason.sentence}"
    last = msgspec.structs.replace(fault.reason, cause=Cause.CRASH_LOOP, sentence=sentence)
    return counters, last


def charge_class(
    counters: Counters, fault: Fault, policy: Policy
) -> tuple[Counters, Reason | None]:
    """Charge a failure before ready to its class; with a reason if that was the last."""
    cause = fault.reason.cause
    retries = policy.retries.of(cause)
    if retries is None:
        retries = policy.retries.start_crash
    tally = counters.tallies.get(cause, 0) + 1
    counters = msgspec.structs.replace(counters, tallies={**counters.tallies, cause: tally})
    if tally <= retries:
        return counters, None
    if tally == 1:
        return counters, fault.reason
    sentence = f"gave up after {tally} failed starts: {fault.reason.sentence}"
    return counters, msgspec.structs.replace(fault.reason, sentence=sentence)


def decayed(counters: Counters, now: float, intensity: Intensity) -> float:
    """Weigh the past failures as of now."""
    age_s = max(0.0, now - counters.weighed_at)
    return float(counters.weight * 2.0 ** (-age_s / intensity.half_life_s))


def backoff_s(row: int, backoff: Backoff, key: str) -> float:
    """Pause after the `row`-th failure in a row; `key` fixes the jitter."""
    assert row >= 1, row
    doublings = min(row - 1, 64)
    pause_s = min(backoff.max_s, backoff.initial_s * backoff.factor**doublings)
    share = zlib.crc32(key.encode()) / 0xFFFFFFFF
    return pause_s * (1.0 + backoff.jitter * (2.0 * share - 1.0))


def after_ready(counters: Counters) -> Counters:
    """Forget the failed starts: one worked. The row and the weight stay until time cures them."""
    return msgspec.structs.replace(counters, tallies={})
