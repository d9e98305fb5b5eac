"""One attempt of one request on one worker: what has come back, and who is waiting for it.

The worker's items arrive in batches from the link's reader; the request's task takes them out. A
chunk only appends to a list, and the first one of a loop pass wakes the task, which runs after
the pass: so all chunks that a pass brought for this stream are joined and written at once.

The answer's head is held back until there is something to go with it. Until then the client has
seen nothing, and the request can still be sent elsewhere.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from orchestrator.wire.plane import Head
from workers.frontend.retries import Failure

ERROR_BODY_MAX = 64 * 1024
"""A 5xx answer is collected up to this size before it is judged."""

WHOLE_MAX = 16 << 20
"""An answer that only we read may not be longer; prefill's names each block of a prompt."""


class Sink(Protocol):
    """What a link feeds with one request's items."""

    def begin(self, head: Head) -> None:
        """Take status and headers."""

    def add(self, data: bytes) -> None:
        """Take body bytes."""

    def end(self) -> None:
        """Note that the answer is complete."""

    def fail(self, failure: Failure, text: str) -> None:
        """Note that the answer will not be completed."""


class Exchange:
    """A sink whose content is awaited by one task. `cut` cuts the client's connection."""

    __slots__ = (
        "_buffer_max", "_chunks", "_cut", "_loop", "_size", "_waiter", "client_gone", "done",
        "failure", "head", "started", "text", "writing",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, buffer_max: int, cut: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._buffer_max = buffer_max
        self._cut = cut
        self._chunks: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self.head: Head | None = None
        self.done = False
        self.failure: Failure | None = None
        self.text = ""
        self.started = False
        self.writing = False
        self.client_gone = False

    def begin(self, head: Head) -> None:
        """Keep the head; it is of no use to the client before a body is there."""
        self.head = head

    def add(self, data: bytes) -> None:
        """Keep a chunk; a client that doesn't read what we write bounds what is kept for it."""
        if self.failure is not None or self.client_gone:
            return
        self._chunks.append(data)
        self._size += len(data)
        if self.writing and self._size > self._buffer_max:
            text = f"the client left {self._size} bytes of its stream unread"
            self.fail(Failure.SLOW_READER, text)
            # The task is inside a write that this client won't let end.
            self._cut()
        elif self._waiter is not None and (self.started or self._presentable()):
            self._wake()

    def end(self) -> None:
        """Note the end."""
        if self.head is None:
            self.fail(Failure.APP_ERROR, "the worker ended the request without an answer")
        elif self.failure is None:
            self.done = True
            self._wake()

    def fail(self, failure: Failure, text: str) -> None:
        """Note the failure; only the first one counts."""
        if self.failure is None and not self.done:
            self.failure = failure
            self.text = text
            self._wake()

    def expire(self, text: str) -> None:
        """Note that the request took too long."""
        self.fail(Failure.TIMEOUT, text)
        if self.writing:
            self._cut()

    def client_left(self) -> None:
        """Note that nobody waits for the answer any more."""
        self.client_gone = True
        self._chunks.clear()
        self._wake()

    async def opening(self) -> None:
        """Wait until there is an answer to present, a failure, or nobody to present it to."""
        while not (self.done or self.failure or self.client_gone or self._presentable()):
            await self._wait()
        self.started = True

    async def whole(self) -> None:
        """Wait until the answer is complete, or won't be, or nobody waits for it."""
        while not (self.done or self.failure or self.client_gone):
            await self._wait()
            if self._size > WHOLE_MAX:
                self.fail(Failure.APP_ERROR, f"its answer is longer than {WHOLE_MAX} bytes")

    async def changed(self) -> None:
        """Wait until there is something to write, or to stop for."""
        while not (self._chunks or self.done or self.failure or self.client_gone):
            await self._wait()

    @property
    def pending(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._chunks)

    def peek(self) -> bytes:
        """Return what `take` would, and leave it."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def take(self) -> bytes:
        """Return everything that has come since the last call, joined."""
        chunks, self._chunks = self._chunks, []
        self._size = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _presentable(self) -> bool:
        if self.head is None or not self._chunks:
            return False
        return self.head.status < 500 or self._size > ERROR_BODY_MAX

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
