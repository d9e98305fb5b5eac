"""ZeroMQ sockets set up and read the way the project reads them.

`zmq.asyncio` costs more than twice as much per message as reading the descriptor, so loops watch
`ZMQ_FD` with `add_reader`. That descriptor is edge-triggered and says only "something changed":
after each wake-up, and after each send (a send can eat the edge), the socket must be drained until
EAGAIN. A drain is bounded so that one busy peer can't starve the loop; the rest follows in the
next pass.
"""

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    import asyncio

DRAIN_MAX = 256
"""Messages read in one loop pass, unless the reader is made with another bound."""

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


def make_socket(context: Context, kind: int, *, hwm: int = 10_000) -> Socket:
    """A socket that closes without lingering and, where it binds ipc, admits only our own uid."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = hwm
    return socket


def bind_ipc(socket: Socket, endpoint: str) -> None:
    """Bind an ipc endpoint for this uid alone: mode 0600, and peers checked by SO_PEERCRED."""
    assert endpoint.startswith("ipc://"), endpoint
    socket.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
    old = os.umask(0o177)
    try:
        socket.bind(endpoint)
    finally:
        os.umask(old)


class Reader:
    """Calls `on_message(frames)` for each message of a socket, from the running asyncio loop.

    Call `kick()` after every send on the same socket: the send may have swallowed the edge.
    """

    def __init__(
        self,
        socket: Socket,
        on_message: Callable[[list[bytes]], None],
        drain_max: int = DRAIN_MAX,
    ) -> None:
        self._socket = socket
        self._on_message = on_message
        self._drain_max = drain_max
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False

    def start(self) -> None:
        """Begin reading in the running loop."""
        import asyncio  # noqa: PLC0415 - verbs use these sockets without a loop, and in a hurry

        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._drain)
        self.kick()

    def stop(self) -> None:
        """Stop reading; the socket stays open and belongs to the caller."""
        if self._loop is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._loop.remove_reader(self._socket.fileno())
            self._loop = None

    def kick(self) -> None:
        """Look at the socket again in the next loop pass."""
        if self._loop is not None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        if self._loop is None:
            return
        for _ in range(self._drain_max):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(frames)
            if self._loop is None:
                return
        self.kick()


def fields(frames: list[bytes]) -> tuple[bytes, bytes]:
    """Routing id and payload of what a ROUTER received; ValueError when it is anything else."""
    if len(frames) != 2:
        raise ValueError(f"expected 2 frames, got {len(frames)}")
    return frames[0], frames[1]
