"""A topology that is up: its file's content, its plan, and the units made from it.

What is kept on disk (`Kept`) is the text of the file and the variables it was read with, not a
path: the next daemon must adopt what runs, whatever has become of the file since.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrator.core.fleet import Need
from orchestrator.core.inventory import Inventory
from orchestrator.core.plan import Plan, PlannedWorker
from orchestrator.core.policy import Policy
from orchestrator.core.state import State
from orchestrator.daemon import bonds, policies
from orchestrator.daemon.unit import Unit, UnitSpec
from orchestrator.topology.processes import Process
from orchestrator.topology.roles import EngineChoice, EngineRole
from orchestrator.topology.schema import Frontend, Topology
from orchestrator.wire.ids import LifeId, ReplicaId


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is written to the run directory for each topology that is up."""

    file: str
    text: str
    variables: dict[str, str]
    engine: EngineChoice
    inventory: Inventory
    going_down: bool = False


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Kept).decode


@dataclass(slots=True)
class Deployment:
    """One topology that is up, or on its way down.

    `asked`: units that were told to stop. `holding`: it was adopted, and its routing table isn't
    published before its workers have told again where they are.
    """

    kept: Kept
    topology: Topology
    plan: Plan
    asked: set[ReplicaId] = field(default_factory=set)
    at_once: bool = False
    holding: bool = False
    routes_version: int = 0

    @property
    def name(self) -> str:
        """The topology's name."""
        return self.topology.name

    @property
    def going_down(self) -> bool:
        """`down` was asked for."""
        return self.kept.going_down

    @property
    def engine(self) -> str:
        """The engine in one word: `vllm`, `sim`, both joined by +, or empty."""
        return "+".join(sorted({engine.name for engine in self.plan.engines.values()}))

    @property
    def port(self) -> int:
        """Where the frontends listen; 0 without one."""
        return self.topology.frontend.port if self.topology.has_frontend else 0

    @property
    def ports(self) -> set[int]:
        """Every port that the file names."""
        return {port for worker in self.plan.workers for port in worker.ports.values() if port}

    @property
    def endpoint(self) -> str:
        """Where clients go; empty without a frontend."""
        if not self.port:
            return ""
        host = self.topology.frontend.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def make_units(found: Deployment, log_of: Callable[[LifeId], str]) -> list[Unit]:
    """One unit per replica, never started yet. `log_of`: where a worker's log goes."""
    return [
        Unit(_spec(found, replica, members, log_of), State(name=str(replica)))
        for replica, members in found.plan.replicas.items()
    ]


def _spec(
    found: Deployment,
    replica: ReplicaId,
    members: tuple[PlannedWorker, ...],
    log_of: Callable[[LifeId], str],
) -> UnitSpec:
    table = _table(found.topology, replica.role)
    needs = bonds.needs(found.topology, found.plan.replicas, replica.role)
    return UnitSpec(
        id=replica,
        kind=members[0].kind,
        model=members[0].model,
        policy=_policy(table, depends=bool(needs)),
        members=members,
        logs=tuple(log_of(replica.life(member.member, 0)) for member in members),
        log_max_bytes=table.log.max_size_bytes,
        log_backups=table.log.backups,
        cwd=str(Path(found.kept.file).parent),
        needs=needs,
        bonds=bonds.bonds(found.topology, found.plan.replicas, replica.role),
        tree=table.tree,
    )


def _table(topology: Topology, role: str) -> EngineRole | Frontend | Process:
    """What the file says about a role; names are one namespace."""
    return topology.roles.get(role) or topology.processes.get(role) or topology.frontend


def _policy(table: EngineRole | Frontend | Process, *, depends: bool) -> Policy:
    match table:
        case EngineRole():
            return policies.of_role(table, depends=depends)
        case Process():
            return policies.of_process(table, depends=depends)
        case Frontend():
            return policies.of_frontend(table)


def stop_needs(units: list[Unit]) -> dict[ReplicaId, tuple[Need, ...]]:
    """Who must be gone before whom: declared needs, and the frontend before the engines.

    A frontend that is asked first refuses new requests and finishes the old ones while the
    engines still serve them.
    """
    engines = tuple(
        Need(unit.id) for unit in units if unit.spec.kind not in {"frontend", "process"}
    )
    return {
        unit.id: unit.spec.needs + (engines if unit.spec.kind == "frontend" else ())
        for unit in units
    }
