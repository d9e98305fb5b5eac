"""Builds the one picture that all views are drawn from. Pure reading; decides nothing."""

from collections.abc import Iterable

from msgspec import structs

from orchestrator.core.health import Health, health
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Await, Phase, State, Want
from orchestrator.daemon.deployment import Deployment
from orchestrator.daemon.pairing import gap
from orchestrator.daemon.routing import is_routed, routes_of
from orchestrator.daemon.unit import Heard, Unit
from orchestrator.wire import snapshot
from orchestrator.wire.ids import ReplicaId

LEADS_TO = {
    Await.BACKOFF: "next start",
    Await.PATIENCE: "looks again",
    Await.START: "gives up starting",
    Await.SETTLE: "counts as ready",
    Await.DRAIN: "stops draining",
    Await.STOP: "kills the rest",
    Await.KILL: "reports it unkillable",
}
QUIET = frozenset({Cause.OK})


def deadline_of(state: State, now: float) -> snapshot.Deadline | None:
    """What happens by itself if nothing else does; the periodic second look isn't worth showing."""
    deadline = state.deadline
    if deadline is None or deadline.what is Await.PATIENCE:
        return None
    return snapshot.Deadline(what=LEADS_TO[deadline.what], in_s=max(0.0, deadline.at - now))


def progress(heard: Heard | None, *, starting: bool) -> str:
    """What a starting worker does; and that nothing comes of it, if so. Later, its last STATUS."""
    if heard is None or not starting:
        return heard.said.status if heard is not None and heard.said is not None else ""
    stalled = heard.stall
    if stalled is None or not stalled.told:
        return heard.progress
    silence = f"nothing new for {stalled.silent_s:.0f} s"
    return f"{heard.progress}; {silence}" if heard.progress else silence


def worker(unit: Unit, member: int) -> snapshot.WorkerStatus:
    """One member's process."""
    planned = unit.spec.members[member]
    life = unit.life(member)
    heard = unit.of(life)
    beat = heard.beat if heard else None
    starting = unit.state.phase is Phase.STARTING
    return snapshot.WorkerStatus(
        id=str(life),
        pid=heard.main_pid if heard else None,
        gpus=[str(gpu) for gpu in planned.gpus],
        ports={name: port for name, port in planned.ports.items() if port}
        | (heard.ports if heard else {}),
        engine=planned.engine,
        progress=progress(heard, starting=starting),
        percent=heard.percent if heard and starting else None,
        inflight=beat.inflight if beat else 0,
        requests=beat.requests if beat else 0,
        tokens=beat.tokens if beat else 0,
        log=unit.spec.logs[member],
        log_dropped_bytes=heard.log_dropped_bytes if heard else 0,
    )


def replica(unit: Unit, now: float) -> snapshot.ReplicaStatus:
    """One replica, with its reason."""
    state = unit.state
    reason = state.reason
    shown, prefix = reason, ""
    if reason.cause in QUIET and state.last_failure is not None:
        # It is well again: why there was a restart is worth a line, what to do isn't.
        shown, prefix = structs.replace(state.last_failure, advice=""), "restarted: "
    strange = next((heard.foreign for heard in unit.heard.values() if heard.foreign), "")
    if strange and state.phase is Phase.READY:
        advice = f"`dynorch restart {unit.id}`, so that it runs this daemon's version"
        shown, prefix = Reason(Cause.UNREADY, strange, advice), ""
    quiet = shown.cause in QUIET
    return snapshot.ReplicaStatus(
        index=unit.id.replica,
        phase=state.phase.value,
        want=state.want.value,
        cause="" if quiet else shown.cause.value,
        reason="" if quiet else prefix + shown.sentence,
        advice="" if quiet else shown.advice,
        evidence="" if quiet else shown.evidence,
        incarnation=state.incarnation,
        restarts=state.restarts,
        since_s=max(0.0, now - state.entered_at),
        routable=unit.routable,
        deadline=deadline_of(state, now),
        workers=[worker(unit, member) for member in range(len(unit.spec.members))],
    )


def roles(units: Iterable[Unit], now: float) -> list[snapshot.RoleStatus]:
    """Group replicas by role, in the order of their ids."""
    grouped: dict[str, list[Unit]] = {}
    for unit in units:
        grouped.setdefault(unit.id.role, []).append(unit)
    return [
        snapshot.RoleStatus(
            name=name,
            kind=members[0].spec.kind,
            model=members[0].spec.model,
            replicas=[replica(unit, now) for unit in sorted(members, key=lambda unit: unit.id)],
        )
        for name, members in grouped.items()
    ]


def topology(found: Deployment, units: list[Unit], now: float) -> snapshot.TopologyStatus:
    """One deployment."""
    parts = roles(units, now)
    word = topology_health(units, going_down=found.going_down, routes_version=found.routes_version)
    return snapshot.TopologyStatus(
        name=found.name,
        health=word,
        reason=worst(units) or (gap(units) if word == Health.DEGRADED.value else ""),
        rollout=rollout_word(found),
        rollout_note=rollout_note(found, units),
        scaled=[
            f"{role}={number} by hand, {found.kept.unscaled.get(role, '?')} in the file"
            for role, number in sorted(found.kept.scales.items())
        ],
        file=found.kept.file,
        engine=found.engine,
        endpoint=found.endpoint,
        models=models(units, found.routes_version),
        roles=[role for role in parts if role.kind != "process"],
        processes=[role for role in parts if role.kind == "process"],
    )


def headline(topologies: Iterable[snapshot.TopologyStatus]) -> str:
    """Say of all topologies in one line how they are, and of those that aren't ready, why."""
    parts = [
        f"{one.name} {one.health}" + (f" ({one.reason})" if one.health != "ready" else "")
        for one in topologies
    ]
    return "; ".join(parts) or "nothing is up"


def rollout_word(found: Deployment) -> str:
    """What is going on with a topology as a whole; empty while nothing is."""
    if found.kept.halted:
        return "halted"
    if found.rolling:
        return "rolling"
    return "stopping" if found.stopping else ""


def rollout_note(found: Deployment, units: list[Unit]) -> str:
    """How far a change is, or why it goes no further."""
    if found.kept.halted or not found.rolling:
        return found.kept.halted
    names, planned = {str(unit.id) for unit in units}, found.plan.replicas
    pins = {name: pin for name, pin in found.kept.pins.items() if name in names}
    leave = sum(1 for name in pins if ReplicaId.parse(name) not in planned)
    said = (
        (len(pins) - leave, "to be renewed"),
        (len(found.kept.coming), "to be started"),
        (leave, "to leave"),
    )
    left = ", ".join(f"{count} {what}" for count, what in said if count)
    return f"rolling out: {left or 'waits until all are ready'}"


def topology_health(units: list[Unit], *, going_down: bool, routes_version: int) -> str:
    """One word. Not ready before the frontends have applied the present routing table."""
    if going_down:
        return "stopping"
    word = health(unit.state for unit in units)
    if word is Health.READY and not answering(units, routes_version):
        return Health.STARTING.value
    if word is Health.READY and gap(units):
        return Health.DEGRADED.value
    return word.value


def answering(units: list[Unit], routes_version: int) -> bool:
    """Every frontend that should serve has applied this version of the routing table."""
    return all(
        applied_version(unit) >= routes_version
        for unit in units
        if unit.spec.kind == "frontend" and unit.state.want is Want.UP
    )


def applied_version(frontend: Unit) -> int:
    """The version of the table that a frontend's present life obeys; -1 when it has none."""
    heard = frontend.of(frontend.life(0))
    return heard.beat.routes_version if heard is not None and heard.beat is not None else -1


def models(units: list[Unit], routes_version: int) -> list[str]:
    """The models that a client can use now: some frontend that serves knows of their workers."""
    frontends = [unit for unit in units if unit.spec.kind == "frontend"]
    serving = [unit for unit in frontends if unit.routable]
    if frontends and not any(applied_version(unit) >= routes_version for unit in serving):
        return []
    found = {
        name
        for unit in units
        if is_routed(unit) and unit.spec.kind != "prefill"
        for route in routes_of(unit)
        for name in route.models
    }
    return sorted(found)


def worst(units: list[Unit]) -> str:
    """The topology's one line: the reason of what is in the worst way, failed before the rest."""
    order = (Phase.FAILED, Phase.STOPPING, Phase.WAITING)
    for phase in order:
        for unit in units:
            if unit.state.phase is phase and unit.state.want is Want.UP:
                return f"{unit.id}: {unit.state.reason}"
    return ""
