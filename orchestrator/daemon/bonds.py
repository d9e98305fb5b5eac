"""From the file's `depends-on` and `[groups]` to what holds a replica back and what takes it down.

The file speaks of roles and processes, the core of replicas. Every replica of what is named counts.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from orchestrator.core.fleet import GONE, TOGETHER, Need
from orchestrator.core.groups import Bond
from orchestrator.topology.groups import Group
from orchestrator.topology.schema import Topology
from orchestrator.wire.ids import ReplicaId


def needs(topology: Topology, replicas: Collection[ReplicaId], role: str) -> tuple[Need, ...]:
    """What must be so before a replica of this role starts."""
    depends_on = _depends_on(topology, role)
    found = [
        Need(replica, depends_on[replica.role] or _usual(topology, replica.role))
        for replica in (replicas if depends_on else ())
        if replica.role in depends_on
    ]
    for _, group in _groups_of(topology, role):
        if group.strategy == "one-for-all":
            others = set(group.members) - {role}
            found += [Need(replica, TOGETHER) for replica in replicas if replica.role in others]
        elif group.strategy == "rest-for-one":
            before = group.before(role)
            found += [
                Need(replica, "started" if replica.role in before else GONE)
                for replica in replicas
                if replica.role in group.members and replica.role != role
            ]
    return tuple(found)


def bonds(topology: Topology, replicas: Collection[ReplicaId], role: str) -> tuple[Bond, ...]:
    """With whom a replica of this role goes down."""
    found = []
    for name, group in _groups_of(topology, role):
        fatal = set(group.members) if group.strategy == "one-for-all" else group.before(role)
        if group.strategy != "one-for-one":
            found += [
                Bond(replica, name)
                for replica in replicas
                if replica.role in fatal and replica.role != role
            ]
    table = topology.roles.get(role) or topology.processes.get(role)
    if table is not None and table.on_dependency_restart == "restart":
        found += [Bond(replica) for replica in replicas if replica.role in table.depends_on]
    return tuple(found)


def rules(
    needs: Iterable[Need], bonds: Iterable[Bond], depends_on: Iterable[str]
) -> dict[str, str]:
    """What groups mean for a replica, by role: the number of replicas is no part of it."""
    declared = set(depends_on)
    waits = {f"{need.on.role} ({need.condition})" for need in needs if need.on.role not in declared}
    falls = {f"{bond.on.role} ({bond.group or 'dependency'})" for bond in bonds}
    return {"waits-for": ", ".join(sorted(waits)), "goes-down-with": ", ".join(sorted(falls))}


def _groups_of(topology: Topology, role: str) -> Iterator[tuple[str, Group]]:
    yield from ((name, each) for name, each in topology.groups.items() if role in each.members)


def _depends_on(topology: Topology, role: str) -> Mapping[str, str | None]:
    table = topology.roles.get(role) or topology.processes.get(role)
    return table.depends_on if table is not None else {}


def _usual(topology: Topology, role: str) -> str:
    """What is waited for where only the name is listed."""
    process = topology.processes.get(role)
    return "completed" if process is not None and process.oneshot else "ready"
