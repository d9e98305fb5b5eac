"""Where the tokens of one request arrive, on their way from the batch to the client."""

import asyncio

from workers.sim.sequence import Delta


class EngineDeadError(Exception):
    """The engine died under a request."""


class GenerationError(Exception):
    """The engine can't go on with this request; others are well."""


class Sink:
    """Where one request's tokens arrive. What it holds is bounded by the sequences' limits."""

    def __init__(self) -> None:
        self._closed = False
        self._error: Exception | None = None
        self._deltas: list[Delta] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, delta: Delta) -> None:
        """Add a token and wake the request."""
        self._deltas.append(delta)
        self._wake()

    def close(self) -> None:
        """Say that no more will come: the client is gone."""
        self._closed = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Say that no more will come, and why."""
        self._error = error
        self._wake()

    async def take(self) -> list[Delta]:
        """Wait for tokens and take all there are; none means closed. Raises what it failed with."""
        while not (self._deltas or self._closed or self._error):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._deltas = self._deltas, []
        if self._error is not None and not taken:
            raise self._error
        return [] if self._closed else taken

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
