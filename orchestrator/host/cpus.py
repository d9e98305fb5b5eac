"""This machine's NUMA nodes: their cores, and their memory.

Read from /sys, and only as far as this process may use them: a container or `taskset` may have
left fewer. A core is the tuple of its logical CPUs, since two engines on the two halves of one
core get in each other's way. A machine that says nothing about nodes has one.
"""

import os
import re
from collections.abc import Collection

import msgspec

from orchestrator.host import procfs
from orchestrator.host.kernel import memory_limit

SYS = "/sys/devices/system"
_MEM_TOTAL = re.compile(rb"MemTotal:\s+(\d+) kB")


class Node(msgspec.Struct, frozen=True):
    """One node. `cores`: each with its logical CPUs, both in the order of their numbers."""

    index: int
    cores: tuple[tuple[int, ...], ...]
    total_bytes: int


def nodes(root: str = SYS, allowed: Collection[int] | None = None) -> list[Node]:
    """List the nodes, also those that have no core, or none for us; their number means something.

    `allowed`: the CPUs that may be used; ours if not given.
    """
    mine = os.sched_getaffinity(0) if allowed is None else allowed
    indices = cpu_list(_text(f"{root}/node/online"))
    if not indices:
        return [Node(0, _cores(root, sorted(mine)), _bytes("/proc/meminfo"))]
    found = []
    for index in indices:
        folder = f"{root}/node/node{index}"
        here = [cpu for cpu in cpu_list(_text(f"{folder}/cpulist")) if cpu in mine]
        found.append(Node(index, _cores(root, here), _bytes(f"{folder}/meminfo")))
    return found


def machine() -> list[Node]:
    """Look at this machine; where a control group allows less memory, each node has less of it."""
    found, limit = nodes(), memory_limit()
    total = sum(node.total_bytes for node in found)
    if not limit or limit >= total:
        return found
    return [Node(each.index, each.cores, each.total_bytes * limit // total) for each in found]


def cpu_list(text: str) -> list[int]:
    """Read the kernel's way of writing numbers: "0-3,8" is 0, 1, 2, 3 and 8."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            found += range(int(first), int(last if last.isdigit() else first) + 1)
    return found


def _cores(root: str, cpus: list[int]) -> tuple[tuple[int, ...], ...]:
    """Put together what is one core, by its first CPU."""
    cores: dict[int, list[int]] = {}
    for cpu in cpus:
        siblings = cpu_list(_text(f"{root}/cpu/cpu{cpu}/topology/thread_siblings_list"))
        cores.setdefault(min(siblings, default=cpu), []).append(cpu)
    return tuple(tuple(cores[first]) for first in sorted(cores))


def _text(path: str) -> str:
    return (procfs.read(path) or b"").decode("ascii", "replace").strip()


def _bytes(path: str) -> int:
    match = _MEM_TOTAL.search(procfs.read(path) or b"")
    return int(match[1]) * 1024 if match else 0
