"""What an operator may name: a topology, a role of it, one replica, or a worker of it."""

import difflib
from collections.abc import Iterable

from orchestrator.daemon.unit import Unit

KNOWN_MAX = 8


def matching(units: Iterable[Unit], target: str) -> list[Unit]:
    """The units that `agg`, `agg/worker`, `agg/worker-0` or `agg/worker-0.0` names."""
    return [unit for unit in units if target in _names(unit)]


def unknown(units: Iterable[Unit], target: str) -> str:
    """Say that nothing is called like this, and what comes closest."""
    units = list(units)
    names = sorted({name for unit in units for name in _names(unit)})
    close = difflib.get_close_matches(target, names, n=1)
    said = f"{target!r} names nothing here; "
    if close:
        return f"{said}did you mean {close[0]}? There is: {_known(units)}"
    return f"{said}there is: {_known(units)}"


def _known(units: list[Unit]) -> str:
    names = [str(unit.id) for unit in units]
    more = f" and {len(names) - KNOWN_MAX} more" if len(names) > KNOWN_MAX else ""
    return ", ".join(names[:KNOWN_MAX]) + more or "nothing"


def _names(unit: Unit) -> set[str]:
    """Everything that names this unit, or what it is a part of, or a part of it."""
    members = {f"{unit.id}.{member}" for member in range(len(unit.spec.members))}
    return {unit.id.topology, f"{unit.id.topology}/{unit.id.role}", str(unit.id)} | members
