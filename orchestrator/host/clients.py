"""The shim's socket: packets of JSON to and from whoever looks after the worker.

Anybody of our own uid (or root) may connect, several at once; each is told the state on arrival
and every change after that. A client that doesn't read what it is sent is cut off, not waited for:
it connects again and is told the state. The socket's path is reached through a descriptor of its
directory, because the kernel refuses socket paths longer than 107 bytes.
"""

import json
import os
import select
import socket
import struct
from collections.abc import Callable

NAME = "s"
PACKET_MAX = 64 << 10
CLIENTS_MAX = 16
"""One more than this is refused by closing it at once."""


class Clients:
    """Owns the listening socket and the connections; watched by the shim's one poll object."""

    def __init__(
        self,
        poll: select.poll,
        greet: Callable[[], dict[str, object]],
        on_request: Callable[[dict[str, object]], None],
    ) -> None:
        self._poll = poll
        self._greet = greet
        self._on_request = on_request
        self._listener: socket.socket | None = None
        self._clients: dict[int, socket.socket] = {}

    def listen(self, directory: str) -> None:
        """Bind in this directory; OSError when that can't be done."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.setblocking(False)
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        old = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{NAME}")
        finally:
            os.umask(old)
            os.close(folder)
        listener.listen(CLIENTS_MAX)
        self._listener = listener

    def watch(self) -> None:
        """Let the poll object wake us for connections."""
        assert self._listener is not None
        self._poll.register(self._listener, select.POLLIN)

    def forget(self) -> None:
        """Let go of the descriptor without closing it: we are a fork, and it isn't ours."""
        if self._listener is not None:
            self._listener.detach()
            self._listener = None

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is one of ours."""
        return fd in self._clients or (self._listener is not None and fd == self._listener.fileno())

    def serve(self, fd: int) -> None:
        """Do what a ready descriptor asks for."""
        if fd in self._clients:
            self._read(fd)
        else:
            self._accept()

    def tell(self, message: dict[str, object]) -> None:
        """Send to everybody."""
        packet = json.dumps(message).encode()
        for fd in list(self._clients):
            self._send(fd, packet)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        if uid not in {os.getuid(), 0} or len(self._clients) >= CLIENTS_MAX:
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client
        self._poll.register(client, select.POLLIN)
        self._send(client.fileno(), json.dumps(self._greet()).encode())

    def _read(self, fd: int) -> None:
        try:
            packet = self._clients[fd].recv(PACKET_MAX)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._drop(fd)
            return
        try:
            request = json.loads(packet)
        except ValueError:
            request = None
        if isinstance(request, dict):
            self._on_request(request)
        else:
            self._drop(fd)  # it doesn't speak our language

    def _send(self, fd: int, packet: bytes) -> None:
        try:
            self._clients[fd].send(packet)
        except OSError:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._poll.unregister(fd)
        self._clients.pop(fd).close()
