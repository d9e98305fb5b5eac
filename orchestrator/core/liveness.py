"""What a worker's beats say about its health: whether it lives, and makes progress.

A process that beats isn't a process that serves. The beat comes from a thread of its own, so it
goes on while the event loop is blocked, while EngineCore is frozen, and while an engine that looks
healthy makes no token any more. So each beat also carries ages, measured by the worker itself in
seconds that it was awake for: how long the loop hasn't turned, how long the engine's processes owe
an answer, how long work has waited without one token. Here they become verdicts.

The judgement has no memory of its own: a beat has all that it needs. That makes it immune to a
daemon that was stopped for an hour and hears all beats at once. Only silence must be measured here,
and `lease` does that.

An idle engine is never suspected for being idle: it answers, and now and then it makes one token.
Requests that wait are no proof of a hang either, because one long step (a huge prefill, the first
compilation) delays every answer. So a busy engine gets `busy_s` where an idle one gets `hang_s`,
unless the kernel says that one of its processes is stopped: that can't be work.
"""

from collections.abc import Iterator

import msgspec
from msgspec import structs

from orchestrator.core import lease
from orchestrator.core.lease import Lease, Verdict
from orchestrator.core.policy import Lease as LeasePolicy
from orchestrator.core.policy import Liveness, Policy
from orchestrator.core.reasons import Cause, Reason


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What one beat of a ready worker says; the wire's `Beat` explains the fields."""

    loop_age_s: float = 0.0
    loop_at: str = ""
    engine_age_s: float = 0.0
    suspect: str = ""
    stopped: bool = False
    stalled_s: float = 0.0
    canaries_missed: int = 0
    canary_fault: str = ""
    period_s: float = 0.0


class Finding(msgspec.Struct, frozen=True):
    """A verdict and, unless it is good, why."""

    verdict: Verdict
    reason: Reason | None = None


WELL = Finding(Verdict.FRESH)
SEVERITY = (Verdict.FRESH, Verdict.MISSED, Verdict.EXPIRED)


class Watch(msgspec.Struct, frozen=True):
    """One worker under observation: the lease that it renews, and what it last said of itself.

    `period_s`: how often it beats; the policy may ask for more by now, from its next life on.
    """

    lease: Lease
    finding: Finding = WELL
    period_s: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worse of silence and words."""
        return max(self.lease.verdict, self.finding.verdict, key=SEVERITY.index)


def begin(now: float) -> Watch:
    """Watch from now on."""
    return Watch(lease.grant(now))


def hear(
    watch: Watch, vitals: Vitals | None, now: float, policy: Policy
) -> tuple[Watch, Finding | None]:
    """Take a beat; the second value is what has changed. No vitals: it isn't ready yet."""
    renewed, _ = lease.renew(watch.lease, now)
    finding = WELL if vitals is None else judge(vitals, policy)
    after = Watch(renewed, finding, watch.period_s if vitals is None else vitals.period_s)
    return after, finding if is_news(watch.verdict, after.verdict) else None


def look(watch: Watch, who: str, now: float, policy: Policy) -> tuple[Watch, Finding | None]:
    """Look at the silence of `who` so far; the second value is what has become worse."""
    held, _ = lease.judge(watch.lease, now, rhythm(watch, policy.lease))
    after = structs.replace(watch, lease=held)
    if after.verdict is watch.verdict:
        return after, None
    return after, Finding(held.verdict, silence(held.verdict, who, held.silent_s))


def next_look_at(watch: Watch, policy: Policy) -> float | None:
    """Say when to look again; None once it has expired."""
    return lease.next_look_at(watch.lease, rhythm(watch, policy.lease))


def rhythm(watch: Watch, policy: LeasePolicy) -> LeasePolicy:
    """Expect beats no faster than this worker makes them."""
    if watch.period_s <= policy.period_s:
        return policy
    return structs.replace(policy, period_s=watch.period_s)


def is_news(before: Verdict, after: Verdict) -> bool:
    """Say whether it is well again, or worse than before; less bad is not yet good."""
    if after is Verdict.FRESH:
        return before is not Verdict.FRESH
    return SEVERITY.index(after) > SEVERITY.index(before)


def silence(verdict: Verdict, who: str, silent_s: float) -> Reason:
    """Explain missing beats."""
    if verdict is Verdict.EXPIRED:
        return Reason(
            Cause.UNHEALTHY,
            f"{who} sent no heartbeat for {silent_s:.0f} s: stopped or frozen",
            "look at its log; a process that is stopped (SIGSTOP, debugger) can't beat",
        )
    return Reason(
        Cause.UNREADY,
        f"{who} has sent no heartbeat for {silent_s:.0f} s; not routable until it does again",
    )


def judge(vitals: Vitals, policy: Policy) -> Finding:
    """Judge one beat: the worst that it says, and of equals the innermost cause."""
    worst = WELL
    for finding in _findings(vitals, policy):
        if SEVERITY.index(finding.verdict) > SEVERITY.index(worst.verdict):
            worst = finding
    return worst


def _findings(vitals: Vitals, policy: Policy) -> Iterator[Finding]:
    """All that a beat complains of; a blocked loop first, because nothing else is asked then."""
    unready_s = policy.lease.misses_max * policy.lease.period_s
    yield _aged(vitals.loop_age_s, unready_s, policy.lease.expire_s, _loop(vitals))
    unready_s, dead_s = engine_bounds_s(vitals, policy.liveness)
    yield _aged(vitals.engine_age_s, unready_s, dead_s, _engine(vitals))
    yield _canary(vitals, policy.liveness, owing=vitals.engine_age_s >= unready_s)
    yield _aged(vitals.stalled_s, policy.liveness.stall_s, policy.liveness.stall_s, _stall(vitals))


def unanswered(vitals: Vitals) -> Finding:
    """Give a worker up because its engine owes an answer, for however long."""
    return _aged(vitals.engine_age_s, 0.0, 0.0, _engine(vitals))


def engine_bounds_s(vitals: Vitals, policy: Liveness) -> tuple[float, float]:
    """After how long without an answer a replica is unready, and dead."""
    if vitals.stalled_s > 0.0 and not vitals.stopped:
        return policy.hang_s, policy.busy_s
    return policy.unready_s, policy.hang_s


def _aged(age_s: float, unready_s: float, dead_s: float, sentence: str) -> Finding:
    if age_s >= dead_s:
        advice = "it is restarted; its log may tell what it was doing"
        return Finding(Verdict.EXPIRED, Reason(Cause.UNHEALTHY, sentence, advice))
    if age_s >= unready_s:
        return _unready(sentence)
    return WELL


def _unready(sentence: str) -> Finding:
    reason = Reason(Cause.UNREADY, f"{sentence}; not routable until that is over")
    return Finding(Verdict.MISSED, reason)


def _loop(vitals: Vitals) -> str:
    where = f": it is in {vitals.loop_at}" if vitals.loop_at else ""
    return f"the worker's event loop hasn't turned for {vitals.loop_age_s:.0f} s{where}"


def _engine(vitals: Vitals) -> str:
    who = f": {vitals.suspect}" if vitals.suspect else ""
    return f"the engine hasn't answered for {vitals.engine_age_s:.0f} s{who}"


def _stall(vitals: Vitals) -> str:
    return f"requests wait, and no token has come for {vitals.stalled_s:.0f} s"


def _canary(vitals: Vitals, policy: Liveness, *, owing: bool) -> Finding:
    """What the test requests say; that the engine owes an answer too is the deeper reason."""
    missed, fault = vitals.canaries_missed, vitals.canary_fault
    if not missed:
        return WELL
    times = "a request" if missed == 1 else f"{missed} requests in a row"
    sentence = f"{times} for one token, sent as a test, failed: it {fault}"
    if owing:
        sentence = f"{_engine(vitals)}, and {sentence}"
    if missed < policy.canary_misses_max:
        return _unready(sentence)
    advice = "it is restarted; its log may tell what is wrong"
    return Finding(Verdict.EXPIRED, Reason(Cause.UNHEALTHY, sentence, advice))
