"""Requests that wait a moment because who can answer them is on its way back.

A replica that was asked to restart returns. If it is the only one that serves a model, its requests
are held meanwhile instead of being refused: nothing has failed, and the pause has an end. A crash
is another matter: nobody knows whether it returns, so clients are told at once.

What is held counts as open, so the bound on open requests bounds it too, and none waits longer
than `hold`.
"""

import asyncio

from workers.frontend.client import Client
from workers.frontend.course import Stage
from workers.frontend.retries import LEAVING, Failure
from workers.frontend.upstreams import Upstreams

TABLE_S = 1.0
"""A worker that refuses because it drains may be quicker than the table that says why; and one that
is back is in the table a moment before it is connected."""


class Patience:
    """Whoever waits, and what ends their wait."""

    def __init__(self, upstreams: Upstreams, hold_s: float) -> None:
        self._upstreams = upstreams
        self._hold_s = hold_s
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False
        self._returned_at: dict[str, float] = {}
        upstreams.on_change = self.wake

    def may_help(self, model: str, stage: Stage, failure: Failure) -> bool:
        """Whether somebody who isn't there may serve a request that failed like this."""
        return failure in LEAVING or self._upstreams.returning(model, stage)

    def until(self, began: float, deadline: float | None) -> float:
        """When a request that came at `began` has waited long enough."""
        return min(began + self._hold_s, deadline or began + self._hold_s)

    async def wait(
        self, model: str, stage: Stage, client: Client, until: float, failed_at: float
    ) -> bool:
        """Wait until things are different; False when there is nothing to wait for.

        `failed_at`: when a worker refused this request because it leaves; long ago if none did.
        """
        loop = asyncio.get_running_loop()
        returning = self._upstreams.returning(model, stage)
        if not returning:
            seen_at = max(failed_at, self._returned_at.get(model, failed_at))
            until = min(until, seen_at + TABLE_S)
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
