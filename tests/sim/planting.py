"""How a bug is planted: put in place of the right code for the length of a run."""

from collections.abc import Callable
from unittest import mock

from orchestrator.core import replica
from orchestrator.core.state import Phase

Mutant = Callable[[], object]
MUTANTS: dict[str, Mutant] = {}


def mutant(plant: Mutant) -> Mutant:
    MUTANTS[plant.__name__] = plant
    return plant


def instead_of(module, name: str, make):
    """Put `make(right)` where `right` was."""
    return mock.patch.object(module, name, make(getattr(module, name)))


def in_cell(phase: Phase, event, handle):
    return mock.patch.dict(replica.HANDLED, {(phase, event): replica.cell(handle, *Phase)})


def without(kind, member=None):
    """Wrap a move or cell so that one kind of order gets lost."""

    def make(right):
        def mutated(*args):
            state, actions = right(*args)
            return state, tuple(x for x in actions if not isinstance(x, kind))

        return mutated

    return make
