"""What the frontends may know: one routing table per topology, made from the units.

A pure reading of states and of what workers said. A worker is in it when its replica is routable
and it has told where its request plane is (of a plain command the file tells it); everything else
that should serve is listed as blocked, with the sentence that a client's 503 will carry.
"""

import time
from collections.abc import Iterable

from orchestrator.core.moves import RESTARTING_AS_ASKED
from orchestrator.core.state import RESTING, State, Want
from orchestrator.daemon.unit import Unit
from orchestrator.wire.routes import Blocked, Failures, Route, Routes

ENGINE_KINDS = frozenset({"aggregated", "prefill", "decode"})
RETRY_AFTER_S = 1.0
"""What a client is told to wait when nothing better is known."""


def is_routed(unit: Unit) -> bool:
    """Whether requests go to it: an engine, or a plain command that serves models."""
    return unit.spec.kind in ENGINE_KINDS or unit.spec.members[0].serves is not None


def kind_of(unit: Unit) -> str:
    """What a frontend takes it for: a plain command that serves does all the work of a request."""
    return "aggregated" if unit.spec.kind == "process" else unit.spec.kind


def routes_of(unit: Unit) -> list[Route]:
    """The routes to a unit's workers; empty when it isn't routable."""
    if not unit.routable:
        return []
    serves = unit.spec.members[0].serves
    if serves is not None:
        one, models = str(unit.life(0)), list(serves.models)
        return [Route(one, unit.id.role, kind_of(unit), serves.url, models)]
    found = []
    for member in range(len(unit.state.members)):
        life = unit.life(member)
        heard = unit.of(life)
        if heard is not None and heard.hello is not None and heard.hello.endpoint:
            found.append(
                Route(
                    str(life),
                    unit.id.role,
                    unit.spec.kind,
                    heard.hello.endpoint,
                    heard.hello.models,
                )
            )
    return found


def blocked(unit: Unit, now: float) -> Blocked:
    """Why nothing of this unit can be used, and when to ask again."""
    deadline = unit.state.deadline
    wait_s = RETRY_AFTER_S
    if deadline is not None and unit.state.not_before > now:
        wait_s = max(wait_s, deadline.at - now)
    one = unit.spec.members[0]
    names = list(one.serves.models if one.serves is not None else one.served_names)
    phase, why = unit.state.phase.value, str(unit.state.reason)
    cause = unit.state.reason.cause.value
    up = unit.state.want is Want.UP
    return Blocked(
        replica=str(unit.id),
        kind=kind_of(unit),
        models=names,
        phase=phase,
        reason=why,
        retry_after_s=wait_s,
        cause=cause,
        returns=up and unit.state.reason == RESTARTING_AS_ASKED,
        recovers=up and unit.state.phase not in RESTING,
    )


def table(topology: str, engine: str, units: Iterable[Unit], version: int, now: float) -> Routes:
    """The whole table of one topology."""
    found: list[Route] = []
    missing: list[Blocked] = []
    failed: list[Failures] = []
    for unit in units:
        if is_routed(unit):
            here = routes_of(unit)
            found += here
            if not here:
                missing.append(blocked(unit, now))
            failed += failures(unit)
    return Routes(version, topology, engine, found, missing, failed)


def failures(unit: Unit) -> list[Failures]:
    """Count the failed lives of a unit by cause."""
    counts = unit.state.failures.items()
    return [Failures(str(unit.id), cause.value, count) for cause, count in counts]


def is_complete(units: Iterable[Unit]) -> bool:
    """Say whether every worker that may be sent requests has told where it is."""
    return all(
        len(routes_of(unit)) == len(unit.state.members)
        for unit in units
        if unit.routable and is_routed(unit)
    )


def concerns(unit: Unit, before: State) -> bool:
    """Say whether the table is another one now that this unit's state isn't `before` any more."""
    return is_routed(unit) and _shown(unit.state) != _shown(before)


def _shown(state: State) -> tuple[object, ...]:
    overdue = [member.overdue for member in state.members]
    return (state.phase, state.incarnation, state.reason, overdue)


def next_version(before: int) -> int:
    """A version that only grows, also from one daemon to the next on the same boot."""
    return max(before + 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000)
