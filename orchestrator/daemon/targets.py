"""What an operator may name: a topology, a role of it, or one replica."""

from collections.abc import Iterable

from orchestrator.daemon.unit import Unit


def matching(units: Iterable[Unit], target: str) -> list[Unit]:
    """The units that `agg`, `agg/worker`, `agg/worker-0` or `agg/worker-0.0` names."""
    return [unit for unit in units if target in _names(unit)]


def _names(unit: Unit) -> set[str]:
    """Everything that names this unit, or what it is a part of, or a part of it."""
    members = {f"{unit.id}.{member}" for member in range(len(unit.spec.members))}
    return {unit.id.topology, f"{unit.id.topology}/{unit.id.role}", str(unit.id)} | members
