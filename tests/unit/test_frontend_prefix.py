"""Prefix affinity: who has read the beginning, unless too many ask for it; bounded; and what it is
worth, in a simulated fleet with caches."""

import json
import random
from collections import OrderedDict

import pytest

from workers.frontend import intake
from workers.frontend.picks import Turns, least_loaded
from workers.frontend.prefix import AHEAD_MAX, CHUNK_BYTES, CHUNKS_MAX, Prefixes, chain


class Worker:
    """A worker's load, and a cache that holds so many chunks."""

    def __init__(self, life: str, room: int = 0) -> None:
        self.life = life
        self.inflight = 0
        self.room = room
        self.cache: OrderedDict[int, None] = OrderedDict()

    def read(self, beginnings: list[int]) -> int:
        """Read a prompt; how many of its chunks were in the cache."""
        hits = 0
        while hits < len(beginnings) and beginnings[hits] in self.cache:
            hits += 1
        for one in beginnings:
            self.cache[one] = None
            self.cache.move_to_end(one)
        while len(self.cache) > self.room:
            self.cache.popitem(last=False)
        return hits


def fields(**body: object) -> intake.Fields:
    return intake.sift(json.dumps(body).encode()).fields


def of(text: str, model: str = "m") -> list[int]:
    return list(chain(model, fields(prompt=text)))


def workers(count: int) -> list[Worker]:
    return [Worker(f"t/w-{number}.0#1") for number in range(count)]


def test_a_chain_grows_with_the_prompt():
    one, longer = of("x" * 3 * CHUNK_BYTES), of("x" * 5 * CHUNK_BYTES)
    assert longer[: len(one)] == one
    assert len(longer) == 5
    assert of("short") == []
    assert of("x" * 400, "other")[0] != one[0]
    assert of("x" * 2 * CHUNK_BYTES * CHUNKS_MAX) == of("x" * CHUNK_BYTES * (CHUNKS_MAX + 1))


def test_what_stands_before_the_messages_counts_first():
    messages = [{"role": "user", "content": "x" * 600}]
    plain = chain("m", fields(messages=messages))
    with_tools = chain("m", fields(messages=messages, tools=[{"name": "y"}]))
    assert plain[0] != with_tools[0]
    assert chain("m", fields(messages=messages, cache_salt="s"))[0] != plain[0]
    assert chain("m", None) == ()


def test_a_known_beginning_is_sent_to_who_knows_it():
    table, turns, ones = Prefixes(), Turns(), workers(4)
    first, why = table.pick(ones, turns, of("a" * 600))
    assert why == "its turn among the least loaded; nobody knows the prefix"
    for more in ("b", "c" * 300, ""):
        assert table.pick(ones, turns, of("a" * 600 + more)) == (first, "knows the prefix")


def test_the_longest_known_beginning_decides():
    table, turns, ones = Prefixes(), Turns(), workers(2)
    short, _ = table.pick(ones, turns, of("a" * 600))
    other = next(one for one in ones if one is not short)
    table.pick([other], turns, of("a" * 600 + "b" * 600))
    assert table.pick(ones, turns, of("a" * 600 + "b" * 900))[0] is other


def test_who_is_far_ahead_is_passed_over():
    table, turns, ones = Prefixes(), Turns(), workers(2)
    known, _ = table.pick(ones, turns, of("a" * 600))
    known.inflight = AHEAD_MAX
    assert table.pick(ones, turns, of("a" * 600))[0] is known
    known.inflight = AHEAD_MAX + 1
    other, why = table.pick(ones, turns, of("a" * 600))
    assert other is not known
    assert why == "fewest in flight; who knows the prefix is overloaded"
    # Both have read it now; the one that did so last is asked next.
    assert table.pick(ones, turns, of("a" * 600)) == (other, "knows the prefix")
    # Where all are busy, the margin is a share.
    known.inflight, other.inflight = 100, 140
    assert table.pick(ones, turns, of("a" * 600))[0] is other


def test_short_prompts_are_spread():
    table, turns, ones = Prefixes(), Turns(), workers(2)
    picked = [table.pick(ones, turns, of("hi")) for _ in range(4)]
    assert {one.life for one, _ in picked} == {one.life for one in ones}
    assert {why for _, why in picked} == {"its turn among the least loaded"}


def test_what_a_life_knew_ends_with_it():
    table, turns, ones = Prefixes(), Turns(), workers(2)
    known, _ = table.pick(ones, turns, of("a" * 600))
    table.forget(known.life)
    assert len(table) == 0
    assert table.pick(ones, turns, of("a" * 600))[1].endswith("nobody knows the prefix")


def test_a_life_that_cannot_be_used_now_is_remembered():
    table, turns, ones = Prefixes(), Turns(), workers(3)
    known, _ = table.pick(ones, turns, of("a" * 600))
    rest = [one for one in ones if one is not known]
    assert table.pick(rest, turns, of("b" * 600))[1].endswith("nobody knows the prefix")
    assert table.pick(ones, turns, of("a" * 600))[0] is known


def test_the_table_is_bounded():
    table, turns, ones = Prefixes(entries_max=10), Turns(), workers(2)
    for number in range(100):
        table.pick(ones, turns, of(f"{number}" * 600))
        assert len(table) <= 10


def fleet(seed: int, *, affine: bool) -> tuple[float, float]:
    """Conversations on four workers: the share of chunks found in caches, and the worst imbalance.

    In each turn one of 60 conversations goes on; half of them begin alike. A request stays open
    for some turns, so there is load to be spread.
    """
    chance = random.Random(seed)
    ones = [Worker(f"t/w-{number}.0#1", room=400) for number in range(4)]
    table, turns = Prefixes(), Turns()
    texts = ["system" * 100 if number % 2 else f"{number}" * 300 for number in range(60)]
    open_until: list[tuple[int, Worker]] = []
    hits = total = worst = 0
    for now in range(1500):
        for due, one in list(open_until):
            if due <= now:
                one.inflight -= 1
                open_until.remove((due, one))
        number = chance.randrange(60)
        texts[number] = (texts[number] + f"<{number}:{now}>" * 40)[-40 * CHUNK_BYTES :] \
            if len(texts[number]) < 30 * CHUNK_BYTES else f"{number}.{now}" * 200  # fmt: skip
        beginnings = of(texts[number])
        pick = table.pick(ones, turns, beginnings) if affine else least_loaded(ones, turns)
        one = pick[0]
        hits += one.read(beginnings)
        total += len(beginnings)
        one.inflight += 1
        open_until.append((now + chance.randrange(4, 24), one))
        loads = [each.inflight for each in ones]
        worst = max(worst, max(loads) - min(loads))
    return hits / total, worst


@pytest.mark.parametrize("seed", range(3))
def test_affinity_finds_more_in_the_caches_and_keeps_the_load_even(seed):
    found, imbalance = fleet(seed, affine=True)
    found_without, _ = fleet(seed, affine=False)
    assert found > found_without + 0.25
    assert imbalance <= 2 * AHEAD_MAX
