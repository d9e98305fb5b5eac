"""A request's course across workers: pick one, pass on what it says, and when it fails, decide.

Until the client has seen a byte, a failed attempt is judged by `retries` and made again
elsewhere, or answered with what happened. After it there is no second attempt: the answer goes on
to its end, or is visibly broken off. Between first and last byte nothing is looked at.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from orchestrator.wire.plane import Headers
from workers.frontend import problems, retries
from workers.frontend.client import Client
from workers.frontend.exchange import Exchange
from workers.frontend.intake import Ask, returned
from workers.frontend.link import Link
from workers.frontend.metrics import Metrics
from workers.frontend.options import Options
from workers.frontend.patience import LEAVING, Patience
from workers.frontend.problems import Problem
from workers.frontend.retries import Failure
from workers.frontend.upstreams import Upstreams

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")


class _Attempt(NamedTuple):
    """One try of a request on one worker."""

    link: Link
    exchange: Exchange
    client: Client


class Relay:
    """Carries requests; `writes` only grows and says that streams move."""

    def __init__(self, upstreams: Upstreams, metrics: Metrics, options: Options) -> None:
        self.writes = 0
        self._upstreams = upstreams
        self._metrics = metrics
        self._options = options
        self._open: set[Exchange] = set()
        self._patience = Patience(upstreams, options.hold_s)

    async def carry(self, ask: Ask, model: str, client: Client) -> None:
        """Get `ask` answered. Returns when the client has its answer, or has gone."""
        loop = asyncio.get_running_loop()
        timeout_s = self._options.request_timeout_s
        deadline = None if timeout_s is None else loop.time() + timeout_s
        tried: set[str] = set()
        spent = 0
        began, left_at = loop.time(), float("-inf")
        until = self._patience.until(began, deadline)
        while True:
            if client.gone:
                client.left_early = True
                return
            picked = self._upstreams.pick(model, tried)
            if picked is None:
                if await self._patience.wait(model, client, until, left_at):
                    continue
                await client.refuse(self._upstreams.explain(model))
                return
            link, why = picked
            tried.add(link.route.life)
            self._metrics.pick(why).inc()
            exchange = Exchange(loop, self._options.stream_buffer_max, client.connection.abort)
            attempt = _Attempt(link, exchange, client)
            failure = await self._make(attempt, ask, deadline)
            if failure is None:
                return
            if failure in LEAVING:
                left_at = loop.time()
            verdict = retries.judge(
                failure,
                spent=spent,
                retries=self._options.retries,
                others=self._upstreams.others(model, tried)
                or self._patience.may_help(model, failure),
            )
            if not verdict.again:
                await self._refuse(attempt, failure, verdict.reason, model)
                return
            self._metrics.retried(failure.name.lower())
            spent += retries.RULES[failure].costs

    def stop(self) -> None:
        """End every request that is still open, visibly."""
        self._patience.close()
        for exchange in list(self._open):
            exchange.fail(Failure.STOPPING, "the frontend was told to stop")

    async def _make(self, attempt: _Attempt, ask: Ask, deadline: float | None) -> Failure | None:
        """Have the worker answer; the failure, if it came before the client saw anything."""
        link, exchange, client = attempt
        number = link.open(exchange, ask)
        client.connection.on_lost = _leaver(attempt, number)
        timer = self._arm(exchange, deadline)
        self._open.add(exchange)
        try:
            await exchange.opening()
            if exchange.client_gone:
                return None
            failure = exchange.failure
            if failure is None and exchange.head is not None:
                if retries.engine_died(exchange.head.status, exchange.peek()):
                    return Failure.ENGINE_DEAD
                await self._present(attempt)
            return failure
        finally:
            self._open.discard(exchange)
            if timer is not None:
                timer.cancel()
            client.connection.on_lost = None
            link.cancel(number)

    def _arm(self, exchange: Exchange, deadline: float | None) -> asyncio.TimerHandle | None:
        if deadline is None:
            return None
        loop = asyncio.get_running_loop()
        text = problems.timed_out(self._options.request_timeout_s or 0).message
        return loop.call_at(deadline, exchange.expire, text)

    async def _present(self, attempt: _Attempt) -> None:
        """Pass the answer on as it comes."""
        link, exchange, client = attempt
        assert exchange.head is not None
        headers = returned(exchange.head.headers, self._marks(link))
        await client.start(exchange.head.status, headers)
        tail = b""
        while True:
            done = exchange.done
            data = exchange.take()
            tail = data or tail
            exchange.writing = True
            await client.write(data, last=done)
            exchange.writing = False
            self.writes += 1
            if done:
                return
            await exchange.changed()
            if exchange.failure is not None and not exchange.pending:
                break
            if exchange.client_gone:
                return
        self._metrics.broke(exchange.failure.name.lower())
        problem = _problem(exchange.failure, exchange.text)
        sse = _is_stream(exchange.head.headers)
        await client.break_off(problem, sse=sse, whole_events=tail.endswith(_EVENT_ENDS))

    async def _refuse(self, attempt: _Attempt, failure: Failure, reason: str, model: str) -> None:
        """Answer with what happened; a worker's own complete answer says it best."""
        if failure is Failure.ENGINE_DEAD:
            await self._present(attempt)
            return
        problem = _problem(failure, f"{attempt.exchange.text} ({reason})")
        if problem.status == 503:
            waits = self._upstreams.explain(model).retry_after_s
            problem = problems.unavailable(problem.message, waits or 1)
        await attempt.client.refuse(problem)

    def _marks(self, link: Link) -> Headers:
        """Return the headers that say who answered."""
        routes = self._upstreams.routes
        assert routes is not None
        return [
            (b"x-dynorch-worker", link.route.life.encode()),
            (b"x-dynorch-engine", routes.engine.encode()),
        ]


def _leaver(attempt: _Attempt, number: int) -> Callable[[], None]:
    """Return what to do at the moment the client is gone: spare the worker the rest."""
    link, exchange, client = attempt

    def leave() -> None:
        link.cancel(number)
        client.left_early = exchange.failure is None
        exchange.client_left()

    return leave


def _problem(failure: Failure, text: str) -> Problem:
    if failure is Failure.TIMEOUT:
        return Problem(504, "TimeoutError", text)
    if failure is Failure.APP_ERROR:
        return problems.internal(f"The worker failed on this request: {text}")
    return problems.unavailable(f"The request could not be completed: {text}.")


def _is_stream(headers: Headers) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in headers
    )
