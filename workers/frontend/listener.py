"""The HTTP side: one listening socket, and uvicorn's protocol on every connection.

uvicorn's server object is not used, only its protocol: the server polls ten times a second, owns
the signals, and closes when we would rather finish. The protocol gets two things that ASGI lacks:
a request hears at once that its client is gone (no task has to wait for it), and can cut the
connection, because a client that doesn't read would hold a polite close for ever.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from workers.frontend import ports, problems

BACKLOG = 2048
KEEP_ALIVE_S = 65
"""Longer than the pools of common clients and proxies keep an idle connection, so they close it."""
EXTENSION = "dynorch.connection"
_OFFER = frozenset({b"connection", b"upgrade", b"http2-settings"})


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with an ear for the client's end and a way to cut."""

    on_lost: Callable[[], None] | None = None
    _declining = False

    def on_message_begin(self) -> None:
        """Put ourselves where the application finds us."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {EXTENSION: self}

    def on_headers_complete(self) -> None:
        """Begin the request, unless its offer of another protocol must be declined first."""
        self._declining = self.parser.should_upgrade() and self._get_upgrade() != b"websocket"
        if not self._declining:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Complete the request; one whose offer is being declined hasn't begun yet."""
        if not self._declining:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._declining:
                self._decline(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            self.send_400_response(f"This is not valid HTTP: {error}.")

    def send_400_response(self, msg: str) -> None:
        """Refuse what isn't HTTP, in the shape of all our errors, and close."""
        body = problems.body(problems.bad_request(msg))
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(head + length + body)
        self.transport.close()

    def _decline(self, rest: bytes) -> None:
        """Read the request again without its offer to upgrade.

        The parser drops the body of any request with an Upgrade header. Java's HTTP client sends
        one with every first request ("h2c"), which a server may ignore; its body it may not.
        """
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        lines += [b"%b: %b" % line for line in self.headers if line[0] not in _OFFER]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request in progress."""
        super().connection_lost(exc)
        if self.on_lost is not None:
            on_lost, self.on_lost = self.on_lost, None
            on_lost()

    @property
    def body_arrived(self) -> bool:
        """Whether the request in progress is complete, and its client still there."""
        return not self.cycle.more_body and not self.cycle.disconnected

    def abort(self) -> None:
        """Cut the connection now, short of what was announced; what is still unsent is dropped."""
        # Said in advance, or uvicorn would log our returning as an application's mistake.
        self.cycle.disconnected = True
        self.transport.abort()


class Listener:
    """Serves `app` on a bound socket; at most `connections_max` connections, more are cut."""

    def __init__(self, app: Any, sock: socket.socket, connections_max: int) -> None:
        self._sock = sock
        self._connections_max = connections_max
        self._state = ServerState()
        self._config = Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server: asyncio.Server | None = None
        self._coming: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to accept."""
        self._config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connect, sock=self._sock, backlog=BACKLOG)

    def make_way(self) -> bool:
        """Stop accepting if another frontend listens on this port; True if one does.

        Without another, a closed port would tell clients nothing: we go on accepting, and say
        503 with the reason.
        """
        if not ports.others_listen(self._sock):
            return False
        if self._server is not None:
            self._accept_rest()
            self._server.close()
            self._server = None
        return True

    def _accept_rest(self) -> None:
        """Take who is connected and waits to be accepted: closing the port would cut them off."""
        loop = asyncio.get_running_loop()
        for _ in range(BACKLOG):
            try:
                accepted, _address = self._sock.accept()
            except OSError:
                return  # nobody waits any more
            accepted.setblocking(False)
            coming = loop.create_task(loop.connect_accepted_socket(self._connect, accepted))
            self._coming.add(coming)
            coming.add_done_callback(self._coming.discard)

    def close(self) -> None:
        """Stop accepting, and close the connections that are idle; others end with their answer."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._state.connections):
            connection.shutdown()

    async def finish(self, within_s: float) -> None:
        """Close, wait for the last bytes to leave, and cut what is left."""
        self.close()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=within_s)
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _connect(self) -> asyncio.Protocol:
        if len(self._state.connections) >= self._connections_max:
            return _Refusal()
        return Connection(self._config, self._state, {})


class _Refusal(asyncio.Protocol):
    """A connection beyond the bound: closed without a word, as a full backlog would."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close."""
        cast("asyncio.Transport", transport).abort()
