"""One request's client: its side of the HTTP exchange, in whole steps.

Everything a client gets, ours or a worker's, leaves through here; so here it is known what the
client has seen, which decides what may still be done: before the first byte anything, after it
only to go on, to end a stream with an error event, or to cut the connection.
"""

import email.utils
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

from orchestrator.wire.plane import Headers
from workers.frontend import problems
from workers.frontend.listener import Connection
from workers.frontend.problems import Problem

Send = Callable[[dict[str, Any]], Awaitable[None]]

CLIENT_LEFT = 499
"""Status under which a client that left is counted (nginx's number); nobody is sent it."""


class Client:
    """`status` and `first_byte_at` (monotonic s) say what has been sent so far.

    `last`: the connection ends with this answer. `left_early`: the client went before its answer
    was complete; set by whoever finds out.
    """

    __slots__ = (
        "_send", "connection", "first_byte_at", "last", "left_early", "path", "request_id",
        "status",
    )  # fmt: skip

    def __init__(self, connection: Connection, send: Send, path: str, request_id: bytes) -> None:
        self.connection = connection
        self.path = path
        self.request_id = request_id
        self.status = 0
        self.left_early = False
        self.last = False
        self.first_byte_at: float | None = None
        self._send = send

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""
        return self.connection.transport.is_closing()

    async def start(self, status: int, headers: Headers) -> None:
        """Send status line and headers; ours (request id, date) are added."""
        self.status = status
        self.first_byte_at = time.monotonic()
        headers.append((b"x-request-id", self.request_id))
        headers.append((b"date", _date(int(time.time()))))
        if self.last and (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, last: bool) -> None:
        """Send body bytes; waits while the client doesn't read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body, last=True)

    async def refuse(self, problem: Problem, *, close: bool = False) -> None:
        """Send a whole error; with `close`, have the client connect anew for the next request."""
        headers = problems.headers(problem)
        if close:
            headers.append((b"connection", b"close"))
        await self.answer(problem.status, headers, problems.body(problem))

    async def break_off(self, problem: Problem, *, sse: bool, whole_events: bool) -> None:
        """End an answer that can't be completed, so that it can't be taken for complete."""
        if not sse:
            self.connection.abort()
            return
        gap = b"" if whole_events else b"\n\n"
        await self.write(gap + problems.event(problem, self.path), last=True)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """Return the time as HTTP writes it; asked thousands of times a second, made once."""
    return email.utils.formatdate(second, usegmt=True).encode()
