"""What an operator may name: a topology, a role of it, or one replica."""

from collections.abc import Iterable

from orchestrator.daemon.unit import Unit


def matching(units: Iterable[Unit], target: str) -> list[Unit]:
    """The units that `agg`, `agg/worker`, `agg/worker-0` or `agg/worker-0.0` names."""
    replica = target.rpartition(".")[0] if "." in target else target
    return [
        unit
        for unit in units
        if replica in {unit.id.topology, f"{unit.id.topology}/{unit.id.role}", str(unit.id)}
    ]
