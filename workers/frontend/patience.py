"""Requests that wait a moment because who can answer them is on its way back.

A replica that was asked to restart returns. If it is the only one that serves a model, its requests
are held meanwhile instead of being refused: nothing has failed, and the pause has an end. A crash
is another matter: nobody knows whether it returns, so who comes then is told at once. But a
request that it ended with, and of which nobody has seen a byte, waits for its return likewise.

What is held counts as open, so the bound on open requests bounds it too, and none waits longer
than `hold`.
"""

import asyncio

from workers.frontend.course import Stage
from workers.frontend.retries import CRASHED, LEAVING, Failure
from workers.frontend.run import FAR_PAST, Run
from workers.frontend.upstreams import Upstreams

TABLE_S = 1.0
"""A worker that refuses because it drains may be quicker than the table that says why; and one that
is back is in the table a moment before it is connected."""
CRASH_S = 5.0
"""A worker whose engine has died needs a moment to find out of what, and to end."""


class Patience:
    """Whoever waits, and what ends their wait."""

    def __init__(self, upstreams: Upstreams, hold_s: float) -> None:
        self._upstreams = upstreams
        self._hold_s = hold_s
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False
        self._returned_at: dict[str, float] = {}
        upstreams.on_change = self.wake

    def may_help(self, run: Run, stage: Stage, failure: Failure) -> bool:
        """Whether somebody who isn't there may serve a request that failed like this.

        One with which two workers have ended may be the reason, and the only worker isn't given it
        a third time.
        """
        if failure in CRASHED:
            return run.crashes == 1
        return failure in LEAVING or self._upstreams.returning(run.model, stage)

    def until(self, began: float, deadline: float | None) -> float:
        """When a request that came at `began` has waited long enough."""
        return min(began + self._hold_s, deadline or began + self._hold_s)

    async def wait(self, run: Run, stage: Stage) -> bool:
        """Wait until things are different; False when there is nothing to wait for."""
        loop = asyncio.get_running_loop()
        model, client, until = run.model, run.client, run.until
        returning = self._upstreams.returning(model, stage)
        if not returning and run.crashed_at > FAR_PAST:
            returning = self._upstreams.recovering(model, stage)
        if not returning:
            seen_at = max(run.left_at, self._returned_at.get(model, run.left_at))
            until = min(until, max(seen_at + TABLE_S, run.crashed_at + CRASH_S))
        if self._closed or loop.time() >= until:
            return False
        changed = loop.create_future()
        self._waiting.add(changed)
        timer = loop.call_at(until, _wake, changed)
        client.connection.on_lost = lambda: _wake(changed)
        try:
            await changed
        finally:
            client.connection.on_lost = None
            timer.cancel()
            self._waiting.discard(changed)
        if returning:
            self._returned_at[model] = loop.time()
        return True

    def wake(self) -> None:
        """The workers that can be used are others now."""
        for changed in self._waiting:
            _wake(changed)

    def close(self) -> None:
        """Hold nobody any more."""
        self._closed = True
        self.wake()


def _wake(changed: "asyncio.Future[None]") -> None:
    if not changed.done():
        changed.set_result(None)
