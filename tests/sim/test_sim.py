"""10,000 seeds of trouble, peace and proof; every cell reached; every planted bug caught."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, permutations
from unittest import mock

import pytest

from orchestrator.core import replica
from tests.sim.__main__ import never_reached, run_part
from tests.sim.mutants import MUTANTS, hunt
from tests.sim.run import run_seed
from tests.sim.same_instant import Duel

SEEDS = int(os.environ.get("DYNORCH_SIM_SEEDS", "10000"))
PARTS = 10
# Only computing is done here, so a machine that is busy otherwise needs its time.
pytestmark = pytest.mark.timeout(900)
CELLS: Counter = Counter()


@pytest.fixture(scope="module")
def pool():
    """A process for each core: seeds know nothing of each other."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as executor:
        yield executor


@pytest.mark.parametrize("part", range(PARTS))
def test_statement_44_nothing_is_lost_and_nothing_is_left(pool, part):
    """Who lives is at every step who should live, as a model with numbers of its own says."""
    count = SEEDS // PARTS
    share = -(-count // 8)
    firsts = range(part * count, (part + 1) * count, share)
    for cells, failure in pool.map(run_part, firsts, [share] * len(firsts)):
        assert not failure, failure
        CELLS.update(cells)


def test_every_cell_of_the_table_is_reached():
    if sum(CELLS.values()) < 1_000_000:
        pytest.skip("needs the 10,000 seeds above to have run")
    assert never_reached(CELLS) == []
    assert not set(CELLS) & replica.IMPOSSIBLE


@pytest.fixture(scope="module")
def hunts(pool):
    return {name: pool.submit(hunt, name, SEEDS) for name in MUTANTS}


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_bug_is_caught(hunts, name):
    assert hunts[name].result() is not None


def test_there_are_forty_planted_bugs():
    assert len(MUTANTS) >= 40


def test_a_seed_is_reproducible():
    """In another process, too, where sets have another order."""

    def told(order: str) -> bytes:
        code = (
            "from tests.sim.run import run_seed\n"
            "for seed in range(40): print(run_seed(seed, verbose=True).lines)"
        )
        env = {**os.environ, "PYTHONHASHSEED": order}
        return subprocess.run([sys.executable, "-c", code], env=env, check=True,
                              capture_output=True).stdout  # fmt: skip

    assert told("1") == told("2")


@pytest.mark.parametrize("seed", range(20, 40))
def test_statement_31_a_wall_clock_that_jumps_changes_no_delay(seed):
    """The supervisor and the core run on the loop's clock; the wall's may say what it likes."""
    calm = run_seed(seed, verbose=True).lines
    jumps = cycle((1e9, 1e9 + 3600.0, 1e9 - 3600.0))
    with mock.patch.object(time, "time", side_effect=jumps):
        assert run_seed(seed, verbose=True).lines == calm


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_statement_48_of_a_stop_and_a_restart_at_the_same_instant_the_last_wins(first):
    for seed in range(first, first + 250):
        for order in permutations(("stop", "restart")):
            Duel(seed, order).run()
