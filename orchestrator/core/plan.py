"""What would run where: every worker of a topology, as the daemon will start it.

`dynorch plan` prints this and `dynorch up` performs it; that it is the same value is the point. It
depends on the file, the inventory and the chosen engine alone, so two runs print the same bytes.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from orchestrator.core import kv_transfer, worker_env
from orchestrator.core.affinity import ranges
from orchestrator.core.inventory import Gpu
from orchestrator.core.placement import Engine, Placed, Placements
from orchestrator.core.vllm_flags import RENDEZVOUS, role_flags, serve_argv
from orchestrator.core.worker_env import SIDE_CHANNEL, additions, vllm_env
from orchestrator.topology.processes import Process
from orchestrator.topology.roles import EngineRole
from orchestrator.topology.schema import FRONTEND, Topology
from orchestrator.wire.ids import ReplicaId

Kind = Literal["aggregated", "prefill", "decode", "frontend", "process"]
ENTRIES = {
    "vllm": "workers.vllm.main:main",
    "sim": "workers.sim.main:main",
    FRONTEND: "workers.frontend.main:main",
}


class Served(msgspec.Struct, frozen=True):
    """Where a plain command takes requests, and for which models."""

    url: str
    models: tuple[str, ...]


class PlannedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """One process to start.

    `engine` is "vllm", "sim" or "" (frontend, process). `entry` is what the zygote calls in the
    forked worker; a plain command has none and is executed as `argv`. For vLLM `argv` is the
    equivalent command line. `options` goes into `WorkerConfig.options`: vLLM's flags, the
    simulator's timing and faults, the frontend's settings. `env` is what is added to the cleaned
    environment of the daemon, sorted; what belongs to one incarnation isn't in it. A port of 0 is
    chosen by the port table; `port_counts`: how many in a row, where it isn't one. `cpus`: the only
    ones it may run on, all if empty; `numa`: the node that its memory should be of; `cpu_env` tells
    the engine, unless the environment says otherwise. `conditions`: those that the file gives to
    what is in `depends_on`. `serves`: what a plain command that is an OpenAI server serves.
    """

    id: str
    replica: ReplicaId
    member: int
    kind: Kind
    engine: str = ""
    model: str = ""
    served_names: tuple[str, ...] = ()
    entry: str = ""
    argv: tuple[str, ...] = ()
    python: str | None = None
    cwd: str | None = None
    env: dict[str, str] = {}
    gpus: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    gpu_share: float = 1.0
    cpus: tuple[int, ...] = ()
    numa: int | None = None
    cpu_env: dict[str, str] = {}
    ports: dict[str, int] = {}
    port_counts: dict[str, int] = {}
    options: dict[str, Any] = {}
    depends_on: tuple[str, ...] = ()
    conditions: dict[str, str] = {}
    serves: Served | None = None

    @property
    def cpu_ranges(self) -> str:
        """Its CPUs as the kernel writes them: 0-3,8."""
        return ranges(self.cpus)

    @property
    def after(self) -> tuple[str, ...]:
        """What must come first, in words, with the condition where the file gives one."""
        given = self.conditions
        return tuple(f"{on} ({given[on]})" if on in given else on for on in self.depends_on)


class Plan(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All workers, in the order of the file: frontends, roles, processes.

    `gpus`: those that any of them has. `notes`: what an operator should know of where they are.
    """

    topology: str
    engines: dict[str, Engine]
    workers: tuple[PlannedWorker, ...]
    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def replicas(self) -> Mapping[ReplicaId, tuple[PlannedWorker, ...]]:
        """The workers of each replica, by member."""
        found: dict[ReplicaId, tuple[PlannedWorker, ...]] = {}
        for worker in self.workers:
            found[worker.replica] = (*found.get(worker.replica, ()), worker)
        return found

    def users(self, uuid: str) -> list[str]:
        """Whose a GPU is, and which part of it."""
        return [
            worker.id if worker.gpu_share == 1.0 else f"{worker.id} ({worker.gpu_share:g} of it)"
            for worker in self.workers
            if uuid in worker.gpu_uuids
        ]


def masked_plan(plan: Plan) -> Plan:
    """Copy for people's eyes: whatever smells of a secret is hidden, wherever it would be said."""
    shown = tuple(
        replace(
            worker,
            env=worker_env.masked(worker.env),
            argv=worker_env.masked_argv(worker.argv),
            options={
                name: worker_env.HIDDEN if worker_env.is_secret_flag(name) else value
                for name, value in worker.options.items()
            },
        )
        for worker in plan.workers
    )
    return replace(plan, workers=shown)


def build_plan(topology: Topology, placements: Placements) -> Plan:
    """Put topology and placement together."""
    workers: list[PlannedWorker] = []
    if topology.has_frontend:
        workers += [_frontend(topology, index) for index in range(topology.frontend.replicas)]
    for placed in placements.placed:
        name = placed.replica.role
        if name in topology.roles:
            engine = placements.engines[name]
            workers.append(_engine_worker(topology, topology.roles[name], engine, placed))
        else:
            workers.append(_command(topology.processes[name], placed))
    used = {gpu.uuid: gpu for placed in placements.placed for gpu in placed.gpus}
    return Plan(
        topology=topology.name,
        engines=placements.engines,
        workers=tuple(workers),
        gpus=tuple(sorted(used.values(), key=lambda gpu: (gpu.index, gpu.uuid))),
        notes=placements.notes,
    )


def _frontend(topology: Topology, index: int) -> PlannedWorker:
    frontend = topology.frontend
    replica = ReplicaId(topology.name, FRONTEND, index)
    return PlannedWorker(
        id=replica.life(0, 0).worker,
        replica=replica,
        member=0,
        kind="frontend",
        entry=ENTRIES[FRONTEND],
        env=additions(frontend.env),
        ports={"http": frontend.port},
        options=frontend.options() | kv_transfer.frontend_options(topology.kv_transfer),
    )


def _engine_worker(
    topology: Topology, role: EngineRole, engine: Engine, placed: Placed
) -> PlannedWorker:
    assert role.model is not None, "the loader fills in the topology's model"
    uuids = tuple(gpu.uuid for gpu in placed.gpus)
    flags = role_flags(
        role, placed.member, topology.kv_transfer, has_gpus=bool(uuids), share=placed.share
    )
    ports, counts = _ports(role)
    declared = role.env
    if engine.name == "vllm":
        start_s, step_s = role.start.timeout_s, role.liveness.busy_s
        declared = vllm_env(role.model, flags, start_s=start_s, step_s=step_s) | declared
    return PlannedWorker(
        id=placed.replica.life(placed.member, 0).worker,
        replica=placed.replica,
        member=placed.member,
        kind=role.kind,
        engine=engine.name,
        model=role.model,
        served_names=role.served_names,
        entry=ENTRIES[engine.name],
        argv=("vllm", *serve_argv(role.model, flags)) if engine.name == "vllm" else (),
        python=role.python,
        env=additions(declared, gpu_uuids=uuids),
        gpus=tuple(gpu.index for gpu in placed.gpus),
        gpu_uuids=uuids,
        gpu_share=placed.share,
        cpus=placed.binding.cpus,
        numa=placed.binding.numa,
        cpu_env=placed.binding.env,
        ports=ports,
        port_counts=counts,
        options=flags
        if engine.name == "vllm"
        else role.sim.options() | kv_transfer.sim_options(topology.kv_transfer, role.kind),
        depends_on=tuple(role.depends_on),
        conditions=_given(role.depends_on),
    )


def _ports(role: EngineRole) -> tuple[dict[str, int], dict[str, int]]:
    """Which ports a worker is to be given, by name, and how many in a row."""
    ports, counts = {}, {}
    if role.members > 1:
        ports[RENDEZVOUS] = 0
    if role.kind in kv_transfer.KINDS:
        ports[SIDE_CHANNEL] = 0
        width = role.tensor_parallel_size * role.ranks
        if width > 1:
            counts[SIDE_CHANNEL] = width
    return ports, counts


def _command(process: Process, placed: Placed) -> PlannedWorker:
    uuids = tuple(gpu.uuid for gpu in placed.gpus)
    return PlannedWorker(
        id=placed.replica.life(0, 0).worker,
        replica=placed.replica,
        member=0,
        kind="process",
        serves=Served(process.serves.url, process.serves.models) if process.serves else None,
        argv=process.command,
        cwd=process.cwd,
        env=additions(process.env, gpu_uuids=uuids),
        gpus=tuple(gpu.index for gpu in placed.gpus),
        gpu_uuids=uuids,
        gpu_share=placed.share,
        cpus=placed.binding.cpus,
        numa=placed.binding.numa,
        cpu_env=placed.binding.env,
        depends_on=tuple(process.depends_on),
        conditions=_given(process.depends_on),
    )


def _given(depends_on: Mapping[str, str | None]) -> dict[str, str]:
    return {name: condition for name, condition in depends_on.items() if condition is not None}
