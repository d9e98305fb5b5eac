"""Simulated ranks meet before any of them serves, and hang together when one is gone."""

import asyncio
import socket

import pytest

from orchestrator.wire.config import Gang, WorkerConfig
from orchestrator.wire.ids import LifeId
from workers.runtime.engine import EngineStartError
from workers.sim.engine import SimEngine
from workers.sim.rendezvous import Rendezvous


class Ranks:
    """A gang in one loop. `lost`: the members that hang."""

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.held = socket.socket()
        self.held.bind(("127.0.0.1", 0))
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.port = self.held.getsockname()[1]
        self.lost: list[int] = []
        self.said: list[str] = []
        self.words: list[tuple[int, int, str]] = []
        self.members: dict[int, Rendezvous] = {}
        self.news = asyncio.Event()

    def join(self, member: int, incarnation: int = 1) -> asyncio.Task[None]:
        gang = Gang(member=member, size=self.size, host="127.0.0.1", port=self.port)
        life = LifeId.parse(f"g/worker-0.{member}#{incarnation}")
        made = Rendezvous(
            life,
            gang,
            lambda: self.note(self.lost, member),
            lambda speaker, word: self.note(self.words, (member, speaker, word)),
        )
        self.members[member] = made
        return asyncio.ensure_future(made.meet(lambda text, _: self.note(self.said, text)))

    def note(self, kept: list, what: object) -> None:
        kept.append(what)
        self.news.set()

    async def until(self, condition) -> None:
        while not condition():
            self.news.clear()
            await self.news.wait()

    def close(self) -> None:
        for member in self.members.values():
            member.close()
        self.held.close()


def played(scene, size: int = 3) -> Ranks:
    async def run():
        ranks = Ranks(size)
        try:
            await asyncio.wait_for(scene(ranks), 20)
        finally:
            ranks.close()
        return ranks

    return asyncio.run(run())


async def pending(*tasks) -> bool:
    """None of these gets anywhere while the loop turns for a while."""
    done, _ = await asyncio.wait(tasks, timeout=0.2)
    return not done


def test_nobody_goes_on_before_all_are_there():
    async def scene(ranks):
        early = [ranks.join(2), ranks.join(0)]
        assert await pending(*early)
        await asyncio.gather(*early, ranks.join(1))

    assert "2 of 3 ranks are here" in played(scene).said


def test_a_lost_rank_hangs_the_others():
    async def scene(ranks):
        await asyncio.gather(*map(ranks.join, range(3)))
        ranks.members[2].close()
        await ranks.until(lambda: sorted(ranks.lost) == [0, 1])

    played(scene)


def test_the_loss_of_the_first_hangs_the_others_too():
    async def scene(ranks):
        await asyncio.gather(*map(ranks.join, range(3)))
        ranks.members[0].close()
        await ranks.until(lambda: sorted(ranks.lost) == [1, 2])

    played(scene)


def test_words_go_between_the_first_and_the_others():
    async def scene(ranks):
        await asyncio.gather(*map(ranks.join, range(3)))
        for member in (1, 2):
            ranks.members[member].send(0, "busy")
            ranks.members[0].send(member, "wave")
        await ranks.until(lambda: len(ranks.words) == 4)

    assert sorted(played(scene).words) == [
        (0, 1, "busy"), (0, 2, "busy"), (1, 0, "wave"), (2, 0, "wave"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words", [b"", b"hello\n", b"x" * 9000, b"g/worker-0.1#2\n", b"h/worker-0.1#1\n",
              b"g/worker-0.0#1\n", b"g/worker-0.7#1\n"]
)  # fmt: skip
def test_strangers_and_the_dead_are_not_counted(words):
    async def scene(ranks):
        leader = ranks.join(0)
        await ranks.until(lambda: ranks.said)
        reader, writer = await asyncio.open_connection("127.0.0.1", ranks.port)
        writer.write(words)
        if not words:
            writer.close()
        assert await reader.read() == b""
        writer.close()
        assert await pending(leader)
        await asyncio.gather(leader, ranks.join(1))

    played(scene, size=2)


def test_a_rank_that_comes_twice_before_all_are_there_counts_once():
    async def scene(ranks):
        tasks = [ranks.join(0), ranks.join(1)]
        assert await pending(*tasks)
        tasks.append(ranks.join(1))
        assert await pending(*tasks)
        for task in tasks:
            task.cancel()

    played(scene)


def test_a_port_that_another_listens_on_is_named():
    async def scene(ranks):
        ranks.held.listen(1)
        with pytest.raises(EngineStartError, match=rf"port {ranks.port}: .*already in use"):
            await ranks.join(0)

    played(scene)


class Engine(SimEngine):
    """Says when it hangs."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self.hung = asyncio.Event()

    def _freeze(self, mute: bool) -> None:
        super()._freeze(mute)
        self.hung.set()


def test_an_engine_whose_peer_is_gone_lives_on_and_makes_no_step():
    async def scene(ranks):
        engines = [
            Engine(
                WorkerConfig(
                    life=f"g/worker-0.{member}#1", kind="aggregated", control="", events="",
                    state_dir="", model="m", options={},
                    gang=Gang(member=member, size=2, host="127.0.0.1", port=ranks.port),
                )
            )
            for member in range(2)
        ]  # fmt: skip
        await asyncio.gather(*(engine.start(lambda *_: None) for engine in engines))
        death = asyncio.ensure_future(engines[1].wait_dead())
        await engines[0].stop(1.0)
        await engines[1].hung.wait()
        assert await pending(death), "it doesn't even know that it is dead"
        death.cancel()
        await engines[1].stop(1.0)

    played(scene)
