"""Noting facts: what one member's end tells about the replica's life.

Nothing here moves the machine; it only writes down what is known, so that the move which follows
decides on all of it. A life has one fault, the first. It is explained twice: at once from the exit
status, so that the phase change can be published without waiting, and again when the tree is empty
and the log, the last words and the exec error are all there.
"""

from msgspec.structs import replace

from orchestrator.core.diagnosis import End, diagnose, why_silent
from orchestrator.core.events import ExitFacts
from orchestrator.core.log_lines import printable
from orchestrator.core.moves import with_member
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Fault, Stage, State, Want


def exited(state: State, index: int) -> State:
    """Note that a member's main process is gone."""
    return with_member(state, index, replace(state.members[index], stage=Stage.EXITED))


def empty(state: State, index: int) -> State:
    """Note that nothing of a member is left."""
    return with_member(state, index, replace(state.members[index], stage=Stage.EMPTY))


def ready_s(state: State, now: float) -> float | None:
    """Measure how long this life has been ready; None if it never was."""
    return None if state.ready_at is None else now - state.ready_at


def fault(state: State, index: int, reason: Reason, now: float) -> Fault:
    """Record a first failure."""
    return Fault(member=index, at=now, ready_s=ready_s(state, now), reason=reason)


def explain(state: State, index: int, facts: ExitFacts, ready_for_s: float | None) -> Reason:
    """Diagnose one member's unasked end."""
    member = state.members[index]
    reason = diagnose(
        End(
            name=state.name,
            facts=facts,
            ready_s=ready_for_s,
            bye_code=member.bye_code,
            bye_text=member.bye_text,
        )
    )
    if len(state.members) == 1:
        return reason
    return replace(reason, sentence=f"member {index}: {reason.sentence}")


def sharpen(state: State, index: int, facts: ExitFacts) -> State:
    """Explain the first failure again now that its whole tree has left its log behind."""
    first = state.fault
    if first is None:
        return state
    if first.member != index and first.reason.hearsay:
        reason = first.reason
    elif first.member != index:
        return state
    elif first.exited and facts.status is not None:
        reason = explain(state, index, facts, first.ready_s)
    elif first.reason.cause in SILENCES:
        reason = with_why(first.reason, facts.tail)
    else:
        return state
    reason = first_hand(state, first.member, reason)
    state = replace(state, fault=replace(first, reason=reason), last_failure=reason)
    if state.want is Want.DOWN or state.unkillable:
        return state
    return replace(state, reason=reason)


def first_hand(state: State, index: int, reason: Reason) -> Reason:
    """Let the last words of another member explain what this one knows by hearsay only.

    It may well have died later than the one who noticed. Who only heard of it, too, says nothing.
    """
    for other, member in enumerate(state.members):
        if not reason.hearsay or other == index or not member.bye_text:
            continue
        if not explain(state, other, ExitFacts(), None).hearsay:
            said = printable(member.bye_text)
            sentence = f"member {other}: {said}; then {reason.sentence}"
            return Reason(reason.cause, sentence, evidence=said)
    return reason


SILENCES = frozenset({Cause.START_TIMEOUT, Cause.UNHEALTHY})
"""Ends that we made because nothing was heard: the log may say why nothing was."""


def with_why(reason: Reason, tail: str) -> Reason:
    """Add what the log says about a silence, and what to do about that."""
    says, todo, line = why_silent(tail)
    if not says:
        return reason
    sentence = f"{reason.sentence}: {says}"
    return replace(reason, sentence=sentence, advice=todo, evidence=line)


def stuck(state: State, who: str) -> State:
    """Flag a tree that was killed and is still there. It is never restarted beside itself."""
    detail = f": {who}" if who else ""
    advice = "it goes when what it waits for in the kernel ends; else reboot"
    reason = Reason(Cause.UNKILLABLE, f"killed, but not gone{detail}", advice, who)
    return replace(state, unkillable=True, reason=reason)


def unborn(state: State) -> str:
    """Name the members whose birth nobody has confirmed or denied; empty if there are none."""
    return ", ".join(
        f"member {index} isn't born yet"
        for index, member in enumerate(state.members)
        if member.stage is Stage.ORDERED
    )
