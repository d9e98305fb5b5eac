"""What an `up`, a scale or a rolling restart would do. Nothing is touched by asking."""

from collections.abc import Collection

from msgspec import structs

from orchestrator.core.difference import Change, difference
from orchestrator.core.gpu_table import Holding
from orchestrator.core.placement import place
from orchestrator.core.plan import Plan, PlannedWorker, build_plan
from orchestrator.core.state import Phase
from orchestrator.daemon import deployment
from orchestrator.daemon.deployment import SCHEMA, Kept, LogOf, config
from orchestrator.daemon.reading import placed
from orchestrator.daemon.unit import Unit, UnitSpec
from orchestrator.topology.schema import FRONTEND, Topology
from orchestrator.wire.ids import ReplicaId


class Proposal:
    """What an `up` would do: nothing is touched by making one."""

    def __init__(
        self,
        kept: Kept,
        topology: Topology,
        plan: Plan,
        specs: dict[ReplicaId, UnitSpec],
        changes: tuple[Change, ...],
    ) -> None:
        self.kept = kept
        self.topology = topology
        self.plan = plan
        self.specs = specs
        self.changes = changes

    @property
    def is_empty(self) -> bool:
        """Nothing would change."""
        return all(change.kind == "unchanged" for change in self.changes)


def propose(
    units: list[Unit],
    kept: Kept,
    topology: Topology,
    log_of: LogOf,
    *,
    anew: bool = True,
    others: Collection[Holding] = (),
) -> Proposal:
    """Plan a topology beside what runs of it now. RefusedError when it can't be placed.

    `anew`: False takes the plan that was kept, for a file that hasn't changed. `others`: what other
    topologies have.
    """
    coming = {unit.id: unit.coming for unit in units}
    if anew or kept.plan is None:
        ids = _replicas(topology)
        has = {worker.id: worker.gpu_uuids for each in coming.values() for worker in each.members}
        gone = {
            uuid
            for unit in units
            for worker in unit.spec.members
            if unit.id not in ids
            for uuid in worker.gpu_uuids
        }
        found = place(topology, kept.inventory, kept.engine, has=has, leaving=gone, others=others)
        plan = build_plan(topology, placed(topology, found))
    else:
        plan = kept.plan
    specs = deployment.planned_specs(topology, plan, kept.file, log_of)
    changes = difference(
        {replica: config(each) for replica, each in coming.items()},
        {replica: config(each) for replica, each in specs.items()},
    )
    kept = structs.replace(kept, schema=SCHEMA, plan=plan)
    return Proposal(kept, topology, plan, specs, changes)


def _replicas(topology: Topology) -> set[ReplicaId]:
    """Every replica that a topology asks for."""
    counts = {name: role.replicas for name, role in topology.roles.items()}
    counts |= dict.fromkeys(topology.processes, 1)
    if topology.has_frontend:
        counts[FRONTEND] = topology.frontend.replicas
    return {
        ReplicaId(topology.name, name, n) for name, count in counts.items() for n in range(count)
    }


def spares(
    proposal: Proposal, renewed: list[Unit], units: dict[ReplicaId, Unit]
) -> tuple[PlannedWorker, ...]:
    """Workers that stand in for a role's only replica while it is renewed.

    Where that takes nothing from anybody: frontends share their port, the simulated engine needs
    no GPU. For a real engine the frontends hold requests instead.
    """
    topology, found = proposal.topology, []
    for unit in renewed:
        new = proposal.specs.get(unit.id)
        if new is None or unit.next is not None or unit.state.phase is not Phase.READY:
            continue
        engine = new.members[0].engine
        serving = [
            other
            for other in units.values()
            if other.id.role == unit.id.role and other.state.phase is Phase.READY
        ]
        cheap = new.kind == "frontend" or engine == "sim"
        count = sum(1 for each in proposal.specs if each.role == unit.id.role)
        stand_in = ReplicaId(topology.name, unit.id.role, count)
        if not cheap or len(serving) > 1 or stand_in in units:
            continue
        found += [
            structs.replace(worker, replica=stand_in, id=stand_in.life(worker.member, 0).worker)
            for worker in new.members
        ]
    return tuple(found)


def counts(kinds: dict[ReplicaId, str]) -> dict[str, str]:
    """How many replicas of each kind of change, for the event."""
    found = [kind for kind in kinds.values() if kind != "unchanged"]
    return {kind: str(found.count(kind)) for kind in dict.fromkeys(found)}
