"""Which GPUs each worker gets: all or nothing, and always with a reason.

A pure function of the topology, the machine's GPUs and the engine that was asked for. GPUs named
in lists are taken first, because nothing else will do for them; counts are then packed in the
order of the file and of the GPUs' indices; fractions last, on GPUs that nobody has whole. So the
same file on the same machine always gives the same placement, and a worker that restarts comes
back to its own GPUs. When a file has changed, who can keep its GPUs does, and what is new goes
where nobody is. What doesn't fit is refused, each refusal with a sentence that names what is
missing; nothing is placed by halves.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from orchestrator.core.inventory import Gpu, Inventory
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
    """One worker's GPUs, in the order it sees them. `share`: its part of them, 1 for all."""

    replica: ReplicaId
    member: int
    gpus: tuple[Gpu, ...] = ()
    share: float = 1.0


class Placements(msgspec.Struct, frozen=True, kw_only=True):
    """Every engine worker and plain command of a topology, and each role's engine."""

    placed: tuple[Placed, ...]
    engines: dict[str, Engine]

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


class _Wish(msgspec.Struct, kw_only=True):
    """What one worker asks for: named GPUs, a number of whole ones, or a fraction of one."""

    replica: ReplicaId
    member: int
    named: tuple[int | str, ...] = ()
    count: int = 0
    fraction: float = 0.0
    has: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        return f"{self.replica}.{self.member}"


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
) -> Placements | list[Refusal]:
    """Give each worker its GPUs, or say why that is impossible, all reasons at once.

    `has`: UUIDs of the GPUs that workers have now, by worker id; they keep them if that is
    possible. `leaving`: UUIDs of GPUs whose present users end: taken last.
    """
    placed = _place(topology, inventory, engine, has or {}, leaving)
    if isinstance(placed, list) and has:
        return _place(topology, inventory, engine, {}, ())  # all must move closer together
    return placed


def _place(
    topology: Topology,
    inventory: Inventory,
    engine: EngineChoice,
    has: Mapping[str, tuple[str, ...]],
    leaving: Collection[str],
) -> Placements | list[Refusal]:
    engines = resolve_engines(topology, inventory, engine)
    wishes: list[_Wish] = []
    for name, role in topology.roles.items():
        wishes += _role_wishes(topology.name, name, role, engines[name], inventory)
    for name, process in topology.processes.items():
        wishes.append(_process_wish(topology.name, name, process))
    for wish in wishes:
        mine = has.get(wish.who, ())
        if len(mine) == (wish.count or bool(wish.fraction)):
            wish.has = mine
    table = _Table(inventory, leaving)
    for wish in sorted(wishes, key=_rank):
        table.take(wish)
    if table.refusals:
        return [Refusal(who, text) for who, text in table.refusals.items()]
    placed = tuple(table.placed[wish.who] for wish in wishes)
    return Placements(placed=placed, engines=engines)


def _role_wishes(
    topology: str, name: str, role: EngineRole, engine: Engine, inventory: Inventory
) -> list[_Wish]:
    workers = [
        _Wish(replica=ReplicaId(topology, name, replica), member=member)
        for replica in range(role.replicas)
        for member in range(role.members)
    ]
    pinned = engine.name != "sim" or (role.sim.pinned and bool(inventory.gpus))
    if not pinned or (inventory.cpu_engine and not inventory.gpus):
        return workers
    each = role.gpus_per_worker
    for index, wish in enumerate(workers):
        if isinstance(role.gpus, tuple):
            first = index * int(each)
            wish.named = role.gpus[first : first + int(each)]
        elif isinstance(each, float):
            wish.fraction = each
        else:
            wish.count = each
    return workers


def _process_wish(topology: str, name: str, process: Process) -> _Wish:
    wish = _Wish(replica=ReplicaId(topology, name, 0), member=0)
    if isinstance(process.gpus, tuple):
        wish.named = process.gpus
    elif isinstance(process.gpus, float):
        wish.fraction = process.gpus
    else:
        wish.count = process.gpus or 0
    return wish


def _rank(wish: _Wish) -> int:
    """Named GPUs first, whole ones next, fractions last; otherwise in the order of the file.

    Who has GPUs already comes before who has none yet.
    """
    if wish.named:
        return 0
    if wish.has:
        return 2 if wish.fraction else 1
    return 4 if wish.fraction else 3


class _Table:
    """Who has which GPU while the placement is worked out."""

    def __init__(self, inventory: Inventory, leaving: Collection[str]) -> None:
        self._inventory = inventory
        self._order = sorted(inventory.gpus, key=lambda gpu: gpu.uuid in leaving)
        self._owner: dict[str, str] = {}
        self._shared: dict[str, float] = {}
        self.placed: dict[str, Placed] = {}
        self.refusals: dict[str, str] = {}
        """The first thing that is missing for each role: the rest follows from it."""

    def take(self, wish: _Wish) -> None:
        if wish.named:
            gpus = self._named(wish)
        elif wish.fraction:
            gpus = self._part(wish)
        else:
            gpus = self._whole(wish)
        self.placed[wish.who] = Placed(
            replica=wish.replica, member=wish.member, gpus=gpus, share=wish.fraction or 1.0
        )

    def _named(self, wish: _Wish) -> tuple[Gpu, ...]:
        found = []
        for wanted in wish.named:
            gpu = self._inventory.find(wanted)
            if gpu is None:
                self._refuse(wish, f"GPU {wanted} isn't there; GPUs found: {self._inventory}")
            elif gpu.uuid in self._owner:
                self._refuse(wish, f"GPU {wanted} is already {self._owner[gpu.uuid]}'s")
            else:
                self._owner[gpu.uuid] = wish.who
                found.append(gpu)
        return tuple(found)

    def _whole(self, wish: _Wish) -> tuple[Gpu, ...]:
        taken = {*self._owner, *self._shared}
        # CUDA shows a process one MIG instance, however many it is given.
        free = [
            gpu
            for gpu in self._order
            if gpu.uuid not in taken and (wish.count == 1 or not gpu.is_part)
        ]
        mine = [gpu for gpu in free if gpu.uuid in wish.has]
        if len(mine) == wish.count:
            free = mine
        if len(free) < wish.count:
            self._refuse(wish, self._too_few(wish, len(free)))
            return ()
        for gpu in free[: wish.count]:
            self._owner[gpu.uuid] = wish.who
        return tuple(free[: wish.count])

    def _part(self, wish: _Wish) -> tuple[Gpu, ...]:
        for gpu in sorted(self._order, key=lambda gpu: gpu.uuid not in wish.has):
            # Thirds must add up to one in spite of what floats make of them.
            used = self._shared.get(gpu.uuid, 0.0) + wish.fraction
            if gpu.uuid not in self._owner and used <= 1 + 1e-9:
                self._shared[gpu.uuid] = used
                return (gpu,)
        found = f"GPUs found: {self._inventory}"
        self._refuse(wish, f"no GPU has {wish.fraction:g} of itself left; {found}")
        return ()

    def _too_few(self, wish: _Wish, free: int) -> str:
        needs = f"{wish.who} needs {wish.count} GPU{'s' * (wish.count != 1)}"
        if not self._inventory.gpus:
            return (
                f"{needs} and this machine has none; use --engine sim, or install the CPU build "
                "of vLLM"
            )
        return f"{needs}, {free} of {len(self._inventory.gpus)} left; GPUs found: {self._inventory}"

    def _refuse(self, wish: _Wish, text: str) -> None:
        self.refusals.setdefault(wish.replica.role, text)
