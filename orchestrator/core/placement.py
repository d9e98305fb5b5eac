"""Which GPUs each worker gets: all or nothing, and always with a reason.

A pure function of the topology, the machine and the engine that was asked for. GPUs named in lists
are taken first, because nothing else will do for them; then counts, in the order of the file, each
replica on GPUs that are connected best (see `connected`); fractions last, on GPUs that nobody has
whole. So the same file on the same machine always gives the same placement, and a worker that
restarts comes back to its own GPUs. When a file has changed, who can keep its GPUs does, and what
is new goes where nobody is. What other topologies have is theirs. What doesn't fit is refused, each
refusal with a sentence that names what is missing and who has it; nothing is placed by halves.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from orchestrator.core.affinity import Binding, CpuWish, near_gpus, on_cpus
from orchestrator.core.gpu_table import Holding, Table, Wish
from orchestrator.core.inventory import GIB, Gpu, Inventory
from orchestrator.topology.policies import utilization
from orchestrator.topology.processes import Process
from orchestrator.topology.roles import EngineChoice, EngineRole
from orchestrator.topology.schema import Topology
from orchestrator.wire.ids import ReplicaId

EngineName = Literal["vllm", "sim"]


class Engine(msgspec.Struct, frozen=True):
    """The engine of a role, and the sentence that says why it is this one."""

    name: EngineName
    reason: str


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's GPUs, in the order it sees them. `share`: its part of them, 1 for all.

    `binding`: its cores.
    """

    replica: ReplicaId
    member: int
    gpus: tuple[Gpu, ...] = ()
    share: float = 1.0
    binding: Binding = Binding()

    @property
    def who(self) -> str:
        """The worker's id."""
        return f"{self.replica}.{self.member}"


class Placements(msgspec.Struct, frozen=True, kw_only=True):
    """Every engine worker and plain command of a topology, and each role's engine.

    `notes`: what an operator should know of where they were put.
    """

    placed: tuple[Placed, ...]
    engines: dict[str, Engine]
    notes: tuple[str, ...] = ()

    def of(self, replica: ReplicaId, member: int) -> Placed:
        """Return this worker's placement; KeyError when the topology has no such worker."""
        for each in self.placed:
            if each.replica == replica and each.member == member:
                return each
        raise KeyError(f"{replica}.{member}")


class Refusal(msgspec.Struct, frozen=True):
    """`who` (a role or process) can't be placed; `text` says what is missing."""

    who: str
    text: str

    def __str__(self) -> str:
        return f"{self.who}: {self.text}"


def resolve_engine(choice: EngineChoice, override: EngineChoice, inventory: Inventory) -> Engine:
    """`override` (the command line) beats the role's choice; `auto` asks the machine."""
    if override in ("vllm", "sim"):
        return Engine(override, f"--engine {override} was given")
    if choice in ("vllm", "sim"):
        return Engine(choice, f'the topology says engine = "{choice}"')
    if inventory.gpus:
        return Engine("vllm", "a GPU is present")
    return Engine("sim", "no GPU is present, so the simulated engine answers")


def resolve_engines(
    topology: Topology, inventory: Inventory, override: EngineChoice
) -> dict[str, Engine]:
    """Each role's engine on this machine."""
    return {
        name: resolve_engine(role.engine, override, inventory)
        for name, role in topology.roles.items()
    }


def place(
    topology: Topology,
    inventory: Inventory,
    engine: EngineChoice = "auto",
    *,
    has: Mapping[str, tuple[str, ...]] | None = None,
    leaving: Collection[str] = (),
    others: Collection[Holding] = (),
) -> Placements | list[Refusal]:
    """Give each worker its GPUs and cores, or say why that is impossible, all reasons at once.

    `has`: UUIDs of the GPUs that workers have now, by worker id; they keep them if that is
    possible. `leaving`: UUIDs of GPUs whose present users end: taken last. `others`: what workers
    of other topologies have.
    """
    engines = resolve_engines(topology, inventory, engine)
    has = has or {}
    table = Table(inventory, others, leaving=leaving, ours=_flat(has))
    placed = _taken(table, _wishes(topology, engines, inventory, has))
    if table.refusals and has:  # all must move closer together
        table = Table(inventory, others, ours=_flat(has))
        placed = _taken(table, _wishes(topology, engines, inventory, {}))
    refusals = [Refusal(who, text) for who, text in table.refusals.items()]
    refusals += _too_much_cache(topology, engines, placed, table.refusals)
    if refusals:
        return refusals
    bound, notes = _bound(topology, engines, placed, inventory, others)
    notes += [
        f"{each.who}: GPU {gpu.index} has {gpu.held}; it starts there when enough of it is free"
        for each in placed
        for gpu in each.gpus
        if gpu.uuid in table.strange
    ]
    return Placements(placed=tuple(bound), engines=engines, notes=tuple(notes))


def _flat(has: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for uuids in has.values():
        yield from uuids


def _taken(table: Table, wishes: list[Wish]) -> list[Placed]:
    """Let each wish take what it gets; in the order of the file."""
    taken = {wish.replica: table.take(wish) for wish in sorted(wishes, key=_rank)}
    return [
        Placed(replica=wish.replica, member=member, gpus=gpus, share=wish.fraction or 1.0)
        for wish in wishes
        for member, gpus in enumerate(taken[wish.replica])
    ]


def _wishes(
    topology: Topology,
    engines: Mapping[str, Engine],
    inventory: Inventory,
    has: Mapping[str, tuple[str, ...]],
) -> list[Wish]:
    """What every replica asks for, in the order of the file."""
    found: list[Wish] = []
    for name, role in topology.roles.items():
        pinned = _is_pinned(role, engines[name], inventory)
        found += [
            _role_wish(ReplicaId(topology.name, name, number), role, has, pinned=pinned)
            for number in range(role.replicas)
        ]
    for name, process in topology.processes.items():
        found.append(_process_wish(ReplicaId(topology.name, name, 0), process, has))
    return found


def _is_pinned(role: EngineRole, engine: Engine, inventory: Inventory) -> bool:
    """Say whether the workers of a role use GPUs at all."""
    if engine.name == "sim":
        return role.sim.pinned and bool(inventory.gpus)
    on_cpu = role.python in inventory.cpu_pythons if role.python else inventory.cpu_engine
    return bool(inventory.gpus) or not on_cpu


def _role_wish(
    replica: ReplicaId, role: EngineRole, has: Mapping[str, tuple[str, ...]], *, pinned: bool
) -> Wish:
    wish = Wish(replica=replica, members=role.members)
    if not pinned:
        return wish
    each = role.gpus_per_worker
    if isinstance(role.gpus, tuple):
        count = int(each) * role.members
        first = replica.replica * count
        return replace(wish, named=role.gpus[first : first + count])
    wish = replace(wish, has=_what_it_has(replica, role.members, has))
    return replace(wish, fraction=each) if isinstance(each, float) else replace(wish, count=each)


def _process_wish(replica: ReplicaId, process: Process, has: Mapping[str, tuple[str, ...]]) -> Wish:
    wish = Wish(replica=replica, has=_what_it_has(replica, 1, has))
    if isinstance(process.gpus, tuple):
        return replace(wish, named=process.gpus)
    if isinstance(process.gpus, float):
        return replace(wish, fraction=process.gpus)
    return replace(wish, count=process.gpus or 0)


def _what_it_has(
    replica: ReplicaId, members: int, has: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    found = tuple(has.get(f"{replica}.{member}", ()) for member in range(members))
    return found if any(found) else ()


def _rank(wish: Wish) -> int:
    """Named GPUs first, whole ones next, fractions last; otherwise in the order of the file.

    Who has GPUs already comes before who has none yet.
    """
    if wish.named:
        return 0
    if wish.has:
        return 2 if wish.fraction else 1
    return 4 if wish.fraction else 3


def _too_much_cache(
    topology: Topology,
    engines: Mapping[str, Engine],
    placed: Collection[Placed],
    refused: Collection[str],
) -> Iterator[Refusal]:
    """Refuse a KV cache, given in bytes, that is larger than what its worker has of a GPU."""
    said = set(refused)
    for each in placed:
        name = each.replica.role
        role = topology.roles.get(name)
        if role is None or engines[name].name != "vllm" or name in said or not each.gpus:
            continue
        wanted = role.vllm.get("kv-cache-memory-bytes")
        least = min(each.gpus, key=lambda gpu: gpu.total_bytes)
        has = utilization(each.share) * least.total_bytes
        if isinstance(wanted, int) and wanted > has:
            said.add(name)
            text = (
                f"{each.who} wants {wanted / GIB:.1f} GiB of KV cache, and it has "
                f"{has / GIB:.1f} GiB of GPU {least.index} ({least.name})"
            )
            yield Refusal(name, text)


def _bound(
    topology: Topology,
    engines: Mapping[str, Engine],
    placed: Collection[Placed],
    inventory: Inventory,
    others: Collection[Holding],
) -> tuple[list[Placed], list[str]]:
    """Add each worker's cores, and say where there are too few."""
    cpu_wishes = [
        _cpu_wish(topology.roles[each.replica.role], each)
        for each in placed
        if inventory.cpu_engine and not each.gpus and _computes(topology, engines, each)
    ]
    busy = {cpu for other in others for cpu in other.cpus}
    computing = on_cpus(cpu_wishes, inventory.nodes, busy)
    bound, notes = [], []
    for each in placed:
        name = each.replica.role
        table = topology.roles.get(name) or topology.processes[name]
        binding = computing.get(each.who, Binding())
        if each.gpus and table.affinity == "auto":
            binding = near_gpus(each.gpus, inventory.nodes)
        if binding.shared:
            notes.append(
                f"{each.who}: fewer free cores than engines, so it shares them with others"
            )
        bound.append(replace(each, binding=binding))
    return bound, notes


def _computes(topology: Topology, engines: Mapping[str, Engine], each: Placed) -> bool:
    """Say whether this is vLLM, and may be given cores."""
    role = topology.roles.get(each.replica.role)
    return (
        role is not None and role.affinity == "auto" and engines[each.replica.role].name == "vllm"
    )


def _cpu_wish(role: EngineRole, each: Placed) -> CpuWish:
    return CpuWish(
        who=each.who,
        ranks=role.tensor_parallel_size * role.pipeline_parallel,
        env=role.env,
        flags=role.vllm,
        transfers=role.kind != "aggregated",
    )
