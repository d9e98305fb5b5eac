"""ASGI's lifespan: the application's own start and stop, for those that want it.

An application that raises on the lifespan scope, or returns from it, doesn't want it: that is how
ASGI says so, and it is no error.
"""

import asyncio

from workers.runtime.engine import App, EngineStartError, Message
from workers.runtime.exchange import ASGI


class Lifespan:
    """Drives one application's lifespan from `start` to `stop`."""

    def __init__(self, app: App) -> None:
        self.state: dict[str, object] = {}
        """What the application keeps for its requests; each gets a shallow copy."""
        self.app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(1)
        self._outbox: asyncio.Queue[Message] = asyncio.Queue(2)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Let the application start; EngineStartError if it says that it couldn't."""
        self._task = asyncio.create_task(self._run(), name="lifespan")
        answer = await self._ask("lifespan.startup")
        if answer.get("type") == "lifespan.startup.failed":
            raise EngineStartError(f"the application didn't start: {answer.get('message', '')}")

    async def stop(self, timeout_s: float) -> None:
        """Let the application stop, for at most `timeout_s`."""
        if self._task is None or self._task.done():
            return
        try:
            await asyncio.wait_for(self._ask("lifespan.shutdown"), timeout_s)
        except TimeoutError:
            self._task.cancel()
        await asyncio.wait({self._task}, timeout=timeout_s)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": ASGI, "state": self.state}
        await self.app(scope, self._inbox.get, self._outbox.put)

    async def _ask(self, kind: str) -> Message:
        """Give the application one message; its answer, or {} if it has none and is gone."""
        assert self._task is not None
        self._inbox.put_nowait({"type": kind})
        answer = asyncio.create_task(self._outbox.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        if not self._task.cancelled():
            # Taken here so that asyncio doesn't report as lost what is only a "no".
            self._task.exception()
        return {}
