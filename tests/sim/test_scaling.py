"""Fleets that are scaled while everything goes wrong; see `scaling`."""

from unittest import mock

import pytest
from msgspec.structs import replace

from orchestrator.core import rollout
from tests.sim.scaling import run_seed


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_as_many_as_are_wanted_and_never_more(first):
    for seed in range(first, first + 10):
        run_seed(seed)


def test_one_that_is_never_told_to_leave_is_found():
    right = rollout.decide

    def mutated(*args, **more):
        found = right(*args, **more)
        return replace(found, moves=[move for move in found.moves if move.do != "stop"])

    def run_all():
        for seed in range(20):
            run_seed(seed)

    with mock.patch.object(rollout, "decide", mutated), pytest.raises(AssertionError):
        run_all()
