"""A machine that isn't there, in one line: what `plan --gpus` says.

`8xH100` is eight of them on a board with NVLink, half at each of two NUMA nodes, as such machines
are built. What is different is added after colons: memory (`2xFOO:80GiB`), `pcie` for no NVLink,
`numa=1` for one node alone. Parts are joined by commas. Each node has the same made-up cores and
memory, so that a plan shows where workers would be bound; a file (`@machine.toml`) says it exactly.
"""

import re
import tomllib
from itertools import combinations

import msgspec

from orchestrator.core.inventory import GIB, GPUS_MAX, Gpu, Inventory, Link, Node

KNOWN_BYTES = {
    "A10": 24 * GIB,
    "A10G": 24 * GIB,
    "A30": 24 * GIB,
    "A40": 48 * GIB,
    "A100": 80 * GIB,
    "A6000": 48 * GIB,
    "B200": 180 * GIB,
    "B300": 270 * GIB,
    "GB200": 186 * GIB,
    "H20": 96 * GIB,
    "H100": 80 * GIB,
    "H200": 141 * GIB,
    "L4": 24 * GIB,
    "L40": 48 * GIB,
    "L40S": 48 * GIB,
    "RTX4090": 24 * GIB,
    "RTX5090": 32 * GIB,
    "T4": 16 * GIB,
    "V100": 32 * GIB,
}
"""Memory by name, as sold; a real inventory brings the exact number."""
NVLINKS = {
    "A100": 12, "B200": 18, "B300": 18, "GB200": 18, "H20": 18, "H100": 18, "H200": 18, "V100": 6,
}  # fmt: skip
"""Links of those that are sold on boards where each sees each other."""
ONE_NODE_MAX = 4
"""So many GPUs are declared at one node; more are dealt to two."""
NODE_CORES = 32
NODE_BYTES = 512 * GIB
NODES_MAX = 64
_PART = re.compile(r"(\d{1,3})x([A-Za-z][A-Za-z0-9-]*)((?::[A-Za-z0-9=]+)*)")
_MEMORY = re.compile(r"(\d+)(GiB|GB)")
_NUMA = re.compile(r"numa=(\d{1,2})")


class _Part(msgspec.Struct):
    """What stands between two commas."""

    count: int
    name: str
    total_bytes: int
    pcie: bool
    numa: int | None


def declared(text: str) -> Inventory:
    """Read "8xH100", "2xFOO:80GiB:pcie" or "4xA100,4xL40S"; ValueError with what would be right."""
    parts = [_part(each.strip()) for each in text.split(",")]
    total = sum(part.count for part in parts)
    if total > GPUS_MAX:
        raise ValueError(f"{total} GPUs in one machine; declare at most {GPUS_MAX}")
    gpus: list[Gpu] = []
    links: list[Link] = []
    for part in parts:
        mine = []
        for index in range(len(gpus), len(gpus) + part.count):
            node = 0 if total <= ONE_NODE_MAX else int(index >= total / 2)
            gpu = Gpu(
                index=index,
                uuid=f"GPU-declared-{index}",
                name=part.name,
                total_bytes=part.total_bytes,
                numa=node if part.numa is None else part.numa,
            )
            mine.append(gpu)
        gpus += mine
        lanes = 0 if part.pcie else NVLINKS.get(part.name, 0)
        if lanes:
            links += [
                Link(a=one.uuid, b=other.uuid, by="nvlink", lanes=lanes)
                for one, other in combinations(mine, 2)
            ]
    last = max((gpu.numa or 0 for gpu in gpus), default=0)
    nodes = tuple(_node(index) for index in range(last + 1))
    return Inventory(gpus=tuple(gpus), links=tuple(links), nodes=nodes)


def read(text: str) -> Inventory:
    """Read a file that declares a machine, TOML or JSON; ValueError when it makes no sense.

    It has the shape of `Inventory`: `[[gpus]]`, `[[links]]`, `[[nodes]]`.
    """
    try:
        plain = msgspec.json.decode(text) if text.lstrip()[:1] == "{" else tomllib.loads(text)
        found = msgspec.convert(plain, Inventory)
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"declares no machine: {error}") from error
    known = [gpu.uuid for gpu in found.gpus]
    if len(known) != len(set(known)):
        raise ValueError("declares no machine: two GPUs have the same UUID")
    if strange := {uuid for link in found.links for uuid in (link.a, link.b)} - set(known):
        raise ValueError(f"declares no machine: a link to {min(strange)}, which no GPU is called")
    return found


def _part(text: str) -> _Part:
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} declares no GPUs; write 8xH100, or 8xNAME:80GiB")
    count, name = int(match[1]), match[2]
    known = {key.lower(): key for key in KNOWN_BYTES}
    name = known.get(name.lower(), name)
    part = _Part(count, name, KNOWN_BYTES.get(name, 0), pcie=False, numa=None)
    for option in match[3].split(":")[1:]:
        if memory := _MEMORY.fullmatch(option):
            part.total_bytes = int(memory[1]) * (GIB if memory[2] == "GiB" else 10**9)
        elif (numa := _NUMA.fullmatch(option)) and int(numa[1]) < NODES_MAX:
            part.numa = int(numa[1])
        elif option == "pcie":
            part.pcie = True
        else:
            raise ValueError(f"{option!r} says nothing of a GPU; write 80GiB, pcie or numa=1")
    if not part.total_bytes:
        raise ValueError(f"the memory of {name!r} isn't known here; write {count}x{name}:80GiB")
    return part


def _node(index: int) -> Node:
    first = index * NODE_CORES
    cores = tuple((cpu,) for cpu in range(first, first + NODE_CORES))
    return Node(index=index, cores=cores, total_bytes=NODE_BYTES)
