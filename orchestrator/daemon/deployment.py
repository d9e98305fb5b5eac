"""A topology that is up: its file's content, its plan, and the units made from it.

What is kept on disk (`Kept`) is the text of the file, the variables it was read with and the plan
that was made of it, not a path: the next daemon must adopt what runs, whatever has become of the
file, or of the way plans are made, since. While a changed file is being applied, replicas that
still run what they ran before are *pinned* to it, and that is kept, too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orchestrator.core.difference import Config
from orchestrator.core.fleet import Need
from orchestrator.core.inventory import Inventory
from orchestrator.core.plan import Plan, PlannedWorker
from orchestrator.core.policy import Policy
from orchestrator.core.probe import Probe
from orchestrator.core.state import State
from orchestrator.daemon import bonds, policies
from orchestrator.daemon.routing import is_routed
from orchestrator.daemon.unit import Unit, UnitSpec
from orchestrator.topology.checks.processes import listeners
from orchestrator.topology.probes import Liveness, Readiness
from orchestrator.topology.processes import Process
from orchestrator.topology.roles import EngineChoice, EngineRole
from orchestrator.topology.schema import FRONTEND, Frontend, Topology
from orchestrator.wire.ids import LifeId, ReplicaId

SCHEMA = 2
"""Of `Kept`. 1 had no plan, no pins, and no number."""

T = TypeVar("T", EngineRole, Process)
LogOf = Callable[[LifeId], str]
"""Where a worker's log goes."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a topology is read from. `scales`: replicas by role, where an operator said so.

    `gpu_timeout_s`: how long a GPU is waited for where the file doesn't say it.
    """

    file: str
    text: str
    variables: dict[str, str]
    scales: dict[str, int] = {}
    gpu_timeout_s: float | None = None


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that runs something else than the plan, and until when.

    `source`: the topology it was read from, by its key. `told_at`: its incarnation when it was
    told to renew itself; a later one runs what is planned. `parked`: it stays stopped until the
    GPUs of its next life are free.
    """

    source: str
    members: tuple[PlannedWorker, ...]
    told_at: int | None = None
    parked: bool = False


class StopOrder(msgspec.Struct, frozen=True, kw_only=True):
    """That a replica is to stop when its turn comes, and how long it may drain then.

    `intent`: of the newest request that it had been sent; who was sent one since isn't meant.
    """

    intent: int
    drain_s: float | None = None


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is written to the run directory for each topology that is up.

    `unscaled`: what the file says where `scales` says something else.
    `coming`: replicas that are new and not started yet. `spares`: workers that stand in while
    their role is renewed. `fresh`: replicas that got a new configuration in the present rollout.
    `halted`: why it was stopped. `numbers`: the last incarnation of replicas that are gone, so
    that no life is ever called like an earlier one. `stopping`: parts that stop one level after
    the other.
    """

    schema: int = 1
    file: str
    text: str
    variables: dict[str, str]
    engine: EngineChoice
    inventory: Inventory
    going_down: bool = False
    scales: dict[str, int] = {}
    unscaled: dict[str, int] = {}
    plan: Plan | None = None
    pins: dict[str, Pin] = {}
    sources: dict[str, Source] = {}
    coming: tuple[str, ...] = ()
    spares: tuple[PlannedWorker, ...] = ()
    fresh: tuple[str, ...] = ()
    halted: str = ""
    numbers: dict[str, int] = {}
    gpu_timeout_s: float | None = None
    stopping: dict[str, StopOrder] = {}

    @property
    def source(self) -> Source:
        """What the present plan was made of."""
        return Source(
            file=self.file,
            text=self.text,
            variables=self.variables,
            scales=self.scales,
            gpu_timeout_s=self.gpu_timeout_s,
        )


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Kept).decode


@dataclass(slots=True)
class Deployment:
    """One topology that is up, or on its way down.

    `olds`: the topologies that pinned replicas were read from. `asked`: units that were told to
    stop. `leaving`: those of the level that is on its way down. `stopping`: parts that are being
    stopped in order, and how long they may drain. `holding`: it was adopted, and its routing table
    isn't published before its workers have told again where they are.
    """

    kept: Kept
    topology: Topology
    plan: Plan
    olds: dict[str, Topology] = field(default_factory=dict)
    asked: set[ReplicaId] = field(default_factory=set)
    leaving: set[ReplicaId] = field(default_factory=set)
    stopping: dict[ReplicaId, float | None] = field(default_factory=dict)
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
    def rolling(self) -> bool:
        """A changed file, a scale or a rolling restart is being applied, or was halted."""
        kept = self.kept
        return bool(kept.pins or kept.coming or kept.spares or kept.fresh)

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
        return {port for _, _, port in listeners(self.topology)}

    @property
    def endpoint(self) -> str:
        """Where clients go; empty without a frontend."""
        if not self.port:
            return ""
        host = self.topology.frontend.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def planned_specs(
    topology: Topology, plan: Plan, file: str, log_of: LogOf
) -> dict[ReplicaId, UnitSpec]:
    """What each replica of a plan is to be."""
    return {
        replica: spec(topology, plan, file, members, log_of)
        for replica, members in plan.replicas.items()
    }


def make_units(found: Deployment, log_of: LogOf) -> list[Unit]:
    """One unit per replica, never started yet; what is pinned is what it was."""
    kept = found.kept
    specs = planned_specs(found.topology, found.plan, kept.file, log_of)
    for worker in kept.spares:
        spare = tuple(each for each in kept.spares if each.replica == worker.replica)
        specs[worker.replica] = spec(found.topology, found.plan, kept.file, spare, log_of)
    for name, pin in kept.pins.items():
        file = kept.sources[pin.source].file
        old = spec(found.olds[pin.source], found.plan, file, pin.members, log_of)
        specs[ReplicaId.parse(name)] = old
    return [Unit(each, State(name=str(replica))) for replica, each in specs.items()]


def spec(
    topology: Topology,
    plan: Plan,
    file: str,
    members: tuple[PlannedWorker, ...],
    log_of: LogOf,
) -> UnitSpec:
    """What one replica is: these workers, by the rules that this topology has for its role."""
    replica = members[0].replica
    table = _table(topology, replica.role)
    needs = bonds.needs(topology, plan.replicas, replica.role)
    return UnitSpec(
        id=replica,
        kind=members[0].kind,
        model=members[0].model,
        policy=_policy(table, members, depends=bool(needs)),
        members=members,
        logs=tuple(log_of(replica.life(member.member, 0)) for member in members),
        log_max_bytes=table.log.max_size_bytes,
        log_backups=table.log.backups,
        cwd=str(Path(file).parent),
        needs=needs,
        bonds=bonds.bonds(topology, plan.replicas, replica.role),
        tree=table.tree,
        ready=_probe(table.ready) if isinstance(table, Process) else None,
        live=_probe(table.live) if isinstance(table, Process) else None,
        watchdog_s=table.watchdog_s if isinstance(table, Process) else None,
    )


def _probe(asking: Readiness | Liveness | None) -> Probe | None:
    """What the file says about asking a process, as the core wants it."""
    if asking is None:
        return None
    ((kind, value),) = asking.probes.items()
    argv = kind == "exec"
    return Probe(
        kind=kind,
        target="" if argv else value,
        argv=tuple(value) if argv else (),
        period_s=asking.period_s,
        timeout_s=asking.timeout_s,
        misses_max=asking.misses,
    )


NOT_RULES = frozenset({"id", "kind", "model", "members", "logs", "cwd", "needs", "bonds", "tree"})
"""Fields of a spec that are its members', or follow from other replicas."""


def config(each: UnitSpec) -> Config:
    """A spec as differences are made of."""
    rules: dict[str, Any] = {"depends-on": ", ".join(each.members[0].after)}
    rules |= bonds.rules(each.needs, each.bonds, each.members[0].depends_on)
    if (serves := each.members[0].serves) is not None:
        rules |= {"serves.url": serves.url, "serves.models": list(serves.models)}
    for one in fields(each):
        if one.name not in NOT_RULES:
            lead = "" if one.name == "policy" else one.name
            plain = msgspec.to_builtins(getattr(each, one.name), enc_hook=str)
            rules |= dict(_flat(lead, plain))
    return Config(members=each.members, cwd=each.cwd, kept_in=each.tree, rules=rules)


def _flat(lead: str, plain: Any) -> list[tuple[str, Any]]:
    if not isinstance(plain, dict):
        return [(lead, plain)]
    return [
        pair
        for name, value in plain.items()
        for pair in _flat(f"{lead}.{name}" if lead else str(name), value)
    ]


def _table(topology: Topology, role: str) -> EngineRole | Frontend | Process:
    """What the file says about a role; names are one namespace."""
    return topology.roles.get(role) or topology.processes.get(role) or topology.frontend


def _policy(
    table: EngineRole | Frontend | Process, members: tuple[PlannedWorker, ...], *, depends: bool
) -> Policy:
    match table:
        case EngineRole():
            plain = policies.of_role(table, depends=depends)
            return policies.with_gpus(plain, table.gpu, members)
        case Process():
            plain = policies.of_process(table, depends=depends)
            return policies.with_gpus(plain, table.gpu, members)
        case Frontend():
            return policies.of_frontend(table)


def scaled(topology: Topology, scales: dict[str, int]) -> Topology:
    """Copy with other numbers of replicas; roles that it doesn't have are left out."""
    roles = {
        name: role.model_copy(update={"replicas": scales.get(name, role.replicas)})
        for name, role in topology.roles.items()
    }
    number = scales.get(FRONTEND, topology.frontend.replicas)
    frontend = topology.frontend.model_copy(update={"replicas": number})
    copy = topology.model_copy(update={"roles": roles, "frontend": frontend})
    return copy.located(topology.source)


def patient(topology: Topology, limit_s: float | None) -> Topology:
    """Copy in which no GPU is waited for longer than this, except where the file says how long."""

    def filled(table: T) -> T:
        if limit_s is None or table.gpu.timeout_s is not None:
            return table
        gpu = table.gpu.model_copy(update={"timeout_s": limit_s})
        return table.model_copy(update={"gpu": gpu})

    roles = {name: filled(role) for name, role in topology.roles.items()}
    processes = {name: filled(process) for name, process in topology.processes.items()}
    copy = topology.model_copy(update={"roles": roles, "processes": processes})
    return copy.located(topology.source)


def stop_needs(units: list[Unit]) -> dict[ReplicaId, tuple[Need, ...]]:
    """Who must be gone before whom: declared needs, and the frontend before the engines.

    A frontend that is asked first refuses new requests and finishes the old ones while the
    engines still serve them.
    """
    engines = tuple(Need(unit.id) for unit in units if is_routed(unit))
    return {
        unit.id: unit.spec.needs + (engines if unit.spec.kind == "frontend" else ())
        for unit in units
    }
