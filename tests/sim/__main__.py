"""Run seeds and report speed and cells, or with `--seed N` tell the story of one."""

import argparse
import sys
import time
from collections import Counter

from orchestrator.core import replica
from tests.sim.run import run_seed


def never_reached(cells: Counter) -> list[str]:
    wanted = set(replica.HANDLED) | set(replica.IGNORED)
    left = sorted((phase.value, event.__name__) for phase, event in wanted - set(cells))
    return [f"{phase} / {event}" for phase, event in left]


def run_part(first: int, count: int) -> tuple[Counter, str]:
    """Run some seeds; the cells they reached, and the first failure's story."""
    cells: Counter = Counter()
    for seed in range(first, first + count):
        try:
            cells.update(run_seed(seed).cells)
        except AssertionError as failed:
            return cells, f"{failed}\nagain: python -m tests.sim --seed {seed}"
    return cells, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="run this one and print what happened")
    options = parser.parse_args()
    if options.seed is not None:
        report = run_seed(options.seed, verbose=True)
        sys.stdout.write("\n".join(report.lines) + "\n")
        return 0
    began = time.perf_counter()
    cells: Counter = Counter()
    for seed in range(options.first, options.first + options.seeds):
        cells.update(run_seed(seed).cells)
    took_s = time.perf_counter() - began
    steps, rate = sum(cells.values()), options.seeds / took_s
    sys.stdout.write(f"{options.seeds} seeds, {steps} steps, {took_s:.1f} s, {rate:.0f} seeds/s\n")
    missing = never_reached(cells)
    sys.stdout.write(f"never reached: {', '.join(missing) or 'nothing'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
