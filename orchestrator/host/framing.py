"""Messages on a stream: four bytes of length, then `marshal`.

Daemon and zygote speak it over a socket pair. A stream and not packets, because a request carries
a whole environment and a worker's configuration, and a packet socket's limit is smaller than what
the kernel admits for those. `marshal` and not JSON, because it carries bytes and reads and writes
without touching much memory, which every shim would keep for itself; its version 2 is the same in
every Python. It trusts its input, and may: both ends of the pair are ours.
"""

import marshal
import socket

FRAME_MAX = 16 << 20
"""A longer frame is a programmer's error at the sender and ends the connection at the receiver."""

VERSION = 2


def pack(message: dict[str, object]) -> bytes:
    """Return one frame."""
    body = marshal.dumps(message, VERSION)
    assert len(body) <= FRAME_MAX, f"a frame of {len(body)} bytes"
    return len(body).to_bytes(4, "big") + body


class Unpacker:
    """Cuts a stream into messages, however it was chopped."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, object]]:
        """Take what came; return the messages that are complete. ValueError: not our peer."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > FRAME_MAX:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._buffer) < 4 + size:
                break
            body = bytes(self._buffer[4 : 4 + size])
            messages.append(marshal.loads(body))  # noqa: S302 - see above
            del self._buffer[: 4 + size]
        return messages


def receive(peer: socket.socket) -> dict[str, object] | None:
    """Wait for one message; None when the peer is gone. Reads nothing beyond it."""
    head = _exactly(peer, 4)
    if head is None:
        return None
    size = int.from_bytes(head, "big")
    if size > FRAME_MAX:
        raise ValueError(f"a frame of {size} bytes")
    body = _exactly(peer, size)
    if body is None:
        return None
    message: dict[str, object] = marshal.loads(body)  # noqa: S302 - see above
    return message


def _exactly(peer: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        try:
            chunk = peer.recv(size - len(data))
        except ConnectionError:
            return None
        if not chunk:
            return None
        data += chunk
    return bytes(data)
