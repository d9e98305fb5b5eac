"""One request inside the worker: the two callables that ASGI gives an application.

The wire promises exactly one `End` or `Fail` per request, whatever the application does; this
class keeps that promise. After a cancel the application sees the disconnect in both ways there
are: `receive` returns it, and `send` raises OSError. Advertised is ASGI 2.3, not later: from 2.4
on Starlette learns of a disconnect only from `send`, so a request that waits in a queue or in
prefill would never hear of it.
"""

import asyncio
import enum
from collections.abc import Callable

from orchestrator.wire import plane
from workers.runtime.engine import Message, Scope
from workers.runtime.outbox import Outbox

ASGI = {"version": "3.0", "spec_version": "2.3"}


class Answer(enum.Enum):
    """How far the response has come."""

    NOTHING = enum.auto()
    HEAD = enum.auto()
    COMPLETE = enum.auto()


class Exchange:
    """`receive` and `send` of one request; `flush()` asks for its outbox to be sent soon."""

    def __init__(
        self, request: plane.Open, outbox: Outbox, flush: Callable[[Outbox], None]
    ) -> None:
        self.id = request.id
        self.outbox = outbox
        self.cancelled = ""
        self.task: asyncio.Task[None] | None = None
        self._body: bytes | None = request.body
        self._flush = flush
        self._answer = Answer.NOTHING
        self._gone = asyncio.Event()

    async def receive(self) -> Message:
        """Give the whole body once; after that, wait for the disconnect."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass on one response message; wait while the frontend's outbox is full."""
        if self.cancelled:
            raise OSError(self.cancelled)
        kind = message["type"]
        if kind == "http.response.body" and self._answer is Answer.HEAD:
            data = message.get("body", b"")
            if data:
                self._put(plane.Chunk(self.id, bytes(data)), len(data))
            if not message.get("more_body", False):
                self._answer = Answer.COMPLETE
                self._put(plane.End(self.id))
                self._gone.set()
        elif kind == "http.response.start" and self._answer is Answer.NOTHING:
            self._answer = Answer.HEAD
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._put(plane.Head(self.id, message["status"], headers))
        else:
            raise RuntimeError(f"{kind} can't follow when the response is at {self._answer.name}")
        while self.outbox.full and not self.cancelled:
            await self.outbox.wait_room()

    def cancel(self, why: str) -> None:
        """Tell the application that nobody listens any more."""
        if self.cancelled:
            return
        self.cancelled = why
        self._gone.set()
        self.outbox.wake()

    def end(self, error: str) -> None:
        """Close the response if the application left it open; `error` is what it raised."""
        if self._answer is Answer.COMPLETE:
            return
        self._answer = Answer.COMPLETE
        if self.cancelled:
            self._put(plane.Fail(self.id, "cancelled", self.cancelled))
        else:
            text = error or "the application ended without completing its response"
            self._put(plane.Fail(self.id, "app-error", text))

    def _put(self, item: plane.Up, size: int = 0) -> None:
        self.outbox.put(item, size)
        self._flush(self.outbox)


def scope_of(request: plane.Open, state: dict[str, object]) -> Scope:
    """Describe the request as ASGI does. `Open.path` is percent-decoded, as ASGI's path is."""
    return {
        "type": "http",
        "asgi": ASGI,
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "root_path": "",
        "query_string": request.query,
        "headers": request.headers,
        "client": None,
        "server": None,
        "state": state.copy(),
    }
