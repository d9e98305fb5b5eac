"""Names of roles, processes and environment variables."""

import re
from collections.abc import Iterator

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.owned import env_refusal
from orchestrator.topology.schema import FRONTEND, Topology
from orchestrator.wire.ids import NAME

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RULE = "a name has lower-case letters, digits and inner dashes, at most 32"


def are_valid(topology: Topology) -> Iterator[Finding]:
    """Names become parts of worker ids, file names and metric labels."""
    named: list[tuple[str, Path]] = [(topology.name, ("name",))]
    named += [(name, ("roles", name)) for name in topology.roles]
    named += [(name, ("processes", name)) for name in topology.processes]
    named += [(name, ("groups", name)) for name in topology.groups]
    for name, path in named:
        if not NAME.fullmatch(name):
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:32].strip("-")
            right = f'write "{slug}"' if slug else 'write one like "chat-2"'
            yield Finding(path, f'"{name}" is no name: {_RULE}', right)


def are_unique(topology: Topology) -> Iterator[Finding]:
    """Roles, processes and the frontend share one namespace: operators name all of them alike."""
    for name in topology.processes:
        if name in topology.roles:
            wrong = f'a role is called "{name}" too'
            yield Finding(("processes", name), wrong, "rename one of them")
    for table, names in (("roles", topology.roles), ("processes", topology.processes)):
        if FRONTEND in names:
            yield Finding(
                (table, FRONTEND),
                f'"{FRONTEND}" is the name of the HTTP server itself',
                f"rename it, or write [{FRONTEND}] if that is meant",
            )


def something_runs(topology: Topology) -> Iterator[Finding]:
    """Refuse an empty deployment: it is never what was meant."""
    if not topology.roles and not topology.processes:
        yield Finding(
            ("roles",),
            "nothing would run",
            'add a role: [roles.worker] with kind = "aggregated"',
            uses=(("roles",), ("processes",)),
        )


def environment(topology: Topology) -> Iterator[Finding]:
    """Variables have valid names, and none is ours to set."""
    tables: list[tuple[Path, dict[str, str]]] = [
        (("env",), topology.env),
        (("frontend", "env"), topology.frontend.env),
    ]
    tables += [(("roles", name, "env"), role.env) for name, role in topology.roles.items()]
    tables += [(("processes", name, "env"), each.env) for name, each in topology.processes.items()]
    for path, env in tables:
        engine = path[0] in {"env", "roles"}
        for name, value in env.items():
            if refusal := env_refusal(name, engine=engine):
                why, _, right = refusal.partition("; ")
                yield Finding((*path, name), f"not a variable to set here: {why}", right)
            elif not _VARIABLE.fullmatch(name):
                right = "write letters, digits and underscores"
                yield Finding((*path, name), "this is no name for a variable", right)
            elif "\0" in value:
                right = "leave the NUL character out"
                yield Finding((*path, name), "no environment can hold this value", right)


def interpreters(topology: Topology) -> Iterator[Finding]:
    """An interpreter is a program in one place, not what some PATH finds."""
    named: list[tuple[Path, str | None]] = [(("python",), topology.python)]
    named += [(("roles", name, "python"), role.python) for name, role in topology.roles.items()]
    for path, python in named:
        if python is not None and not python.startswith("/"):
            wrong = f'"{python}" depends on where one stands'
            yield Finding(path, wrong, "write all of its path, like /opt/vllm/bin/python")
