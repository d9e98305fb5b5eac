"""The verbs that change what is wanted: `up`, `scale`, and what they would do.

Everything is checked before anything is touched: a bad file, a missing GPU or a taken port is
refused with all that is wrong at once, and what runs goes on as it was. Slow looking around (NVML,
ports) happens in a thread; if another verb was quicker meanwhile, this one is refused.
"""

import asyncio
import difflib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from orchestrator.core.difference import Change, difference
from orchestrator.core.inventory import Inventory
from orchestrator.core.placement import place
from orchestrator.core.plan import Plan, build_plan
from orchestrator.daemon import deployment
from orchestrator.daemon.deployment import SCHEMA, Deployment, Kept, config, scaled
from orchestrator.daemon.deployments import Deployments
from orchestrator.daemon.machine import cpu_builds, objections
from orchestrator.daemon.proposals import Proposal, propose
from orchestrator.daemon.reading import (
    FAILED,
    INVALID,
    RefusedError,
    placed,
    read_text,
    topology_of,
)
from orchestrator.daemon.unit import Unit
from orchestrator.topology.checks.processes import listeners
from orchestrator.topology.complaints import Finding
from orchestrator.topology.roles import EngineChoice
from orchestrator.topology.schema import FRONTEND, Topology
from orchestrator.wire.messages import Reply

REPLICAS_MAX = 1000

Objections = Callable[[Topology, Plan, str], Awaitable[list[str]]]
"""What the engines' own environments say against a plan: see `Preflight`."""


class Up(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `up`. `variables`: the values of what the file names as `${NAME}`.

    `watch_pid`: a foreground `up`; when that process ends, the topology goes down with it.
    `gpu_timeout_s`: how long a GPU is waited for where the file doesn't say it.
    """

    file: str
    variables: dict[str, str] = {}
    engine: EngineChoice = "auto"
    watch_pid: int = 0
    gpu_timeout_s: float | None = None


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `scale`: how many replicas, by `ROLE` or `TOPOLOGY/ROLE`."""

    replicas: dict[str, int]


class Changes:
    """Answers them.

    `watch(found, pid)` looks after a foreground `up`; `machine` finds the GPUs; `preflight` asks
    engines about their flags.
    """

    def __init__(
        self,
        deployments: Deployments,
        watch: Callable[[Deployment, int], None],
        machine: Callable[[], Awaitable[Inventory]],
        preflight: Objections,
    ) -> None:
        self._deployments = deployments
        self._watch = watch
        self._machine = machine
        self._preflight = preflight

    async def up(self, args: dict[str, Any]) -> Reply:
        """Make a file what is wanted."""
        up = msgspec.convert(args, Up)
        kept, topology = await self._candidate(up)
        present = self._deployments.by_name.get(topology.name)
        if present is None:
            changes = await self._first(kept, topology)
        else:
            changes = await self._change(present, kept, topology)
        concerned = frozenset(each.replica for each in changes if each.kind != "unchanged")
        self._deployments.start_all(topology.name, concerned or None)
        if up.watch_pid:
            self._watch(self._deployments.by_name[topology.name], up.watch_pid)
        return _reply(topology.name, present is not None, changes)

    async def difference(self, args: dict[str, Any]) -> Reply:
        """Say what `up` would do; touch nothing."""
        kept, topology = await self._candidate(msgspec.convert(args, Up))
        present = self._deployments.by_name.get(topology.name)
        if present is None:
            plan = await self._fresh_plan(kept, topology)
            return _reply(topology.name, False, self._all_new(kept, topology, plan))
        proposal = await self._proposal(present, kept, topology)
        changes = proposal.changes if proposal is not None else ()
        return _reply(topology.name, True, changes)

    async def scale(self, args: dict[str, Any]) -> Reply:
        """Change numbers of replicas until the next `up` of the file."""
        wanted = msgspec.convert(args, Scale).replicas
        names = {self._topology_of(key) for key in wanted}
        if len(names) != 1:
            raise RefusedError(FAILED, "one topology at a time, please")
        present = self._deployments.by_name[names.pop()]
        scales = dict(present.kept.scales)
        for key, number in wanted.items():
            role = key.rpartition("/")[2]
            _check_scale(present.topology, role, number)
            scales[role] = number
        asked = topology_of(structs.replace(present.kept.source, scales={}))
        scales = {role: n for role, n in scales.items() if n != _replicas(asked, role)}
        kept = structs.replace(
            present.kept,
            scales=scales,
            unscaled={role: _replicas(asked, role) for role in scales},
            inventory=await self._seen(asked),
        )
        changes = await self._change(present, kept, scaled(asked, scales))
        return _reply(present.name, True, changes)

    def renew(self, units: list[Unit]) -> Reply:
        """Restart these, in each role one after the other."""
        present = self._deployments.by_name[units[0].id.topology]
        everything = self._deployments.units(present.name)
        kept, topology = present.kept, present.topology
        proposal = propose(everything, kept, topology, self._deployments.log_of, anew=False)
        try:
            self._deployments.rollouts.apply(present, proposal, again=[each.id for each in units])
        except OSError as error:
            raise RefusedError(FAILED, f"{present.name}: can't be saved: {error}") from error
        return Reply(code=0, data={"replicas": [str(unit.id) for unit in units]})

    # ---- steps -------------------------------------------------------------------------------

    async def _candidate(self, up: Up) -> tuple[Kept, Topology]:
        text = await asyncio.to_thread(read_text, Path(up.file))
        kept = Kept(
            schema=SCHEMA,
            file=up.file,
            text=text,
            variables=up.variables,
            engine=up.engine,
            inventory=Inventory(),
            gpu_timeout_s=up.gpu_timeout_s,
        )
        topology = topology_of(kept.source)
        return structs.replace(kept, inventory=await self._seen(topology)), topology

    async def _seen(self, topology: Topology) -> Inventory:
        """The machine, and what the topology's other interpreters have."""
        builds = await asyncio.to_thread(cpu_builds, topology)
        return structs.replace(await self._machine(), cpu_pythons=builds)

    async def _fresh_plan(self, kept: Kept, topology: Topology) -> Plan:
        plan = self._planned(kept, topology)
        await self._object(kept, topology, plan, topology.frontend.port)
        return plan

    async def _object(self, kept: Kept, topology: Topology, plan: Plan, port: int) -> None:
        """Raise RefusedError with all that speaks against a plan. `port`: see `objections`."""
        wrong = await asyncio.to_thread(objections, topology, plan, port)
        wrong += self._port_clash(topology)
        if wrong:
            raise RefusedError(FAILED, "\n".join(wrong))
        wrong = await self._preflight(topology, plan, str(Path(kept.file).parent))
        if wrong:
            raise RefusedError(INVALID, "\n".join(wrong))

    def _planned(self, kept: Kept, topology: Topology) -> Plan:
        """Plan a topology beside all that are up. RefusedError when it can't be placed."""
        others = self._deployments.holdings(topology.name)
        found = place(topology, kept.inventory, kept.engine, others=others)
        return build_plan(topology, placed(topology, found))

    async def _first(self, kept: Kept, topology: Topology) -> tuple[Change, ...]:
        """Take care of a topology that isn't up."""
        plan = await self._fresh_plan(kept, topology)
        if topology.name in self._deployments.by_name:
            raise RefusedError(FAILED, f"{topology.name} is being started by another `up`")
        clash = self._port_clash(topology)
        if clash:
            raise RefusedError(FAILED, "\n".join(clash))
        plan = self._planned(kept, topology)  # meanwhile another may have taken GPUs
        try:
            self._deployments.deploy(Deployment(kept, topology, plan))
        except OSError as error:
            text = f"{topology.name} can't be written down: {error}"
            raise RefusedError(FAILED, text) from error
        return self._all_new(kept, topology, plan)

    def _all_new(self, kept: Kept, topology: Topology, plan: Plan) -> tuple[Change, ...]:
        specs = deployment.planned_specs(topology, plan, kept.file, self._deployments.log_of)
        return difference({}, {replica: config(each) for replica, each in specs.items()})

    async def _change(
        self, present: Deployment, kept: Kept, topology: Topology
    ) -> tuple[Change, ...]:
        """Apply what differs to a topology that is up."""
        proposal = await self._proposal(present, kept, topology)
        if proposal is None:
            return ()
        try:
            if proposal.is_empty and not present.rolling:
                self._deployments.rewrite(present, proposal.kept, proposal.topology)
                return proposal.changes
            self._deployments.rollouts.apply(present, proposal)
        except OSError as error:
            text = f"{present.name}: not saved, so not done: {error}"
            raise RefusedError(FAILED, text) from error
        return proposal.changes

    async def _proposal(
        self, present: Deployment, kept: Kept, topology: Topology
    ) -> Proposal | None:
        """What would change, checked; None for a file that is applied, or being applied."""
        if present.going_down:
            raise RefusedError(FAILED, f"{present.name} is going down; wait for `dynorch down`")
        before = present.kept
        same = (before.source, before.engine) == (kept.source, kept.engine)
        if same and not before.halted:
            return None
        units = self._deployments.units(present.name)
        if same:
            kept = structs.replace(kept, plan=before.plan)
        others = self._deployments.holdings(topology.name)
        log_of = self._deployments.log_of
        proposal = propose(units, kept, topology, log_of, anew=not same, others=others)
        moved = topology.frontend.port if _listens(topology) != _listens(present.topology) else 0
        await self._object(kept, topology, proposal.plan, moved)
        if present.kept is not before or self._deployments.by_name.get(present.name) is not present:
            raise RefusedError(FAILED, f"{present.name} has just been changed; look, and try again")
        if self._deployments.holdings(topology.name) != others:
            text = "another topology has just taken or left GPUs; look, and try again"
            raise RefusedError(FAILED, f"{present.name}: {text}")
        return proposal

    def _port_clash(self, topology: Topology) -> list[str]:
        """Another topology's port: it may not be bound yet, and our frontends can share one."""
        taken = {
            port: f"{name}/{who}"
            for name, other in self._deployments.by_name.items()
            if name != topology.name
            for who, _, port in listeners(other.topology)
        }
        found = [
            Finding(path, f"port {port} is that of {taken[port]}, which is up", "write another one")
            for _, path, port in listeners(topology)
            if port in taken
        ]
        return [str(topology.source.complaint(each)) for each in found]

    def _topology_of(self, key: str) -> str:
        """Which topology a `ROLE` or `TOPOLOGY/ROLE` means."""
        name, slash, _ = key.partition("/")
        known = list(self._deployments.by_name)
        if slash:
            if name not in known:
                there = ", ".join(known) or "none"
                raise RefusedError(FAILED, f"no topology {name!r} is up; up are: {there}")
            return name
        if len(known) != 1:
            there = ", ".join(known) or "none"
            raise RefusedError(FAILED, f"write TOPOLOGY/{key}; up are: {there}")
        return known[0]


def _listens(topology: Topology) -> tuple[bool, str, int]:
    return topology.has_frontend, topology.frontend.host, topology.frontend.port


def _replicas(topology: Topology, role: str) -> int:
    if role == FRONTEND:
        return topology.frontend.replicas
    return topology.roles[role].replicas


def _check_scale(topology: Topology, role: str, number: int) -> None:
    roles = [*topology.roles, *([FRONTEND] if topology.has_frontend else [])]
    if role in topology.processes:
        text = f"{topology.name}/{role} is a plain command: there is one of it"
        raise RefusedError(FAILED, text)
    if role not in roles:
        close = difflib.get_close_matches(role, roles, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(roles) or 'none'}"
        raise RefusedError(FAILED, f"no role {role!r} in {topology.name}; {hint}")
    if not 1 <= number <= REPLICAS_MAX:
        text = f"{role}={number}: from 1 to {REPLICAS_MAX}; `stop {topology.name}/{role}` stops all"
        raise RefusedError(FAILED, text)
    if role != FRONTEND and isinstance(topology.roles[role].gpus, tuple):
        text = f"{topology.name}/{role} lists its GPUs: change gpus and replicas in the file"
        raise RefusedError(FAILED, text)


def _reply(name: str, adopted: bool, changes: tuple[Change, ...]) -> Reply:
    """Changes as plain data: replica, kind, and why, one line for each key."""
    plain = [
        {
            "replica": str(change.replica),
            "kind": change.kind,
            "why": [str(delta) for delta in change.deltas],
        }
        for change in changes
    ]
    return Reply(code=0, data={"topology": name, "adopted": adopted, "changes": plain})
