"""Examining a ready engine: a round trip where no tokens flow, one token where nobody wants any.

Tokens that flow prove an engine better than any question. Where none do, a *round trip* asks each
of its processes for an answer: cheap, and it finds what is frozen or mute. What answers may still
make no token, so an idle engine is sent a *canary* now and then: a real request for one token. It
is nobody's request: it counts in no figure of ours, and no drain waits for it.

At most one of each is under way. Nothing is judged here: `Pulse` has the ages, beats carry them,
the daemon decides.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from orchestrator.wire.config import Checks
from workers.runtime.engine import Canary, Engine
from workers.runtime.pulse import Pulse

log = logging.getLogger("dynorch.rounds")

RETRY_S = 1.0

Prove = Callable[[Canary, float], Awaitable[str]]
"""`prove(canary, within_s)`: send it; what was wrong with its answer, empty if nothing."""


class Rounds:
    """Examines `engine` from `start` to `stop`. `in_use()`: requests of clients are open."""

    def __init__(
        self, checks: Checks, engine: Engine, pulse: Pulse, prove: Prove, in_use: Callable[[], bool]
    ) -> None:
        self._checks = checks
        self._engine = engine
        self._pulse = pulse
        self._prove = prove
        self._in_use = in_use
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, on the running loop."""
        self._tasks = [asyncio.create_task(self._ask())]
        if self._checks.canary_period_s:
            self._tasks.append(asyncio.create_task(self._send_canaries()))

    def stop(self) -> None:
        """End: nothing is proven by an engine that is to go. Idempotent."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        self._pulse.answered()
        self._pulse.excuse()

    async def _ask(self) -> None:
        seen = -1
        told = False
        while True:
            await asyncio.sleep(self._checks.ask_period_s)
            tokens = self._engine.tokens()
            if tokens == seen:
                error = await self._round_trip()
                if error is not None and not told:
                    # An answer all the same; whether the engine is dead, it says itself.
                    log.warning("dynorch: the engine answers, but: %s", error)
                    told = True
            seen = tokens

    async def _round_trip(self) -> BaseException | None:
        self._pulse.asked()
        asked = asyncio.ensure_future(self._engine.ask())
        try:
            await asyncio.wait({asked})
        finally:
            asked.cancel()
            self._pulse.answered()
        return None if asked.cancelled() else asked.exception()

    async def _send_canaries(self) -> None:
        expected = -1
        while True:
            await asyncio.sleep(self._pause_s())
            tokens = self._engine.tokens()
            proven, expected = tokens != expected, tokens
            if proven:
                self._pulse.excuse()
            if proven or (self._in_use() and not self._pulse.canaries_missed):
                continue
            canary = self._engine.canary()
            fault = await self._prove(canary, self._checks.canary_timeout_s)
            self._pulse.canary(fault, canary.tokens)
            expected = tokens + (0 if fault else canary.tokens)
            if fault:
                log.warning("dynorch: a request for one token, sent as a test, %s", fault)

    def _pause_s(self) -> float:
        """Until the next canary; after a miss hardly any: the engine has had its time already."""
        if self._pulse.canaries_missed:
            return min(RETRY_S, self._checks.canary_period_s)
        return self._checks.canary_period_s
