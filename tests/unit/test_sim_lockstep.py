"""Ranks step together or not at all, and when nobody has work nothing turns."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.wire.config import Gang, WorkerConfig
from tests.asgi import call
from tests.virtual_loop import let_pass, run
from workers.sim.engine import SimEngine
from workers.sim.lockstep import Lockstep

ASK = {"prompt": "hello", "max_tokens": 20}


class Rank:
    """A batch that is only a count of the steps it has work for."""

    def __init__(self, room, member, size):
        self.room = room
        self.member = member
        self.todo = self.steps = 0
        self.stepping = self.news = False
        self.lockstep = Lockstep(member, size, self)
        self.lockstep.send = lambda to, word: room.post.append((member, to, word))

    def give(self, steps):
        self.todo += steps
        self.news = True
        if not self.stepping:
            self.lockstep.work()

    def assemble(self):
        assert not self.stepping
        self.stepping = True
        self.arrive()

    def arrive(self):
        self.news = False
        self.lockstep.arrive(self.todo > 0)

    def step(self):
        self.room.due.append(self)

    def end(self):
        self.steps += 1
        self.todo -= self.todo > 0
        self.arrive()

    def rest(self):
        self.stepping = False
        if self.news:
            self.lockstep.work()


class Room:
    """Ranks, the words on their way, and the steps that last."""

    def __init__(self, size):
        self.post = []
        self.due = []
        self.ranks = [Rank(self, member, size) for member in range(size)]

    def turn(self, choice):
        """Let one thing happen: a word arrives, in the order of its sender, or a step ends."""
        heads = {(speaker, to): number for number, (speaker, to, _) in
                 reversed(list(enumerate(self.post)))}  # fmt: skip
        ways = [*heads.values(), *range(-1, -len(self.due) - 1, -1)]
        way = ways[choice % len(ways)]
        if way < 0:
            self.due.pop(way).end()
        else:
            speaker, to, word = self.post.pop(way)
            self.ranks[to].lockstep.heard(speaker, word)


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(0, 9)), max_size=6),
    st.lists(st.integers(0, 30), max_size=80),
)
def test_whatever_the_order_all_work_is_done_in_step(size, gifts, choices):
    room = Room(size)
    order = iter(choices)
    for member, steps, turns in gifts:
        room.ranks[member % size].give(steps)
        for _ in range(turns):
            if room.post or room.due:
                room.turn(next(order, 0))
            assert_in_step(room)
    for _ in range(2000):
        if not (room.post or room.due):
            break
        room.turn(next(order, 0))
        assert_in_step(room)
    assert not room.post + room.due, "it ends"
    assert len({rank.steps for rank in room.ranks}) == 1
    assert not any(rank.todo or rank.stepping for rank in room.ranks)


def assert_in_step(room):
    steps = [rank.steps for rank in room.ranks]
    assert max(steps) - min(steps) <= 1


# ---- engines -----------------------------------------------------------------------------------


class Ranks:
    """A gang of engines in one loop."""

    def __init__(self, size, options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.engines = [
            SimEngine(
                WorkerConfig(
                    life=f"g/worker-0.{member}#1", kind="aggregated", control="", events="",
                    state_dir="", model="m", options={"step": 1.0, **options},
                    gang=Gang(member=member, size=size, host="127.0.0.1", port=port),
                )
            )
            for member in range(size)
        ]  # fmt: skip

    async def start(self):
        starts = (engine.start(lambda *_: None) for engine in self.engines)
        self.apps = await asyncio.gather(*starts)

    def ask(self, member, **fields):
        leave = fields.pop("leave", None)
        asking = call(self.apps[member], "/v1/completions", ASK | fields, leave=leave)
        return asyncio.ensure_future(asking)

    def counts(self):
        return [(e._stepper.steps, e._stepper.dummies, e.tokens()) for e in self.engines]


def played(scene, size=3, **options):
    async def play():
        ranks = Ranks(size, options)
        await ranks.start()
        try:
            return await scene(ranks)
        finally:
            for engine in ranks.engines:
                with contextlib.suppress(OSError):
                    await engine.stop(1.0)
            await asyncio.sleep(0)

    return run(play())


@pytest.mark.parametrize("busy", [0, 2])
def test_idle_ranks_step_with_the_busy_one(busy):
    async def scene(ranks):
        assert (await ranks.ask(busy)).status == 200
        await let_pass(100)
        return ranks.counts()

    counts, _ = played(scene)
    assert counts.pop(busy) == (20, 0, 20)
    assert counts == [(20, 20, 0)] * 2


def test_a_request_that_comes_later_joins_the_wave():
    async def scene(ranks):
        first = ranks.ask(1)
        await let_pass(5.5)
        second = ranks.ask(2)
        await asyncio.gather(first, second)
        return ranks.counts()

    counts, took_s = played(scene)
    assert counts == [(26, 26, 0), (26, 6, 20), (26, 6, 20)]
    assert took_s == pytest.approx(26, abs=0.1)


def test_when_all_are_idle_nothing_turns():
    async def scene(ranks):
        await asyncio.gather(*map(ranks.ask, range(3)))
        loop = asyncio.get_running_loop()
        await let_pass(1)
        before = ranks.counts()
        assert not [handle for handle in loop._scheduled if not handle.cancelled()]
        await let_pass(1000)
        assert ranks.counts() == before
        assert (await ranks.ask(1)).status == 200

    played(scene)


@pytest.mark.parametrize("hung", [0, 1])
def test_a_rank_that_hangs_stops_the_others(hung):
    fault = {"fault": "engine-hang", "after-tokens": 5, "member": hung}

    async def scene(ranks):
        leave = asyncio.Event()
        asks = [ranks.ask(member, leave=leave) for member in range(3)]
        await let_pass(1000)
        assert not any(each.done() for each in asks)
        assert all(engine.busy() for engine in ranks.engines)
        leave.set()
        await asyncio.gather(*asks)
        return [steps for steps, _dummies, _tokens in ranks.counts()]

    assert played(scene, faults=[fault])[0] == [5, 5, 5]


def test_answers_are_those_of_an_engine_alone():
    async def scene(ranks):
        answers = await asyncio.gather(*map(ranks.ask, range(len(ranks.engines))))
        return {answer.json["choices"][0]["text"] for answer in answers}

    assert played(scene)[0] == played(scene, size=1)[0]
