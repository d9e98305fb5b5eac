"""Which cores a worker keeps to, and from which memory it takes.

A worker with GPUs runs on the NUMA node that they are near: every copy to a GPU from the other node
crosses the link between the sockets. vLLM on the CPU gets cores that no other engine computes on,
all of one node where that is possible; left alone, every engine would bind its threads to the same
ones. A machine of one node binds nobody who has GPUs: there is nothing to choose.

What an operator says in `env` is never touched.
"""

from collections.abc import Collection, Iterator, Mapping

import msgspec

from orchestrator.core.inventory import GIB, Gpu, Node

THREADS = "VLLM_CPU_OMP_THREADS_BIND"
KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"
"""GiB of KV cache of each rank. vLLM's own choice, nearly all of the node, suits one engine alone.

`VLLM_CPU_NUM_OF_RESERVED_CPU` isn't set: vLLM looks at it only where it chooses cores itself.
"""
KV_PART = 0.4
"""How much of a node's memory all engines there may use for KV cache together."""
NO_BINDING = "nobind"
_OWN_KV = ("kv-cache-memory-bytes", "gpu-memory-utilization")


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """Where one worker runs.

    `cpus`: all if empty. `numa`: the node that its memory should be of. `env` tells the engine.
    `shared`: other engines compute on the same cores.
    """

    cpus: tuple[int, ...] = ()
    numa: int | None = None
    env: dict[str, str] = {}
    shared: bool = False


class CpuWish(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that computes on the CPU: its ranks (tensor times pipeline), and what was written.

    `transfers`: it moves KV cache, which takes a core of its own.
    """

    who: str
    ranks: int
    env: Mapping[str, str] = {}
    flags: Collection[str] = ()
    transfers: bool = False


class _Slot(msgspec.Struct, frozen=True):
    """What one rank gets."""

    node: Node
    cores: tuple[tuple[int, ...], ...]
    ranks: int
    shared: bool


def near_gpus(gpus: Collection[Gpu], nodes: Collection[Node]) -> Binding:
    """Bind a worker to the node of its GPUs; to nothing where they have none in common."""
    usable = {node.index: node for node in nodes if node.cores}
    near = {gpu.numa for gpu in gpus}
    numa = near.pop() if len(near) == 1 else None
    if len(usable) < 2 or numa is None or numa not in usable:
        return Binding()
    return Binding(cpus=usable[numa].cpus, numa=numa)


def on_cpus(
    wishes: Collection[CpuWish], nodes: Collection[Node], busy: Collection[int]
) -> dict[str, Binding]:
    """Deal the machine's cores to engines that compute on them. `busy`: another topology's."""
    usable = [node for node in nodes if node.cores]
    if not usable:
        return {}
    slots = _slots(sum(wish.ranks for wish in wishes), usable, busy)
    return {wish.who: _binding(wish, [next(slots) for _ in range(wish.ranks)]) for wish in wishes}


def cpus_of(env: Mapping[str, str]) -> tuple[int, ...]:
    """Read which CPUs an engine's threads were bound to."""
    found: list[int] = []
    for part in env.get(THREADS, "").replace("|", ",").split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def ranges(cpus: Collection[int]) -> str:
    """Write numbers as the kernel does: 0-3,8."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)


def _slots(count: int, nodes: list[Node], busy: Collection[int]) -> Iterator[_Slot]:
    """Deal `count` ranks to the nodes by their cores, and each node's cores to its ranks."""
    free = {
        node.index: [core for core in node.cores if not any(cpu in busy for cpu in core)]
        for node in nodes
    }
    crowded = not any(free.values())  # another topology computes everywhere: share with it
    if crowded:
        free = {node.index: list(node.cores) for node in nodes}
    ranks = dict.fromkeys(free, 0)
    order = []
    for _ in range(count):
        index = min(free, key=lambda each: ((ranks[each] + 1) / (len(free[each]) or 1e-9), each))
        ranks[index] += 1
        order.append(index)
    by_index = {node.index: node for node in nodes}
    dealt = dict.fromkeys(free, 0)
    for index in order:
        cores, of = free[index], ranks[index]
        place, dealt[index] = dealt[index], dealt[index] + 1
        shared = crowded or len(cores) < of
        first, last = (place * len(cores)) // of, ((place + 1) * len(cores)) // of
        mine = tuple(cores if shared else cores[first:last])
        yield _Slot(by_index[index], mine, of, shared)


def _binding(wish: CpuWish, slots: list[_Slot]) -> Binding:
    """What a worker with these ranks is told.

    Its processes keep to its own cores, too, unless a rank has but one: then only the threads that
    compute stay there, and the rest of the engine goes where there is room.
    """
    shared = any(slot.shared for slot in slots)
    alone = not shared and all(len(slot.cores) > 1 for slot in slots)
    cpus = {
        cpu for slot in slots for core in (slot.cores if alone else slot.node.cores) for cpu in core
    }
    nodes = {slot.node.index for slot in slots}
    env = {}
    if THREADS not in wish.env:
        env[THREADS] = NO_BINDING if shared else "|".join(_threads(slot, wish) for slot in slots)
    if KV_SPACE not in wish.env and not any(flag in wish.flags for flag in _OWN_KV):
        part = min(KV_PART * slot.node.total_bytes / slot.ranks for slot in slots)
        env[KV_SPACE] = str(max(1, int(part / GIB)))
    return Binding(
        cpus=tuple(sorted(cpus)),
        numa=nodes.pop() if len(nodes) == 1 else None,
        env=env,
        shared=shared,
    )


def _threads(slot: _Slot, wish: CpuWish) -> str:
    """One thread per core, and as vLLM does it: on its last CPU, and not on all of the cores."""
    spare = 1 + wish.transfers
    cores = slot.cores[:-spare] if len(slot.cores) > spare else slot.cores
    return ranges([core[-1] for core in cores])
