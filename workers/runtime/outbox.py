"""What waits to be sent to one frontend: a batch per loop pass, and a bound.

Everything a loop pass produced for a frontend leaves as one message at the end of the pass. When
the frontend reads too slowly, its pipe fills, then its outbox; past `PENDING_BYTES_MAX` the
applications that write to it are made to wait, and only those: other frontends don't notice.
"""

import asyncio
import enum

import zmq

from orchestrator.wire import plane
from orchestrator.wire.sockets import Socket

BATCH_BYTES_MAX = 1 << 20
"""A batch is closed when it has grown past this; one chunk larger than it goes alone."""
PENDING_BYTES_MAX = 4 << 20
"""Bytes one frontend's outbox holds before `send` waits."""
ITEM_BYTES = 16
"""What an item costs beside its data, roughly; so that empty items are bounded too."""


class Sent(enum.Enum):
    """What became of a flush."""

    ALL = enum.auto()
    BLOCKED = enum.auto()
    GONE = enum.auto()


class Outbox:
    """Items for one peer of a ROUTER with ROUTER_MANDATORY."""

    def __init__(self, peer: bytes) -> None:
        self.peer = peer
        self.dirty = False
        """Whether the owner has it on its list of outboxes to flush."""
        self._closed = False
        self._items: list[plane.Up] = []
        self._bytes = 0
        self._waiters: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def full(self) -> bool:
        """Whether writers should wait."""
        return self._bytes > PENDING_BYTES_MAX

    def put(self, item: plane.Up, size: int = 0) -> None:
        """Append; never refused, because `send` waits after it, not before."""
        if not self._closed:
            self._items.append(item)
            self._bytes += size + ITEM_BYTES

    def close(self) -> None:
        """Drop everything, now and later: the peer is gone."""
        self._closed = True
        self._items = []
        self._bytes = 0
        self.wake()

    async def wait_room(self) -> None:
        """Wait until something was sent, or `wake` is called."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def wake(self) -> None:
        """Let all writers look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def flush(self, socket: Socket) -> Sent:
        """Send as much as the pipe takes."""
        while self._items:
            batch, size = self._next_batch()
            try:
                socket.send_multipart([self.peer, plane.encode(batch)], zmq.NOBLOCK)
            except zmq.Again:
                return Sent.BLOCKED
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                return Sent.GONE
            self._items = [] if batch is self._items else self._items[len(batch) :]
            self._bytes -= size
        if self._waiters:
            self.wake()
        return Sent.ALL

    def _next_batch(self) -> tuple[list[plane.Up], int]:
        if len(self._items) <= plane.BATCH_ITEMS_MAX and self._bytes <= BATCH_BYTES_MAX:
            return self._items, self._bytes
        batch: list[plane.Up] = []
        size = 0
        for item in self._items[: plane.BATCH_ITEMS_MAX]:
            batch.append(item)
            size += ITEM_BYTES + (len(item.data) if isinstance(item, plane.Chunk) else 0)
            if size > BATCH_BYTES_MAX:
                break
        return batch, size
