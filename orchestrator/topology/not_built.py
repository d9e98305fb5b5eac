"""What the schema accepts and this version can't do yet: the one table of it.

A file may be written today for what comes tomorrow; `validate` and `plan` take it. `up` and
`smoke` refuse it with "not built yet", because a key that is silently ignored is a lie. Whoever
builds a feature deletes its row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.topology.complaints import Complaint, Finding, Path
from orchestrator.topology.schema import Topology


@dataclass(frozen=True)
class Row:
    """A feature, where a topology asks for it, and what to write meanwhile."""

    feature: str
    asked: Callable[[Topology], Iterator[Path]]
    instead: str


def _routing(topology: Topology) -> Iterator[Path]:
    if topology.frontend.routing == "kv":
        yield ("frontend", "routing")


ROWS = (Row("KV routing", _routing, 'write routing = "prefix"'),)


def not_built(topology: Topology) -> list[Complaint]:
    """Everything in the topology that can't be run yet, in the order of the file."""
    complaints = [
        topology.source.complaint(Finding(path, f"{row.feature}: not built yet", row.instead))
        for row in ROWS
        for path in row.asked(topology)
    ]
    return sorted(complaints, key=lambda each: each.line)
