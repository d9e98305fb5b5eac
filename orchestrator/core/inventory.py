"""The GPUs, NUMA nodes and cores of a machine, found or declared.

`plan --gpus 8xH100` declares a machine that isn't there, so that a topology can be planned on a
laptop and checked in CI; see `declared` for how that is written.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

GIB = 2**30
GPUS_MAX = 256
Connection = Literal["nvlink", "board", "switch", "switches", "bridge", "numa", "system"]
CLOSENESS: dict[Connection, int] = {
    "nvlink": 100, "board": 60, "switch": 50, "switches": 40, "bridge": 30, "numa": 20,
    "system": 10,
}  # fmt: skip
"""How good a connection is; each NVLink of several counts one more."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or a MIG instance of one. `index` is nvidia-smi's, in PCI bus order.

    `numa`: the node whose cores are near; None when nobody knows. `held`: who has memory of it
    that isn't ours, in words; empty for nobody.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    numa: int | None = None
    held: str = ""

    @property
    def is_part(self) -> bool:
        """A MIG instance: it has the index of the GPU that it is a part of."""
        return self.uuid.startswith("MIG-")


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What two GPUs, by UUID, have between them. `lanes`: how many NVLinks; 0: nobody knows."""

    a: str
    b: str
    by: Connection
    lanes: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node. `cores`: each with its logical CPUs."""

    index: int
    cores: tuple[tuple[int, ...], ...] = ()
    total_bytes: int = 0

    @property
    def cpus(self) -> tuple[int, ...]:
        """All logical CPUs, in order."""
        return tuple(sorted(cpu for core in self.cores for cpu in core))


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All GPUs, by index, what connects them, and the NUMA nodes.

    `cpu_engine`: the vLLM that is installed computes on the CPU; `cpu_pythons`: other interpreters
    where it does.
    """

    gpus: tuple[Gpu, ...] = ()
    cpu_engine: bool = False
    cpu_pythons: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    nodes: tuple[Node, ...] = ()

    def find(self, wanted: int | str) -> Gpu | None:
        """Return the GPU with this index or UUID."""
        for gpu in self.gpus:
            if wanted == gpu.uuid or (wanted == gpu.index and not gpu.is_part):
                return gpu
        return None

    def closeness(self) -> dict[str, dict[str, int]]:
        """How good the connection of each pair is; where nobody knows, what the nodes tell."""
        found = {
            one.uuid: {other.uuid: _by_node(one, other) for other in self.gpus if other != one}
            for one in self.gpus
        }
        for link in self.links:
            found[link.a][link.b] = found[link.b][link.a] = CLOSENESS[link.by] + link.lanes
        return found

    def __str__(self) -> str:
        return named(self.gpus) or "none"


def named(gpus: Iterable[Gpu]) -> str:
    """Name GPUs by index and model."""
    return ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)


def _by_node(one: Gpu, other: Gpu) -> int:
    if one.numa is None or other.numa is None:
        return 0
    return CLOSENESS["numa" if one.numa == other.numa else "system"]
