"""Planted bugs: the proof that the oracles see.

Each mutant is one plausible mistake, put in place of the right code for the length of a run. The
core's own soundness check is switched off meanwhile, so that only the simulator's oracles can
object. `python -m tests.sim.mutants` prints which seed caught which.
"""

import sys
from unittest import mock

from orchestrator.core import replica
from tests.sim import core_bugs, fleet_bugs
from tests.sim.planting import MUTANTS
from tests.sim.run import run_seed

__all__ = ["MUTANTS", "core_bugs", "fleet_bugs", "hunt"]


def hunt(name: str, seeds: int) -> tuple[int, str] | None:
    """Return the first seed that catches this mutant, and what the oracle said; None if none."""
    with MUTANTS[name](), mock.patch.object(replica, "assert_sound"):
        for seed in range(seeds):
            try:
                run_seed(seed)
            except AssertionError as caught:
                return seed, str(caught).splitlines()[0]
    return None


def main() -> int:
    alive = 0
    for name in MUTANTS:
        caught = hunt(name, 3000)
        alive += caught is None
        sys.stdout.write(f"{name}: {caught[1] if caught else 'NOT CAUGHT'}\n")
    sys.stdout.write(f"{len(MUTANTS) - alive} of {len(MUTANTS)} caught\n")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
