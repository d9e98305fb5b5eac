"""Which GPUs of those that are free belong together.

The slowest pair decides how fast a gang is, so the best set is the one whose worst connection is
best; then the one at fewest NUMA nodes, then the one with most between its pairs, then the first by
index. Before all of that comes what a set costs: GPUs that are better left to others.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb

from orchestrator.core.inventory import Gpu

SETS_MAX = 2000
"""So many sets are compared one by one; where there are more, sets are grown from single GPUs."""
SEEDS_MAX = 16
Near = Mapping[str, Mapping[str, int]]
"""How good the connection of one GPU to another is, by UUID."""


def closest(
    gpus: Sequence[Gpu], count: int, near: Near, cost: Mapping[str, int]
) -> tuple[Gpu, ...]:
    """Choose `count` of these GPUs, in their order. `near`: how good pairs are; `cost` by UUID."""
    assert 0 < count <= len(gpus), f"{count} of {len(gpus)} GPUs"
    costs = [cost.get(gpu.uuid, 0) for gpu in gpus]
    if count == 1:
        return (gpus[min(range(len(gpus)), key=lambda place: (costs[place], place))],)
    table = [[near[a.uuid].get(b.uuid, 0) for b in gpus] for a in gpus]
    if comb(len(gpus), count) <= SETS_MAX:
        sets: Iterator[tuple[int, ...]] = combinations(range(len(gpus)), count)
    else:
        sets = _grown(table, costs, count)

    def rank(places: tuple[int, ...]) -> tuple[object, ...]:
        pairs = [table[a][b] for a, b in combinations(places, 2)]
        nodes = len({gpus[place].numa for place in places})
        return sum(costs[place] for place in places), -min(pairs), nodes, -sum(pairs), places

    return tuple(gpus[place] for place in min(sets, key=rank))


def _grown(
    table: Sequence[Sequence[int]], costs: Sequence[int], count: int
) -> Iterator[tuple[int, ...]]:
    """Begin a set with each GPU, and add to it what is nearest to all of it."""
    everything = range(len(table))
    for seed in sorted(everything, key=lambda place: (costs[place], place))[:SEEDS_MAX]:
        places = [seed]
        worst, sums = list(table[seed]), list(table[seed])
        while len(places) < count:
            left = (place for place in everything if place not in places)
            new = min(left, key=lambda place: (costs[place], -worst[place], -sums[place], place))
            places.append(new)
            worst = [min(pair) for pair in zip(worst, table[new], strict=True)]
            sums = [sum(pair) for pair in zip(sums, table[new], strict=True)]
        yield tuple(sorted(places))
