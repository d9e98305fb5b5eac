"""One worker's life, from the entry function to the exit status.

    start the engine -> bind the request plane -> canary -> Ready -> serve -> wind down
    64: its configuration is wrong; 70: it didn't start, or didn't answer its canary;
    71: it died while serving; 0: SIGTERM, at any time

`serve` returns the status; it never exits the process. Whatever ends a life early is said three
times in the same words: in one line on stderr, in `Bye` to the daemon, and in `Fail` to those
whose requests were in flight.
"""

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import uvloop
import zmq

from orchestrator.wire import messages
from orchestrator.wire.config import WorkerConfig
from workers.runtime import canary, kin
from workers.runtime.bridge import LINGER_MS, Bridge
from workers.runtime.control import Gauge, Identity, Session
from workers.runtime.engine import (
    EXIT_CONFIG,
    EXIT_DIED,
    EXIT_INIT,
    Canary,
    Death,
    Engine,
    EngineConfigError,
    EngineStartError,
)
from workers.runtime.lifespan import Lifespan
from workers.runtime.pulse import Pulse
from workers.runtime.rounds import Rounds
from workers.runtime.sigterm import Sigterm

LAST_WORDS_S = 2.0
"""How long the application of a dead engine may take to tell its requests by itself."""
CANCEL_S = 5.0
"""How long cancelled requests may take to end; then they are answered without them."""
LIFESPAN_STOP_S = 2.0
ENGINE_STOP_S = 10.0
SUSPECT_AFTER_S = 2.0
"""When an unanswered round trip is worth a look at the engine's processes."""

T = TypeVar("T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Verdict(NamedTuple):
    """How a life ended: exit status, and unless that was asked for, a `Cause` and a sentence."""

    status: int
    code: str = ""
    text: str = ""


def serve(
    config: WorkerConfig, engine: Engine, loop_factory: LoopFactory = uvloop.new_event_loop
) -> int:
    """Host `engine` until SIGTERM or its death; return the exit status. Main thread only."""
    life = _Life(config, engine)
    life.sigterm.install()
    life.session.start()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(life.live()).status
    finally:
        life.session.close()


def _announce(config: WorkerConfig, session: Session, verdict: Verdict) -> None:
    if verdict.code:
        sys.stderr.write(f"dynorch: {config.life}: {verdict.text}\n")
        sys.stderr.flush()
        session.say(messages.Bye(config.life, verdict.code, verdict.text))


class _Life:
    def __init__(self, config: WorkerConfig, engine: Engine) -> None:
        self.sigterm = Sigterm()
        self.session = Session(
            config,
            Identity(engine.name, engine.version),
            self._gauge,
            lambda: self._models,
            self._on_drain,
        )
        self._config = config
        self._engine = engine
        self._models = config.served_names
        self._ready = False
        self._context = zmq.Context()
        self._bridge = Bridge(self._context, config.plane)
        self._pulse = Pulse(self.session.awake)
        self._rounds = Rounds(config.checks, engine, self._pulse, self._prove, self._in_use)
        self._drain: asyncio.Task[None] | None = None

    async def live(self) -> Verdict:
        """Run the whole life."""
        loop = asyncio.get_running_loop()
        self.sigterm.attach(loop)
        self.session.attach(loop)
        verdict = await self._start_and_host()
        await self._settle(self._engine.stop(ENGINE_STOP_S), "engine stop", ENGINE_STOP_S + 1)
        # Sockets are closed by now, or the bridge never bound: this waits for last answers only.
        self._context.destroy(linger=LINGER_MS)
        return verdict

    async def _start_and_host(self) -> Verdict:
        start = await self._interruptible(self._engine.start(self._report))
        verdict = self._verdict_on(start)
        if verdict is not None:
            _announce(self._config, self.session, verdict)
            return verdict
        self._models = self._engine.models()
        lifespan = Lifespan(start.result())
        death = asyncio.create_task(self._engine.wait_dead())
        proof = await self._interruptible(self._get_ready(lifespan, death))
        verdict = self._verdict_on(proof) or await self._serve_until_the_end(death)
        _announce(self._config, self.session, verdict)
        death.cancel()
        await self._wind_down(verdict)
        await self._settle(lifespan.stop(LIFESPAN_STOP_S), "lifespan", LIFESPAN_STOP_S * 2)
        return verdict

    async def _interruptible(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run to the end, or to SIGTERM; the finished task tells which."""
        task = asyncio.create_task(work)
        self.sigterm.interrupt(task)
        await asyncio.wait({task})
        self.sigterm.interrupt(None)
        return task

    def _verdict_on(self, task: asyncio.Task[T]) -> Verdict | None:
        """Judge a finished step of the start; None if life goes on."""
        if self.sigterm.asked:
            return Verdict(0)
        if task.cancelled():
            return Verdict(EXIT_INIT, "start-crash", "the engine cancelled its own start")
        error = task.exception()
        if error is None:
            return None
        if isinstance(error, EngineConfigError):
            return Verdict(EXIT_CONFIG, "config", str(error))
        if not isinstance(error, EngineStartError):
            traceback.print_exception(error)
            return Verdict(EXIT_INIT, "start-crash", f"{type(error).__name__}: {error}")
        return Verdict(EXIT_INIT, "start-crash", str(error))

    async def _get_ready(self, lifespan: Lifespan, death: asyncio.Task[Death]) -> None:
        self._report("asking the first token", None)
        await lifespan.start()
        # Bound only now: children that the engine forked must not hold the socket.
        await self._bridge.start(lifespan.app, lifespan.state)
        request = self._engine.canary()
        proof = asyncio.create_task(canary.prove(self._context, self._config.plane, request))
        try:
            await asyncio.wait({proof, death}, return_when=asyncio.FIRST_COMPLETED)
            if not proof.done():
                raise EngineStartError(_death_of(death)[1])
            proof.result()
            self._pulse.canary("", request.tokens)
        finally:
            proof.cancel()

    async def _serve_until_the_end(self, death: asyncio.Task[Death]) -> Verdict:
        # In this order: a beat that says ready must not be heard before `Ready`.
        self.session.say(messages.Ready(self._config.life, self._models))
        self._ready = True
        self._rounds.start()
        asked = asyncio.create_task(self.sigterm.came.wait())
        await asyncio.wait({asked, death}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        self._ready = False
        self._rounds.stop()
        if self.sigterm.asked:
            return Verdict(0)
        return Verdict(EXIT_DIED, *_death_of(death))

    async def _wind_down(self, verdict: Verdict) -> None:
        """End every request with an answer, and close the request plane."""
        if not self._bridge.started:
            return
        why = verdict.text or "the worker is stopping"
        self._bridge.refusing = why
        if verdict.status == EXIT_DIED:
            await self._bridge.wait_idle(LAST_WORDS_S)
        self._bridge.cancel_all(why)
        await self._bridge.wait_idle(CANCEL_S)
        self._bridge.close()

    async def _settle(self, work: Coroutine[Any, Any, None], name: str, within_s: float) -> None:
        """Run a step of the stop; whatever goes wrong is printed, the status stays."""
        task = asyncio.create_task(work)
        await asyncio.wait({task}, timeout=within_s)
        if not task.done():
            task.cancel()
            sys.stderr.write(f"dynorch: {self._config.life}: {name} took over {within_s:.3g} s\n")
        elif not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)

    def _on_drain(self, deadline_s: float) -> None:
        self._bridge.refusing = "the worker is draining"
        if self._drain is not None:
            self._drain.cancel()
        self._drain = asyncio.create_task(self._drain_within(deadline_s))

    async def _drain_within(self, deadline_s: float) -> None:
        began = time.monotonic()
        if await self._bridge.wait_idle(deadline_s):
            left_s = deadline_s - (time.monotonic() - began)
            await self._settle(self._engine.wait_fetched(), "what was to be fetched here", left_s)
        else:
            self._bridge.cancel_all("the drain's deadline has passed")
            await self._bridge.wait_idle()
        self.session.say(messages.Drained(self._config.life))

    def _report(self, text: str, percent: float | None = None) -> None:
        self.session.say(messages.Progress(self._config.life, text, percent))

    def _gauge(self) -> Gauge:
        tokens, age_s = self._engine.tokens(), self._pulse.engine_age_s()
        suspect, stopped = "", False
        if age_s > SUSPECT_AFTER_S:
            suspect, stopped = kin.describe(kin.below())
        return Gauge(
            ready=self._ready,
            inflight=self._bridge.inflight,
            requests=self._bridge.requests,
            tokens=self._pulse.shown(tokens),
            engine_age_s=age_s,
            suspect=suspect,
            stopped=stopped,
            stalled_s=self._pulse.stalled_s(tokens, busy=self._ready and self._engine.busy()),
            canaries_missed=self._pulse.canaries_missed,
            canary_fault=self._pulse.canary_fault,
        )

    def _in_use(self) -> bool:
        return bool(self._bridge.inflight or self._bridge.refusing)

    async def _prove(self, request: Canary, within_s: float) -> str:
        return await canary.once(self._context, self._config.plane, request, within_s)


def _death_of(death: asyncio.Task[Death]) -> tuple[str, str]:
    """Code and text; an engine that can't even say how it is counts as dead."""
    error = death.exception()
    if error is not None:
        return "engine-died", f"{type(error).__name__}: {error}"
    return death.result().code, death.result().text
