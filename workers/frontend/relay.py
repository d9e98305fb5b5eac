"""A request's course across workers: pick one, pass on what it says, and when it fails, decide.

Until the client has seen a byte, each end of a stage is judged by `course`: the request goes on to
the next stage, is made again elsewhere, or is answered with what happened. After it there is no
second attempt: the answer goes on to its end, or is visibly broken off. Between first and last byte
nothing is looked at.

A client that leaves cancels whichever worker has its request. Between prefill's answer and decode
nothing is awaited unless no decode worker is there; a ticket that is dropped then, or whose request
was cancelled in the moment of its issue, is freed by its lease.
"""

import asyncio
from collections.abc import Callable

from orchestrator.wire.plane import Headers
from workers.frontend import events, prefix, problems, retries, stages, tickets
from workers.frontend.client import Client
from workers.frontend.course import Course, Event, Move, Stage, Step, event_of
from workers.frontend.exchange import Exchange
from workers.frontend.intake import Ask, Fields, returned
from workers.frontend.link import Link
from workers.frontend.metrics import Metrics
from workers.frontend.options import Options
from workers.frontend.patience import Patience
from workers.frontend.problems import Problem
from workers.frontend.retries import Failure
from workers.frontend.run import Attempt, Ended, Run
from workers.frontend.tickets import Ticket, Void
from workers.frontend.upstreams import Upstreams

_TROUBLES = {
    Event.BARE: "no ticket",
    Event.BROKEN: "prefill failed",
    Event.FAILED: "prefill failed",
    Event.VOID: "ticket void",
}
_NO_PREFILL = "no prefill worker"
"""What a client reads in a header, and a metric in a label, when decode works alone."""


class Relay:
    """Carries requests; `writes` only grows and says that streams move."""

    def __init__(self, upstreams: Upstreams, metrics: Metrics, options: Options) -> None:
        self.writes = 0
        self._upstreams = upstreams
        self._metrics = metrics
        self._options = options
        self._open: set[Exchange] = set()
        self._patience = Patience(upstreams, options.hold_s)

    async def carry(self, ask: Ask, fields: Fields | None, model: str, client: Client) -> None:
        """Get `ask` answered. Returns when the client has its answer, or has gone."""
        loop = asyncio.get_running_loop()
        timeout_s = self._options.request_timeout_s
        course = Course(Stage.ALONE, self._options.retries, self._options.kv_transfer.enforce)
        run = Run(ask, fields, model, client, course)
        run.deadline = None if timeout_s is None else loop.time() + timeout_s
        run.until = self._patience.until(loop.time(), run.deadline)
        if self._upstreams.in_two_stages(model):
            run.prepare()
            course.stage = self._entry(run)
        if self._upstreams.by_prefix:
            run.beginnings = prefix.chain(model, fields)
        while True:
            if client.gone:
                client.left_early = True
                break
            prefill = course.stage is Stage.PREFILL
            ended = await (self._prefill(run) if prefill else self._answer(run))
            if ended is None or not await self._goes_on(run, ended):
                break
        if run.ticket is not None and not run.ticket.used:
            self._metrics.ticket("dropped").inc()

    def stop(self) -> None:
        """End every request that is still open, visibly."""
        self._patience.close()
        for exchange in list(self._open):
            exchange.fail(Failure.STOPPING, "the frontend was told to stop")

    # The course.

    def _entry(self, run: Run) -> Stage:
        """Return the stage to begin with, now or again. Without decode a ticket has no use."""
        if run.splittable and self._upstreams.others(run.model, Stage.DECODE, run.tried):
            return Stage.PREFILL
        return Stage.ALONE

    async def _goes_on(self, run: Run, ended: Ended) -> bool:
        """Decide what follows, and say whether anything does; if not, the client is answered."""
        course, model = run.course, run.model
        was = course.stage
        run.note(ended)
        run.trouble = _TROUBLES.get(ended.event, run.trouble)
        others = ended.failure is None or bool(
            self._upstreams.others(model, was, run.tried)
            or self._patience.may_help(run, was, ended.failure)
        )
        step = course.step(ended.event, ended.text, others=others)
        if step.move is Move.WAIT:
            if not await self._patience.wait(run, was):
                await self._give_up(run, was)
                return False
            if run.ticket is None:
                course.stage = self._entry(run)
            return True
        if step.move is Move.END:
            await self._conclude(run, was, ended, step)
            return False
        if ended.failure is not None or ended.event in {Event.BARE, Event.VOID}:
            self._metrics.retried((ended.failure or ended.event).name.lower())
        if step.move is Move.PREFILL:
            run.ticket = None
            course.stage = self._entry(run)
        elif step.move is Move.ALONE and was is not Stage.ALONE:
            run.ticket = None
            refused = ended.event is Event.REFUSED
            run.degraded = "" if refused else run.trouble or _NO_PREFILL
        return True

    def _pick(self, run: Run) -> tuple[Link, str] | None:
        stage, pick = run.course.stage, self._upstreams.pick
        picked = None
        if run.avoided:
            picked = pick(run.model, stage, run.tried | run.avoided, run.beginnings)
        return picked or pick(run.model, stage, run.tried, run.beginnings)

    # The stages.

    async def _prefill(self, run: Run) -> Ended | None:
        """Get a ticket; None if the client left."""
        picked = self._pick(run)
        if picked is None:
            return Ended(Event.NOBODY)
        assert run.fields is not None
        began = asyncio.get_running_loop().time()
        attempt, number = self._begin(run, *picked, stages.prefill_ask(run.ask, run.fields))
        exchange = attempt.exchange
        timer = self._arm(exchange, run.deadline)
        try:
            await exchange.whole()
        finally:
            self._finish(run, attempt, number, timer)
        if exchange.client_gone:
            return None
        if exchange.failure is not None:
            return self._failed(attempt, exchange.failure)
        now = asyncio.get_running_loop().time()
        self._metrics.prefilled(run.model, now - began)
        return self._examine(run, attempt, now)

    def _examine(self, run: Run, attempt: Attempt, now: float) -> Ended:
        """Make a ticket of prefill's answer, or say what is wrong with it."""
        head, life = attempt.exchange.head, attempt.link.life
        assert head is not None
        body = attempt.exchange.peek()
        if retries.engine_died(head.status, body):
            return self._failed(attempt, Failure.ENGINE_DEAD)
        if head.status >= 500:
            return Ended(Event.BROKEN, None, attempt, f"{life} answered with {head.status}")
        if head.status != 200:
            return Ended(Event.REFUSED, None, attempt, f"{life} answered with {head.status}")
        lease_s = self._options.kv_transfer.lease_s
        ticket = tickets.issue(body, life=life, digest=run.digest, now=now, lease_s=lease_s)
        if not isinstance(ticket, Ticket):
            return Ended(Event.BARE, None, attempt, f"{life}: {ticket}")
        self._metrics.ticket("issued").inc()
        run.ticket = ticket
        return Ended(Event.TICKETED, None, attempt)

    async def _answer(self, run: Run) -> Ended | None:
        """Have a worker answer the client; None if that is done, or the client left."""
        picked = self._pick(run)
        if picked is None:
            return Ended(Event.NOBODY)
        ask, until = run.ask, 0.0
        if run.course.stage is Stage.DECODE:
            params = self._redeem(run)
            if isinstance(params, Void):
                return Ended(Event.VOID, None, None, params.value)
            assert run.ticket is not None
            ask, until = stages.decode_ask(ask, params), run.ticket.deadline
        attempt, number = self._begin(run, *picked, ask, until)
        exchange = attempt.exchange
        timer = self._arm(exchange, run.deadline)
        try:
            await exchange.opening()
            if exchange.failure is None and exchange.head is not None and not exchange.client_gone:
                broken = retries.broken(exchange.head.status, exchange.peek())
                failure = await self._own_failure(run, attempt) if broken else None
                if failure is None:
                    await self._present(run, attempt)
                return failure
        finally:
            self._finish(run, attempt, number, timer)
        if exchange.client_gone or exchange.failure is None:
            return None
        return self._failed(attempt, exchange.failure)

    def _redeem(self, run: Run) -> bytes | Void:
        """Take the parameters out of the ticket."""
        ticket = run.ticket
        assert ticket is not None
        now = asyncio.get_running_loop().time()
        params = ticket.spend(run.digest, now, alive=self._upstreams.alive(ticket.life))
        void = isinstance(params, Void)
        self._metrics.ticket(params.name.lower() if isinstance(params, Void) else "used").inc()
        if void:
            run.ticket = None
        return params

    async def _own_failure(self, run: Run, attempt: Attempt) -> Ended | None:
        """Say whether a worker's error is of a kind that isn't passed on yet.

        Then it is read to its end, because it may have to be passed on after all.
        """
        exchange = attempt.exchange
        assert exchange.head is not None
        status = exchange.head.status
        dead = retries.engine_died(status, exchange.peek())
        if not dead and run.course.stage is Stage.ALONE:
            return None
        await exchange.whole()
        if dead:
            return self._failed(attempt, Failure.ENGINE_DEAD)
        return Ended(Event.BROKEN, None, attempt, f"it answered with an error (status {status})")

    # One attempt.

    def _begin(
        self, run: Run, link: Link, why: str, ask: Ask, until: float = 0.0
    ) -> tuple[Attempt, int]:
        """Send it; returns the attempt and its number on the link."""
        client = run.client
        loop = asyncio.get_running_loop()
        run.tried.add(link.life)
        self._metrics.pick(why).inc()
        exchange = Exchange(loop, self._options.stream_buffer_max, client.connection.abort)
        attempt = Attempt(link, exchange)
        number = link.open(exchange, ask, until)
        client.connection.on_lost = _leaver(attempt, client, number)
        self._open.add(exchange)
        return attempt, number

    def _finish(
        self, run: Run, attempt: Attempt, number: int, timer: asyncio.TimerHandle | None
    ) -> None:
        self._open.discard(attempt.exchange)
        if timer is not None:
            timer.cancel()
        run.client.connection.on_lost = None
        attempt.link.cancel(number)

    def _arm(self, exchange: Exchange, deadline: float | None) -> asyncio.TimerHandle | None:
        if deadline is None:
            return None
        loop = asyncio.get_running_loop()
        text = problems.timed_out(self._options.request_timeout_s or 0).message
        return loop.call_at(deadline, exchange.expire, text)

    def _failed(self, attempt: Attempt, failure: Failure) -> Ended:
        return Ended(event_of(failure), failure, attempt, failure.value)

    # The answer.

    async def _present(self, run: Run, attempt: Attempt) -> None:
        """Pass the answer on as it comes."""
        link, exchange = attempt
        client = run.client
        assert exchange.head is not None
        headers = returned(exchange.head.headers, self._marks(run, link))
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
        sse = events.is_stream(exchange.head.headers)
        await client.break_off(problem, sse=sse, whole_events=tail.endswith(events.ENDS))

    async def _give_up(self, run: Run, stage: Stage) -> None:
        """Nobody came (back): say why, or else how the last one ended with this request."""
        crash = run.crash
        if crash is None or self._upstreams.blocked(run.model, stage):
            await run.client.refuse(self._upstreams.explain(run.model, stage))
            return
        step = Step(Move.END, f"{crash.text}, and no other serves this model")
        await self._conclude(run, stage, crash, step)

    async def _conclude(self, run: Run, stage: Stage, ended: Ended, step: Step) -> None:
        """Answer with what happened; a worker's own complete answer says it best."""
        attempt = ended.attempt
        if attempt is not None and attempt.exchange.client_gone:
            run.client.left_early = True
            return
        own = stage is not Stage.PREFILL or ended.event is Event.REFUSED
        if attempt is not None and attempt.exchange.done and own:
            await self._present(run, attempt)
            return
        said = "" if attempt is None else attempt.exchange.text
        text = f"{said} ({step.reason})" if said else step.reason
        problem = _problem(ended.failure or Failure.LOST, text)
        if problem.status == 503:
            waits = self._upstreams.explain(run.model, stage).retry_after_s
            problem = problems.unavailable(problem.message, waits or 1)
        await run.client.refuse(problem)

    def _marks(self, run: Run, link: Link) -> Headers:
        """Return the headers that say who answered."""
        routes = self._upstreams.routes
        assert routes is not None
        marks = [
            (b"x-dynorch-worker", link.life.encode()),
            (b"x-dynorch-engine", (link.engine or routes.engine).encode()),
        ]
        if run.ticket is not None:
            marks.append((b"x-dynorch-prefill", run.ticket.life.encode()))
        elif run.degraded:
            marks.append((b"x-dynorch-degraded", run.degraded.encode()))
            self._metrics.degraded(run.degraded).inc()
        return marks


def _leaver(attempt: Attempt, client: Client, number: int) -> Callable[[], None]:
    """Return what to do at the moment the client is gone: spare the worker the rest."""
    link, exchange = attempt

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
