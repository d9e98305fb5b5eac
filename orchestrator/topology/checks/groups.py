"""Groups: members that exist, once, and an order in which all of them can start."""

import difflib
from collections.abc import Iterator

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.processes import Process
from orchestrator.topology.roles import EngineRole
from orchestrator.topology.schema import FRONTEND, Topology


def members(topology: Topology) -> Iterator[Finding]:
    """Check that each member is a role or process of this file, in one group, and not alone."""
    known = [*topology.roles, *topology.processes]
    owners: dict[str, str] = {}
    for name, group in topology.groups.items():
        path: Path = ("groups", name, "members")
        if len(group.members) < 2:
            yield Finding(path, "a group has at least two members", 'write members = ["a", "b"]')
        for index, member in enumerate(group.members):
            where: Path = (*path, index)
            if member == FRONTEND:
                right = "leave it out: it finds workers anew by itself"
                yield Finding(where, "the frontend belongs to no group", right)
            elif member not in known:
                close = difflib.get_close_matches(member, known, n=1)
                right = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
                # The name may be that of a table that was too wrong to be read.
                uses: tuple[Path, ...] = (("roles", member), ("processes", member))
                yield Finding(where, f'nothing is called "{member}"', right, uses)
            elif member in owners:
                both = "twice" if owners[member] == name else f"in group {owners[member]} too"
                yield Finding(where, f"{member} is {both}", "name it once")
            owners.setdefault(member, name)


def dependants(topology: Topology) -> Iterator[Finding]:
    """Refuse a rule for the restart of what isn't depended on."""
    tables: dict[Path, EngineRole | Process] = {
        ("roles", name): role for name, role in topology.roles.items()
    }
    tables |= {("processes", name): each for name, each in topology.processes.items()}
    for path, table in tables.items():
        if table.on_dependency_restart == "restart" and not table.depends_on:
            right = "add depends-on, or leave this out"
            uses = ((*path, "depends-on"),)
            where = (*path, "on-dependency-restart")
            yield Finding(where, "it depends on nothing", right, uses)
