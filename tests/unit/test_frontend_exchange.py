"""One attempt: what is held back, what is joined, and what happens at the bound."""

import asyncio

import pytest

from orchestrator.wire.plane import Head
from workers.frontend.exchange import ERROR_BODY_MAX, Exchange
from workers.frontend.retries import Failure

OK = Head(1, 200, [])


def attempt(coroutine_of):
    async def body():
        cuts: list[None] = []
        exchange = Exchange(asyncio.get_running_loop(), 100, lambda: cuts.append(None))
        await coroutine_of(exchange, cuts)

    asyncio.run(asyncio.wait_for(body(), 5))


async def pending(awaitable) -> bool:
    task = asyncio.ensure_future(awaitable)
    for _ in range(3):
        await asyncio.sleep(0)
    done = task.done()
    task.cancel()
    return not done


def test_the_head_waits_for_a_body():
    async def body(exchange, _cuts):
        exchange.begin(OK)
        assert await pending(exchange.opening())
        exchange.add(b"x")
        await exchange.opening()
        assert exchange.take() == b"x"

    attempt(body)


def test_a_5xx_is_held_until_it_is_whole():
    async def body(exchange, _cuts):
        exchange.begin(Head(1, 500, []))
        exchange.add(b"x")
        assert await pending(exchange.opening())
        exchange.end()
        await exchange.opening()
        assert exchange.peek() == b"x"

    attempt(body)


def test_but_not_for_ever():
    async def body(exchange, _cuts):
        exchange.begin(Head(1, 500, []))
        exchange.add(b"x" * (ERROR_BODY_MAX + 1))
        await exchange.opening()

    attempt(body)


def test_chunks_of_one_pass_are_joined():
    async def body(exchange, _cuts):
        exchange.begin(OK)
        waiting = asyncio.ensure_future(exchange.opening())
        await asyncio.sleep(0)
        for piece in (b"a", b"b", b"c"):
            exchange.add(piece)
        await waiting
        assert exchange.take() == b"abc"
        assert not exchange.pending

    attempt(body)


def test_an_answer_without_a_head_is_a_failure():
    async def body(exchange, _cuts):
        exchange.end()
        await exchange.opening()
        assert exchange.failure is Failure.APP_ERROR

    attempt(body)


def test_a_reader_that_reads_may_be_behind():
    async def body(exchange, cuts):
        exchange.begin(OK)
        exchange.add(b"x" * 1000)
        assert not cuts
        assert exchange.failure is None

    attempt(body)


def test_a_reader_that_does_not_read_is_cut_at_the_bound():
    async def body(exchange, cuts):
        exchange.begin(OK)
        exchange.writing = True
        exchange.add(b"x" * 100)
        assert not cuts
        exchange.add(b"x")
        assert len(cuts) == 1
        assert exchange.failure is Failure.SLOW_READER
        exchange.add(b"x" * 1000)
        assert exchange.take() == b"x" * 101

    attempt(body)


def test_the_first_failure_counts():
    async def body(exchange, _cuts):
        exchange.fail(Failure.LOST, "one")
        exchange.fail(Failure.TIMEOUT, "two")
        exchange.end()
        assert (exchange.failure, exchange.text, exchange.done) == (Failure.LOST, "one", False)

    attempt(body)


@pytest.mark.parametrize("how", ["client_left", "end", "fail"])
def test_every_end_wakes(how):
    async def body(exchange, _cuts):
        exchange.begin(OK)
        exchange.add(b"x")
        await exchange.opening()
        exchange.take()
        waiting = asyncio.ensure_future(exchange.changed())
        await asyncio.sleep(0)
        if how == "fail":
            exchange.fail(Failure.LOST, "gone")
        else:
            getattr(exchange, how)()
        await waiting

    attempt(body)
